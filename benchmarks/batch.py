"""What one file costs in a batch of 100, relative to one plain synchronous write + `os.replace`.

The busy loop works nine of every ten milliseconds, a tenth of a millisecond at a time: in callbacks
that do nothing else, or on events that it reads from a socket and decodes. The synchronous writes
are one more callback there: the loop stands still for them, and they never ask for the interpreter
lock. A thread has to win it back after every system call, whoever wrote what it runs: so the same
synchronous writes in one hop to a thread are measured beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

from qqbot_session import FileStorage
from qqbot_session.state import encode

from . import _stepwise
from ._measure import (
    TIMES,
    Row,
    Settings,
    account_ids,
    main,
    no_collection,
    ratios,
    state,
    take_turns,
)

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

    def timed(
        write: Callable[..., Awaitable[object]], *arguments: object
    ) -> Callable[[], Awaitable[float]]:
        async def side() -> float:
            _sync_directory(directory)  # what the side before left to the disk is not counted
            started = time.perf_counter()
            await write(*arguments)
            return time.perf_counter() - started

        return side

    sides = {
        "sync": timed(_write_plainly, directory),
        "fast": timed(fast.commit, _CHANGES),
        "in a thread": timed(asyncio.to_thread, _write_all, directory),
    }
    more_sides = {
        "bare calls in a thread": timed(asyncio.to_thread, _write_barely, directory),
        "durable": timed(durable.commit, _CHANGES),
        "bare durable calls": timed(_write_durably, directory),
        "one by one": timed(_write_one_by_one, directory),
        "stepwise": timed(_write_stepwise, directory),
    }
    busy = {}
    with no_collection():
        idle = await take_turns(sides | more_sides, settings.repeats(40))
        async with _busy_loop(_compute):
            busy["callbacks"] = await take_turns(sides, settings.repeats(20))
        async with busy_with_events():
            busy["events"] = await take_turns(sides, settings.repeats(20))
    await fast.aclose()
    await durable.aclose()
    return _idle_rows(place, idle) + [
        row for kind, seen in busy.items() for row in _busy_rows(place, kind, seen)
    ]


_PLAIN = "synchronous write + `os.replace`"


def _idle_rows(place: str, seen: dict[str, list[float]]) -> list[Row]:
    def row(
        what: str, against: str, ours: str, other: str, target: str = "", bound: str = ""
    ) -> Row:
        values = ratios(seen[ours], seen[other])
        question = f"{what}, {place}"
        return Row(question=question, against=against, values=values, target=target, bound=bound)

    fast, durable = "one file of 100, `durable=False`", "one file of 100, `durable=True`"
    bare, stepwise = "the bare system calls in one hop", "one aiofiles call per step"
    bare_calls = "bare calls in a thread"
    at_least = ">= 20" if place == "tmpfs" else ">= 6"
    calls = f"the system calls alone, in one hop, manage {_median(seen, 'stepwise', bare_calls)}"
    flushes = f"the disk: one sync after the other, {_median(seen, 'bare durable calls', 'sync')}"
    if place == "tmpfs":
        flushes = "threads that sync are started in vain"
    return [
        row(fast, _PLAIN, "fast", "sync", "<= 1.1"),
        row(fast, bare, "fast", bare_calls),
        row(f"{fast}, times faster", stepwise, "stepwise", "fast", at_least, calls),
        row(f"{bare}, times faster", stepwise, "stepwise", bare_calls),
        row(durable, f"{_PLAIN}, not durable", "durable", "sync", "<= 1.8", flushes),
        row(
            durable,
            "the bare system calls, in the same phases, synced one after the other",
            *("durable", "bare durable calls"),
        ),
        row(
            f"{durable}, times faster",
            "each file written, synced and replaced on its own",
            *("one by one", "durable"),
        ),
        Row(
            question=f"the base: one synchronous file, {place}",
            values=[value / _FILES * 1e6 for value in seen["sync"]],
            unit="µs",
        ),
    ]


def _median(seen: dict[str, list[float]], side: str, other: str) -> str:
    return f"{statistics.median(ratios(seen[side], seen[other])):.3g}{TIMES}"


def _busy_rows(place: str, kind: str, seen: dict[str, list[float]]) -> list[Row]:
    busy = f"loop 90 % busy with {kind}, {place}"
    return [
        Row(
            question=f"one file of 100, `durable=False`, {busy}",
            against=_PLAIN,
            values=ratios(seen["fast"], seen["sync"]),
            target="<= 1.6",
            bound="a thread wins the interpreter lock back after every system call; "
            f"the plain writes, in one hop, {_median(seen, 'in a thread', 'sync')}",
        ),
        Row(
            question=f"{_PLAIN} in one hop, {busy}",
            against=_PLAIN,
            values=ratios(seen["in a thread"], seen["sync"]),
        ),
    ]


async def _write_plainly(directory: Path) -> None:
    _write_all(directory)


def _write_all(directory: Path) -> None:
    for name, data in _CHANGES.items():
        path = f"{directory}/plain-{name}.json"
        temporary = f"{path}.tmp"
        with open(temporary, "wb") as file:  # noqa: PTH123
            file.write(data)
        os.replace(temporary, path)  # noqa: PTH105


def _write_barely(directory: Path) -> None:
    """Make the system calls of a batch that is not durable and nothing else."""
    for name, data in _CHANGES.items():
        path = f"{directory}/barely-{name}.json"
        file = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, data)
        os.close(file)
        os.replace(f"{path}.tmp", path)  # noqa: PTH105


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
async def _busy_loop(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Keep the loop working for 9 of every 10 milliseconds."""

    async def keep_working() -> None:
        while True:
            end = time.perf_counter() + 0.009
            while time.perf_counter() < end:
                await work()
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(keep_working())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def busy_with_events() -> AsyncIterator[None]:
    """Keep the loop reading and decoding events for 9 of every 10 milliseconds."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        async with _busy_loop(partial(_handle_events, near, far)):
            yield


async def _compute() -> None:
    end = time.perf_counter() + 0.0001
    while time.perf_counter() < end:
        pass


_EVENT = json.dumps({"op": 0, "s": 1, "t": "C2C_MESSAGE_CREATE", "d": {"content": "x" * 500}})


async def _handle_events(near: socket.socket, far: socket.socket) -> None:
    """Send an event and read and decode it, as often as a tenth of a millisecond has room for."""
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + 0.0001
    while time.perf_counter() < end:
        await loop.sock_sendall(near, _EVENT.encode())
        json.loads(await loop.sock_recv(far, 4096))


if __name__ == "__main__":
    main(batch)
