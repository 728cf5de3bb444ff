"""Hours of load with faults: what a store uses at the end is what it used at the beginning.

`QQBOT_SESSION_LONG_RUN` sets how many seconds of real time the slow part takes; default 60.
"""

from __future__ import annotations

import _weakrefset
import asyncio
import contextlib
import errno
import gc
import logging
import os
import random
import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from crash import Tap, a_state, stand_in
from descriptors import descriptors

from qqbot_session import AsyncSessionStore, SessionWriteError
from qqbot_session.state import decode

ACCOUNTS = [f"bot-{number}" for number in range(2)] + ["bot.dotted"]
# A leak grows in each of them; a module, a pattern or a table of the interpreter comes but once.
_STRETCHES = 4
_FAULTY = frozenset({"open", "write", "fdatasync", "fsync", "replace", "mkdir", "unlink"})


class BadDisk:
    """Refuses to write, one call in 50, while `bad`; syncs cost too much and are left out."""

    def __init__(self, seed: int) -> None:
        self.bad = True
        self.refused = 0
        self._random = random.Random(seed)

    def __call__(self, name: str, do: Any, args: tuple[Any, ...]) -> Any:
        reads = name == "open" and not args[1] & os.O_CREAT
        if self.bad and name in _FAULTY and not reads and self._random.random() < 0.02:
            self.refused += 1
            raise OSError(errno.EIO, "a bad disk")
        return None if name in ("fsync", "fdatasync") else do()


class Load:
    """A bot that does anything a bot may do, at random."""

    def __init__(self, store: AsyncSessionStore, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self.newest: dict[str, int] = {}
        self.steps = 0

    async def run(self, seconds: float) -> None:
        """Act for so many seconds of the loop's clock, about twice a second."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._step(self._random.choice(ACCOUNTS))
            await asyncio.sleep(self._random.expovariate(2))

    async def _step(self, account_id: str) -> None:
        self.steps += 1
        number = self.newest.get(account_id, 0) + 1
        match self._random.random():
            case chance if chance < 0.1 or account_id not in self.newest:
                await self._store.save(a_state(account_id, number, session_id=f"s{number}"))
                self.newest[account_id] = number
            case chance if chance < 0.75:
                assert await self._store.update_last_seq(account_id, number)
                self.newest[account_id] = number
            case chance if chance < 0.82:
                await self._store.touch(account_id)
            case chance if chance < 0.86:
                await self._store.clear(account_id)
                del self.newest[account_id]
            case chance if chance < 0.92:
                await self._cancel_a_flush()
            case chance if chance < 0.96:
                with contextlib.suppress(SessionWriteError):
                    await self._store.flush()
            case _:
                await self._store.cleanup()
                await self._store.load_all()

    async def _cancel_a_flush(self) -> None:
        waiter = asyncio.create_task(self._store.flush())
        await asyncio.sleep(0)
        waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError, SessionWriteError):
            await waiter


def _used(others: set[threading.Thread]) -> dict[str, int]:
    """Count what may leak; memory in bytes, threads without `others`."""
    gc.collect()
    # Without asyncio's set of all tasks, which is made anew at times, as large as it ever was.
    of_all_tasks = tracemalloc.Filter(inclusive=False, filename_pattern=_weakrefset.__file__)
    traces = tracemalloc.take_snapshot().filter_traces([of_all_tasks])
    return {
        "descriptors": descriptors(),
        "tasks": len(asyncio.all_tasks()),
        "threads": len(set(threading.enumerate()) - others),
        "memory": sum(trace.size for trace in traces.traces),
    }


async def _settle(
    store: AsyncSessionStore, disk: BadDisk, others: set[threading.Thread]
) -> dict[str, int]:
    """Let the disk recover, everything be written and every task end; count then."""
    disk.bad = False
    await store.flush()
    await asyncio.sleep(31 if disk.refused and _is_virtual() else 1.2)
    used = _used(others)
    disk.bad = True
    return used


def _is_virtual() -> bool:
    return hasattr(asyncio.get_running_loop(), "clock")


async def _run(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    warm_up: float,
    seconds: float,
    seed: int,
    debounce: float = 1.0,
) -> Load:
    disk = BadDisk(seed)
    others = set(threading.enumerate())  # of tests before this one
    stand_in(monkeypatch, Tap(disk))
    logging.getLogger("qqbot_session").setLevel(logging.CRITICAL)  # pytest keeps every record
    tracemalloc.start()
    try:
        async with AsyncSessionStore(directory, max_age=None, debounce=debounce) as store:
            load = Load(store, seed)
            await load.run(warm_up)
            used = [await _settle(store, disk, others)]
            for _ in range(_STRETCHES):
                await load.run(seconds / _STRETCHES)
                used.append(await _settle(store, disk, others))
            disk.bad = False
    finally:
        tracemalloc.stop()
        logging.getLogger("qqbot_session").setLevel(logging.NOTSET)
    assert disk.refused > 5
    memory = [count.pop("memory") for count in used]
    growth = [later - earlier for earlier, later in pairwise(memory)]
    assert min(growth) < 16 * 1024, growth
    assert all(used[-1][what] <= count for what, count in used[0].items()), used
    assert _on_disk(directory) == load.newest
    return load


def _on_disk(directory: Path) -> dict[str, int | None]:
    states = [decode(path.read_bytes()) for path in directory.glob("session-*.json")]
    return {state.account_id: state.last_seq for state in states}


async def test_ten_minutes_of_faults_leave_nothing_behind(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes of virtual time: tasks, threads, descriptors and memory are what they were."""
    # promise 8
    load = await _run(directory, monkeypatch, warm_up=120, seconds=480, seed=1, debounce=5)
    assert load.steps > 800


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 5))
async def test_an_hour_of_faults_leaves_nothing_behind(
    directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # promise 8
    await _run(directory, monkeypatch, warm_up=300, seconds=3600, seed=seed)


REAL_SECONDS = float(os.environ.get("QQBOT_SESSION_LONG_RUN", "60"))


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.timeout(4 * REAL_SECONDS + 120)
async def test_minutes_of_real_time_leave_nothing_behind(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 8
    await _run(directory, monkeypatch, warm_up=REAL_SECONDS / 4, seconds=REAL_SECONDS, seed=5)
