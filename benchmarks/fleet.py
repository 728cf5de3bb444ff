"""What a fleet in one process costs: files per second, the loop's lag, closing, memory, age.

Every account is updated so many times a second, in steps of 10 ms. The fleet exists on storage
before anything is measured, and the load runs for a while first: its first moments make a task per
account, which is another question (`first_save.py`). The age of a state is the time from the first
update since the account was last encoded to the end of the commit that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, Storage, WriteDetails
from qqbot_session.state import encode

from ._measure import (
    Row,
    Settings,
    account_ids,
    lag_probe,
    main,
    percentile,
    ratios,
    state,
    temporary_directory,
)
from ._stepwise import StepwiseStore

_STEP = 0.01  # seconds
_Update = Callable[[str, int], Awaitable[object]]


@dataclass
class Run:
    """One run: rates per second, everything else in seconds."""

    files: float = 0.0
    work: float = 0.0  # of all threads, per file
    late: list[float] = field(default_factory=list)
    close: float = 0.0
    oldest: float = 0.0
    wanted: float = 1.0  # updates made, of those wanted

    def lag(self, percent: float) -> float:
        return percentile(self.late, percent)


def fleet(settings: Settings) -> list[Row]:
    """What does a fleet of 10,000 and of 100,000 accounts cost?"""
    with contextlib.suppress(ValueError, OSError):  # one aiofiles call per step opens them all
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = asyncio.run(_memory(10_000 if settings.quick else 100_000))
    with temporary_directory(settings.disk) as directory:
        rows += asyncio.run(_ten_thousand(settings, directory))
    with temporary_directory(settings.disk) as directory:
        rows += asyncio.run(_hundred_thousand(settings, directory))
    return rows


async def _ten_thousand(settings: Settings, directory: Path) -> list[Row]:
    count, rate = 10_000, 5
    seconds = 2.0 if settings.quick else 5.0
    ids = account_ids(count)
    ours, durable, theirs, without = [], [], [], []
    for turn in range(1 if settings.quick else 3):
        ours.append(await _ours(directory / f"ours{turn}", ids, rate, 1.5, seconds))
        theirs.append(await _theirs(directory / f"theirs{turn}", ids, rate, 1.5, 2 * seconds))
        without.append(await _without(ids, rate, seconds))
    if not settings.quick:
        durable.append(await _ours(directory / "durable", ids, rate, 1.5, seconds, durable=True))
    what = f"{count:,} accounts at {rate} updates/s"
    stepwise = "one aiofiles call per step"
    return [
        Row(
            question=f"{what}: files per second, times more",
            against=stepwise,
            values=ratios([run.files for run in ours], [run.files for run in theirs]),
            target=">= 2.5",
        ),
        Row(
            question=f"{what}: loop lag p99",
            values=[run.lag(99) * 1e3 for run in ours],
            unit="ms",
            target="<= 2.5",
        ),
        Row(
            question=f"{what}: loop lag p99",
            against=stepwise,
            values=ratios([run.lag(99) for run in ours], [run.lag(99) for run in theirs]),
            target="<= 0.05",
        ),
        Row(
            question=f"{what}: `aclose`, times faster",
            against=stepwise,
            values=ratios([run.close for run in theirs], [run.close for run in ours]),
            target=">= 4",
        ),
        *_figures(what, ours),
        *_figures(f"{what}, `durable=True`", durable),
        *_figures(f"{what}, {stepwise}", theirs),
        *_lags(f"{what}, without a store", without),
    ]


async def _hundred_thousand(settings: Settings, directory: Path) -> list[Row]:
    count, rate = (20_000, 2) if settings.quick else (100_000, 2)
    ids = account_ids(count)
    without = [await _without(ids, rate, 2.0 if settings.quick else 5.0) for _ in range(3)]
    ours = [await _ours(directory, ids, rate, 3.0, 3.0 if settings.quick else 40.0)]
    what = f"{count:,} accounts at {rate} updates/s"
    bound = count / ours[0].files + 1.0
    return [
        Row(
            question=f"{what}: loop lag p99",
            values=[run.lag(99) * 1e3 for run in ours],
            unit="ms",
            target="<= 6",
        ),
        Row(
            question=f"{what}: age of the oldest unsaved state",
            against="accounts / files per second + `debounce`",
            values=[ours[0].oldest / bound],
            target="<= 1.2",
        ),
        *_figures(what, ours),
        *_lags(f"{what}, without a store", without),
    ]


def _figures(what: str, runs: list[Run]) -> list[Row]:
    if not runs:
        return []
    rows = [
        Row(question=f"{what}: files", values=[r.files for r in runs], unit="/s"),
        *_lags(what, runs),
        Row(question=f"{what}: `aclose`", values=[r.close for r in runs], unit="s"),
    ]
    if runs[0].oldest:
        oldest = [run.oldest for run in runs]
        rows.append(Row(question=f"{what}: oldest unsaved state", values=oldest, unit="s"))
    return rows


def _lags(what: str, runs: list[Run]) -> list[Row]:
    wanted = min(run.wanted for run in runs)
    return [
        Row(
            question=f"{what}: loop lag {name}",
            values=[run.lag(percent) * 1e3 for run in runs],
            unit="ms",
            note="" if wanted > 0.98 else f"only {wanted:.0%} of the updates could be made",
        )
        for name, percent in (("p50", 50), ("p99", 99), ("max", 100))
    ]


async def _ours(
    directory: Path,
    ids: list[str],
    rate: int,
    warm_up: float,
    seconds: float,
    *,
    durable: bool = False,
) -> Run:
    return await run_on(FileStorage(directory, durable=durable), ids, rate, warm_up, seconds)


async def run_on(
    storage: Storage, ids: list[str], rate: int, warm_up: float, seconds: float
) -> Run:
    """Run a fleet on a storage, and close it."""
    run = Run()
    since = dict.fromkeys(ids, 0.0)
    files = [0]

    def on_write(details: WriteDetails) -> None:
        now = time.perf_counter()
        files[0] += len(details.account_ids)
        for account_id in details.account_ids:
            run.oldest = max(run.oldest, now - since[account_id])
            since[account_id] = now - details.seconds

    store = AsyncSessionStore(storage, on_write=on_write)
    for start in range(0, len(ids), 500):
        for account_id in ids[start : start + 500]:
            store.save_nowait(state(account_id))
        await asyncio.sleep(0)
    await store.flush()
    await asyncio.sleep(1.5)  # every window is over
    gc.collect()
    await _drive(store.update_last_seq, ids, rate, warm_up)
    now, worked = time.perf_counter(), time.process_time()
    since.update(dict.fromkeys(ids, now))
    run.oldest = 0.0
    files[0] = 0
    async with lag_probe() as run.late:
        run.wanted = await _drive(store.update_last_seq, ids, rate, seconds)
    run.files = files[0] / (time.perf_counter() - now)
    run.work = (time.process_time() - worked) / max(1, files[0])
    oldest = run.oldest
    run.close = await _close(store, ids)
    run.oldest = oldest
    await storage.aclose()
    return run


async def _theirs(
    directory: Path, ids: list[str], rate: int, warm_up: float, seconds: float
) -> Run:
    run = Run()
    storage = FileStorage(directory, durable=False)
    await storage.commit({account_id: encode(state(account_id)) for account_id in ids})
    await storage.aclose()
    store = StepwiseStore(directory)
    await _drive(store.update_last_seq, ids, rate, warm_up)
    gc.collect()
    files, started = store.files, time.perf_counter()
    async with lag_probe() as run.late:
        run.wanted = await _drive(store.update_last_seq, ids, rate, seconds)
    run.files = (store.files - files) / (time.perf_counter() - started)
    run.close = await _close(store, ids)
    return run


async def _without(ids: list[str], rate: int, seconds: float) -> Run:
    run = Run()
    numbers: dict[str, int] = {}

    async def update(account_id: str, last_seq: int) -> None:
        numbers[account_id] = last_seq

    async with lag_probe() as run.late:
        run.wanted = await _drive(update, ids, rate, seconds)
    return run


async def _close(store: AsyncSessionStore | StepwiseStore, ids: list[str]) -> float:
    """Return how long closing takes with every account unsaved."""
    number = time.time_ns() // 1000
    for account_id in ids:
        await store.update_last_seq(account_id, number)
    started = time.perf_counter()
    await store.aclose()
    return time.perf_counter() - started


async def _drive(update: _Update, ids: list[str], rate: int, seconds: float) -> float:
    """Update every account `rate` times a second; return the part of it that could be made."""
    per_step = max(1, round(len(ids) * rate * _STEP))
    place, number = 0, time.time_ns() // 1000
    started, steps = time.perf_counter(), 0
    while (now := time.perf_counter()) < started + seconds:
        for account_id in ids[place : place + per_step]:
            await update(account_id, number)
        place += per_step
        if place >= len(ids):
            place, number = 0, number + 1
        steps += 1
        await asyncio.sleep(max(0.0, started + steps * _STEP - now))
    return steps / (seconds / _STEP)


# Memory


class _StuckStorage(MemoryStorage):
    """A storage whose commits wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        await self.go_on.wait()
        return {}

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        for item in self.records.items():
            yield item


async def _memory(count: int) -> list[Row]:
    """Weigh an account, beyond its `SessionState` and its id, in the states it can be in."""
    storage = _StuckStorage()
    states = [state(account_id) for account_id in account_ids(count)]
    debounce = count / 10_000  # seconds; long enough for all to be in it at once
    store = AsyncSessionStore(storage, debounce=debounce)
    gc.collect()
    tracemalloc.start()
    empty = tracemalloc.get_traced_memory()[0]

    def weigh() -> list[float]:
        gc.collect()
        return [(tracemalloc.get_traced_memory()[0] - empty) / count / 1000]

    for value in states:
        store.save_nowait(value)
    await asyncio.sleep(0)
    queued = weigh()
    await store.flush()
    parked = weigh()
    storage.go_on.clear()
    for value in states:
        store.save_nowait(value)
    unsaved = weigh()
    storage.go_on.set()
    await store.flush()
    await asyncio.sleep(debounce + 0.5)
    idle = weigh()
    tracemalloc.stop()
    await store.aclose()
    what = f"memory of one in {count:,} accounts beyond its `SessionState`"
    return [
        Row(question=f"{what}, {name}", values=values, unit="kB", target=target)
        for name, values, target in (
            ("unsaved, waiting in a batch", queued, "<= 1.5"),
            ("unsaved, in its window", unsaved, "<= 1.5"),
            ("saved, in its window", parked, ""),
            ("idle", idle, "<= 0.25"),
        )
    ]


if __name__ == "__main__":
    main(fleet)
