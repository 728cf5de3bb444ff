"""Print the bytes an account takes beyond its state: unsaved, in its window, quiet.

A program of its own, because coverage would be weighed too. The set in which asyncio keeps all
tasks is left out: its table, once grown, stays for the tasks to come.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tracemalloc
from collections.abc import Mapping

from qqbot_session import AsyncSessionStore, MemoryStorage, SessionState

ACCOUNTS = 5_000
WINDOW = 0.5  # seconds
NOT_OURS = tracemalloc.Filter(inclusive=False, filename_pattern=sys.modules["_weakrefset"].__file__)  # type: ignore[arg-type]


class Void(MemoryStorage):
    """Keeps nothing, so that what is weighed is the store's."""

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        return {}


def weigh() -> float:
    gc.collect()
    traces = tracemalloc.take_snapshot().filter_traces([NOT_OURS])
    return sum(trace.size for trace in traces.statistics("filename")) / ACCOUNTS


async def main() -> list[float]:
    states = [
        SessionState(account_id=f"bot-{number}", session_id="s", last_seq=1)
        for number in range(ACCOUNTS)
    ]
    weights = []
    async with AsyncSessionStore(Void(), debounce=WINDOW) as store:
        tracemalloc.start()
        for state in states:
            store.save_nowait(state)
        weights.append(weigh())
        await store.flush()
        for state in states:
            await store.update_last_seq(state.account_id, 1000)
        weights.append(weigh())
        await store.flush()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        weights.append(weigh())
    return weights


sys.stdout.write(json.dumps(asyncio.run(main())))
