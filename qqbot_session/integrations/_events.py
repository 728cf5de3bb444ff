"""What the frameworks' integrations share: where sessions are kept, and when an event has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection
from typing import Any, TypeAlias

from ..storages import Storage
from ..store import AsyncSessionStore

Sessions: TypeAlias = AsyncSessionStore | Storage | str | os.PathLike[str] | None


@contextlib.asynccontextmanager
async def kept_in(sessions: Sessions) -> AsyncIterator[AsyncSessionStore]:
    """Give the store that is meant, and close it in the end if it was made here."""
    if isinstance(sessions, AsyncSessionStore):
        yield sessions
        return
    async with AsyncSessionStore(sessions) as store:
        yield store


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
