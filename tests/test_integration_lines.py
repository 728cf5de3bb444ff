"""What the frameworks' integrations share: the pace of Identifies, many lines, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.integrations._lines import (
    Entrance,
    Told,
    end_of,
    kept_in,
    run_together,
    stopping_at_signals,
)


class Qq:
    """What `/gateway/bot` tells, and how often it was asked."""

    def __init__(self, remaining: int = 100, max_concurrency: int = 1) -> None:
        self.told = Told("ws://qq", remaining, 30.0, max_concurrency)
        self.asked = 0

    async def ask(self) -> Told:
        self.asked += 1
        return self.told


@pytest.mark.parametrize(("at_a_time", "moments"), [(1, [0, 5, 10, 15]), (2, [0, 0, 5, 5])])
async def test_identifies_are_paced_over_all_shards(at_a_time: int, moments: list[float]) -> None:
    # promise 21
    qq = Qq(max_concurrency=at_a_time)
    entrance = Entrance(qq.ask)
    granted: list[float] = []

    async def shard() -> None:
        await entrance.before_identify()
        granted.append(asyncio.get_running_loop().time())

    await asyncio.gather(*(shard() for _ in range(4)))
    assert [moment - granted[0] for moment in granted] == pytest.approx(moments)
    assert qq.asked == 1


async def test_no_identify_is_sent_when_none_remains(caplog: pytest.LogCaptureFixture) -> None:
    # promise 21
    qq = Qq(remaining=0)
    entrance = Entrance(qq.ask, qq.told)
    waiting = asyncio.create_task(entrance.before_identify())
    await asyncio.sleep(59)
    assert not waiting.done()
    assert "no session start remains today" in caplog.text
    qq.told = Told("ws://qq", 1, 30.0, 1)
    await asyncio.wait_for(waiting, 100)
    assert qq.asked == 1


async def test_what_was_granted_is_counted_until_qq_is_asked_again() -> None:
    qq = Qq(remaining=2)
    entrance = Entrance(qq.ask, qq.told)
    for _ in range(2):
        await entrance.before_identify()
    third = asyncio.create_task(entrance.before_identify())
    await asyncio.sleep(20)
    assert not third.done()
    third.cancel()


async def test_the_first_line_that_ends_ends_the_others_and_its_error_is_raised() -> None:
    ended: list[str] = []

    async def stay() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1)
            ended.append("in order")

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("refused")

    with pytest.raises(LookupError, match="refused"):
        await run_together([stay(), fail(), stay()])
    assert ended == ["in order"] * 2


async def test_a_second_cancellation_reaches_the_lines() -> None:
    """It ends the grace of their handlers."""
    seen: list[int] = []

    async def line() -> None:
        for number in (1, 2):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append(number)

    running = asyncio.create_task(run_together([line()]))
    for _ in range(2):
        await asyncio.sleep(1)
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == [1, 2]


async def test_an_event_ends_with_the_last_task_that_was_started_for_it() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        await asyncio.sleep(1)
        if len(tasks) < 3:
            tasks.append(asyncio.create_task(work()))

    tasks.append(asyncio.create_task(work()))
    await end_of(tasks)
    assert [task.done() for task in tasks] == [True] * 3


async def test_a_cancelled_event_cancels_its_tasks_even_if_they_do_not_show_it() -> None:
    # promise 18
    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(swallow())]
    event = asyncio.create_task(end_of(tasks))
    await asyncio.sleep(1)
    event.cancel()
    with pytest.raises(asyncio.CancelledError):
        await event
    await asyncio.sleep(1)
    assert tasks[0].done()


async def test_a_task_that_was_cancelled_leaves_its_event_unhandled() -> None:
    # promise 18
    task = asyncio.create_task(asyncio.sleep(3600))
    event = asyncio.create_task(end_of([task]))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await event


async def test_a_store_that_was_given_is_not_closed_and_one_that_was_made_is() -> None:
    async with AsyncSessionStore(MemoryStorage()) as given, kept_in(given) as store:
        assert store is given
    async with kept_in(MemoryStorage()) as made:
        pass
    with pytest.raises(RuntimeError):
        await made.load("a")


def run_until_signals(*numbers: signal.Signals) -> tuple[int, bool]:
    """Send them to this process, one after the other; return the cancellations that came."""
    loop = asyncio.new_event_loop()
    cancelled = 0

    async def main() -> None:
        nonlocal cancelled
        for number in numbers:
            loop.call_later(0.01, os.kill, os.getpid(), number)
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancelled += 1

    task = loop.create_task(main())
    with stopping_at_signals(loop, lambda: task) as stopped:
        loop.run_until_complete(task)
    loop.close()
    return cancelled, stopped()


def test_each_signal_cancels_once_and_afterwards_they_are_as_they_were() -> None:
    # promise 22
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_until_signals(signal.SIGTERM, signal.SIGINT) == (2, True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_before_there_is_anything_to_cancel_interrupts() -> None:
    loop = asyncio.new_event_loop()
    with stopping_at_signals(loop, lambda: None):
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(10))
    loop.close()


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[bool] = []

    def run() -> None:
        loop = asyncio.new_event_loop()
        with stopping_at_signals(loop, lambda: None) as stopped:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        found.append(stopped())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
