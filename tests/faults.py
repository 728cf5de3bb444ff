"""Storages that misbehave on command."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping

from qqbot_session import MemoryStorage


class FaultyStorage(MemoryStorage):
    """A `MemoryStorage` that fails, waits and takes notes.

    Attributes:
        failing: accounts whose writes fail; `True` for all.
        broken: make `commit` raise instead of returning failures.
        unreadable: make `read` and `scan` raise.
        gate: while it is not set, commits wait.
        commits: what every commit was given, in order, as it begins.
    """

    def __init__(self, records: dict[str, bytes] | None = None) -> None:
        super().__init__(records)
        self.failing: bool | set[str] = False
        self.broken = False
        self.unreadable = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        self.commits: list[dict[str, bytes | None]] = []
        self.reads: list[str] = []
        self.closed = 0

    async def read(self, account_id: str) -> bytes | None:
        self.reads.append(account_id)
        if self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        data = await super().read(account_id)
        await self.read_gate.wait()  # what was read may be old by now
        return data

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        if self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        items = [item async for item in super().scan()]
        await self.read_gate.wait()
        for item in items:
            yield item

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        self.commits.append(dict(changes))
        await self.gate.wait()
        if self.broken:
            raise ConnectionError("server lost")
        failing = set(changes) if self.failing is True else set(self.failing or ())
        good = {key: data for key, data in changes.items() if key not in failing}
        await super().commit(good)
        return {key: OSError(errno.ENOSPC, "full") for key in changes if key in failing}

    async def aclose(self) -> None:
        self.closed += 1
