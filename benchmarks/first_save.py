"""How long the first save of a quiet account keeps the bot from going on.

A quiet account has no unsaved state and no task; the save has to make them. Peers write the file
before they return: through a thread (qq-botpy-sdk) or on the loop itself (qqbot-agent-sdk).
Our save never suspends, so the processor time of the loop's thread is all it takes; theirs is timed
by the clock, because the bot waits for it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

from qqbot_session import AsyncSessionStore, SessionState

from ._measure import Row, Settings, main, no_collection, ratios, state, take_turns

_SAVES = 50  # per turn


def first_save(settings: Settings) -> list[Row]:
    """How long does the first save of a quiet account take?"""
    rows: list[Row] = []
    for place, directory in settings.places():
        rows += asyncio.run(_measure(settings, place, directory))
    return rows


async def _measure(settings: Settings, place: str, directory: Path) -> list[Row]:
    async with AsyncSessionStore(directory / "ours", debounce=0.0) as store:
        sides = {
            "ours, a new account": _new_account(store),
            "ours, a known account": _known_account(store),
            "ours, no account": _make_tasks,
        } | await _peers(directory)
        with no_collection():
            seen = await take_turns(sides, settings.repeats(20))
    task = statistics.median(seen["ours, no account"])
    rows = [
        Row(
            question=f"first save, {name.removeprefix('ours, ')}, {place}",
            values=[value * 1e6 for value in seen[name]],
            unit="µs",
            target="<= 6",
            bound=f"making a task that does nothing takes {task * 1e6:.2f} µs",
        )
        for name in ("ours, a new account", "ours, a known account")
    ]
    rows.append(
        Row(
            question=f"first save, a known account, {place}",
            against="making an `asyncio.Task` that does nothing",
            values=ratios(seen["ours, a known account"], seen["ours, no account"]),
        )
    )
    for name in sides:
        if not name.startswith("ours, "):
            tasks = statistics.median(ratios(seen[name], seen["ours, no account"]))
            rows.append(
                Row(
                    question=f"first save, times faster, {place}",
                    against=name,
                    values=ratios(seen[name], seen["ours, a known account"]),
                    target="" if place == "tmpfs" else ">= 60",  # the target is for disks
                    bound=f"their whole write takes as long as making {tasks:.0f} tasks, "
                    "and ours makes one",
                )
            )
    return rows


def _new_account(store: AsyncSessionStore) -> Callable[[], Awaitable[float]]:
    numbers = count()

    async def first() -> float:
        states = [state(f"new-{next(numbers)}") for _ in range(_SAVES)]
        return await _save_all(store, states)

    return first


def _known_account(store: AsyncSessionStore) -> Callable[[], Awaitable[float]]:
    numbers = count()

    async def first() -> float:
        number = next(numbers)
        return await _save_all(store, [state(f"known-{i}", number) for i in range(_SAVES)])

    return first


async def _save_all(store: AsyncSessionStore, states: list[SessionState]) -> float:
    """Return what one save took; afterwards every account is quiet again."""
    started = time.thread_time()
    for value in states:
        await store.save(value)
    took = time.thread_time() - started
    await store.flush()
    await asyncio.sleep(0.003)  # the windows are over, the tasks have ended
    return took / len(states)


async def _make_tasks() -> float:
    """Return what making a task takes that does nothing: the floor of a task per account."""

    async def nothing() -> None:
        pass

    loop = asyncio.get_running_loop()
    started = time.thread_time()
    tasks = [loop.create_task(nothing()) for _ in range(_SAVES)]
    took = time.thread_time() - started
    await asyncio.wait(tasks)
    return took / _SAVES


async def _peers(directory: Path) -> dict[str, Callable[[], Awaitable[float]]]:
    sides: dict[str, Callable[[], Awaitable[float]]] = {}
    try:
        from botpy.protocol.models import SessionState as BotpyState
        from botpy.protocol.session import JsonFileSessionStore
    except ImportError:
        pass
    else:
        botpy = JsonFileSessionStore(directory / "botpy", save_throttle=0.0)

        async def botpy_save() -> float:
            took = []
            for number in range(_SAVES):
                value = BotpyState(session_id="0f3b9a52", sequence=number)
                started = time.perf_counter()
                await botpy.save("known", value)
                took.append(time.perf_counter() - started)
            return statistics.median(took)

        sides["qq-botpy-sdk `JsonFileSessionStore`"] = botpy_save
    try:
        from qqbot_agent_sdk.session_store import WSSessionStore
    except ImportError:
        return sides
    agent = WSSessionStore(str(directory))

    async def agent_save() -> float:
        took = []
        for number in range(_SAVES):
            started = time.perf_counter()
            agent.save("known", "0f3b9a52", number)
            took.append(time.perf_counter() - started)
        return statistics.median(took)

    sides["qqbot-agent-sdk `WSSessionStore`, on the loop"] = agent_save
    return sides


if __name__ == "__main__":
    main(first_save)
