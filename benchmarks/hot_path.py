"""What one call costs the bot when its account has unsaved state already: nearly every call.

The base is awaiting a bare `async def` that assigns one dict item: nothing that is awaited can
remember anything for less. None of these calls suspends, so what is timed is the processor time of
the loop's thread: other programs cannot stretch it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from qqbot_session import AsyncSessionStore, SessionState

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

_CALLS = 2000  # per turn: short turns, many of them, so that few are interrupted
_GROUP = 20  # turns whose median is one repeat
_table: dict[str, object] = {}


async def _assign(key: str, value: object) -> None:
    _table[key] = value


def hot_path(settings: Settings) -> list[Row]:
    """What does a call cost whose account has unsaved state already?"""
    return asyncio.run(_one_account(settings)) + asyncio.run(_busy_accounts(settings))


async def _one_account(settings: Settings) -> list[Row]:
    states = [state("bot", number) for number in range(1000)] * (_CALLS // 1000)
    with temporary_directory(settings.disk) as directory:
        async with AsyncSessionStore(directory, debounce=3600.0) as store:
            sides = _sides(store, states)
            botpy = await _botpy_save(str(directory))
            if botpy is not None:
                sides["botpy"] = botpy
            with no_collection():
                seen = await take_turns(sides, _GROUP * settings.repeats(20))
    base, numbers = seen["base"], seen["base of numbers"]
    rows = [
        Row(
            question=f"warm `{name}`",
            against="awaiting a bare `async def`",
            values=ratios(seen[name], numbers if name.startswith("await update") else base, _GROUP),
            target=target,
        )
        for name, target in (
            ("await update_last_seq(id, n)", "<= 1.5"),
            ("await save(state)", "<= 1.5"),
            ("save_nowait(state)", "<= 1.0"),
            ("await touch(id)", ""),
            ("await update_last_seq(id, n) of a number that is known", ""),
        )
    ]
    against = "qq-botpy-sdk `JsonFileSessionStore.save`"
    if botpy is None:
        return [*rows, Row(question="coalesced save", against=against, note="not installed")]
    return [
        *rows,
        Row(
            question="coalesced save, times faster",
            against=against,
            values=ratios(seen["botpy"], seen["await save(state)"], _GROUP),
            target=">= 6",
        ),
        Row(
            question="the base",
            values=[value / _CALLS * 1e9 for value in base[::_GROUP]],
            unit="ns",
        ),
    ]


def _sides(
    store: AsyncSessionStore, states: list[SessionState]
) -> dict[str, Callable[[], Awaitable[float]]]:
    numbers = iter(range(1000, 10**15, _CALLS))

    def next_numbers() -> range:
        start = next(numbers)
        return range(start, start + _CALLS)

    return {
        "base": lambda: _assign_all(states),
        "base of numbers": lambda: _assign_all(next_numbers()),
        "await update_last_seq(id, n)": lambda: _update_all(store, next_numbers()),
        "await save(state)": lambda: _save_all(store, states),
        "save_nowait(state)": lambda: _save_all_nowait(store, states),
        "await touch(id)": lambda: _touch_all(store, states),
        "await update_last_seq(id, n) of a number that is known": lambda: _repeat(store, states),
    }


async def _assign_all(values: Iterable[object]) -> float:
    started = time.thread_time()
    for value in values:
        await _assign("bot", value)
    return time.thread_time() - started


async def _update_all(store: AsyncSessionStore, numbers: range) -> float:
    started = time.thread_time()
    for number in numbers:
        await store.update_last_seq("bot", number)
    return time.thread_time() - started


async def _save_all(store: AsyncSessionStore, states: list[SessionState]) -> float:
    store.save_nowait(states[0])
    started = time.thread_time()
    for value in states:
        await store.save(value)
    return time.thread_time() - started


async def _save_all_nowait(store: AsyncSessionStore, states: list[SessionState]) -> float:
    started = time.thread_time()
    for value in states:
        store.save_nowait(value)
    return time.thread_time() - started


async def _touch_all(store: AsyncSessionStore, states: list[SessionState]) -> float:
    started = time.thread_time()
    for _ in states:
        await store.touch("bot")
    return time.thread_time() - started


async def _repeat(store: AsyncSessionStore, states: list[SessionState]) -> float:
    started = time.thread_time()
    for _ in states:
        await store.update_last_seq("bot", 0)
    return time.thread_time() - started


async def _botpy_save(directory: str) -> Callable[[], Awaitable[float]] | None:
    try:
        from botpy.protocol.models import SessionState as TheirState
        from botpy.protocol.session import JsonFileSessionStore
    except ImportError:
        return None
    store = JsonFileSessionStore(directory, save_throttle=3600.0)
    states = [
        TheirState(session_id="0f3b9a52", sequence=number, shard_id=0, shard_count=1)
        for number in range(1000)
    ] * (_CALLS // 1000)
    await store.save("102000000", states[0])  # written at once; all later ones are coalesced

    async def save() -> float:
        started = time.thread_time()
        for value in states:
            await store.save("102000000", value)
        return time.thread_time() - started

    return save


# One of 1,000 busy accounts

_BUSY = 1000


async def _busy_accounts(settings: Settings) -> list[Row]:
    question = f"save of one in {_BUSY:,} busy accounts, p99"
    against = "qq-botpy-sdk (one lock for all)"
    seconds = 1.0 if settings.quick else 3.0
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(1 if settings.quick else 3):
        with temporary_directory(settings.disk) as directory:
            ours.append(await _our_p99(directory, seconds))
            theirs.append(await _botpy_p99(directory, seconds))
    if not theirs[0]:
        return [Row(question=question, against=against, note="not installed")]
    return [
        Row(
            question=f"{question}, times lower",
            against=against,
            values=ratios(theirs, ours),
            target=">= 1000",
        ),
        Row(question=question, values=[v * 1e6 for v in ours], unit="µs"),
        Row(
            question=f"{question}, theirs",
            values=[v * 1e3 for v in theirs],
            unit="ms",
        ),
    ]


async def _our_p99(directory: Path, seconds: float) -> float:
    async with AsyncSessionStore(directory) as store:
        return await _p99(
            [partial(store.save, state(name)) for name in account_ids(_BUSY)], seconds
        )


async def _botpy_p99(directory: Path, seconds: float) -> float:
    try:
        from botpy.protocol.models import SessionState as TheirState
        from botpy.protocol.session import JsonFileSessionStore
    except ImportError:
        return 0.0
    store = JsonFileSessionStore(directory)
    theirs = TheirState(session_id="0f3b9a52", sequence=1)
    saves = [partial(store.save, name, theirs) for name in account_ids(_BUSY)]
    p99 = await _p99(saves, seconds)
    await store.close()
    return p99


async def _p99(saves: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> float:
    """Let every account save five times a second; the first save of each is not counted."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def keep_saving(save: Callable[[], Awaitable[None]]) -> None:
        await save()
        while (started := time.perf_counter()) < end:
            await save()
            took.append(time.perf_counter() - started)
            await asyncio.sleep(0.2)

    await asyncio.gather(*(keep_saving(save) for save in saves))
    return percentile(took, 99)


if __name__ == "__main__":
    main(hot_path)
