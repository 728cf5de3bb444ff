"""Measure one event loop: printed as JSON, so that another interpreter can be asked for it.

    python -m benchmarks._workload LOOP COUNT [COUNT ...]

For each count of accounts, in seconds per account, on a storage in memory: `first` is the first
save, `update` a warm `update_last_seq` going round all accounts, `write` what the loop works for
one account's write (task, encoding, waking), `base` awaiting a bare `async def`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable

from qqbot_session import AsyncSessionStore, MemoryStorage

from ._measure import account_ids, state

LOOPS = ("asyncio", "uvloop", "eager")


def main() -> None:
    loop, *counts = sys.argv[1:]
    factory = _factory(loop)
    points = {}
    for count in counts:
        with asyncio.Runner(loop_factory=factory) as runner:
            if loop == "eager":
                eager = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
                runner.get_loop().set_task_factory(eager)
            points[count] = runner.run(_measure(int(count)))
    print(json.dumps({"python": sys.version.split()[0], "points": points}))


def _factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if loop != "uvloop":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _measure(count: int) -> dict[str, float]:
    ids = account_ids(count)
    states = [state(account_id) for account_id in ids]
    turns = max(3, min(200, 100_000 // count))
    gc.collect()
    gc.disable()
    store = AsyncSessionStore(MemoryStorage(), debounce=3600.0)
    started = time.perf_counter()
    for value in states:
        store.save_nowait(value)
    first = time.perf_counter() - started
    updates, bases = [], []
    rounds = range(1 + 1000 // count)  # enough calls to be timed
    for turn in range(turns):
        number = 2 + turn * len(rounds)
        started = time.perf_counter()
        for extra in rounds:
            for account_id in ids:
                await store.update_last_seq(account_id, number + extra)
        updates.append((time.perf_counter() - started) / len(rounds))
        started = time.perf_counter()
        for extra in rounds:
            for account_id in ids:
                await _assign(account_id, number + extra)
        bases.append((time.perf_counter() - started) / len(rounds))
    await store.flush()
    writes = []
    for turn in range(max(3, min(50, 10_000 // count))):
        for account_id in ids:
            await store.update_last_seq(account_id, 10**6 + turn)
        started = time.perf_counter()
        await store.flush()
        writes.append(time.perf_counter() - started)
    await store.aclose()
    gc.enable()
    return {
        "first": first / count,
        "update": statistics.median(updates) / count,
        "base": statistics.median(bases) / count,
        "write": statistics.median(writes) / count,
    }


_table: dict[str, object] = {}


async def _assign(key: str, value: object) -> None:
    _table[key] = value


if __name__ == "__main__":
    main()
