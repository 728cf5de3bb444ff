"""A botpy bot whose session survives a kill.

Offline by default, against QQ on localhost; `--live` with `QQBOT_APP_ID` and `QQBOT_SECRET` in
the environment runs it at QQ.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botpy
from _frameworks import run_example
from botpy.http import Route
from botpy.message import C2CMessage
from botpy.robot import Token

from qqbot_session.integrations.botpy import SessionMixin  # one line more


class MyClient(SessionMixin, botpy.Client):  # and one changed
    """A bot that answers."""

    async def on_ready(self) -> None:
        """Say who one is: once, also when the session was resumed."""
        print(f"ready: {self.robot.name}", flush=True)

    async def on_c2c_message_create(self, message: C2CMessage) -> None:
        """Take a while, and answer."""
        await asyncio.sleep(random.uniform(0, 0.3))
        await message.reply(content=f"You said {message.content}")
        print(f"answered {message.content!r}", flush=True)


def bot(app_id: str, secret: str) -> None:
    """Run it until SIGTERM or Ctrl-C."""
    if "QQBOT_API" in os.environ:
        go_to_localhost(os.environ["QQBOT_API"], os.environ["QQBOT_TOKEN_URL"])
    intents = botpy.Intents(public_messages=True)
    sessions = os.environ.get("QQBOT_SESSIONS", "sessions")
    MyClient(intents=intents, sessions=sessions, ext_handlers=False).run(
        appid=app_id, secret=secret
    )


def go_to_localhost(api_url: str, token_url: str) -> None:
    """Lead botpy, whose addresses are fixed, somewhere else: for this example alone."""

    async def update_access_token(self: Any) -> None:
        body = {"appId": self.app_id, "clientSecret": self.secret}
        async with aiohttp.ClientSession() as http, http.post(token_url, json=body) as response:
            answer = await response.json()
        self.access_token = answer["access_token"]
        self.expires_in = time.time() + int(answer["expires_in"])

    Token.update_access_token = update_access_token
    Route.SCHEME, Route.DOMAIN = urlsplit(api_url)[:2]


if __name__ == "__main__":
    run_example(__doc__ or "", bot)
