"""What a fleet asks for at once: its records at the start, its leases, its last writes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, Storage
from qqbot_session.state import encode
from qqbot_session.storages import RedisStorage, SqliteStorage
from qqbot_session.storages.names import file_name

from . import _stepwise
from ._measure import (
    Row,
    Settings,
    account_ids,
    lag_probe,
    no_collection,
    percentile,
    ratios,
    state,
    take_turns,
)
from ._servers import redis_server

_AT_ONCE = 1_000
_LOAD_BOUND = (
    "a task of the caller's, decoding and judging take 16 µs of the loop's thread a record, before "
    "anything is read"
)
_STEPWISE = "as many files through aiofiles, one after the other"
_TOGETHER = "the same, all at once"


def rows(settings: Settings, directory: Path) -> list[Row]:
    with contextlib.ExitStack() as stack:
        url = ""
        with contextlib.suppress(FileNotFoundError, ImportError):
            import redis  # noqa: F401

            url, _ = stack.enter_context(redis_server(directory))
        found = asyncio.run(_loads(settings, directory, url))
    found += asyncio.run(_leases(settings, directory))
    return found + asyncio.run(_flush(settings))


# Records


async def _loads(settings: Settings, directory: Path, redis: str) -> list[Row]:
    """Load 1,000 of 10,000 records at once."""
    count = 2_000 if settings.quick else 10_000
    storages: dict[str, Storage] = {
        "files": FileStorage(directory / "records", durable=False),
        "SQLite": SqliteStorage(directory / "records.db"),
    }
    if redis:
        storages["Redis"] = RedisStorage(redis)
    now, ids = time.time(), account_ids(count)
    for storage in storages.values():
        for at in range(0, count, 128):
            await storage.commit({name: encode(state(name), 1, now) for name in ids[at : at + 128]})
    wanted = ids[:: count // _AT_ONCE]
    late: dict[str, list[float]] = {name: [] for name in storages}

    def side(name: str) -> Callable[[], Awaitable[float]]:
        return lambda: _load(storages[name], wanted, late[name])

    paths = [f"{directory / 'records'}/{file_name(name)}" for name in wanted]
    sides = {name: side(name) for name in storages}
    sides |= {_STEPWISE: lambda: _read_each(paths), _TOGETHER: lambda: _read(paths)}
    seen = await take_turns(sides, settings.repeats(15))
    for storage in storages.values():
        await storage.aclose()
    return _load_rows(f"`load` of {_AT_ONCE:,} of {count:,} records at once", seen, late)


def _load_rows(what: str, seen: dict[str, list[float]], late: dict[str, list[float]]) -> list[Row]:
    targets = {"files": ">= 3", "SQLite": ">= 10", "Redis": ">= 8"}
    return [
        Row(
            question=f"{what}, times faster, {name}",
            against=against,
            values=ratios(seen[against], seen[name]),
            target=targets[name] if against == _STEPWISE else "",
            bound=_LOAD_BOUND,
        )
        for against in (_STEPWISE, _TOGETHER)
        for name in late
    ] + [
        Row(
            question=f"{what}, loop lag p99, {name}",
            values=[value * 1e3 for value in values[1:]],
            unit="ms",
            target="<= 5",
        )
        for name, values in late.items()
    ]


async def _load(storage: Storage, wanted: list[str], late: list[float]) -> float:
    """Return the seconds, and note the 99th percentile of the loop's lag."""
    store = AsyncSessionStore(storage, max_age=None)  # that has seen no account
    async with lag_probe(0.001) as lags:
        started = time.perf_counter()
        states = await asyncio.gather(*map(store.load, wanted))
        took = time.perf_counter() - started
        await asyncio.sleep(0.002)
    assert all(states)
    late.append(percentile(lags, 99))
    await store.aclose()
    return took


async def _read_each(paths: list[str]) -> float:
    started = time.perf_counter()
    for path in paths:
        await _stepwise.read(path)
    return time.perf_counter() - started


async def _read(paths: list[str]) -> float:
    started = time.perf_counter()
    await asyncio.gather(*map(_stepwise.read, paths))
    return time.perf_counter() - started


# Leases


async def _leases(settings: Settings, directory: Path) -> list[Row]:
    """Take 8,000 leases at once, and give them back."""
    counts = (250, 2_000) if settings.quick else (1_000, 8_000)
    each: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(3):
        for count in counts:
            storage = SqliteStorage(directory / f"leases{turn}-{count}.db")
            each[count].append(await _take_leases(storage, count) / count)
            await storage.aclose()
    few, many = counts
    what = f"taking a lease, one of {many:,} at once, SQLite"
    return [
        Row(
            question=what,
            against=f"one of {few:,}",
            values=ratios(each[many], each[few]),
            target="<= 1.5",
        ),
        Row(question=what, values=[value * 1e6 for value in each[many]], unit="µs"),
    ]


async def _take_leases(storage: Storage, count: int) -> float:
    async with AsyncSessionStore(storage) as store, contextlib.AsyncExitStack() as stack:
        leases = [store.lease(name, ttl=60.0) for name in account_ids(count)]
        started = time.perf_counter()
        await asyncio.gather(*(lease.__aenter__() for lease in leases))
        took = time.perf_counter() - started
        for lease in leases:
            stack.push_async_exit(lease.__aexit__)
    return took


# The last writes


async def _flush(settings: Settings) -> list[Row]:
    """Flush a fleet that is all unsaved, and see how long the loop is held."""
    count = 10_000 if settings.quick else 100_000
    values = [state(name) for name in account_ids(count)]
    longest, usual = [], []
    for _ in range(3):
        store = AsyncSessionStore(MemoryStorage(), debounce=3600.0, max_age=None)
        for value in values:
            store.save_nowait(value)
        await store.flush()
        for value in values:
            store.save_nowait(value)
        for _ in range(3):  # turns, in which the tasks begin that the saves have made
            await asyncio.sleep(0)
        with no_collection():
            async with _turns() as turns:
                await store.flush()
        longest.append(max(turns) * 1e3)
        usual.append(percentile(turns, 99) * 1e3)
        await store.aclose()
        del store
        gc.collect()
    what = f"`flush` of {count:,} unsaved accounts holds the loop, CPU"
    return [
        Row(question=f"{what}, p99", values=usual, unit="ms", target="<= 1"),
        Row(question=f"{what}, longest", values=longest, unit="ms", target="<= 1"),
    ]


@contextlib.asynccontextmanager
async def _turns() -> AsyncIterator[list[float]]:
    """Note the processor time of the loop's thread in each of its turns, in seconds."""
    turns: list[float] = []

    async def turn() -> None:
        while True:
            started = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - started)

    task = asyncio.create_task(turn())
    await asyncio.sleep(0)
    try:
        yield turns
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
