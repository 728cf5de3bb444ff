"""What the `load` of one record costs, checked, against reading the file through aiofiles."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from qqbot_session import AsyncSessionStore, FileStorage
from qqbot_session.state import encode
from qqbot_session.storages.names import file_name

from . import _stepwise
from ._measure import Row, Settings, account_ids, main, no_collection, ratios, state, take_turns

_RECORDS = 100


def cold_load(settings: Settings) -> list[Row]:
    """What does the `load` of one record cost?"""
    rows: list[Row] = []
    for place, directory in settings.places():
        rows += asyncio.run(_measure(settings, place, directory))
    return rows


async def _measure(settings: Settings, place: str, directory: Path) -> list[Row]:
    ids = account_ids(_RECORDS)
    storage = FileStorage(directory, durable=False)
    now = time.time()
    await storage.commit({name: encode(state(name), 1, now) for name in ids})

    async def ours() -> float:
        store = AsyncSessionStore(storage)  # that has seen no account
        started = time.perf_counter()
        for account_id in ids:
            await store.load(account_id)
        took = time.perf_counter() - started
        await store.aclose()
        return took

    async def theirs() -> float:
        started = time.perf_counter()
        for account_id in ids:
            await _stepwise.read(f"{directory}/{file_name(account_id)}")
        return time.perf_counter() - started

    with no_collection():
        seen = await take_turns({"ours": ours, "theirs": theirs}, settings.repeats(30))
    await storage.aclose()
    return [
        Row(
            question=f"cold `load` of one record, times faster, {place}",
            against="aiofiles open, read, close",
            values=ratios(seen["theirs"], seen["ours"]),
            target=">= 2",
        ),
        Row(
            question=f"cold `load` of one record, {place}",
            values=[took / _RECORDS * 1e6 for took in seen["ours"]],
            unit="µs",
        ),
    ]


if __name__ == "__main__":
    main(cold_load)
