"""What every bot of the framework tests does, whichever framework it is built on.

Where QQ is and how the bot is built comes from the environment. What it does it prints as it does
it, one JSON object per line after a mark, so that what the framework prints does not matter.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

API, TOKEN_URL, APP_ID, SECRET, SESSIONS, BUILD = (
    os.environ.get(name, "")
    for name in ("QQ_API", "QQ_TOKEN_URL", "QQ_APP", "QQ_SECRET", "QQ_SESSIONS", "BUILD")
)
LONGEST = float(os.environ.get("LONGEST", "0.3"))  # seconds a handler takes


def say(what: str, **details: object) -> None:
    """Write a line in one piece: threads of the framework write to the same pipe."""
    os.write(1, f"\n>> {json.dumps({'what': what, **details})}\n".encode())


async def work(content: str, reply: Callable[[str], Awaitable[Any]]) -> None:
    """Take a while, then do what the message says: `12`, `reply 12` or `raise 12`."""
    verb, _, number = content.rpartition(" ")
    say("started", number=int(number))
    await asyncio.sleep(random.uniform(0, LONGEST))
    if verb == "raise":
        say("raised", number=int(number))
        raise LookupError(f"the handler of {number} raises, as it was told")
    if verb == "reply":
        await reply(f"answer {number}")
    say("handled", number=int(number))
