"""The store by its promises, on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import WallClock
from faults import FaultyStorage

from qqbot_session import (
    AsyncSessionStore,
    FileStorage,
    MemoryStorage,
    SessionState,
    SessionWriteError,
    StoreClosedError,
    WriteDetails,
    WrongEventLoopError,
)
from qqbot_session.gateway import GatewaySession
from qqbot_session.state import decode, encode

WINDOW = 1.0


def a_state(account_id: str = "bot", last_seq: int = 1, **values: Any) -> SessionState:
    return SessionState(
        account_id=account_id, **{"session_id": "s1", "last_seq": last_seq} | values
    )


def on_storage(storage: MemoryStorage, account_id: str = "bot") -> SessionState | None:
    data = storage.records.get(account_id)
    return None if data is None else decode(data)


def written(storage: FaultyStorage, account_id: str = "bot") -> list[int | None]:
    """The account's sequence numbers, commit by commit; `None` for a deletion."""
    states = [commit[account_id] for commit in storage.commits if account_id in commit]
    return [None if data is None else decode(data).last_seq for data in states]


async def grown_up(store: AsyncSessionStore, account_id: str = "bot") -> None:
    """Save number 0, and wait until the account has its full windows."""
    await store.save(a_state(account_id, 0))
    await asyncio.sleep(10 * WINDOW)


def never_suspends(call: Any) -> Any:
    """Run a coroutine by hand: it must return at its first step."""
    with pytest.raises(StopIteration) as done:
        call.send(None)
    return done.value.value


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage()


@pytest.fixture
async def store(storage: FaultyStorage, clock: WallClock) -> Any:
    store = AsyncSessionStore(storage, debounce=WINDOW, clock=clock)
    yield store
    storage.gate.set()
    storage.failing = storage.broken = False
    await store.aclose()
    assert [task.get_name() for task in asyncio.all_tasks() if "qqbot" in task.get_name()] == []


# Order and visibility


async def test_nothing_on_the_hot_path_suspends(store: AsyncSessionStore) -> None:
    # promise 1
    never_suspends(store.save(a_state()))
    assert never_suspends(store.update_last_seq("bot", 2)) is True
    assert never_suspends(store.touch("bot")) is True
    await asyncio.sleep(10 * WINDOW)  # known, and quiet
    assert never_suspends(store.update_last_seq("bot", 3)) is True
    await asyncio.sleep(10 * WINDOW)
    assert never_suspends(store.touch("bot")) is True
    await store.clear("bot")
    assert never_suspends(store.update_last_seq("bot", 4)) is False
    assert never_suspends(store.touch("bot")) is False


async def test_a_first_change_is_written_at_once_and_later_ones_once_per_window(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 2
    await grown_up(store)
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.01)
    assert written(storage) == [0, 1]
    for seq in range(2, 302):  # constant traffic for three windows
        await store.update_last_seq("bot", seq)
        await asyncio.sleep(0.01)
    await asyncio.sleep(WINDOW)
    assert written(storage) == [0, 1, 101, 201, 301]


async def test_a_window_starts_when_the_write_has_ended(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 2
    await grown_up(store)
    storage.gate.clear()
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(5 * WINDOW)
    await store.update_last_seq("bot", 2)
    storage.gate.set()
    await asyncio.sleep(0.9 * WINDOW)
    assert written(storage) == [0, 1]
    await asyncio.sleep(0.2 * WINDOW)
    assert written(storage) == [0, 1, 2]


async def test_a_young_account_has_windows_of_a_quarter_of_its_age(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    """A bot that dies 0.8 s after each RESUMED, again and again, still moves on."""
    # promise 2
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await store.save(a_state(last_seq=0))
    times: list[float] = []
    for seq in range(1, 1000):  # constant traffic for ten seconds
        await asyncio.sleep(0.01)
        await store.update_last_seq("bot", seq)
        if len(storage.commits) > len(times):
            times.append(loop.time() - begin)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 0.05 <= gaps[0] <= 0.07
    assert all(gap <= max(0.05, age / 4) + 0.02 for gap, age in zip(gaps, times, strict=False))
    assert all(
        gap == pytest.approx(WINDOW) for gap, age in zip(gaps, times, strict=False) if age > 4
    )
    assert len([age for age in times if age < 4]) <= 24


@pytest.mark.parametrize(("quiet", "waits"), [(0.02, 0.03), (0.5, 0.0), (3.0, 0.0)])
async def test_a_young_account_that_was_quiet_for_a_while_waits_no_full_window(
    store: AsyncSessionStore, storage: FaultyStorage, quiet: float, waits: float
) -> None:
    # promise 2
    store._commit._debounce = 3600.0
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(quiet)
    await store.update_last_seq("bot", 2)
    await asyncio.sleep(waits + 0.001)
    assert written(storage) == [1, 2]


async def test_a_timer_that_comes_early_leaves_no_young_account_behind(
    store: AsyncSessionStore, storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop counts in whole milliseconds, Windows' clock in 15: who comes between is woken too."""
    # promise 2
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "_clock_resolution", 0.02)
    await store.save(a_state(last_seq=1))
    await store.save(a_state("other", last_seq=1))
    await asyncio.sleep(0.04)
    await store.update_last_seq("bot", 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert written(storage) == [1, 2]
    await store.update_last_seq("other", 2)
    await asyncio.sleep(0.2)
    assert written(storage, "other") == [1, 2]


async def test_a_task_that_was_cancelled_is_not_started_again_by_the_end_of_its_window(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    """The account has another task by then."""
    # promise 5
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0)
    await store.flush()
    for task in asyncio.all_tasks():
        if task.get_name() == "qqbot_session:bot":
            task.cancel()
    await asyncio.sleep(0.01)
    storage.gate.clear()
    await store.update_last_seq("bot", 2)
    await asyncio.sleep(2 * WINDOW)
    tasks = [task.get_name() for task in asyncio.all_tasks()]
    assert tasks.count("qqbot_session:bot") == 1
    storage.gate.set()


@pytest.mark.parametrize("listed", [True, False])
async def test_closing_is_no_sign_of_life_of_what_another_process_has_saved(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock, listed: bool
) -> None:
    """Though this one changed the account before; what is still its own, it may have read."""
    await store.save(a_state("theirs"))
    await store.save(a_state("ours"))
    await store.flush()
    theirs = storage.records["theirs"] = encode(a_state("theirs", 7), saved_at=clock())
    if listed:
        assert len(await store.load_all()) == 2
    else:
        assert await store.load("ours")
        assert await store.load("theirs")
    clock.now += 100.0
    await store.aclose()
    assert storage.records["theirs"] == theirs
    ours = on_storage(storage, "ours")
    assert ours is not None
    assert ours.saved_at == clock()


async def test_a_task_that_waited_out_a_window_and_was_cancelled_is_not_started_again() -> None:
    """Not by the end of the window in which its account has another task."""

    # promise 5
    def ours() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if "qqbot" in task.get_name()]

    async with AsyncSessionStore(MemoryStorage()) as store:
        await store.save(a_state())
        await asyncio.sleep(10.0)
        await store.touch("bot")  # waits for the end of a window
        await asyncio.sleep(0.1)
        for task in ours():
            task.cancel()
        await asyncio.sleep(0.1)
        assert ours() == []
        await store.touch("bot")
        await asyncio.sleep(10.0)
        assert ours() == []


async def test_a_short_window_too_starts_when_the_write_has_ended(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 2
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.01)
    storage.gate.clear()
    await store.update_last_seq("bot", 2)
    await asyncio.sleep(1)
    await store.update_last_seq("bot", 3)
    storage.gate.set()
    await asyncio.sleep(0.04)
    assert written(storage) == [1, 2]
    await asyncio.sleep(0.3)
    assert written(storage) == [1, 2, 3]


async def test_with_a_long_window_an_idle_bot_is_not_written_more_often(
    storage: FaultyStorage, clock: WallClock
) -> None:
    """Heartbeats every 45 s: the short windows of the first seconds bring no write forward."""
    # promise 2
    async with AsyncSessionStore(storage, debounce=3600, max_age=None, clock=clock) as store:
        await store.save(a_state())
        for _ in range(4 * 80):
            await asyncio.sleep(45)
            await store.touch("bot")
        assert len(storage.commits) == 4


@pytest.mark.parametrize("sign", ["touch", "the same number"])
async def test_a_sign_of_life_waits_for_a_window_and_takes_none_from_a_number_that_moves(
    store: AsyncSessionStore, storage: FaultyStorage, sign: str
) -> None:
    # promise 2
    async def renew() -> None:
        assert await (store.touch("bot") if sign == "touch" else store.update_last_seq("bot", 0))

    await grown_up(store)
    await renew()
    await asyncio.sleep(0.9 * WINDOW)
    assert written(storage) == [0]
    await asyncio.sleep(0.2 * WINDOW)
    assert written(storage) == [0, 0]
    await store.update_last_seq("bot", 1)  # what was written just now moved nothing
    await asyncio.sleep(0.01)
    assert written(storage) == [0, 0, 1]
    await asyncio.sleep(10 * WINDOW)
    await renew()
    await asyncio.sleep(0.5 * WINDOW)
    await store.update_last_seq("bot", 2)
    await asyncio.sleep(0.01)
    assert written(storage) == [0, 0, 1, 2]
    await store.update_last_seq("bot", 3)
    await renew()
    await asyncio.sleep(0.9 * WINDOW)
    assert written(storage) == [0, 0, 1, 2]
    await asyncio.sleep(10 * WINDOW)
    assert written(storage) == [0, 0, 1, 2, 3]


async def test_a_failed_sign_of_life_lets_nothing_past_its_back_off(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 8
    await grown_up(store)
    storage.failing = True
    await store.touch("bot")
    await asyncio.sleep(1.01 * WINDOW)
    assert len(storage.commits) == 2
    for number in range(1, 9):
        await store.update_last_seq("bot", number)
        await asyncio.sleep(0.1)
    assert len(storage.commits) == 2
    await asyncio.sleep(0.2)
    assert len(storage.commits) == 3


@pytest.mark.parametrize("way", ["flush", "aclose"])
async def test_a_flush_of_very_many_accounts_lets_the_loop_in(
    storage: FaultyStorage, clock: WallClock, way: str
) -> None:
    count, turns, most = 20_000, 0, 0
    store = AsyncSessionStore(storage, clock=clock)
    for number in range(count):
        store.save_nowait(a_state(f"bot-{number}"))
    queued, kept = 0, count

    def turn() -> None:
        nonlocal turns, most, queued, kept
        joined, left = sum(len(batch.keepers) for batch in commit._queue), len(commit._keepers)
        most = max(most, joined - queued, kept - left)
        queued, kept, turns = joined, left, turns + 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    commit = store._commit
    for keeper in commit._keepers.values():  # as if all were in their windows
        keeper.patient = True
    await asyncio.sleep(0)
    loop.call_soon(turn)
    await (store.flush() if way == "flush" else store.aclose())
    assert turns > count / 1000
    assert most <= 1000
    assert len(storage.records) == count
    await store.aclose()


@pytest.mark.parametrize("account_id", [None, "bot"])
async def test_flush_nowait_begins_a_write_within_the_window(
    store: AsyncSessionStore, storage: FaultyStorage, account_id: str | None
) -> None:
    # promise 31
    await grown_up(store)
    await store.update_last_seq("bot", 1)
    await asyncio.sleep(0.01)
    await store.update_last_seq("bot", 2)
    store.flush_nowait("another")
    store.flush_nowait(account_id)
    await asyncio.sleep(0.01)
    assert written(storage) == [0, 1, 2]
    store.flush_nowait(account_id)  # nothing is unsaved
    await asyncio.sleep(0.01)
    assert written(storage) == [0, 1, 2]


async def test_an_account_has_a_task_while_unsaved_and_for_one_quiet_window(
    store: AsyncSessionStore,
) -> None:
    # promise 2
    def names() -> set[str]:
        return {name for t in asyncio.all_tasks() if "qqbot" in (name := t.get_name())}

    await grown_up(store)
    await store.save(a_state())
    assert names() == {"qqbot_session:bot"}
    await asyncio.sleep(0.5 * WINDOW)
    assert names() == {"qqbot_session:bot"}
    await asyncio.sleep(0.6 * WINDOW)
    assert names() == set()


@pytest.mark.parametrize("change", ["clear", "new session"])
async def test_a_clear_and_a_changed_session_do_not_wait_for_the_window(
    store: AsyncSessionStore, storage: FaultyStorage, change: str
) -> None:
    # promise 2
    await store.save(a_state())
    await asyncio.sleep(0.1)
    await store.update_last_seq("bot", 2)
    if change == "clear":
        await store.clear("bot")
    else:
        await store.save(a_state(session_id="s2", last_seq=1))
        await asyncio.sleep(0.1)
    assert written(storage) == [1, None if change == "clear" else 1]


async def test_with_no_debounce_changes_of_one_turn_are_still_one_write(
    storage: FaultyStorage,
) -> None:
    # promise 2
    async with AsyncSessionStore(storage, debounce=0) as store:
        for seq in range(100):
            await store.save(a_state(last_seq=seq))
        await asyncio.sleep(0.01)
        assert written(storage) == [99]


async def test_accounts_due_together_are_written_together(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    for number in range(100):
        await store.save(a_state(f"bot-{number}"))
    await asyncio.sleep(0.01)
    assert [len(commit) for commit in storage.commits] == [100]


async def test_the_newest_state_is_taken_when_the_batch_is_written(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    storage.gate.clear()
    await store.save(a_state("other"))
    await asyncio.sleep(0.01)  # in flight, and blocks what comes
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.01)
    await store.update_last_seq("bot", 7)
    storage.gate.set()
    await asyncio.sleep(0.01)
    assert written(storage) == [7]


async def test_what_is_not_on_storage_yet_is_answered_from_memory(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 3
    storage.records["bot"] = encode(a_state(last_seq=5), saved_at=store._clock())
    storage.gate.clear()
    await store.save(a_state(last_seq=9))
    await asyncio.sleep(0.1)  # in flight
    loaded = await store.load("bot")
    assert loaded is not None
    assert loaded.last_seq == 9
    assert [state.last_seq for state in await store.load_all()] == [9]
    clearing = asyncio.create_task(store.clear("bot"))
    await asyncio.sleep(0.1)
    assert await store.load("bot") is None
    assert await store.load_all() == []
    assert storage.reads == []
    storage.gate.set()
    await clearing


async def test_what_is_read_replaces_what_was_remembered(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 3
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(2 * WINDOW)
    storage.records["bot"] = encode(a_state(last_seq=50), saved_at=store._clock())
    assert (await store.load("bot")) == a_state(last_seq=50, saved_at=store._clock())
    await store.update_last_seq("bot", 40)
    await store.flush()
    assert on_storage(storage).last_seq == 50
    storage.records.clear()
    assert await store.load_all() == []
    assert await store.load("bot") is None
    assert await store.update_last_seq("bot", 60) is False


@pytest.mark.parametrize("reader", ["load", "load_all", "update_last_seq"])
@pytest.mark.parametrize("change", ["save", "clear"])
async def test_a_slow_read_never_replaces_what_was_changed_meanwhile(
    storage: FaultyStorage, clock: WallClock, reader: str, change: str
) -> None:
    # promise 3
    storage.records["bot"] = encode(a_state(last_seq=5), saved_at=clock())
    async with AsyncSessionStore(storage, debounce=0, clock=clock) as store:
        storage.read_gate.clear()
        call: Any = {
            "load": lambda: store.load("bot"),
            "load_all": store.load_all,
            "update_last_seq": lambda: store.update_last_seq("bot", 1),
        }[reader]
        reading = asyncio.create_task(call())
        await asyncio.sleep(0.1)
        if change == "save":
            await store.save(a_state(last_seq=9))
        else:
            await store.clear("bot")
        await asyncio.sleep(10)  # written, quiet, and the task has ended
        storage.read_gate.set()
        answer = await reading
        newest = 9 if change == "save" else None
        if reader == "load":
            assert (answer and answer.last_seq) == newest
        elif reader == "load_all":
            assert [state.last_seq for state in answer] == ([9] if newest else [])
        else:
            assert answer is (newest is not None)
        assert await store.touch("bot") is (newest is not None)
        await store.flush()
        assert (on_storage(storage) and on_storage(storage).last_seq) == newest


async def test_a_clear_beats_the_write_in_flight_and_loses_to_a_later_save(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 4
    storage.gate.clear()
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.1)
    clearing = asyncio.create_task(store.clear("bot"))
    await asyncio.sleep(0.1)
    assert not clearing.done()
    storage.gate.set()
    await clearing
    assert storage.records == {}
    await store.save(a_state(last_seq=2))
    await store.flush()
    assert on_storage(storage).last_seq == 2


async def test_a_save_right_after_an_unfinished_clear_wins(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 4
    await store.save(a_state(last_seq=1))
    clearing = asyncio.create_task(store.clear("bot"))
    await asyncio.sleep(0)
    await store.save(a_state(last_seq=2))
    await clearing
    await store.flush()
    assert on_storage(storage).last_seq == 2


async def test_flush_returns_when_everything_saved_before_is_on_storage(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 5
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.1)
    await store.update_last_seq("bot", 2)  # waits for the window
    await store.flush()
    assert on_storage(storage).last_seq == 2
    storage.gate.clear()
    await store.update_last_seq("bot", 3)
    await store.save(a_state("other"))
    flushing = asyncio.create_task(store.flush("bot"))
    await asyncio.sleep(0.1)
    assert not flushing.done()
    storage.gate.set()
    await flushing
    assert on_storage(storage).last_seq == 3


async def test_flush_in_the_middle_of_a_failing_write_makes_an_attempt_of_its_own(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 5
    storage.gate.clear()
    storage.failing = True
    await store.save(a_state())
    await asyncio.sleep(0.1)
    flushing = asyncio.create_task(store.flush())
    await asyncio.sleep(0.1)
    storage.gate.set()
    await asyncio.sleep(0)
    storage.failing = False
    await flushing
    assert on_storage(storage) is not None


async def test_a_cancelled_flush_leaves_the_write_whole(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 5
    storage.gate.clear()
    await store.save(a_state())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.flush(), 0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.clear("nobody"), 0.1)
    storage.gate.set()
    await asyncio.sleep(0.1)
    assert written(storage) == [1]
    assert on_storage(storage) is not None


async def test_closing_attempts_every_account_and_raises_once(storage: FaultyStorage) -> None:
    # promise 5
    store = AsyncSessionStore(storage)
    await store.save(a_state("good"))
    await store.save(a_state("bad"))
    storage.failing = {"bad"}
    with pytest.raises(SessionWriteError, match="'bad'") as error:
        await store.aclose()
    assert list(error.value.failures) == ["bad"]
    assert list(storage.records) == ["good"]
    with pytest.raises(SessionWriteError) as again:  # whoever asks later is told the same
        await store.aclose()
    assert again.value.failures == error.value.failures
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert storage.closed == 0  # it is not ours


async def test_a_cancelled_close_ends_every_task(
    storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 5
    storage.gate.clear()
    store = AsyncSessionStore(storage)
    for number in range(3):
        await store.save(a_state(f"bot-{number}"))
    waiting = asyncio.create_task(store.flush())
    await asyncio.sleep(0.1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await store.aclose()
    assert {task for task in asyncio.all_tasks() if "qqbot" in task.get_name()} == set()
    with pytest.raises(SessionWriteError):
        await waiting
    assert (
        caplog.messages[-1] == "closing was cancelled, and these are unsaved: bot-0, bot-1, bot-2"
    )


async def test_a_closed_store_refuses_everything_and_closes_again(
    storage: FaultyStorage,
) -> None:
    store = AsyncSessionStore(storage)
    await store.save(a_state())
    await store.aclose()
    await store.aclose()
    calls = [
        store.load("bot"),
        store.save(a_state()),
        store.update_last_seq("bot", 2),
        store.touch("bot"),
        store.clear("bot"),
        store.load_all(),
        store.cleanup(),
        store.flush(),
        store.__aenter__(),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            await call
    with pytest.raises(StoreClosedError) as told:
        store.save_nowait(a_state())
    assert repr(storage) in str(told.value)
    assert "unsaved" not in str(told.value)  # to count them for each of 1,000 lines takes seconds


async def test_a_number_never_falls_within_a_session_and_starts_anew_with_the_next(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 6
    await store.save(a_state(last_seq=10))
    assert await store.update_last_seq("bot", 5) is True
    await store.flush()
    assert on_storage(storage).last_seq == 10
    assert await store.update_last_seq("bot", 5) is True
    await store.flush()
    assert on_storage(storage).last_seq == 10
    await store.save(a_state(session_id="s2", last_seq=1))
    await store.update_last_seq("bot", 2)
    await store.flush()
    assert (on_storage(storage).session_id, on_storage(storage).last_seq) == ("s2", 2)


async def test_a_silent_session_is_not_expired_by_its_own_next_event(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 6
    await store.save(a_state(last_seq=10))
    await asyncio.sleep(2 * WINDOW)
    clock.now += 10_000
    assert await store.update_last_seq("bot", 11) is True
    await store.flush()
    assert (await store.load("bot")).last_seq == 11
    clock.now += 10_000
    assert await store.touch("bot") is True
    assert (await store.load("bot")).last_seq == 11


async def test_an_account_not_seen_yet_is_read_first_whatever_its_age(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 6
    storage.records["bot"] = encode(a_state(last_seq=10, saved_at=1.0))
    storage.records["none"] = encode(SessionState(account_id="none", last_seq=3))
    assert await store.update_last_seq("bot", 11) is True
    assert await store.touch("none") is False
    assert await store.update_last_seq("missing", 1) is False
    assert await store.update_last_seq("missing", 2) is False
    assert storage.reads == ["bot", "none", "missing"]
    await store.flush()
    assert on_storage(storage).last_seq == 11
    assert on_storage(storage).saved_at == store._clock()


async def test_a_number_that_waited_for_a_read_is_not_the_next_sessions(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    """Not even if the new session was written and went quiet before the read ended."""
    # promise 6
    storage.read_gate.clear()
    load = asyncio.create_task(store.load("bot"))
    await asyncio.sleep(0)
    update = asyncio.create_task(store.update_last_seq("bot", 1000))  # waits for the same read
    await asyncio.sleep(0)
    await store.save(a_state(session_id="new", last_seq=1))
    asyncio.get_running_loop().call_later(WINDOW, load.cancel)  # as the account's task ends
    await asyncio.sleep(2 * WINDOW)
    storage.read_gate.set()
    await update
    await store.flush()
    assert (on_storage(storage).session_id, on_storage(storage).last_seq) == ("new", 1)


async def test_a_record_is_stamped_when_it_is_encoded(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    await store.save(a_state(saved_at=5.0))
    clock.now += 60
    await asyncio.sleep(0.1)
    assert on_storage(storage).saved_at == clock.now
    clock.now += 60
    await store.touch("bot")
    await store.flush()
    assert on_storage(storage).saved_at == clock.now


# Nothing lost


async def test_a_failed_write_is_retried_with_back_off_and_the_newest_state(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 8
    storage.failing = True
    times: list[float] = []
    start = asyncio.get_running_loop().time()
    store._commit._on_write = lambda _: times.append(asyncio.get_running_loop().time() - start)
    stamp = clock.now
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(100)
    assert times == pytest.approx([0, 1, 3, 7, 15, 31, 61, 91], abs=0.01)
    clock.now += 50  # an attempt without a newer state keeps its first stamp
    await asyncio.sleep(30)
    data = storage.commits[-1]["bot"]
    assert data is not None
    assert decode(data).saved_at == stamp
    await store.update_last_seq("bot", 2)
    storage.failing = False
    await asyncio.sleep(31)
    assert on_storage(storage).last_seq == 2
    assert on_storage(storage).saved_at == clock.now
    await store.update_last_seq("bot", 3)  # back to normal
    await asyncio.sleep(2 * WINDOW)
    assert on_storage(storage).last_seq == 3


async def test_a_storage_that_raises_fails_for_every_account_of_the_batch(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 8
    storage.broken = True
    await store.save(a_state("a"))
    await store.save(a_state("b"))
    with pytest.raises(SessionWriteError) as error:
        await store.flush()
    assert set(error.value.failures) == {"a", "b"}
    storage.broken = False
    await asyncio.sleep(5)
    assert set(storage.records) == {"a", "b"}


async def test_failures_are_one_line_when_they_begin_and_one_when_they_end(
    store: AsyncSessionStore, storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 8
    storage.failing = True
    for number in range(20):
        await store.save(a_state(f"bot-{number}"))
    await asyncio.sleep(500)
    storage.failing = {"bot-3"}
    await asyncio.sleep(500)
    begin, healed = caplog.messages
    assert begin == ("cannot write 20 accounts (bot-0, bot-1, bot-2, …): [Errno 28] full; retrying")
    assert healed == "on storage again: 19 accounts (bot-0, bot-1, bot-2, …)"
    storage.failing = False
    await asyncio.sleep(500)
    assert caplog.messages[2:] == ["on storage again: bot-3"]


async def test_every_commit_is_reported(storage: FaultyStorage) -> None:
    # promise 8
    seen: list[WriteDetails] = []
    async with AsyncSessionStore(storage, on_write=seen.append) as store:
        storage.failing = {"bad"}
        await store.save(a_state("good"))
        await store.save(a_state("bad"))
        with contextlib.suppress(SessionWriteError):
            await store.flush()
        storage.failing = False
    first = seen[0]
    assert first.account_ids == ("good", "bad")
    assert first.bytes == sum(len(data) for data in storage.commits[0].values() if data)
    assert first.seconds >= 0
    assert list(first.failures) == ["bad"]
    with pytest.raises(TypeError):
        first.failures["x"] = OSError()  # type: ignore[index]
    assert len(seen) == len(storage.commits)


async def test_a_hook_that_raises_is_logged_and_nothing_else(
    storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(_: WriteDetails) -> None:
        raise RuntimeError("broken hook")

    async with AsyncSessionStore(storage, on_write=hook) as store:
        await store.save(a_state())
    assert "broken hook" in caplog.text
    assert on_storage(storage) is not None


async def test_flush_names_every_account_not_on_storage_and_retries_go_on(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 8
    storage.failing = True
    for number in range(200):  # more than one batch
        await store.save(a_state(f"bot-{number}"))
    with pytest.raises(SessionWriteError) as error:
        await store.flush()
    assert len(error.value.failures) == 200
    storage.failing = False
    await asyncio.sleep(5)
    assert len(storage.records) == 200
    await store.flush()


async def test_the_bodys_own_exception_wins_over_a_failed_write(
    storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 8
    storage.failing = True

    async def body() -> None:
        async with AsyncSessionStore(storage) as store:
            await store.save(a_state())
            raise KeyError("body")

    with pytest.raises(KeyError):
        await body()
    assert "1 account(s) not on storage" in caplog.text
    with pytest.raises(SessionWriteError):
        async with AsyncSessionStore(storage) as store:
            await store.save(a_state())


async def test_a_clear_returns_though_its_deletion_fails_and_stays_pending(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 8
    await store.save(a_state())
    await store.flush()
    storage.failing = True
    await store.clear("bot")
    assert on_storage(storage) is not None
    assert await store.load("bot") is None
    storage.failing = False
    await asyncio.sleep(5)
    assert storage.records == {}


@pytest.mark.parametrize("name", ["qqbot_session:bot", "qqbot_session:commit", ""])
@pytest.mark.parametrize("moment", ["created", "in flight", "parked", "retrying"])
async def test_cancelling_our_tasks_loses_nothing(
    storage: FaultyStorage, name: str, moment: str
) -> None:
    # promise 9
    store = AsyncSessionStore(storage)
    if moment == "in flight":
        storage.gate.clear()
    storage.failing = moment == "retrying"
    await store.save(a_state(last_seq=1))
    if moment != "created":
        await asyncio.sleep(0.1)
    await store.update_last_seq("bot", 2)
    storage.failing = False
    storage.gate.set()
    tasks = [t for t in asyncio.all_tasks() - {asyncio.current_task()} if name in t.get_name()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(2)
    assert on_storage(storage).last_seq == 2
    await store.save(a_state(last_seq=3))  # and the store goes on
    await store.flush()
    assert on_storage(storage).last_seq == 3
    await store.aclose()


async def test_an_account_whose_task_was_cancelled_is_retried_if_the_loop_goes_on(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    # promise 8
    storage.failing = True
    await store.save(a_state())
    await asyncio.sleep(0.1)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.5)
    storage.failing = False
    await asyncio.sleep(60)
    assert on_storage(storage) is not None


async def test_no_storage_error_reaches_the_bot(
    store: AsyncSessionStore, storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 10
    storage.failing = storage.unreadable = True
    assert await store.load("bot") is None
    assert await store.update_last_seq("unseen", 1) is False
    assert await store.touch("unseen-2") is False
    await store.save(a_state())
    assert await store.load_all() != []
    assert await store.cleanup() == 0
    await store.clear("bot")
    assert "Identify bot: unreadable: [Errno 5] unreadable" in caplog.messages


BAD_CALLS: list[tuple[type[Exception], str, Any]] = [
    (TypeError, "None", lambda s: s.load(None)),
    (ValueError, "''", lambda s: s.load("")),
    (ValueError, r"'a\\x00'", lambda s: s.clear("a\0")),
    (ValueError, r"'\\ud800'", lambda s: s.touch("\ud800")),
    (TypeError, r"\[\]", lambda s: s.touch([])),
    (TypeError, r"\['bot'\]", lambda s: s.update_last_seq(["bot"], 1)),
    (TypeError, "b'bot'", lambda s: s.flush(b"bot")),
    (TypeError, "True", lambda s: s.update_last_seq("bot", True)),
    (TypeError, "1.0", lambda s: s.update_last_seq("bot", 1.0)),
    (TypeError, "None", lambda s: s.update_last_seq("bot", None)),
    (ValueError, "-1", lambda s: s.update_last_seq("bot", -1)),
    (ValueError, "9007199254740992", lambda s: s.update_last_seq("bot", 2**53)),
    (TypeError, "'state'", lambda s: s.save("state")),
    (TypeError, "123", lambda s: s.load("bot", app_id=123)),
    (TypeError, r"\[0, 1\]", lambda s: s.load("bot", shard=[0, 1])),
    (ValueError, r"\(1, 1\)", lambda s: s.load("bot", shard=(1, 1))),
    (ValueError, "-1", lambda s: s.load("bot", intents=-1)),
]


@pytest.mark.parametrize(("error", "named", "call"), BAD_CALLS)
async def test_a_wrong_argument_is_named_at_once_and_nothing_is_touched(
    store: AsyncSessionStore, storage: FaultyStorage, error: Any, named: str, call: Any
) -> None:
    # promise 10
    await store.save(a_state(last_seq=1))
    with pytest.raises(error, match=named):
        await call(store)
    assert storage.reads == []
    await store.flush()
    assert written(storage) == [1]


async def test_save_nowait_names_what_is_no_state(store: AsyncSessionStore) -> None:
    # promise 10
    with pytest.raises(TypeError, match="'state'"):
        store.save_nowait("state")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, {"debounce": -1}),
        (ValueError, {"debounce": float("nan")}),
        (ValueError, {"debounce": float("inf")}),
        (TypeError, {"debounce": "1"}),
        (TypeError, {"debounce": True}),
        (TypeError, {"debounce": None}),
        (ValueError, {"max_age": -0.1}),
        (TypeError, {"max_age": "5"}),
        (TypeError, {"on_write": 5}),
        (TypeError, {"clock": 5}),
        (TypeError, {"storage": 5}),
        (TypeError, {"storage": b"sessions"}),
        (ValueError, {"storage": ""}),
        (ValueError, {"storage": "a\0b"}),
        (ValueError, {"storage": "mysql://localhost"}),
        (ValueError, {"storage": "sqlite:///sessions.db"}),
    ],
)
def test_a_wrong_argument_of_the_constructor_is_named(error: Any, arguments: Any) -> None:
    # promise 10
    (value,) = arguments.values()
    with pytest.raises(error) as caught:
        AsyncSessionStore(**{"storage": MemoryStorage()} | arguments)
    kind = str(value).partition(":")[0] if "://" in str(value) else type(value).__name__
    assert repr(value) in str(caught.value) or (
        kind in str(caught.value) and "storage" in arguments
    )


async def test_steps_of_the_wall_clock_neither_stop_nor_hasten_writes(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 11
    await grown_up(store)
    await store.save(a_state(last_seq=1))
    await asyncio.sleep(0.1)
    for step, seq in [(-1e6, 2), (+1e7, 3), (-1e8, 4)]:
        clock.now += step
        await store.update_last_seq("bot", seq)
        await asyncio.sleep(0.5 * WINDOW)
        assert written(storage)[-1] == seq - 1
        await asyncio.sleep(0.7 * WINDOW)
        assert written(storage)[-1] == seq


# Whose record, and how old


@pytest.mark.parametrize(
    ("saved", "alive"), [(-301, False), (-299, True), (+299, True), (+301, False)]
)
async def test_a_record_expires_in_the_past_and_in_the_future(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock, saved: int, alive: bool
) -> None:
    # promise 11, promise 13
    storage.records["bot"] = encode(a_state(), saved_at=clock.now + saved)
    assert len(await store.load_all()) == alive
    assert len(await store.load_all(include_expired=True)) == 1
    assert len(storage.records) == 1
    assert (await store.load("bot") is not None) is alive
    assert len(storage.records) == alive
    assert await store.touch("bot") is alive


async def test_without_an_age_limit_nothing_expires(storage: FaultyStorage) -> None:
    storage.records["bot"] = encode(a_state(), saved_at=1.0)
    async with AsyncSessionStore(storage, max_age=None) as store:
        assert await store.cleanup() == 0
        assert await store.load("bot") is not None


@pytest.mark.parametrize("values", [{"session_id": None}, {"session_id": ""}, {"last_seq": None}])
@pytest.mark.parametrize("warm", [False, True])
async def test_a_record_without_a_session_is_none_warm_and_cold(
    store: AsyncSessionStore, storage: FaultyStorage, values: Any, warm: bool
) -> None:
    state = replace(a_state(), **values)
    if warm:
        storage.gate.clear()
        await store.save(state)
    else:
        storage.records["bot"] = encode(state, saved_at=store._clock())
    assert await store.load("bot") is None
    assert await store.load_all() == []
    assert await store.update_last_seq("bot", 5) is False
    storage.gate.set()
    await store.flush()
    assert on_storage(storage).session_id == state.session_id


@pytest.mark.parametrize(
    ("held", "asked", "matches"),
    [
        ({"app_id": "1"}, {"app_id": "1"}, True),
        ({"app_id": "1"}, {"app_id": "2"}, False),
        ({"app_id": "1"}, {}, True),
        ({}, {"app_id": "2", "shard": (0, 1), "intents": 5}, True),
        ({"shard": (0, 2)}, {"shard": (1, 2)}, False),
        ({"shard": (0, 2)}, {"shard": (0, 2)}, True),
        ({"intents": 0}, {"intents": 1}, False),
        ({"intents": 1}, {"intents": 0}, False),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
async def test_a_record_of_another_app_shard_or_intents_is_none_and_left_alone(
    store: AsyncSessionStore,
    storage: FaultyStorage,
    held: Any,
    asked: Any,
    matches: bool,
    warm: bool,
) -> None:
    # promise 12
    if warm:
        storage.gate.clear()
        await store.save(a_state(**held))
    else:
        storage.records["bot"] = encode(a_state(**held), saved_at=store._clock())
    assert (await store.load("bot", **asked) is not None) is matches
    assert await store.update_last_seq("bot", 99) is matches
    assert await store.touch("bot") is matches
    await store.load_all()
    assert await store.touch("bot") is matches
    storage.gate.set()
    await store.flush()
    assert on_storage(storage).last_seq == (99 if matches else 1)
    if not matches:
        await store.save(a_state(last_seq=5))
        assert await store.touch("bot") is True


async def test_a_record_of_another_account_is_none_and_left_alone(
    store: AsyncSessionStore, storage: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 12
    storage.records["bot"] = encode(a_state("other"), saved_at=store._clock())
    assert await store.load("bot") is None
    assert len(caplog.messages) == 1
    assert on_storage(storage).account_id == "other"


async def test_cleanup_removes_the_expired_and_the_corrupt_and_skips_the_unsaved(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 13
    old = clock.now - 1000
    storage.records |= {
        "old": encode(a_state("old"), saved_at=old),
        "corrupt": b"{",
        "fresh": encode(a_state("fresh"), saved_at=clock.now),
        "mine": encode(a_state("mine"), saved_at=old),
    }
    storage.gate.clear()
    await store.save(a_state("mine", last_seq=2))
    assert await store.cleanup() == 2
    assert set(storage.records) == {"fresh", "mine"}
    storage.gate.set()


async def test_records_that_cleanup_cannot_remove_are_one_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 13
    class ReadOnly(MemoryStorage):
        async def discard(self, key: str, expected: bytes) -> bool:
            if key == "bot-50":
                return await super().discard(key, expected)
            raise OSError("read-only")

    old = {f"bot-{n}": encode(a_state(f"bot-{n}"), saved_at=1.0) for n in range(100)}
    async with AsyncSessionStore(ReadOnly(old)) as store:
        assert await store.cleanup() == 1
    (line,) = caplog.messages
    assert line.startswith("cannot remove the record of 99 accounts (bot-0, bot-1, bot-2, …): ")


async def test_an_unsaved_state_that_expired_while_storage_failed_is_removed_too(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 13
    storage.failing = True
    await store.save(a_state())
    await asyncio.sleep(0.1)
    clock.now += 1000
    assert await store.load("bot") is None
    assert await store.touch("bot") is False
    storage.failing = False
    await asyncio.sleep(60)
    assert storage.records == {}


async def test_a_save_while_load_removes_an_expired_record_wins(
    storage: FaultyStorage, clock: WallClock
) -> None:
    # promise 13
    class Slow(FaultyStorage):
        async def discard(self, key: str, expected: bytes) -> bool:
            await asyncio.sleep(5)
            return await super().discard(key, expected)

    slow = Slow({"bot": encode(a_state(last_seq=1), saved_at=1.0)})
    async with AsyncSessionStore(slow, clock=clock) as store:
        loading = asyncio.create_task(store.load("bot"))
        await asyncio.sleep(1)
        await store.save(a_state(last_seq=2))
        assert await loading is None
        assert await store.update_last_seq("bot", 3) is True
        await store.flush()
        assert on_storage(slow).last_seq == 3


# The rest of the house


def test_a_store_needs_a_running_loop_to_save_but_not_to_be_made() -> None:
    store = AsyncSessionStore(MemoryStorage())
    with pytest.raises(WrongEventLoopError, match="running event loop"):
        store.save_nowait(a_state())
    assert "accounts=0 unsaved=0" in repr(store)


def test_a_second_event_loop_is_refused_and_nothing_is_touched() -> None:
    storage = MemoryStorage()
    store = AsyncSessionStore(storage)

    async def first() -> None:
        await store.save(a_state(last_seq=1))

    async def second() -> None:
        with pytest.raises(WrongEventLoopError):
            await store.update_last_seq("bot", 2)
        with pytest.raises(WrongEventLoopError):
            await store.aclose()

    asyncio.run(first())
    asyncio.run(second())
    assert on_storage(storage).last_seq == 1


async def test_unsaved_and_never_closed_warns() -> None:
    storage = FaultyStorage()
    storage.gate.clear()
    store = AsyncSessionStore(storage)
    await store.save(a_state())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del store
        gc.collect()
    (ours,) = [w for w in caught if "never closed" in str(w.message)]  # others' garbage may warn
    assert "unsaved=1" in str(ours.message)
    assert ours.category is ResourceWarning
    storage.gate.set()
    store = AsyncSessionStore(storage)
    await store.save(a_state())
    await store.flush()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del store
        gc.collect()
    assert not [w for w in caught if "never closed" in str(w.message)]
    await asyncio.sleep(5)


async def test_the_repr_tells_what_one_wants_to_know(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    await store.save(a_state())
    assert (
        repr(store) == "<AsyncSessionStore storage=<MemoryStorage records=0> accounts=1 unsaved=1>"
    )
    directory = AsyncSessionStore("sessions")
    assert "directory='sessions' durable=True" in repr(directory)


def test_no_storage_means_the_originals_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    storage = AsyncSessionStore()._storage
    assert isinstance(storage, FileStorage)
    assert storage.directory == "/home/somebody/.openclaw/qqbot/sessions"
    monkeypatch.delenv("HOME")
    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir="/usr"))
    assert AsyncSessionStore()._storage.directory == "/usr/.openclaw/qqbot/sessions"
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir="/nonexistent"))
    assert AsyncSessionStore()._storage.directory == "/tmp/.openclaw/qqbot/sessions"


async def test_a_session_id_is_never_logged_whole(
    store: AsyncSessionStore,
    storage: FaultyStorage,
    clock: WallClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 15
    caplog.set_level(logging.DEBUG)
    secret = "5f9b9f0e-secret-session-id"
    storage.failing = True
    await store.save(a_state(session_id=secret))
    with pytest.raises(SessionWriteError) as error:
        await store.flush()
    storage.records["corrupt"] = encode(a_state("corrupt", session_id=secret))[:-9]
    await store.load("corrupt")
    storage.records["wrong"] = encode(a_state("wrong", session_id=secret)).replace(b": 1", b": []")
    await store.load("wrong")
    clock.now += 1000
    await store.load("bot")
    assert secret not in caplog.text
    assert secret not in str(error.value)
    assert secret not in repr(store)


# A bot that nobody writes to


async def restarted(storage: MemoryStorage, clock: WallClock) -> int | None:
    """Load the account a second later, as a new process does."""
    clock.now += 1
    async with AsyncSessionStore(storage, clock=clock) as store:
        state = await store.load("bot")
    return None if state is None else state.last_seq


@pytest.mark.parametrize("ends", ["in order", "by an error", "cancelled"])
async def test_a_bot_without_events_for_longer_than_max_age_can_be_restarted(
    storage: FaultyStorage, clock: WallClock, ends: str
) -> None:
    """It keeps its session with `save` and `update_last_seq` alone, as the first example does."""

    async def live() -> None:
        async with AsyncSessionStore(storage, clock=clock) as store:
            await store.save(a_state())
            await store.update_last_seq("bot", 2)
            await store.flush()
            clock.now += 360
            if ends == "by an error":
                raise ConnectionError
            if ends == "cancelled":
                raise asyncio.CancelledError

    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        await live()
    assert await restarted(storage, clock) == 2


@pytest.mark.parametrize("told", ["touch", "touch, unsaved", "record"])
async def test_whose_signs_of_life_are_told_has_none_when_its_line_is_dead(
    storage: FaultyStorage, clock: WallClock, told: str
) -> None:
    # promise 13
    async with AsyncSessionStore(storage, clock=clock) as store:
        await store.save(a_state())
        await asyncio.sleep(0 if told == "touch, unsaved" else 10)
        if told == "record":
            gateway = GatewaySession("bot", app_id="1", intents=1, resume=a_state(app_id="1"))
            await store.record(gateway)
        else:
            await store.touch("bot")
        await store.flush()
        clock.now += 360
    assert await restarted(storage, clock) is None


@pytest.mark.parametrize("what", ["loaded only", "refused", "cleared", "written by another"])
async def test_closing_is_no_sign_of_life_of_what_is_not_this_store_s(
    storage: FaultyStorage, clock: WallClock, what: str
) -> None:
    # promises 13 and 25
    async with AsyncSessionStore(storage, clock=clock) as store:
        await store.save(a_state(app_id="1"))
        if what == "loaded only":
            await store.flush()
            store._ledger.forget("bot")
            assert await store.load("bot") is not None
        elif what == "refused":
            assert await store.load("bot", app_id="2") is None
        elif what == "cleared":
            await store.clear("bot")
        await store.flush()
        clock.now += 360
        if what == "written by another":
            storage.records["bot"] = encode(a_state(last_seq=9), saved_at=clock.now - 10)
    assert await restarted(storage, clock) == (9 if what == "written by another" else None)


@pytest.mark.parametrize("fails", ["read", "commit", "hangs"])
async def test_closing_quietly_is_no_error_where_the_storage_is_away(
    storage: FaultyStorage, clock: WallClock, fails: str
) -> None:
    store = AsyncSessionStore(storage, clock=clock)
    await store.save(a_state())
    await store.flush()
    clock.now += 360
    storage.unreadable, storage.broken = fails == "read", fails == "commit"
    if fails == "hangs":
        storage.read_gate.clear()
    await store.aclose()
    assert written(storage) == ([1, 1] if fails == "commit" else [1])


async def test_closing_renews_nothing_that_is_fresh_or_never_expires(
    storage: FaultyStorage, clock: WallClock
) -> None:
    for max_age, later in ((300.0, 29), (None, 10**6)):
        storage.commits.clear()
        async with AsyncSessionStore(storage, max_age=max_age, clock=clock) as store:
            await store.save(a_state())
            await store.flush()
            clock.now += later
        assert written(storage) == [1]


def test_a_forked_process_warns_of_nothing_that_its_parent_saved(tmp_path: Path) -> None:
    # promise 25
    program = """
import asyncio, gc, os, sys
from qqbot_session import AsyncSessionStore, SessionState

async def main():
    store = AsyncSessionStore(sys.argv[1])
    store.save_nowait(SessionState(account_id="a", session_id="s", last_seq=1))
    child = os.fork()
    if not child:
        del store
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    await store.aclose()

asyncio.run(main())
"""
    command = [sys.executable, "-W", "always", "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["session-a.json"]
