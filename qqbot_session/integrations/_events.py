"""What the frameworks' integrations share: where sessions are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import TypeAlias

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
