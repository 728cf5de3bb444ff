"""`Together`, which makes one call of what is asked for at about the same time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from ..guard import begin, outcome

_Batch = list[tuple[Any, asyncio.Future[Any]]]  # what is asked for, and who waits for the answer


class Together:
    """Sends what is asked for in one call, as when a fleet starts, and one call after the other.

    After a fork, and on another event loop, everything begins anew: nobody wakes the waiters of a
    loop that has ended.

    Args:
        call: gets what was asked for, and returns an outcome for each: an answer or an error. What
            it raises is the outcome of all of them, and of what waits for the next call: a server
            that hangs costs one time-out, however many wait.
        most: how much is asked for in one call.
    """

    def __init__(
        self, call: Callable[[list[Any]], Awaitable[Sequence[Any]]], *, most: int = 128
    ) -> None:
        self._call = call
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._open: _Batch | None = None  # what the next call asks for
        self._latest: asyncio.Task[Sequence[Any]] | None = None

    def ask(self, item: Any) -> asyncio.Future[Any]:
        """Return what will be the item's answer, or its error; whoever cancels it is alone."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._process != os.getpid():
            self._loop, self._process = loop, os.getpid()
            self._open = self._latest = None
        batch = self._open
        if batch is None or len(batch) >= self._most:
            batch = self._open = []
            self._latest = begin(self._run, self._latest, batch, then=partial(self._answer, batch))
        answer: asyncio.Future[Any] = loop.create_future()
        batch.append((item, answer))
        return answer

    async def _run(
        self, before: asyncio.Task[Sequence[Any]] | None, batch: _Batch
    ) -> Sequence[Any]:
        if before is not None and not before.done():
            await asyncio.wait([before])
            if not before.cancelled() and (error := before.exception()):
                raise error
        self._close(batch)
        batch[:] = [each for each in batch if not each[1].done()]
        return await self._call([item for item, _ in batch]) if batch else []

    def _close(self, batch: _Batch) -> None:
        if self._open is batch:
            self._open = None

    def _answer(self, batch: _Batch, task: asyncio.Task[Sequence[Any]]) -> None:
        """Answer everybody, even if the call was cancelled before it began."""
        self._close(batch)
        try:
            if task.cancelled():  # by somebody who cancels all there is
                raise OSError("the call was cancelled")
            outcomes = outcome(task)
        except Exception as error:  # noqa: BLE001 - everybody's
            outcomes = [error] * len(batch)
        for (_, answer), each in zip(batch, outcomes, strict=True):
            if answer.done():
                continue  # who asked does not wait any more
            if isinstance(each, Exception):
                answer.set_exception(each)
            else:
                answer.set_result(each)
