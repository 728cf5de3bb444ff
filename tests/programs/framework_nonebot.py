"""A bot on nonebot2 and nonebot-adapter-qq; BUILD says how it is built, and names the driver.

`stock`, `adapter` (ours), `queue` and `queue-answered` (ours, with a plugin that answers later).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import nonebot
from framework_work import API, APP_ID, BUILD, SECRET, SESSIONS, TOKEN_URL, say, work
from nonebot.adapters.qq import Adapter, Bot, C2CMessageCreateEvent, ReadyEvent

build, _, driver_name = BUILD.partition(" ")
if build != "stock":
    from qqbot_session.integrations.nonebot import Adapter

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
nonebot.init(
    _env_file=None,
    driver=driver_name or "~none+~aiohttp",
    host="127.0.0.1",
    port=int(os.environ["PORT"]),
    log_level="INFO",
    qq_api_base=f"{API}/",
    qq_auth_base=TOKEN_URL,
    qq_sessions=SESSIONS,
    qq_sessions_until="answered" if build.endswith("answered") else "handled",
    qq_verify_webhook=False,
    qq_bots=[
        {"id": APP_ID, "secret": SECRET, "token": "", "intent": {"c2c_group_at_messages": True}}
    ],
)
driver = nonebot.get_driver()
driver.register_adapter(Adapter)


@driver.on_bot_connect
async def connected(bot: Bot) -> None:
    say("ready", name=bot.self_info.username)


@driver.on_bot_disconnect
async def disconnected(bot: Bot) -> None:
    say("disconnected")


@nonebot.on(rule=lambda event: isinstance(event, ReadyEvent)).handle()
async def ready() -> None:
    say("ready event")


@nonebot.on_message(priority=1, block=False).handle()
async def early(event: C2CMessageCreateEvent) -> None:
    """Be a matcher of another priority, that ends before the work begins."""


class Database:
    """What a plugin opens and closes."""

    is_open = True


@driver.on_startup
async def open_database() -> None:
    @driver.on_shutdown  # as late as a plugin can
    async def close_database() -> None:
        Database.is_open = False


@nonebot.on_message(priority=5).handle()
async def late(bot: Bot, event: C2CMessageCreateEvent) -> None:
    if build.startswith("queue"):
        await queue.put((bot, event))
        return
    await work(event.get_plaintext(), lambda text: bot.send(event, text))
    if not Database.is_open:
        say("database closed")
    if bot.self_id not in nonebot.get_bots():
        say("bot gone")


queue: asyncio.Queue[tuple[Bot, C2CMessageCreateEvent]] = asyncio.Queue()
answering: set[asyncio.Task[None]] = set()


@driver.on_startup
async def take_over() -> None:
    async def answer(bot: Bot, event: C2CMessageCreateEvent) -> None:
        await work(f"reply {event.get_plaintext()}", lambda text: bot.send(event, text))

    async def answer_all() -> None:
        while True:
            answering.add(asyncio.create_task(answer(*await queue.get())))

    answering.add(asyncio.create_task(answer_all()))


nonebot.run()
