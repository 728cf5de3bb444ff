"""`Together`, which makes one call of what is asked for at about the same time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from ..guard import begin, outcome


class _Batch:
    """What one call asks for, on one loop of one process, and who waits for the answers."""

    __slots__ = ("asked", "here", "task")

    def __init__(self, here: object) -> None:
        self.here = here
        self.asked: list[tuple[Any, asyncio.Future[Any]]] = []
        self.task: asyncio.Task[Sequence[Any]] | None = None


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
        self._open: _Batch | None = None  # what the next call asks for
        self._latest: _Batch | None = None

    def ask(self, item: Any) -> asyncio.Future[Any]:
        """Return what will be the item's answer, or its error; whoever cancels it is alone."""
        loop = asyncio.get_running_loop()
        here = loop, os.getpid()
        batch = self._open
        if batch is None or batch.here != here or len(batch.asked) >= self._most:
            batch = self._begin(here)
        answer: asyncio.Future[Any] = loop.create_future()
        batch.asked.append((item, answer))
        return answer

    def _begin(self, here: object) -> _Batch:
        latest = self._latest
        before = latest.task if latest is not None and latest.here == here else None
        batch = _Batch(here)
        batch.task = begin(self._run, before, batch, then=partial(self._answer, batch))
        batch.task.add_done_callback(partial(_abandon, batch))
        self._open = self._latest = batch  # last: nobody may wait for one that never runs
        return batch

    async def _run(
        self, before: asyncio.Task[Sequence[Any]] | None, batch: _Batch
    ) -> Sequence[Any]:
        if before is not None and not before.done():
            await asyncio.wait([before])
            if not before.cancelled() and (error := before.exception()):
                raise error
        self._close(batch)
        batch.asked = [each for each in batch.asked if not each[1].done()]
        return await self._call([item for item, _ in batch.asked]) if batch.asked else []

    def _close(self, batch: _Batch) -> None:
        if self._open is batch:
            self._open = None

    def _answer(self, batch: _Batch, task: asyncio.Task[Sequence[Any]]) -> None:
        """Answer everybody, even if the call was cancelled before it began."""
        self._close(batch)
        if self._latest is batch:
            self._latest = None  # nor what it answered
        outcomes: Sequence[Any]
        try:
            if task.cancelled():  # by somebody who cancels all there is
                raise OSError("the call was cancelled")
            outcomes = outcome(task)
        except Exception as error:  # noqa: BLE001 - everybody's
            outcomes = [error] * len(batch.asked)
        for (_, answer), each in zip(batch.asked, outcomes, strict=True):
            if answer.done():
                continue  # who asked does not wait any more
            if isinstance(each, Exception):
                answer.set_exception(each)
            else:
                answer.set_result(each)


def _abandon(batch: _Batch, task: object) -> None:
    """Leave nobody waiting whose answer was lost: an interruption may come while they are given."""
    for _, answer in batch.asked:
        if not answer.done():
            answer.set_exception(OSError("the call was interrupted"))
