"""What it costs to read every record at start-up, and what the loop notices of it.

Files warm in the page cache. The comparison opens, reads, closes and decodes one file after the
other through aiofiles.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.state import decode, encode

from . import _stepwise
from ._measure import (
    Row,
    Settings,
    account_ids,
    lag_probe,
    main,
    percentile,
    ratios,
    state,
    take_turns,
)


def load_all(settings: Settings) -> list[Row]:
    """What does `load_all` of 10,000 records cost?"""
    rows: list[Row] = []
    for place, directory in settings.places():
        rows += asyncio.run(_measure(settings, place, directory))
    return rows


async def _measure(settings: Settings, place: str, directory: Path) -> list[Row]:
    count = 2_000 if settings.quick else 10_000
    now = time.time()
    storage = FileStorage(directory, durable=False)
    await storage.commit({name: encode(state(name), 1, now) for name in account_ids(count)})
    lags: list[float] = []

    async def ours() -> float:
        async with AsyncSessionStore(storage) as store, lag_probe(0.001) as late:
            started = time.perf_counter()
            states = await store.load_all()
            took = time.perf_counter() - started
        assert len(states) == count
        lags.append(percentile(late, 99) * 1e3)
        return took

    async def theirs() -> float:
        started = time.perf_counter()
        states = await _read_stepwise(directory)
        assert len(states) == count
        return time.perf_counter() - started

    seen = await take_turns({"ours": ours, "theirs": theirs}, settings.repeats(5))
    await storage.aclose()
    return [
        Row(
            question=f"`load_all` of {count:,} records, times faster, {place}",
            against="aiofiles, file by file",
            values=ratios(seen["theirs"], seen["ours"]),
            target=">= 15",
        ),
        Row(
            question=f"loop lag p99 during `load_all`, {place}",
            values=lags[1:],
            unit="ms",
            target="<= 5",
        ),
        Row(
            question=f"`load_all`, one record, {place}",
            values=[took / count * 1e6 for took in seen["ours"]],
            unit="µs",
        ),
    ]


async def _read_stepwise(directory: Path) -> list[SessionState]:
    return [decode(await _stepwise.read(entry.path)) for entry in os.scandir(directory)]


if __name__ == "__main__":
    main(load_all)
