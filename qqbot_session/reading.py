"""`Reading`: what storage says of an account, or of all of them, and whether that is the newest.

Rules:

* What is not on storage yet counts before anything that is read.
* After every read, the ledger decides whether anything newer became known in the meantime.
* Unreadable is not absent: a failed read is retried, and if it keeps failing nothing is known.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import describe, name_one
from .guard import guarded, in_turns
from .judging import LoadReason, Verdict, account_of_key, inspect, shown_key
from .ledger import Account, Ledger
from .logs import say
from .state import SessionState
from .storages.base import NotRegularError, Storage, ask

_PATIENCE = 2.0  # seconds that a failed read is tried again
_PAUSE = 0.05  # seconds before the first retry; doubled before each further one
_READS = 128  # at once: more would hold the loop for too long in one turn
_UNREADABLE = 1024  # unreadable accounts that are remembered

_T = TypeVar("_T")


class Reading:
    """Reads for a store.

    Args:
        running_loop: returns the store's loop, or raises.
        now: returns seconds since the epoch, or `None` if the clock is broken.

    Attributes:
        closed: nothing is learned any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        *,
        running_loop: Callable[[], asyncio.AbstractEventLoop],
        now: Callable[[], float | None],
    ) -> None:
        self.closed = False
        self._ledger = ledger
        self._storage = storage
        self._running_loop = running_loop
        self._now = now
        self._unreadable: dict[str, float] = {}  # since when, in the loop's seconds
        self._reads_fail = False
        self._reads = asyncio.Semaphore(_READS)

    def is_unreadable(self, account_id: str, *, within: float = math.inf) -> bool:
        """Whether the account's latest read failed, that many seconds ago at most."""
        since = self._unreadable.get(account_id)
        return since is not None and self._running_loop().time() < since + within

    async def newest(self, account_id: str) -> Verdict:
        """Return the newest state of the account, from memory if it is not on storage yet."""
        while True:
            account = self._ledger.accounts.get(account_id)
            if account is not None and account.unsaved:
                return self._remembered(account)
            began = self._ledger.moment()
            try:
                data = await self._patiently(self.ask, account_id)
            except Exception as error:  # noqa: BLE001 - promise 10
                return self._unread(account_id, error)
            found = inspect(account_id, data)
            if self.closed or self._ledger.learn(account_id, found.state, began):
                return found

    def ask(self, account_id: str) -> Awaitable[bytes | None]:
        """Return what will be the account's record."""
        return ask(self._storage, account_id) or self._read_in_line(account_id)

    async def _read_in_line(self, account_id: str) -> bytes | None:
        """Read, a bounded number at a time, so that thousands of reads do not hold the loop."""
        async with self._reads:
            return await guarded(self._read, account_id)

    async def _read(self, account_id: str) -> bytes | None:
        data = await self._storage.read(account_id)
        if data is not None and not isinstance(data, bytes):
            raise TypeError(f"read answered {type(data).__name__}, not bytes")
        return data

    def _remembered(self, account: Account) -> Verdict:
        now = self._now()
        state = account.newest(account.stamp if now is None else now)
        if state is None:
            return Verdict(LoadReason.ABSENT, "cleared")
        return Verdict(LoadReason.RESUMABLE, state=state)

    def _unread(self, account_id: str, error: Exception) -> Verdict:
        """Return what this store wrote, or otherwise nothing, and forget the account."""
        account = self._ledger.accounts.get(account_id)
        if account is not None and (account.unsaved or account.is_ours):
            if not account.unsaved:
                words = f"cannot read {name_one(account_id)}: {describe(error)}"
                say(logging.WARNING, "%s; using what was last written here", words)
            return self._remembered(account)
        if not self.closed:
            self._ledger.forget(account_id)
        return Verdict(LoadReason.UNREADABLE, describe(error))

    async def _patiently(self, read: Callable[[str], Awaitable[_T]], account_id: str = "") -> _T:
        """Read, and retry if that fails, unless reads have been failing for a while."""
        loop = self._running_loop()
        deadline = loop.time() + _PATIENCE
        patient = not self._reads_fail and account_id not in self._unreadable
        pause = _PAUSE
        while True:
            try:
                result = await read(account_id)
            except NotRegularError:
                self._note_unreadable(account_id)
                raise
            except Exception:
                self._note_unreadable(account_id)
                if not patient or loop.time() >= deadline or self.closed:
                    self._reads_fail = True
                    raise
            else:
                self._unreadable.pop(account_id, None)
                self._reads_fail = False
                return result
            await asyncio.sleep(min(pause, deadline - loop.time()))
            pause *= 2

    def _note_unreadable(self, account_id: str) -> None:
        self._unreadable.pop(account_id, None)
        self._unreadable[account_id] = self._running_loop().time()
        if len(self._unreadable) > _UNREADABLE:
            del self._unreadable[next(iter(self._unreadable))]

    async def find_all(self) -> dict[str, SessionState | None]:
        """Return the newest state of every account that has a record."""
        began = self._ledger.moment()
        found: dict[str, SessionState | None] = {}
        unsure: set[str] = set()  # to be read one by one
        failed = False
        try:
            await self._patiently(lambda _: guarded(self._scan, found, unsure))
        except Exception as error:  # noqa: BLE001 - promise 10
            failed = True
            say(logging.WARNING, "cannot list the sessions: %s", describe(error))
        ended = self._ledger.moment()
        async for account_ids in in_turns(found):
            for account_id in account_ids:
                if account_id not in unsure and not self.closed:
                    self._ledger.learn(account_id, found[account_id], began, ended)
        async for accounts in in_turns(self._ledger.each()):
            for account in accounts:
                is_newer = account.moment > began and account.moment != ended
                if is_newer and account.was_read and not account.is_as_read(found.get(account.id)):
                    unsure.add(account.id)  # by a read that ended meanwhile, begun who knows when
                if is_newer or account.unsaved or (failed and account.is_ours):
                    found[account.id] = self._remembered(account).state
        for account_id in unsure:
            newest = await self.newest(account_id)
            if newest.reason is not LoadReason.UNREADABLE:
                found[account_id] = newest.state
        return found

    async def _scan(self, found: dict[str, SessionState | None], unsure: set[str]) -> None:
        found.clear()  # of an earlier try: every record would be read once more, one by one
        unsure.clear()
        async for key, data in self._storage.scan():
            if self.closed:
                return
            record = inspect(account_of_key(key), data)
            state = record.state
            if state is None:
                say(logging.WARNING, "%s: %s", name_one(shown_key(key)), record.words)
            elif state.account_id in found:  # the original's record beside ours
                unsure.add(state.account_id)
            else:
                found[state.account_id] = state
