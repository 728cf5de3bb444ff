"""A NoneBot2 bot whose session survives a kill.

Offline by default, against QQ on localhost; `--live` with `QQBOT_APP_ID` and `QQBOT_SECRET` in
the environment runs it at QQ.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import nonebot
from _frameworks import run_example
from nonebot.adapters.qq import Bot, C2CMessageCreateEvent

from qqbot_session.integrations.nonebot import Adapter as QQAdapter  # instead of theirs


def bot(app_id: str, secret: str) -> None:
    """Run it until SIGTERM or Ctrl-C; a real one has all this in `.env`."""
    settings: dict[str, Any] = {
        "driver": "~none+~aiohttp",
        "log_level": "WARNING",
        "qq_sessions": os.environ.get("QQBOT_SESSIONS", "sessions"),
        "qq_bots": [
            {
                "id": app_id,
                "secret": secret,
                "token": "",
                "intent": {"c2c_group_at_messages": True},
            }
        ],
    }
    if "QQBOT_API" in os.environ:
        settings["qq_api_base"] = os.environ["QQBOT_API"] + "/"
        settings["qq_auth_base"] = os.environ["QQBOT_TOKEN_URL"]
    nonebot.init(**settings)
    nonebot.get_driver().register_adapter(QQAdapter)
    nonebot.on_message().append_handler(answer)
    nonebot.run()


async def answer(bot: Bot, event: C2CMessageCreateEvent) -> None:
    """Take a while, and answer."""
    await asyncio.sleep(random.uniform(0, 0.3))
    await bot.send(event, f"You said {event.get_plaintext()}")
    print(f"answered {event.get_plaintext()!r}", flush=True)


if __name__ == "__main__":
    run_example(__doc__ or "", bot)
