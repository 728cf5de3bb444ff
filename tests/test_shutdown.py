"""Real processes that end in every way a process can; a fresh reader then looks at the disk.

The bots are in `programs/bots.py`. All of them have a window of an hour, so that whatever reaches
the disk after the first write does so because of the way they end.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash import (
    Tap,
    a_state,
    age,
    end_programs,
    finish,
    left_overs,
    stand_in,
    start,
    turns_until,
    until,
)
from faults import FaultyStorage

from qqbot_session import AsyncSessionStore, SessionWriteError, WrongEventLoopError
from qqbot_session.state import decode

NEWEST = 7

loops = pytest.mark.parametrize(
    "loop",
    [
        "plain",
        pytest.param(
            "uvloop",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("uvloop") is None, reason="needs uvloop"
            ),
        ),
        pytest.param(
            "eager",
            marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Python 3.12"),
        ),
    ],
)
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def no_program_outlives_its_test() -> Iterator[None]:
    yield
    end_programs()


async def last_seq(directory: Path, account_id: str = "bot") -> int | None:
    state = await AsyncSessionStore(directory, max_age=None).load(account_id)
    return None if state is None else state.last_seq


@loops
@pytest.mark.parametrize(
    ("bot", "code"),
    [
        ("returns_at_once", 0),
        ("cancels_all_before_their_first_step", 0),
        ("returns_within_the_window", 0),
        ("returns_while_a_write_is_in_flight", 0),
        ("raises", 3),
        ("is_cancelled", 1),
        ("is_cancelled_without_a_with", 1),
        ("cancels_some_of_its_tasks", 0),
    ],
)
async def test_a_bot_that_ends_loses_nothing(
    directory: Path, bot: str, code: int, loop: str
) -> None:
    """Without `async with` it is warned all the same: its store was dropped while unsaved."""
    # promise 9, 5
    returned, _, errors = finish(start("bots", bot, directory, loop))
    assert returned == code, errors
    assert "Task" not in errors  # destroyed while pending, exception never retrieved
    if bot in ("raises", "is_cancelled"):
        assert "ResourceWarning" not in errors
    assert await last_seq(directory) == NEWEST
    assert left_overs(directory) == []


@posix
@loops
@pytest.mark.parametrize(
    ("bot", "number"),
    [("waits", signal.SIGINT), ("handles_sigterm", signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM"],
)
async def test_a_signal_loses_nothing(
    directory: Path, bot: str, number: signal.Signals, loop: str
) -> None:
    """Ctrl-C under `asyncio.run`, and SIGTERM with the handler that the README documents."""
    # promise 9
    process = start("bots", bot, directory, loop)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert await last_seq(directory) == 1
    process.send_signal(number)
    _, _, errors = finish(process)
    assert "Task" not in errors
    assert await last_seq(directory) == NEWEST


@posix
async def test_sigkill_from_outside_leaves_the_session_and_a_number_not_too_new(
    directory: Path,
) -> None:
    """The bot prints each number after it was noted: the disk knows none beyond the last."""
    # promise 7, 9
    process = start("bots", "streams", directory)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 300:
            break
    process.kill()
    _, output, _ = finish(process)
    # The first may be the end of what was read before, the last one cut off by the kill.
    noted = max(map(int, filter(None, output.splitlines()[:-1])), default=300)
    found = await last_seq(directory)
    assert found is not None
    assert 0 <= found <= noted + 2
    for path in left_overs(directory):
        age(path)
    async with AsyncSessionStore(directory) as store:
        await store.cleanup()
    assert left_overs(directory) == []
    assert await last_seq(directory) == found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_sigkill_loses_at_most_one_debounce_of_numbers(tmp_path: Path) -> None:
    """On virtual time, where a commit takes none: at any moment at most 100 of 100 a second."""
    # promise 9, 2
    moments = [1, 99, 100, 101, 150, 199, 200, 201, *random.Random(1).sample(range(1, 900), 4)]
    process = start("killed", tmp_path, json.dumps(moments))
    code, _, errors = finish(process)
    assert code == 0, errors
    lost = []
    for moment in moments:
        found = await last_seq(tmp_path / str(moment))
        assert found is not None, "the session itself is lost"
        lost.append(moment - found)
    assert min(lost) >= 0
    assert max(lost) <= 101  # an event at the very instant of a write may come before it


async def test_a_loop_closed_with_unsaved_state_warns_and_does_not_hang(directory: Path) -> None:
    """Nothing can be done any more: the first write is there, the rest is a ResourceWarning."""
    # promise 9
    code, output, errors = finish(start("bots", "closes_its_loop", directory))
    assert code == 0
    assert "closed" in output
    assert "ResourceWarning: never closed, with unsaved state: <AsyncSessionStore" in errors
    assert await last_seq(directory) == 1


async def test_an_interpreter_that_exits_finishes_the_write_in_flight(directory: Path) -> None:
    # promise 9, 7
    code, _, errors = finish(start("bots", "exits_with_a_write_in_flight", directory))
    assert code == 0, errors
    assert await last_seq(directory) == NEWEST
    assert left_overs(directory) == []


@loops
async def test_a_full_disk_does_not_hold_up_the_end(directory: Path, loop: str) -> None:
    """One attempt, one warning that something is unsaved, and the process ends."""
    # promise 5
    code, _, errors = finish(start("bots", "has_a_full_disk", directory, loop))
    assert code == 0
    assert "ResourceWarning: never closed, with unsaved state" in errors
    assert "No space left" in errors
    assert await last_seq(directory) is None
    assert left_overs(directory) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_parent_and_child_both_work_after_a_fork(directory: Path) -> None:
    """The child makes a new store on the same FileStorage, whose threads it does not have."""
    # promise 9
    code, _, errors = finish(start("bots", "forks", directory))
    assert code == 0, errors
    for account_id in ("bot", "child", "again"):
        assert await last_seq(directory, account_id) == NEWEST


def test_a_second_event_loop_is_a_clear_error(directory: Path) -> None:
    """What the first loop saved is safe, and what the second tried has changed nothing."""
    # promise 5
    store = AsyncSessionStore(directory)
    asyncio.run(store.save(a_state("bot", NEWEST)))
    for call in (
        lambda: store.save(a_state("bot", 8)),
        lambda: store.touch("bot"),
        lambda: store.update_last_seq("bot", 9),
        lambda: store.clear("bot"),
        store.aclose,
    ):
        with pytest.raises(WrongEventLoopError, match="belongs to"):
            asyncio.run(call())
    assert asyncio.run(last_seq(directory)) == NEWEST
    assert "unsaved=0" in repr(store)


def our_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("qqbot_session")]


@pytest.mark.parametrize("moment", range(6))
async def test_a_cancelled_aclose_on_a_hanging_storage_ends_every_task(moment: int) -> None:
    """The storage hangs for ever; `aclose` is given a time-out, at any stage of the writes."""
    # promise 5
    storage = FaultyStorage()
    storage.gate.clear()
    store = AsyncSessionStore(storage)
    for name in "abc":
        await store.save(a_state(name, 1))
    for _ in range(moment):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await store.aclose()
    assert our_tasks() == []
    with pytest.raises(SessionWriteError):
        await store.aclose()
    assert storage.records == {}


@pytest.mark.real_time
async def test_a_cancelled_aclose_on_a_hanging_disk_ends_every_task(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread cannot be ended; once the disk answers it completes the write and ends too."""
    # promise 5
    hangs, answers = threading.Event(), threading.Event()

    def hang(name: str, do: Any, _: Any) -> Any:
        if name == "fdatasync":
            hangs.set()
            answers.wait(30)
        return do()

    stand_in(monkeypatch, Tap(hang))
    before = set(threading.enumerate())
    store = AsyncSessionStore(directory)
    await store.save(a_state("bot", NEWEST))
    closing = asyncio.create_task(store.aclose())
    await turns_until(hangs.is_set)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert our_tasks() == []
    answers.set()
    threads = [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    until(lambda: not any(thread.is_alive() for thread in threads), "the threads end")
    monkeypatch.undo()
    assert await last_seq(directory) == NEWEST


@pytest.mark.parametrize("debounce", [0, 0.001, 1.0])
async def test_an_update_during_the_last_attempt_of_a_cancelled_task_is_still_written(
    debounce: float,
) -> None:
    """Somebody cancels the account's task and the loop goes on: no state waits for ever."""
    # promise 9
    storage = FaultyStorage()
    storage.gate.clear()
    store = AsyncSessionStore(storage, debounce=debounce)
    await store.save(a_state("bot", 1))
    await turns_until(lambda: len(storage.commits) == 1)
    await store.update_last_seq("bot", 2)
    for task in asyncio.all_tasks():
        if task.get_name() == "qqbot_session:bot":
            task.cancel()
    await asyncio.sleep(0)
    storage.gate.set()
    storage.gate.clear()
    await turns_until(lambda: len(storage.commits) == 2)
    await store.update_last_seq("bot", NEWEST)
    storage.gate.set()
    await asyncio.sleep(3600)
    written = decode(storage.records["bot"]).last_seq
    await store.aclose()
    assert written == NEWEST


@pytest.mark.parametrize("turns", range(8))
async def test_a_close_that_is_cancelled_again_and_again_still_closes_the_storage(
    turns: int,
) -> None:
    """As in a cancelled scope of anyio, from any moment on; the storage takes its time."""
    # promise 5

    class Slow(FaultyStorage):
        async def commit(self, changes: Any) -> Any:
            await asyncio.sleep(0.5)
            return await super().commit(changes)

        async def aclose(self) -> None:
            await asyncio.sleep(0.5)
            await super().aclose()

    storage = Slow()
    store = AsyncSessionStore(storage)
    store._owns_storage = True
    await store.save(a_state("bot", NEWEST))
    closing = asyncio.create_task(store.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    while not closing.done():
        closing.cancel()
        await asyncio.sleep(0.01)
    assert closing.cancelled() or turns == 0
    await store.aclose()
    assert storage.closed == 1
    assert decode(storage.records["bot"]).last_seq == NEWEST
    assert our_tasks() == []
