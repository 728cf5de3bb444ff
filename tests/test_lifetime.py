"""Lines that live and end together, and the signals that end them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from qqbot_session.lifetime import handling_signals, run_together, run_until_stopped, watching


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
            await asyncio.wait_for(came, 30)

    def stop(number: int) -> None:
        seen.append(number)
        waiting.pop().set_result(None)

    waiting: list[asyncio.Future[None]] = []
    with handling_signals(loop, stop):
        loop.run_until_complete(main())
    loop.close()
    return seen


@pytest.mark.usefixtures("every_signal_counts")
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


# What stops a bot


async def a_line(seen: list[str]) -> None:
    """Live until cancelled twice, an hour after the first."""
    for name in ("first", "second"):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append(name)


@pytest.mark.usefixtures("every_signal_counts")
@pytest.mark.parametrize(
    ("requests", "seen"),
    [
        (["signal"], ["first"]),
        (["cancel"], ["first"]),
        (["signal", "cancel"], ["first"]),
        (["cancel", "signal"], ["first"]),
        (["signal", "signal"], ["first", "second"]),
        (["cancel", "cancel"], ["first", "second"]),
        (["signal", "cancel", "signal"], ["first", "second"]),
    ],
)
async def test_only_a_second_request_of_the_same_kind_ends_the_grace(
    requests: list[str], seen: list[str]
) -> None:
    """A web application cancels its bot upon the signal that the bot has heard as well."""
    # promise 29
    found: list[str] = []
    task = asyncio.create_task(run_until_stopped(a_line(found)))
    await asyncio.sleep(1)
    for request in requests:
        _ = task.cancel() if request == "cancel" else os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(1)
    await asyncio.wait([task])
    assert found == seen
    assert task.cancelled() is ("cancel" in requests)


@pytest.mark.parametrize(
    ("pause", "seen"),
    [(0.001, ["first"]), (0.2, ["first"]), (0.3, ["first", "second"])],
)
async def test_a_signal_that_a_launcher_hands_on_ends_no_grace(
    pause: float, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nb run` adds SIGTERM to Ctrl-C at once, `uv run` under PM2 another SIGINT after 0.2 s."""
    # promise 29
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
    monkeypatch.setattr("qqbot_session.lifetime.time", clock)
    found: list[str] = []
    task = asyncio.create_task(run_until_stopped(a_line(found)))
    await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(1)
    now += pause
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait([task])
    assert found == seen


async def test_a_signal_is_one_log_line_however_many_bots_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for lives in (1, 2):
        tasks = [asyncio.create_task(run_until_stopped(asyncio.sleep(3600))) for _ in range(100)]
        await asyncio.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait(tasks)
        assert len([each for each in caplog.messages if "SIGTERM" in each]) == lives


async def test_what_a_bot_raises_is_raised_though_a_signal_came() -> None:
    async def refused() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise LookupError("refused") from None

    task = asyncio.create_task(run_until_stopped(refused()))
    await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(LookupError, match="refused"):
        await task


def test_handlers_are_put_back_by_the_last_and_in_any_order() -> None:
    # promise 29
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    loop = asyncio.new_event_loop()
    one, two = handling_signals(loop, print), handling_signals(loop, print)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert all(signal.getsignal(n) is not was for n, was in zip(numbers, before, strict=True))
    two.__exit__(None, None, None)
    assert [signal.getsignal(number) for number in numbers] == before
    loop.close()


def test_a_handler_that_a_program_puts_back_after_our_end_leads_to_the_one_below() -> None:
    """As uvicorn does, which was started after a bot and ends after it."""
    # promise 29
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    loop = asyncio.new_event_loop()
    try:
        with handling_signals(loop, print):
            ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, ours)
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        loop.close()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
def test_a_hang_up_that_the_program_takes_for_itself_is_left_to_it() -> None:
    """Many reload their settings on it."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    mine = signal.getsignal(signal.SIGHUP)
    loop = asyncio.new_event_loop()
    try:
        with handling_signals(loop, print):
            assert signal.getsignal(signal.SIGHUP) is mine
    finally:
        signal.signal(signal.SIGHUP, before)
        loop.close()


# A loop that is blocked


@pytest.mark.parametrize(("blocked", "lines"), [(4.9, 0), (7.0, 1)])
async def test_a_loop_that_was_blocked_is_one_warning_for_all_that_live_in_it(
    blocked: float, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    with watching(loop), watching(loop):
        await asyncio.sleep(0.6)
        loop.clock.now += blocked  # type: ignore[attr-defined]
        await asyncio.sleep(10)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the event loop was blocked for 7 s, most likely by a handler"] * lines


async def test_a_watch_ends_with_who_wanted_it() -> None:
    loop = asyncio.get_running_loop()
    with watching(loop):
        await asyncio.sleep(1)
    assert not [h for h in loop._scheduled if not h.cancelled()]  # type: ignore[attr-defined]
