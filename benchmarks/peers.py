"""What one call costs with the stores a user would otherwise pick, and which persist every call.

| | the call returns when | every call on storage | survives power loss |
| --- | --- | --- | --- |
| `qqbot_session` `update_last_seq` | remembered | no: at most one `debounce` later | once written |
| `qqbot_session` `save`, `flush` | on the disk | yes | yes |
| aiosqlite, `INSERT`, `commit` | on the disk | yes | yes |
| diskcache `Cache.set` | in the database, the loop blocked | yes | no: `synchronous=NORMAL` |
| redis.asyncio `SET` | in the server's memory | no: as the server is configured | no |
| qq-botpy-sdk `JsonFileSessionStore` | remembered, or written if the last is 1 s ago | no | no |
| qqbot-agent-sdk `WSSessionStore` | written, the loop blocked | yes | no |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

from qqbot_session import AsyncSessionStore, FileStorage
from qqbot_session.state import encode

from ._measure import (
    TIMES,
    Row,
    Settings,
    main,
    no_collection,
    ratios,
    state,
    take_turns,
    temporary_directory,
)
from ._servers import redis_server

_CALLS = 30  # per turn
_RECORD = encode(state("bot"))
_Call = Callable[[int], Awaitable[object]]


def peers(settings: Settings) -> list[Row]:
    """What does a call cost elsewhere, and who persists every call?"""
    with temporary_directory(settings.disk) as directory:
        return asyncio.run(_measure(settings, directory))


async def _measure(settings: Settings, directory: Path) -> list[Row]:
    missing: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        calls: dict[str, _Call] = {}
        for what, makers in _STORES.items():
            try:
                calls[what] = await stack.enter_async_context(makers(directory))
            except (ImportError, FileNotFoundError) as error:
                missing[what] = str(error)
        sides = {what: _side(call) for what, call in calls.items()}
        with no_collection():
            seen = await take_turns(sides, settings.repeats(15))
    ours = seen[_OURS]
    rows = [
        Row(
            question=what,
            against="" if what == _OURS else "`update_last_seq`",
            values=[value * 1e6 for value in ours] if what == _OURS else ratios(seen[what], ours),
            unit="µs" if what == _OURS else TIMES,
        )
        for what in calls
    ]
    return rows + [Row(question=what, note=why) for what, why in missing.items()]


def _side(call: _Call) -> Callable[[], Awaitable[float]]:
    numbers = count(2)

    async def side() -> float:
        took = []
        for _ in range(_CALLS):
            number = next(numbers)
            started = time.perf_counter()
            await call(number)
            took.append(time.perf_counter() - started)
        return statistics.median(took)

    return side


@contextlib.asynccontextmanager
async def _coalesced(directory: Path) -> AsyncIterator[_Call]:
    async with AsyncSessionStore(directory / "coalesced") as store:
        await store.save(state("bot"))
        yield lambda number: store.update_last_seq("bot", number)


@contextlib.asynccontextmanager
async def _flushed(directory: Path) -> AsyncIterator[_Call]:
    storage = FileStorage(directory / "flushed")
    async with AsyncSessionStore(storage) as store:

        async def save(number: int) -> None:
            await store.save(state("bot", number))
            await store.flush()

        yield save
    await storage.aclose()


@contextlib.asynccontextmanager
async def _aiosqlite(directory: Path) -> AsyncIterator[_Call]:
    import aiosqlite

    async with aiosqlite.connect(directory / "sessions.db") as database:
        await database.execute("CREATE TABLE session (id TEXT PRIMARY KEY, record BLOB)")

        async def save(number: int) -> None:
            await database.execute("REPLACE INTO session VALUES ('bot', ?)", (_RECORD,))
            await database.commit()

        yield save


@contextlib.asynccontextmanager
async def _diskcache(directory: Path) -> AsyncIterator[_Call]:
    import diskcache

    with diskcache.Cache(str(directory / "cache")) as cache:

        async def save(number: int) -> None:
            cache.set("bot", _RECORD)

        yield save


@contextlib.asynccontextmanager
async def _redis(directory: Path) -> AsyncIterator[_Call]:
    from redis.asyncio import from_url

    with redis_server(directory) as (url, _):
        async with from_url(url) as client:
            yield lambda number: client.set("bot", _RECORD)


@contextlib.asynccontextmanager
async def _botpy(directory: Path) -> AsyncIterator[_Call]:
    from botpy.protocol.models import SessionState as TheirState
    from botpy.protocol.session import JsonFileSessionStore

    store = JsonFileSessionStore(directory / "botpy")
    yield lambda number: store.save("bot", TheirState(session_id="0f3b9a52", sequence=number))
    await store.close()


@contextlib.asynccontextmanager
async def _agent(directory: Path) -> AsyncIterator[_Call]:
    from qqbot_agent_sdk.session_store import WSSessionStore

    store = WSSessionStore(os.fspath(directory))

    async def save(number: int) -> None:
        store.save("bot", "0f3b9a52", number)

    yield save


_OURS = "`update_last_seq`, coalesced: at most one `debounce` behind"
_STORES = {
    _OURS: _coalesced,
    "`save` and `flush`, durable: persists every call": _flushed,
    "aiosqlite, committed: persists every call, survives power loss": _aiosqlite,
    "diskcache `set`, on the loop: persists every call, not synced": _diskcache,
    "Redis `SET` on loopback: in the server's memory": _redis,
    "qq-botpy-sdk `save`, coalesced": _botpy,
    "qqbot-agent-sdk `save`, on the loop: persists every call, not synced": _agent,
}


if __name__ == "__main__":
    main(peers)
