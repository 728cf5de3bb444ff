"""What one file costs in a batch of 100, relative to one plain synchronous write + `os.replace`.

The busy loop works in callbacks of a tenth of a millisecond, nine tenths of the time. Under it the
synchronous writes are one callback more: they hold the interpreter lock whenever they want it,
while a thread has to win it back from the loop after every system call. So that row is given twice:
against the same writes on the loop, and against the same writes in one hop to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from qqbot_session import FileStorage
from qqbot_session.state import encode

from . import _stepwise
from ._measure import Row, Settings, account_ids, main, no_collection, ratios, state, take_turns

_sync = getattr(os, "fdatasync", os.fsync)
_FILES = 100
_CHANGES = {name: encode(state(name)) for name in account_ids(_FILES)}


def batch(settings: Settings) -> list[Row]:
    """What does one file cost in a batch of 100?"""
    rows: list[Row] = []
    for place, directory in settings.places():
        rows += asyncio.run(_measure(settings, place, directory))
    return rows


async def _measure(settings: Settings, place: str, directory: Path) -> list[Row]:
    fast = FileStorage(directory, durable=False)
    durable = FileStorage(directory, durable=True)
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "sync": lambda: _timed(_write_plainly, directory),
        "fast": lambda: _timed(fast.commit, _CHANGES),
        "durable": lambda: _timed(durable.commit, _CHANGES),
        "bare calls": lambda: _timed(_write_durably, directory),
        "one by one": lambda: _timed(_write_one_by_one, directory),
        "stepwise": lambda: _timed(_write_stepwise, directory),
        "in a thread": lambda: _timed(asyncio.to_thread, _write_all, directory),
    }
    with no_collection():
        idle = await take_turns(sides, settings.repeats(40))
        for name in ("stepwise", "bare calls", "one by one"):
            del sides[name]
        async with _busy_loop():
            busy = await take_turns(sides, settings.repeats(10))
    await fast.aclose()
    await durable.aclose()
    plain = "synchronous write + `os.replace`"
    return [
        Row(
            question=f"one file of 100, `durable=False`, {place}",
            against=plain,
            values=ratios(idle["fast"], idle["sync"]),
            target="<= 1.1",
        ),
        Row(
            question=f"one file of 100, `durable=False`, loop 90 % busy, {place}",
            against=f"{plain}, on the same busy loop",
            values=ratios(busy["fast"], busy["sync"]),
            target="<= 1.6",
        ),
        Row(
            question=f"one file of 100, `durable=False`, loop 90 % busy, {place}",
            against=f"{plain}, in one hop beside the same busy loop",
            values=ratios(busy["fast"], busy["in a thread"]),
        ),
        Row(
            question=f"one file of 100, `durable=True`, {place}",
            against=f"{plain}, not durable",
            values=ratios(idle["durable"], idle["sync"]),
            target="<= 1.8",
        ),
        Row(
            question=f"one file of 100, `durable=True`, {place}",
            against="the bare system calls in the same phases",
            values=ratios(idle["durable"], idle["bare calls"]),
        ),
        Row(
            question=f"one file of 100, `durable=True`, times faster, {place}",
            against="each file written, synced and replaced on its own",
            values=ratios(idle["one by one"], idle["durable"]),
        ),
        Row(
            question=f"one file of 100, `durable=False`, times faster, {place}",
            against="one aiofiles call per step",
            values=ratios(idle["stepwise"], idle["fast"]),
            target=">= 20" if place == "tmpfs" else ">= 6",
        ),
        Row(
            question=f"the base: one synchronous file, {place}",
            values=[value / _FILES * 1e6 for value in idle["sync"]],
            unit="µs",
        ),
    ]


async def _timed(write: Callable[..., Awaitable[object]], *arguments: object) -> float:
    started = time.perf_counter()
    await write(*arguments)
    return time.perf_counter() - started


async def _write_plainly(directory: Path) -> None:
    _write_all(directory)


def _write_all(directory: Path) -> None:
    for name, data in _CHANGES.items():
        path = f"{directory}/plain-{name}.json"
        temporary = f"{path}.tmp"
        with open(temporary, "wb") as file:  # noqa: PTH123
            file.write(data)
        os.replace(temporary, path)  # noqa: PTH105


async def _write_durably(directory: Path) -> None:
    """Make the system calls of a durable batch and nothing else, on the loop."""
    files = {}
    for name, data in _CHANGES.items():
        path = f"{directory}/bare-{name}.json"
        files[path] = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(files[path], data)
    if hasattr(os, "posix_fadvise"):
        for file in files.values():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    for file in files.values():
        _sync(file)
    for path, file in files.items():
        os.close(file)
        os.replace(f"{path}.tmp", path)  # noqa: PTH105
    _sync_directory(directory)


async def _write_one_by_one(directory: Path) -> None:
    for name, data in _CHANGES.items():
        path = f"{directory}/single-{name}.json"
        file = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, data)
        _sync(file)
        os.close(file)
        os.replace(f"{path}.tmp", path)  # noqa: PTH105
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


async def _write_stepwise(directory: Path) -> None:
    for name, data in _CHANGES.items():
        await _stepwise.write(f"{directory}/stepwise-{name}.json", data)


@contextlib.asynccontextmanager
async def _busy_loop() -> AsyncIterator[None]:
    """Keep the loop working for 9 of every 10 milliseconds, in callbacks of 0.1."""

    async def work() -> None:
        while True:
            end = time.perf_counter() + 0.009
            while (now := time.perf_counter()) < end:
                while time.perf_counter() < now + 0.0001:
                    pass
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    main(batch)
