"""How soon a restarted bot is back when every HTTP answer of QQ's takes 100 ms."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ._client import INTENTS, app_id
from ._gateway import Gateway
from ._measure import Row, Settings, ratios, take_turns

_ROOT = Path(__file__).parents[1]
_TIMES = 9

_OURS = """
import asyncio
from qqbot_session.bot import run_bot

async def handle(event, bot):
    pass

asyncio.run(run_bot({app!r}, "secret", intents={intents}, handle=handle, sessions={sessions!r},
                    api_url={api!r}, token_url={api!r} + "/app/getAppAccessToken"))
"""
_THEIRS = """
import time
from urllib.parse import urlsplit

import aiohttp
import botpy
from botpy import robot
from botpy.http import Route

async def update_access_token(self):  # theirs has a fixed address
    body = {{"appId": self.app_id, "clientSecret": self.secret}}
    async with aiohttp.ClientSession() as http:
        async with http.post({api!r} + "/app/getAppAccessToken", json=body) as answer:
            found = await answer.json()
    self.access_token = found["access_token"]
    self.expires_in = int(found["expires_in"]) + int(time.time())

robot.Token.update_access_token = update_access_token
Route.SCHEME, Route.DOMAIN = urlsplit({api!r})[:2]

class Bot(botpy.Client):
    pass

Bot(intents=botpy.Intents(public_messages=True), bot_log=None, ext_handlers=False).run(
    appid={app!r}, secret="secret"
)
"""


async def rows(settings: Settings, directory: Path, here: Gateway) -> list[Row]:
    """Measure from the start of the process to RESUMED, and botpy's to READY."""
    sys.path.insert(0, str(_ROOT / "tests"))
    import frameworks

    frameworks.make("botpy")
    python = str(frameworks.python_of("botpy"))
    values = {
        "app": app_id(0),
        "intents": INTENTS,
        "sessions": str(directory / "bot"),
        "api": f"http://127.0.0.1:{here.port}",
    }

    def side(program: str) -> Callable[[], Awaitable[float]]:
        return lambda: _start(here, python, program.format(**values))

    here.delay = 0.1
    try:
        seen = await take_turns(
            {"ours": side(_OURS), "theirs": side(_THEIRS)}, settings.repeats(_TIMES)
        )
    finally:
        here.delay = 0.0
    what = "a bot's start to RESUMED, 100 ms per HTTP answer"
    return [
        Row(
            question=what,
            against="plain botpy's to READY",
            values=ratios(seen["ours"], seen["theirs"]),
            target="<= 0.85",
        ),
        Row(question=what, values=seen["ours"], unit="s"),
        Row(question="plain botpy's to READY", values=seen["theirs"], unit="s"),
    ]


async def _start(here: Gateway, python: str, program: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", program), env=environment, stdout=-3, stderr=-3
    )
    try:
        await here.all_up("bot")
        took = time.perf_counter() - started
        await asyncio.sleep(0.5)  # what it wants to keep is on storage
    finally:
        process.kill()
        await process.wait()
    await here.none_left("bot")
    return took
