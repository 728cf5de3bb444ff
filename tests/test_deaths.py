"""Events that kill the process: counted in the record, and let go after the third. Promise 30."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_shard import ACCOUNT, KIND, Line, World, reason, settle

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.gateway import Dispatch
from qqbot_session.gateway.deaths import Deaths
from qqbot_session.shard import open_gateway
from qqbot_session.testing import LocalGateway

POISON = 5
EVENTS = range(2, 12)


class Dies(BaseException):
    """What a test ends a process with."""


class Life:
    """A process that dies in the handler of `POISON`: what storage holds then is all that is left.

    Args:
        record: what storage holds at the start.
    """

    def __init__(self, record: bytes | None) -> None:
        self.storage = MemoryStorage()
        self.record = record
        self.handled: list[int | None] = []
        self.is_dead = asyncio.Event()

    async def run(self, *, replay: bool) -> None:
        if self.record is not None:
            await self.storage.commit({ACCOUNT: self.record})
        self.store = AsyncSessionStore(self.storage)
        world = World(self.store, await open_gateway(self.store, "102000000", intents=1))
        world.work = self.work
        line = await world.line()
        line.hello()
        await settle()
        if not replay:
            line.ready()
            await settle()
            await self.store.flush()
        for seq in EVENTS:
            line.event(seq)
        if replay:
            line.say(op=0, s=EVENTS.stop, t="RESUMED", d="")
        dying = asyncio.create_task(self.is_dead.wait())
        await asyncio.wait([dying], timeout=600)
        if not self.is_dead.is_set():
            self.record = await self.storage.read(ACCOUNT)
        dying.cancel()
        await world.stop()
        await self.store.aclose()

    async def work(self, event: Dispatch) -> None:
        if self.is_dead.is_set():
            await asyncio.Event().wait()
        if event.seq == POISON:
            self.record = await self.storage.read(ACCOUNT)
            self.is_dead.set()
            await asyncio.Event().wait()
        self.handled.append(event.seq)


async def test_an_event_that_kills_three_processes_is_let_go_and_no_other_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 30
    record, handled, lives = None, set[int | None](), 0
    while True:
        life = Life(record)
        await life.run(replay=lives > 0)
        lives, record = lives + 1, life.record
        handled.update(life.handled)
        if not life.is_dead.is_set():
            break
    assert lives == 4
    assert handled == set(EVENTS) - {POISON}
    [told] = [r for r in caplog.records if reason(r) == "deadly"]
    assert f"3 processes died while they handled {KIND}, number {POISON}" in told.message


async def test_a_process_that_ends_in_order_accuses_nobody() -> None:
    # promise 30
    storage = MemoryStorage()
    for _ in range(5):
        async with AsyncSessionStore(storage) as store:
            world = World(store, await open_gateway(store, "102000000", intents=1), grace=0.0)
            world.work = lambda event: asyncio.Event().wait()
            line = await world.up()
            line.event(5)
            await asyncio.sleep(10)
            await world.stop()
        record = await storage.read(ACCOUNT) or b""
        assert b"endedInOrder" in record
        assert b"deaths" not in record


async def test_a_process_that_is_killed_while_it_stops_accuses_nobody() -> None:
    """PM2 kills after 1.6 s what it has sent a SIGINT: slow handlers are no killers."""
    # promise 30
    record = None
    for life in range(5):
        storage = MemoryStorage()
        if record is not None:
            await storage.commit({ACCOUNT: record})
        async with AsyncSessionStore(storage) as store:
            world = World(store, await open_gateway(store, "102000000", intents=1), grace=60.0)
            world.work = lambda event: asyncio.Event().wait()
            line = await world.line()
            line.hello()
            await settle()
            if life == 0:
                line.ready()
            for seq in (2, 3):
                line.event(seq)
            if life > 0:
                line.say(op=0, s=4, t="RESUMED", d="")
            await asyncio.sleep(10)
            stopping = asyncio.create_task(world.stop())
            await asyncio.sleep(1.6)
            record = await storage.read(ACCOUNT) or b""  # as it is when the SIGKILL comes
            assert b"deaths" not in record
            await stopping


async def next_line(world: World, line: Line) -> Line:
    """Let the line end, and return the next one, on which the bot Resumes."""
    line.end()
    line = await world.line()
    line.hello()
    await settle()
    return line


async def test_a_session_is_on_storage_before_its_first_event_is_read() -> None:
    # promise 30: else a first event that kills at once takes the session with it
    storage = MemoryStorage()
    seen: list[bytes] = []
    async with AsyncSessionStore(storage) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))

        async def look(event: Dispatch) -> None:
            seen.append(await storage.read(ACCOUNT) or b"")

        world.work = look
        line = await world.line()
        line.hello()
        line.ready()
        line.event(2)
        await asyncio.sleep(0.01)
        assert seen
        assert b'"sessionId":"' in seen[0].replace(b" ", b"")
        await world.stop()


@pytest.mark.parametrize("resumed_at", [0.1, None])
async def test_a_replay_is_on_storage_before_its_first_handler_starts_and_costs_one_write(
    resumed_at: float | None,
) -> None:
    # promises 30 and 31
    storage = MemoryStorage()
    writes: list[Any] = []
    async with AsyncSessionStore(storage, on_write=writes.append) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()
        await store.flush()
        seen: list[bytes] = []

        async def look(event: Dispatch) -> None:
            seen.append(await storage.read(ACCOUNT) or b"")

        world.work = look
        line = await next_line(world, line)
        before = len(writes)
        for seq in EVENTS:
            line.event(seq)
        if resumed_at is not None:
            await asyncio.sleep(resumed_at)
            line.say(op=0, s=EVENTS.stop, t="RESUMED", d="")
        await asyncio.sleep(0.4)
        assert len(seen) == len(EVENTS)
        assert b'"deaths": "2:1,3:1,' in seen[0]
        assert b"failedResumes" not in seen[0]
        assert len(writes) - before <= 2  # and what was handled
        await world.stop()


async def test_what_comes_behind_a_replay_starts_behind_it() -> None:
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()
        line = await next_line(world, line)
        line.event(2)
        line.say(op=0, s=3, t="RESUMED", d="")
        line.event(4)
        await asyncio.sleep(5)
        assert world.handled == [2, 4]
        assert world.runner.health.in_flight == 0
        await world.stop()


async def test_a_replay_waits_for_a_slow_storage_and_no_event_behind_it_does() -> None:
    # promise 32
    class Slow(MemoryStorage):
        seconds = 0.0

        async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
            await asyncio.sleep(self.seconds)
            return await super().commit(changes)

    storage = Slow()
    async with AsyncSessionStore(storage) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()
        line = await next_line(world, line)
        storage.seconds = 1.0
        line.event(2)
        line.say(op=0, s=3, t="RESUMED", d="")
        for seq in range(4, 44):
            await asyncio.sleep(0.25)  # four in the time of a write
            line.event(seq)
            await settle()
            is_late = world.handled[-1:] != [seq]
            assert is_late is (seq < 7), seq
        await world.stop()


async def test_what_a_replay_holds_comes_again_if_the_bot_stops_meanwhile() -> None:
    # promise 22
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()
        line = await next_line(world, line)
        line.event(2)
        await settle()
        await world.stop()
        assert world.handled == []
        again = World(store, await open_gateway(store, "102000000", intents=1))
        line = await again.line()
        line.hello()
        await settle()
        line.event(2)
        line.say(op=0, s=3, t="RESUMED", d="")
        await asyncio.sleep(1)
        assert again.handled == [2]
        await again.stop()


@pytest.mark.parametrize(
    ("error", "is_handled"),
    [
        (ValueError("own"), True),
        (Dies(), False),
        (BaseExceptionGroup("g", [ValueError(), Dies()]), False),
    ],
)
async def test_what_the_log_says_of_a_handlers_error_is_true(
    error: BaseException, is_handled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 18
    async def fail(event: Dispatch) -> None:
        raise error

    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        world.work = fail
        line: Line = await world.up()
        line.event(2)
        await settle()
        [told] = [r for r in caplog.records if reason(r) == "handler"]
        assert told.message.endswith("counts as handled" if is_handled else "comes again")
        assert world.gateway.settled == (2 if is_handled else 1)
        await world.stop()


def test_only_the_events_that_are_begun_are_counted() -> None:
    deaths = Deaths()
    deaths.restore("4:2,6:1", in_order=True)
    assert [deaths.received(seq, replayed=True) for seq in (4, 5, 6)] == [2, 0, 1]
    assert deaths.text([4, 5], lambda seq: True) == "4:3,5:1,6:1"
    assert deaths.text([5], lambda seq: seq > 4) == "5:1,6:1"


def test_what_is_replayed_after_a_death_counts_as_begun_in_it_once() -> None:
    deaths = Deaths()
    deaths.restore("6:1", in_order=False)
    assert [deaths.received(seq, replayed=True) for seq in (5, 6)] == [0, 1]
    deaths.resumed()
    assert deaths.received(7, replayed=False) == 0
    assert deaths.text([5, 6, 7], lambda seq: True) == "5:2,6:2,7:1"
    assert deaths.text([], lambda seq: True) == "6:1"


@pytest.mark.parametrize("text", [None, 5, "", "5", "5:", "a:1", "5:-1", "5:1,", f"{2**53}:1", {}])
def test_a_hostile_text_of_deaths_is_ignored(text: Any) -> None:
    # promise 14
    deaths = Deaths()
    deaths.restore(text, in_order=True)
    assert deaths.text([], lambda seq: True) == ""


def test_the_longest_text_of_deaths_is_short() -> None:
    deaths = Deaths()
    deaths.restore("", in_order=True)
    text = deaths.text(range(2**53 - 1000, 2**53 - 1), lambda seq: True)
    assert len(text) < 1500
    again = Deaths()
    again.restore(text, in_order=True)
    assert again.text([], lambda seq: True) == text


BOT = """
import asyncio, os, sys
from qqbot_session.bot import run_bot
async def handle(event, bot):
    with open("handled", "a") as file:
        file.write(event.data["content"] + "\\n")
    if event.data["content"] == "exit":
        sys.exit(3)
asyncio.run(run_bot("102000000", "local-secret", intents=1 << 25, handle=handle,
                    api_url=os.environ["API"], token_url=os.environ["TOKEN_URL"]))
"""


@pytest.mark.real_time
async def test_an_exit_out_of_a_handler_happens_once(tmp_path: Path) -> None:
    # promise 30
    async with LocalGateway() as qq:
        environment = os.environ | {"API": qq.api_url, "TOKEN_URL": qq.token_url}

        async def start() -> asyncio.subprocess.Process:
            bot = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BOT, cwd=tmp_path, env=environment,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            clients = len(qq.clients)
            await qq.wait_for(lambda qq: len(qq.clients) > clients and qq.clients[-1].started)
            return bot

        bot = await start()
        await qq.emit(KIND, qq.c2c_message("exit"))
        assert await bot.wait() == 3
        bot = await start()
        await qq.emit(KIND, qq.c2c_message("after"))
        handled = tmp_path / "handled"
        while "after" not in handled.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        bot.terminate()
        assert await bot.wait() == 0
        assert handled.read_text().split() == ["exit", "after"]
