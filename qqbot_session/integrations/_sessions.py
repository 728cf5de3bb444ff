"""What the frameworks' integrations share: the store, and one task per session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from ..errors import SessionWriteError, StoreClosedError
from ..gateway import GatewaySession
from ..shard import Socket
from ..storages import Storage
from ..store import AsyncSessionStore, LoadDetails

Sessions: TypeAlias = AsyncSessionStore | Storage | str | os.PathLike[str] | None
Loads: TypeAlias = dict[str, LoadDetails]

_WRONG_BOT = re.compile(r"\b(100016|100007|10004)\b")  # QQ's codes
_LONGEST_WAIT = 30.0  # seconds between two tries to log in; our choice

_lines: dict[tuple[object, str], asyncio.Task[object]] = {}  # of this process


class Telling:
    """A socket that reports when it is closed."""

    def __init__(self, socket: Socket, tell: Callable[[], object]) -> None:
        self.send, self.receive = socket.send, socket.receive
        self.closed = False
        self._close, self._tell = socket.close, tell

    async def close(self, code: int, /) -> int | None:
        """Report that it closes, then close it."""
        self.closed = True
        self._tell()
        return await self._close(code)


@contextlib.asynccontextmanager
async def kept_in(
    sessions: Sessions, loads: Loads | None = None, account_ids: Sequence[str] = ()
) -> AsyncIterator[AsyncSessionStore]:
    """Give the store that is meant; in the end, write what is unsaved of these accounts.

    One that was made here is closed instead. One that was given may outlive this, and have a
    thousand accounts of others, or end with the process at the next signal: what it cannot write,
    it says and tries again itself.

    Args:
        loads: gets what each `load` of a store made here found.
    """
    if isinstance(sessions, AsyncSessionStore):
        try:
            yield sessions
        finally:
            await asyncio.gather(*(_write(sessions, account_id) for account_id in account_ids))
        return
    note = None if loads is None else lambda found: loads.update({found.account_id: found})
    async with AsyncSessionStore(sessions, on_load=note) as store:
        yield store


async def _write(store: AsyncSessionStore, account_id: str) -> None:
    with contextlib.suppress(SessionWriteError, StoreClosedError):
        await store.flush(account_id)


@contextlib.asynccontextmanager
async def only_line(sessions: Sessions, account_id: str) -> AsyncIterator[None]:
    """Be the one task of this process that keeps the account's session up.

    Waits for another that is being cancelled, as when a client is reloaded.

    Raises:
        RuntimeError: another keeps it up.
    """
    key = (_place(sessions), account_id)
    while (other := _lines.get(key)) is not None and not other.done():
        if not other.cancelling() or other is asyncio.current_task():
            raise RuntimeError(
                f"{account_id}: another client of this process keeps this session up already;"
                " two would take it from each other. Close that one first."
            )
        await asyncio.sleep(0.05)
    task = _lines[key] = asyncio.current_task()  # type: ignore[assignment]
    try:
        yield
    finally:
        if _lines.get(key) is task:
            del _lines[key]


def waits() -> Iterator[float]:
    """Yield the seconds before each new try to log in: 2 s doubling to 30 s, with jitter."""
    seconds = 2.0
    while True:
        yield seconds * random.uniform(0.8, 1.2)
        seconds = min(2 * seconds, _LONGEST_WAIT)


def known_address(gateway: GatewaySession, api_url: str) -> str | None:
    """Return the address of a session that can be resumed, for when QQ cannot be asked for one.

    It comes from a record, which others may have written: it must be QQ's, or the API's own host.

    Args:
        api_url: where the API is.
    """
    address = gateway.address
    if address is None or not gateway.resumable:
        return None
    try:
        host, own = urlsplit(address).hostname or "", urlsplit(api_url).hostname
    except ValueError:
        return None
    is_safe = address.startswith("wss://") or not api_url.startswith("https://")
    return address if is_safe and (host == own or host.endswith(".qq.com")) else None


def is_wrong_bot(error: BaseException) -> bool:
    """Whether the token endpoint refused the app id or the secret; frameworks drop its code."""
    return _WRONG_BOT.search(str(error)) is not None


def _place(sessions: Sessions) -> object:
    if isinstance(sessions, str | os.PathLike):
        path = os.fspath(sessions)
        return hash(path if "://" in path else os.path.normpath(path))  # an address has a password
    return sessions if sessions is None else id(sessions)
