"""What the frameworks' integrations share: where sessions are kept, the lines of many shards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ..storages import Storage
from ..store import AsyncSessionStore

Sessions: TypeAlias = AsyncSessionStore | Storage | str | os.PathLike[str] | None

_log = logging.getLogger("qqbot_session")

_PACE = 5.0  # seconds in which `max_concurrency` sessions may be created (bot-docs, event-emit.md)
_ASK_AGAIN = 60.0  # seconds after which what was told is asked again, if need be
_NAP = 600.0  # seconds after which a bot without session starts looks again


@contextlib.asynccontextmanager
async def kept_in(sessions: Sessions) -> AsyncIterator[AsyncSessionStore]:
    """Give the store that is meant, and close it in the end if it was made here."""
    if isinstance(sessions, AsyncSessionStore):
        yield sessions
        return
    async with AsyncSessionStore(sessions) as store:
        yield store


@dataclass(frozen=True, slots=True)
class Told:
    """What `/gateway/bot` tells (openapi/wss/shard_url_get.md); `reset_after` in seconds."""

    url: str
    remaining: int
    reset_after: float
    max_concurrency: int


class Entrance:
    """Where the gateway is, and when one more session may be started, for all shards of a bot."""

    def __init__(self, ask: Callable[[], Awaitable[Told]], told: Told | None = None) -> None:
        self._ask = ask
        self._told = told
        self._asked_at = _now()
        self._queue = asyncio.Lock()
        self._granted: deque[float] = deque()

    async def before_identify(self) -> None:
        """Wait until one more Identify may be sent; what asking raises is raised."""
        async with self._queue:
            told = await self._ask_if_need_be()
            while told.remaining < 1:
                nap = min(max(told.reset_after, 1.0), _NAP)
                _log.warning("no session start remains today: looking again in %.0f s", nap)
                await asyncio.sleep(nap)
                told = await self._ask_if_need_be()
            if len(self._granted) >= max(1, told.max_concurrency):
                await asyncio.sleep(self._granted.popleft() + _PACE - _now())
            self._granted.append(_now())
            self._told = replace(told, remaining=told.remaining - 1)

    async def _ask_if_need_be(self) -> Told:
        now = _now()
        if self._told is None or now >= self._asked_at + _ASK_AGAIN:
            self._told, self._asked_at = await self._ask(), now
        return self._told


def _now() -> float:
    return asyncio.get_running_loop().time()


async def end_of(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait for what a framework started for an event, and for what is added meanwhile.

    Raises:
        CancelledError: one of them was cancelled, or we were: then all of them are.
    """
    try:
        while pending := [task for task in tasks if not task.done()]:
            await asyncio.wait(pending)  # `await task` could have our cancellation swallowed
    finally:
        for task in tasks:
            task.cancel()
    if any(task.cancelled() for task in tasks):
        raise asyncio.CancelledError


async def run_together(lines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them until one ends, then end all in order; raise what ended the first.

    Cancelled, cancel and await them; every further cancellation is passed on to them.
    """
    tasks = [asyncio.create_task(line) for line in lines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    asked: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            asked = error
            for task in pending:
                task.cancel()
    if asked is not None:
        raise asked


@contextlib.contextmanager
def stopping_at_signals(
    loop: asyncio.AbstractEventLoop, main: Callable[[], asyncio.Task[Any] | None]
) -> Iterator[Callable[[], bool]]:
    """Cancel the main task at SIGTERM and Ctrl-C, once for each; give whether that happened.

    Afterwards the signals are as they were. Does nothing outside the main thread.
    """
    stopped = False

    def stop(number: int, frame: object = None) -> None:
        nonlocal stopped
        if (task := main()) is None:  # not that far yet
            raise KeyboardInterrupt
        stopped = True
        _log.info("%s: stopping; another signal ends the grace", signal.Signals(number).name)
        loop.call_soon_threadsafe(task.cancel)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: stopped
        return
    names = ("SIGINT", "SIGTERM", "SIGBREAK")  # Ctrl-Break and a closed window, on Windows
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, stop, number)
        except NotImplementedError:  # every loop on Windows
            signal.signal(number, stop)
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            if handler is not None:  # None: not Python's to put back
                signal.signal(number, handler)
