"""Lines that live and end together, and the signals that end them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from qqbot_session.lifetime import handling_signals, run_together


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


def run_until_signals(*numbers: signal.Signals) -> list[int]:
    """Send them to this process, one after the other; return those that came to the loop."""
    loop = asyncio.new_event_loop()
    seen: list[int] = []

    async def main() -> None:
        for number in numbers:
            came = loop.create_future()
            waiting.append(came)
            os.kill(os.getpid(), number)
            await asyncio.wait_for(came, 10)

    def stop(number: int) -> None:
        seen.append(number)
        waiting.pop().set_result(None)

    waiting: list[asyncio.Future[None]] = []
    with handling_signals(loop, stop):
        loop.run_until_complete(main())
    loop.close()
    return seen


def test_each_signal_comes_to_the_loop_and_afterwards_they_are_as_they_were() -> None:
    # promise 22
    numbers = [signal.SIGTERM, signal.SIGINT]
    before = [signal.getsignal(number) for number in numbers]
    assert run_until_signals(*numbers) == numbers
    assert [signal.getsignal(number) for number in numbers] == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def run() -> None:
        loop = asyncio.new_event_loop()
        with handling_signals(loop, found.append):
            found.append(signal.getsignal(signal.SIGTERM))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
