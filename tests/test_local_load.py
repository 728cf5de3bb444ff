"""`LocalGateway` under load: a day of lines, and nothing left of them but the records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from functools import partial
from typing import Any

import aiohttp
import pytest
from descriptors import descriptors
from test_local_gateway import C2C, Bot

from qqbot_session.testing import LocalGateway
from qqbot_session.testing.line import Line

pytestmark = pytest.mark.real_time

LINES = 200
RATE = 100  # events a second
EVENTS = 20 * RATE


def lines_in_memory() -> int:
    gc.collect()
    return sum(isinstance(thing, Line) for thing in gc.get_objects())


async def live(bot: Bot, number: int, rng: random.Random) -> int:
    """Identify, and Resume whenever the line ends, until a message says so; count the events."""
    events, seq = 0, 1
    await bot.identify(shard=[number, LINES])
    while True:
        message = await bot.ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            await bot.ws.close()
            await bot.resume(seq)
            continue
        frame = message.json()
        if frame["op"] == 7:
            await bot.ws.close(code=4000)
        elif frame.get("t") == C2C:
            seq, events = frame["s"], events + 1
            if frame["d"]["content"] == "enough":
                await bot.ws.close()
                return events
        if rng.random() < 0.1:
            with contextlib.suppress(ConnectionError):  # the line has just died
                await bot.send(1, seq)


@pytest.mark.slow  # 20 s of events
async def test_two_hundred_lines_and_all_their_misfortunes_leave_nothing_behind() -> None:
    rng = random.Random(1)
    tasks, files, lines = len(asyncio.all_tasks()), descriptors(), lines_in_memory()
    everybody = aiohttp.TCPConnector(limit=0)
    async with LocalGateway() as qq, aiohttp.ClientSession(connector=everybody) as http:
        bots = [Bot(http, qq) for _ in range(LINES)]
        lives = [asyncio.create_task(live(bot, n, rng)) for n, bot in enumerate(bots)]
        await qq.wait_for(lambda qq: qq.remaining() == qq.session_starts - LINES, 60)
        sent = await feed_and_strike(qq, rng)
        await qq.emit(C2C, qq.c2c_message("enough"))
        counts = await asyncio.wait_for(asyncio.gather(*lives), 60)
        assert sum(counts) >= sent + LINES
        await qq.wait_for(lambda qq: all(client.closed_at for client in qq.clients))
        del bots, lives
        assert len(qq.clients) > 2 * LINES
        assert len(qq.identifies) == LINES
    assert lines_in_memory() <= lines
    async with asyncio.timeout(30):  # sockets close in the loop's next turns
        while len(asyncio.all_tasks()) > tasks or descriptors() > files:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def feed_and_strike(qq: LocalGateway, rng: random.Random) -> int:
    """Emit events to shards drawn by lot, and end the lines of some; return how many events."""
    sent = 0
    strikes: list[Any] = [qq.drop, qq.reconnect, partial(qq.close, 4009)]
    for _ in range(EVENTS):
        shard = (rng.randrange(LINES), LINES)
        sent += len(await qq.emit(C2C, qq.c2c_message("hello"), shard=shard))
        if rng.random() < 0.2:
            await rng.choice(strikes)(shard=(rng.randrange(LINES), LINES))
        await asyncio.sleep(1 / RATE)
    return sent
