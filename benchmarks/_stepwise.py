"""What one would write with aiofiles: one call, and so one executor hop, per step of every file.

The same debounce and the same tasks as ours, so that only the way to the disk differs. Not durable,
no retries, no order against `clear`.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiofiles
import aiofiles.os

from qqbot_session.state import SessionState, encode

from ._measure import state


async def write(path: str, data: bytes) -> None:
    temporary = f"{path}.tmp"
    async with aiofiles.open(temporary, "wb") as file:
        await file.write(data)
    await aiofiles.os.replace(temporary, path)


async def read(path: str) -> bytes:
    async with aiofiles.open(path, "rb") as file:
        data: bytes = await file.read()
        return data


class StepwiseStore:
    """Coalesce per account, then write step by step."""

    def __init__(self, directory: Path, debounce: float = 1.0) -> None:
        self.files = 0
        self._directory = str(directory)
        self._debounce = debounce
        self._states: dict[str, SessionState] = {}
        self._numbers: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def update_last_seq(self, account_id: str, last_seq: int) -> None:
        self._numbers[account_id] = last_seq
        if account_id not in self._tasks:
            self._tasks[account_id] = asyncio.create_task(self._keep(account_id))

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.gather(*(self._write(account_id) for account_id in list(self._numbers)))

    async def _keep(self, account_id: str) -> None:
        while account_id in self._numbers:
            await self._write(account_id)
            await asyncio.sleep(self._debounce)
        del self._tasks[account_id]

    async def _write(self, account_id: str) -> None:
        number = self._numbers.pop(account_id)
        known = self._states.get(account_id)
        if known is None:
            known = self._states[account_id] = state(account_id)
        data = encode(known, number, time.time())
        await write(f"{self._directory}/session-{account_id}.json", data)
        self.files += 1
