"""What SQLite and Redis cost beside files, with memory as the floor.

Batches are of 128 records, what a store commits at a time; rows are what fleet.py calls files, and
its rules hold for the fleets here, whose accounts update in no particular order of their ids. The
server is Valkey or Redis on loopback without persistence: what a network and `appendonly` add is
not in it. "By hand" is what somebody would write who has no store: an upsert or a `SET` for each
call, awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, SessionWriteError, Storage
from qqbot_session.state import encode
from qqbot_session.storages import RedisStorage, SqliteStorage

from ._measure import (
    Row,
    Settings,
    account_ids,
    main,
    no_collection,
    percentile,
    ratios,
    state,
    take_turns,
    temporary_directory,
)
from ._servers import redis_server
from .batch import busy_with_events
from .fleet import Run, run_on

_BATCH = 128
_FEW = 16  # calls by hand per turn: each waits for its own sync
_WEEK = 604_800_000  # milliseconds
_Side = Callable[[], Awaitable[float]]

MEMORY, FILES, DURABLE = "memory", "files, `durable=False`", "files"
SQLITE, NORMAL, REDIS = "SQLite", "SQLite, `durable=False`", "Redis"
PIPELINE, SET = "redis-py, a pipeline of `SET`", "redis-py, `SET` by hand"
UPSERT, MANY = "aiosqlite, upserts by hand", "aiosqlite, `executemany`"


def storages(settings: Settings) -> list[Row]:
    """What do SQLite and Redis cost beside files?"""
    rows: list[Row] = []
    with temporary_directory(settings.disk) as directory:
        rows += asyncio.run(_batches(settings, directory))
        rows += asyncio.run(_bytes_written(settings, directory))
        rows += asyncio.run(_load_all(settings, directory))
        rows += _fleets(settings, directory)
        rows += _hung_server(settings, directory)
    return rows


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[dict[str, Callable[[], Storage]]]:
    """Give what makes each storage anew, always on the same records; Redis if there is one."""
    makers: dict[str, Callable[[], Storage]] = {
        MEMORY: MemoryStorage,
        FILES: lambda: FileStorage(directory / "fast", durable=False),
        DURABLE: lambda: FileStorage(directory / "durable"),
        SQLITE: lambda: SqliteStorage(directory / "full.db"),
        NORMAL: lambda: SqliteStorage(directory / "normal.db", durable=False),
    }
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError, ImportError):
            import redis  # noqa: F401

            url, _ = stack.enter_context(redis_server(directory))
            makers[REDIS] = lambda: RedisStorage(url)
        yield makers


# Batches


async def _batches(settings: Settings, directory: Path) -> list[Row]:
    """Measure a row in a batch, with accounts that are due together again and again."""
    async with contextlib.AsyncExitStack() as stack:
        makers = stack.enter_context(opened(directory))
        ids = account_ids(10 * _BATCH)
        changes: dict[str, bytes | None] = {name: encode(state(name)) for name in ids}
        batches = [dict(list(changes.items())[at : at + _BATCH]) for at in range(0, 1280, _BATCH)]
        sides: dict[str, _Side] = {}
        for name, make in makers.items():
            storage = make()
            stack.push_async_callback(storage.aclose)
            for batch in batches:
                await storage.commit(batch)
            sides[name] = partial(_timed, storage.commit, batches)
            if isinstance(storage, RedisStorage):
                sides[name] = partial(_awake, storage.client, sides[name])
        sides |= await _by_hand(stack, directory, batches, makers)
        with no_collection():
            idle = await take_turns(sides, settings.repeats(40))
            busy_sides = {name: sides[name] for name in sides if name in makers}
            async with busy_with_events():
                busy = await take_turns(busy_sides, settings.repeats(20))
    return _batch_rows(idle, "loop idle", 0) + _batch_rows(busy, "loop 90 % busy with events", 1)


async def _timed(commit: Callable[[Any], Awaitable[Any]], batches: list[Any]) -> float:
    """Return the seconds per row."""
    batch = random.choice(batches)
    started = time.perf_counter()
    await commit(batch)
    return (time.perf_counter() - started) / len(batch)


async def _awake(client: Any, side: _Side) -> float:
    """Wake the server first: during other sides' turns it, or its core, has gone to sleep."""
    await client.ping()
    return await side()


async def _by_hand(
    stack: contextlib.AsyncExitStack,
    directory: Path,
    batches: list[dict[str, bytes | None]],
    makers: dict[str, Callable[[], Storage]],
) -> dict[str, _Side]:
    """Return what others would write; what is not installed is left out."""
    sides: dict[str, _Side] = {}
    few = [dict(list(batch.items())[:_FEW]) for batch in batches]
    upsert = "INSERT INTO s VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
    with contextlib.suppress(ImportError):
        import aiosqlite

        database = await stack.enter_async_context(aiosqlite.connect(directory / "theirs.db"))
        await database.execute("PRAGMA journal_mode = WAL")
        await database.execute("PRAGMA synchronous = FULL")
        await database.execute("CREATE TABLE s (id TEXT PRIMARY KEY, record BLOB)")

        async def one_by_one(batch: dict[str, bytes]) -> None:
            for item in batch.items():
                await database.execute(upsert, item)
                await database.commit()

        async def together(batch: dict[str, bytes]) -> None:
            await database.executemany(upsert, list(batch.items()))
            await database.commit()

        sides |= {
            UPSERT: partial(_timed, one_by_one, few),
            MANY: partial(_timed, together, batches),
        }
    if REDIS in makers:
        from redis.asyncio import from_url

        storage = makers[REDIS]()
        client = from_url(storage._url)  # type: ignore[attr-defined]
        stack.push_async_callback(client.aclose)

        async def set_each(batch: dict[str, bytes]) -> None:
            for account_id, data in batch.items():
                await client.set(f"theirs:{account_id}", data, px=_WEEK)

        async def pipeline(batch: dict[str, bytes]) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for account_id, data in batch.items():
                    pipe.set(f"theirs:{account_id}", data, px=_WEEK)
                await pipe.execute()

        sides[SET] = partial(_awake, client, partial(_timed, set_each, few))
        sides[PIPELINE] = partial(_awake, client, partial(_timed, pipeline, batches))
    return sides


_BATCH_TARGETS = (  # side, against, loop idle, loop busy
    (SQLITE, FILES, "<= 0.3", "<= 0.4"),
    (SQLITE, DURABLE, "<= 0.15", "<= 0.15"),
    (NORMAL, FILES, "<= 0.15", ""),
    (SQLITE, UPSERT, "", ""),
    (SQLITE, MANY, "", ""),
    (REDIS, FILES, "<= 0.2", "<= 0.12"),
    (REDIS, PIPELINE, "<= 0.65", ""),
    (REDIS, SET, "", ""),
)


def _batch_rows(seen: dict[str, list[float]], how: str, column: int) -> list[Row]:
    rows = [
        Row(
            question=f"{name}: a row in a batch of {_BATCH}, {how}",
            against=other,
            values=ratios(seen[name], seen[other]),
            target=(idle, busy)[column],
        )
        for name, other, idle, busy in _BATCH_TARGETS
        if name in seen and other in seen
    ]
    return rows + [
        Row(question=f"{name}: a row, {how}", values=[v * 1e6 for v in values], unit="µs")
        for name, values in seen.items()
    ]


# What reaches the disk


async def _bytes_written(settings: Settings, directory: Path) -> list[Row]:
    """Count what the kernel was handed for the disk, for accounts that are due together."""
    if sys.platform != "linux":
        return [Row(question="bytes written per row", note="only Linux counts them")]
    count = 10_000 if settings.quick else 100_000
    ids = account_ids(count)
    random.Random(1).shuffle(ids)
    storage = SqliteStorage(directory / "bytes.db")
    batches = [ids[at : at + _BATCH] for at in range(0, count, _BATCH)]
    for batch in batches:
        await storage.commit({name: encode(state(name)) for name in batch})
    before = _written()
    some = batches[:: max(1, len(batches) // 250)]
    for number, batch in enumerate(some):
        await storage.commit({name: encode(state(name, number)) for name in batch})
    written = (_written() - before) / sum(map(len, some))
    await storage.aclose()
    length = len(encode(state(ids[0])))
    what = f"SQLite: bytes written per row, batches that recur among {count:,} accounts"
    return [
        Row(question=what, against="the record", values=[written / length], target="<= 2.5"),
        Row(question=what, values=[written], unit="B"),
    ]


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    fields = dict(line.split(": ") for line in lines)
    return int(fields["write_bytes"])


# Listing


_LIST_BOUND = (
    "decoding, judging and remembering take 7 µs a record whatever the storage, 2 of them the "
    "garbage collector's; opening, reading and closing a file take 10 more, and a row 1.5"
)


async def _load_all(settings: Settings, directory: Path) -> list[Row]:
    rows: list[Row] = []
    targets = {2_000: ("", ""), 10_000: (">= 1.3", ">= 0.5"), 100_000: (">= 2.5", "")}
    for count in (2_000,) if settings.quick else (10_000, 100_000):
        with temporary_directory(directory) as place, opened(place) as makers:
            sides = {}
            for name in (FILES, SQLITE, REDIS):
                if name in makers:
                    storage = makers[name]()
                    await _fill(storage, count)
                    sides[name] = partial(_list, storage, count)
            seen = await take_turns(sides, 3 if count > 10_000 else settings.repeats(5))
            for name, target in zip((SQLITE, REDIS), targets[count], strict=True):
                if name in seen:
                    what = f"{name}: `load_all` of {count:,}, times faster, page cache warm"
                    values = ratios(seen[FILES], seen[name])
                    bound = _LIST_BOUND if name == SQLITE else ""
                    rows.append(
                        Row(
                            question=what,
                            against=FILES,
                            values=values,
                            target=target,
                            bound=bound,
                        )
                    )
            for side in sides.values():
                await side.args[0].aclose()
    return rows


async def _fill(storage: Storage, count: int) -> None:
    now, ids = time.time(), account_ids(count)
    for at in range(0, count, _BATCH):
        await storage.commit({n: encode(state(n), 1, now) for n in ids[at : at + _BATCH]})


async def _list(storage: Storage, count: int) -> float:
    async with AsyncSessionStore(storage, max_age=None) as store:
        started = time.perf_counter()
        assert len(await store.load_all()) == count
        return time.perf_counter() - started


# Fleets


def _fleets(settings: Settings, directory: Path) -> list[Row]:
    if settings.quick:
        return _fleet(directory, 2_000, 5, 1.0, 2.0, 1, {})
    return _fleet(directory, 10_000, 5, 1.5, 5.0, 3, _TEN_THOUSAND) + _fleet(
        directory, 100_000, 2, 3.0, 12.0, 1, _HUNDRED_THOUSAND
    )


_FIGURES: dict[str, tuple[str, float, Callable[[Run], float]]] = {
    "rows": ("/s", 1.0, lambda run: run.files),
    "oldest unsaved state": ("s", 1.0, lambda run: run.oldest),
    "loop lag p99": ("ms", 1e3, lambda run: percentile(run.late, 99)),
    "CPU of all threads a row": ("µs", 1e6, lambda run: run.work),
    "`aclose`": ("s", 1.0, lambda run: run.close),
}
_WORK = {MEMORY: "<= 8", SQLITE: "<= 14", REDIS: "<= 16"}  # µs, of 100,000 accounts
_Targets = dict[tuple[str, str, str], str]
_TEN_THOUSAND: _Targets = {
    (SQLITE, "rows", MEMORY): ">= 0.95",
    (REDIS, "rows", MEMORY): ">= 0.9",
    (SQLITE, "`aclose`", FILES): "<= 0.33",
    (SQLITE, "CPU of all threads a row", FILES): "<= 0.5",
}
_HUNDRED_THOUSAND: _Targets = {
    (SQLITE, "rows", FILES): ">= 6",
    (REDIS, "rows", FILES): ">= 2.5",
    (SQLITE, "oldest unsaved state", MEMORY): "<= 2.5",
    (REDIS, "oldest unsaved state", MEMORY): "<= 3",
    (SQLITE, "loop lag p99", MEMORY): "<= 1.2",
    (REDIS, "loop lag p99", MEMORY): "<= 1.2",
}


def _fleet(
    directory: Path,
    count: int,
    rate: int,
    warm_up: float,
    seconds: float,
    turns: int,
    targets: _Targets,
) -> list[Row]:
    ids = account_ids(count)
    random.Random(2).shuffle(ids)
    runs: dict[str, list[Run]] = {}
    for _ in range(turns):
        for name in (MEMORY, FILES, SQLITE, REDIS):
            with temporary_directory(directory) as place, opened(place) as makers:
                if name in makers:
                    run = asyncio.run(_run(makers[name], ids, rate, warm_up, seconds))
                    runs.setdefault(name, []).append(run)
    what = f"{count:,} accounts at {rate} updates/s"
    work = "CPU of all threads a row"
    rows = [
        Row(
            question=f"{name}, {what}: {figure}",
            against=other,
            values=ratios(*[list(map(_FIGURES[figure][2], runs[n])) for n in (name, other)]),
            target=target,
        )
        for (name, figure, other), target in targets.items()
        if name in runs
    ]
    return rows + [
        Row(
            question=f"{name}, {what}: {figure}",
            values=[value(run) * factor for run in seen],
            unit=unit,
            target=_WORK.get(name, "") if figure == work and count == 100_000 else "",
        )
        for name, seen in runs.items()
        for figure, (unit, factor, value) in _FIGURES.items()
    ]


async def _run(
    make: Callable[[], Storage], ids: list[str], rate: int, warm_up: float, seconds: float
) -> Run:
    return await run_on(make(), ids, rate, warm_up, seconds)


# A server that hangs


def _hung_server(settings: Settings, directory: Path) -> list[Row]:
    """Measure what `flush` and `aclose` cost while nothing answers."""
    count, timeout = (1_000 if settings.quick else 10_000), 0.5
    with (
        contextlib.suppress(FileNotFoundError, ImportError),
        redis_server(directory) as (url, send),
    ):
        runs = (asyncio.run(_hang(url, send, count, timeout)) for _ in range(3))
        flushes, closes = zip(*runs, strict=True)
        what = f"Redis stands still, {count:,} accounts unsaved"
        against = "the storage's time-out"
        return [
            Row(question=f"{what}: {name}", against=against, values=values, target=target)
            for name, values, target in (
                ("`flush`", flushes, "<= 1.5"),
                ("`aclose`", closes, "<= 1.1"),
            )
        ]
    return [Row(question="a server that hangs", note="no Valkey or Redis server here")]


async def _hang(
    url: str, send: Callable[[signal.Signals], None], count: int, limit: float
) -> tuple[float, float]:
    """Return what `flush` and `aclose` take, in time-outs."""
    storage = RedisStorage(url, timeout=limit)
    store = AsyncSessionStore(storage)
    took = []
    for name in account_ids(count):
        store.save_nowait(state(name))
    await store.flush()
    send(signal.SIGSTOP)
    for name in account_ids(count):
        store.save_nowait(state(name, 2))
    for end in (store.flush, store.aclose):
        started = time.perf_counter()
        with contextlib.suppress(SessionWriteError):
            await end()
        took.append((time.perf_counter() - started) / limit)
    send(signal.SIGCONT)
    await storage.aclose()
    return took[0], took[1]


# For the plot of growth.py


async def write_costs(settings: Settings, counts: tuple[int, ...]) -> dict[str, list[float]]:
    """Return, per storage, the seconds of one of so many accounts' writes."""
    costs: dict[str, list[float]] = {}
    for count in counts:
        with temporary_directory(settings.disk) as place, opened(place) as makers:
            for name in (FILES, SQLITE, REDIS):
                if name in makers:
                    costs.setdefault(name, []).append(await _write_cost(makers[name](), count))
    return costs


async def _write_cost(storage: Storage, count: int) -> float:
    ids = account_ids(count)
    took = []
    async with AsyncSessionStore(storage, debounce=3600.0, max_age=None) as store:
        for turn in range(1 + max(3, min(50, 10_000 // count))):
            for name in ids:
                store.save_nowait(state(name, turn))
            started = time.perf_counter()
            await store.flush()
            took.append((time.perf_counter() - started) / count)
    await storage.aclose()
    return statistics.median(took[1:])


if __name__ == "__main__":
    main(storages)
