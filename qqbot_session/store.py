"""`AsyncSessionStore`: what every account's session is, remembered across restarts.

Rules:

* What this process last saved or cleared is the truth until it is on storage; after that,
  storage is: each `load` reads it, and what it reads replaces what was remembered.
* Whoever reads storage asks afterwards what was changed meanwhile, and lets the change win.
* Arguments are checked before anything is touched. Errors of storage never reach the caller,
  except through `flush` and `aclose`, which name what is not on storage.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .commit import Account, GroupCommit, WriteDetails
from .errors import InvalidRecordError, SessionWriteError, StoreClosedError
from .state import (
    MAX_INTEGER,
    SessionState,
    check_account_id,
    check_app_id,
    check_intents,
    check_last_seq,
    check_shard,
    decode,
)
from .storages import Storage, storage_of

if TYPE_CHECKING:  # who has no gateway session need not import it
    from .gateway import GatewaySession

_log = logging.getLogger("qqbot_session")

_LEFT_OVER_AGE = 3600.0  # seconds
_PIECE = 1000  # accounts

_T = TypeVar("_T")


class AsyncSessionStore:
    """Keep, per bot account, what it needs to Resume its gateway session after a restart.

    `save`, `save_nowait`, `update_last_seq` and `touch` remember at once and never wait for
    storage: call them on every event. Each account with unsaved state has a task of its own that
    coalesces what comes within `debounce` and writes the newest.

    Use it as `async with AsyncSessionStore("sessions") as store:`, or call `aclose` yourself. It
    belongs to the event loop it is first used in.

    Args:
        storage: a directory, which becomes a `FileStorage`, or any `Storage`. `None` is the
            directory of the TypeScript original, `~/.openclaw/qqbot/sessions`. The store closes
            only a storage it made.
        debounce: seconds from one write of an account to the next; 0 is the next turn of the
            loop. Also the most that a `kill -9` loses of the sequence number.
        max_age: seconds after the last sign of life when a session counts as expired; `None` is
            never. QQ documents no number; 300 is the original's.
        on_write: called on the loop after each commit with its `WriteDetails`; if it raises,
            that is logged.
        clock: the wall clock, in seconds since the epoch.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        storage: Storage | str | os.PathLike[str] | None = None,
        *,
        debounce: float = 1.0,
        max_age: float | None = 300.0,
        on_write: Callable[[WriteDetails], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._closed = True  # for `__del__`, should a check raise
        _check_seconds("debounce", debounce)
        if max_age is not None:
            _check_seconds("max_age", max_age)
        if on_write is not None and not callable(on_write):
            raise TypeError(f"on_write must be callable, not {on_write!r}")
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self._storage = storage_of(storage)
        self._owns_storage = self._storage is not storage
        self._max_age = max_age
        self._clock = clock
        self._commit = GroupCommit(self._storage, debounce=debounce, clock=clock, on_write=on_write)
        self._accounts = self._commit.accounts
        self._due = self._commit.due
        self._reading: dict[str, asyncio.Future[None]] = {}
        self._listings: list[set[str]] = []
        self._closed = False

    def __repr__(self) -> str:
        closed = " closed" if self._closed else ""
        return (
            f"<AsyncSessionStore storage={self._storage!r} accounts={len(self._accounts)}"
            f" unsaved={len(self._commit.unsaved())}{closed}>"
        )

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; the body's own exception wins over a failed write, which is then logged."""
        try:
            await self.aclose()
        except SessionWriteError as error:
            if exc is None:
                raise
            _log.error("%s", error)

    def __del__(self) -> None:
        if not self._closed and self._commit.unsaved():
            message = f"unsaved and never closed: {self!r}"
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    async def load(
        self,
        account_id: str,
        *,
        app_id: str | None = None,
        shard: tuple[int, int] | None = None,
        intents: int | None = None,
    ) -> SessionState | None:
        """Return the session to Resume, or `None` to Identify.

        `None` when there is no record, it cannot be read, it is no record or another account's
        (one warning), it has no session id or number, it is expired (and then removed), or it
        holds another app, shard or intents than asked for (and then is left alone). After that
        the account is known to have no session until the next `save`.

        Args:
            app_id: checked if given and the record holds one; likewise the others.
            shard: `(shard id, shard count)`.
        """
        self._check_open()
        check_account_id(account_id)
        if app_id is not None:
            check_app_id(app_id)
        if shard is not None:
            check_shard(shard)
        if intents is not None:
            check_intents(intents)
        state, data = await self._newest(account_id)
        asked = {"app_id": app_id, "shard": shard, "intents": intents}
        if state is not None and _is_other(state, asked):
            _log.info("the session of %r is another app's, shard's or intents'", account_id)
        elif state is not None and self._is_expired(state):
            self._deny(account_id)
            await self._remove_expired(state, data)
            return None
        elif state is not None and state.resumable:
            self._accounts[account_id].has_session = True
            return state
        self._deny(account_id)
        return None

    async def save(self, state: SessionState) -> None:
        """Make this the account's state; returns without suspending.

        Raises:
            TypeError: it is no `SessionState`.
            StoreClosedError: after `aclose`.
        """
        # The next state of a session that is due already: all there is to do, and written out in
        # both methods, because calling one from the other is a third of what either costs.
        try:
            account = self._due[state.account_id]
            last_seq = state.last_seq
            if (
                isinstance(state, SessionState)
                and last_seq is not None
                and state.session_id == account.state.session_id  # type: ignore[union-attr]
            ):
                account.state = state
                account.last_seq = last_seq
                return
        except (AttributeError, KeyError, TypeError):  # no state, or not due
            pass
        self._save(state)

    def save_nowait(self, state: SessionState) -> None:
        """Do what `save` does, from a callback on the loop that cannot await."""
        try:
            account = self._due[state.account_id]
            last_seq = state.last_seq
            if (
                isinstance(state, SessionState)
                and last_seq is not None
                and state.session_id == account.state.session_id  # type: ignore[union-attr]
            ):
                account.state = state
                account.last_seq = last_seq
                return
        except (AttributeError, KeyError, TypeError):  # no state, or not due
            pass
        self._save(state)

    async def update_last_seq(self, account_id: str, last_seq: int) -> bool:
        """Move the account's sequence number up; returns without suspending.

        A number that is not higher than the known one counts as a `touch`. An account this store
        has not seen is read from storage first, whatever its age.

        Returns:
            Whether the account has a session; if not, nothing was changed.
        """
        try:
            account = self._due[account_id]
            if type(last_seq) is int and account.last_seq < last_seq <= MAX_INTEGER:  # type: ignore[operator]
                account.last_seq = last_seq
                return True
        except (KeyError, TypeError):  # not due, or not even hashable
            pass
        check_last_seq(last_seq)
        return await self._renew(account_id, last_seq)

    async def record(self, gateway: GatewaySession) -> None:
        """Keep the gateway session's state, or clear it if there is none; never suspends.

        Call it after every event and after every close; a heartbeat's acknowledgement makes it
        a `touch`. A record that `load` refused is left alone until there is a new session.
        """
        state = gateway.state
        account = self._accounts.get(gateway.account_id)
        if state is None:
            self._check_open()
            if account is None or account.has_session:
                self._commit.change(gateway.account_id, None, None, at_once=True)
        elif account is None or account.state is None or _is_turn(account.state, state):
            self._save(state)
        else:
            self.save_nowait(state)

    async def touch(self, account_id: str) -> bool:
        """Note a sign of life, such as a heartbeat's acknowledgement: `saved_at` is renewed.

        Returns:
            Whether the account has a session.
        """
        is_due = isinstance(account_id, str) and account_id in self._due
        return is_due or await self._renew(account_id, 0)

    async def clear(self, account_id: str) -> None:
        """Forget the account's session; waits until its deletion was attempted.

        Beats every earlier `save`. If the storage fails the deletion stays pending and is
        retried. An account without a record is no error.
        """
        self._check_open()
        check_account_id(account_id)
        account = self._commit.change(account_id, None, None, at_once=True)
        await self._commit.attempt([account])

    async def load_all(self, *, include_expired: bool = False) -> list[SessionState]:
        """Return every session that can be resumed, in the order of their account ids.

        Records that are no session are skipped, corrupt ones with a warning. Nothing is removed.

        Args:
            include_expired: return sessions past `max_age` as well.
        """
        self._check_open()
        with self._commit.reading() as before:
            found = await self._find_all(before)
        now = self._clock()
        sessions = []
        async for account_ids in _in_pieces(sorted(found)):
            for account_id in account_ids:
                state = found[account_id]
                if state is None or not state.resumable:
                    continue
                if include_expired or not self._is_expired(state, now):
                    sessions.append(state)
        return sessions

    async def cleanup(self) -> int:
        """Remove expired and corrupt records, and left-overs of interrupted writes.

        Accounts with unsaved state are skipped, and so is what cannot be read. A record that
        another process renews meanwhile stays (`FileStorage.discard` says how).

        Returns:
            How many records were removed.
        """
        self._check_open()
        removed = 0
        try:
            async for key, data in self._storage.scan():
                if self._is_garbage(data) and await self._storage.discard(key, data):
                    removed += 1
            await self._storage.sweep(_LEFT_OVER_AGE)
        except Exception as error:  # noqa: BLE001 - promise 10
            _log.warning("cannot clean up: %r", error)
        return removed

    async def flush(self, account_id: str | None = None) -> None:
        """Wait until everything saved before is on storage, without waiting for any window.

        Args:
            account_id: only this account.

        Raises:
            SessionWriteError: one attempt was made and failed; names every account that is not
                on storage. Retries go on.
        """
        self._check_open()
        if account_id is None:
            accounts = self._commit.unsaved()
        else:
            check_account_id(account_id)
            account = self._accounts.get(account_id)
            accounts = [account] if account is not None and account.unsaved else []
        if failures := await self._commit.attempt(accounts):
            raise SessionWriteError(failures)

    async def aclose(self) -> None:
        """Attempt what is unsaved, end every task, and close the storage if the store made it.

        A second call returns at once. Cancelled, it ends every task all the same.

        Raises:
            SessionWriteError: names every account that is not on storage.
        """
        if self._closed:
            return
        self._commit.running_loop()
        self._closed = True
        self._due.clear()  # so that no call takes the short way
        failures: dict[str, BaseException] = {}
        try:
            failures = await self._commit.attempt(self._commit.unsaved())
        finally:
            await self._commit.abort()
            if self._owns_storage:
                await self._storage.aclose()
            if not failures and (unsaved := self._commit.unsaved()):
                _log.error("closed with %d account(s) unsaved: %r", len(unsaved), unsaved[0].id)
        if failures:
            raise SessionWriteError(failures)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the store is closed: {self!r}")

    def _save(self, state: SessionState) -> None:
        self._check_open()
        if not isinstance(state, SessionState):
            raise TypeError(f"state must be a SessionState, not {state!r}")
        account = self._accounts.get(state.account_id)
        known = account.state if account else None
        at_once = known is None or _is_turn(known, state)
        self._commit.change(state.account_id, state, state.last_seq, at_once=at_once)

    async def _renew(self, account_id: str, last_seq: int) -> bool:
        """Make the number, or the known one if that is higher, the newest."""
        self._check_open()
        check_account_id(account_id)
        account = self._accounts.get(account_id)
        if account is None:
            with self._commit.reading() as before:
                await self._newest(account_id)
            self._check_open()
            account = self._accounts[account_id]
            if account.turn > before:  # the number was an earlier session's
                last_seq = 0
        if not account.has_session or account.last_seq is None:
            return False
        self._commit.change(account_id, account.state, max(account.last_seq, last_seq))
        return True

    async def _find_all(self, before: int) -> dict[str, SessionState | None]:
        """Return the newest state of every account; `before` as given by `reading`."""
        unsaved = {account.id for account in self._commit.unsaved()}
        found: dict[str, SessionState | None] = {}
        read_again = set()
        read_meanwhile: set[str] = set()  # by `load`, and so later than what is listed
        self._listings.append(read_meanwhile)

        def is_newer(account: Account | None) -> bool:
            """Whether this store wrote, or is to write, what may be newer than what was read."""
            return account is not None and (
                account.unsaved or account.revision > before or account.id in unsaved
            )

        try:
            async for key, data in self._storage.scan():
                state = self._decode(key, data)
                if state is not None:
                    if state.account_id in found:  # the original's record beside ours
                        read_again.add(state.account_id)
                    found[state.account_id] = state
                    account = self._accounts.get(state.account_id)
                    if not is_newer(account) and state.account_id not in read_meanwhile:
                        self._remember(state.account_id, state)
        except Exception as error:  # noqa: BLE001 - promise 10
            _log.warning("cannot list the sessions: %r", error)
        finally:
            self._listings = [read for read in self._listings if read is not read_meanwhile]
        for account_id in read_again:
            found[account_id], _ = await self._newest(account_id)
        async for accounts in _in_pieces(list(self._accounts.values())):
            for account in filter(is_newer, accounts):
                found[account.id] = self._pending(account)
        return found

    async def _newest(self, account_id: str) -> tuple[SessionState | None, bytes | None]:
        """Return the account's state, and the record if it was read from storage."""
        while True:
            account = self._accounts.get(account_id)
            if account is not None and account.unsaved:
                return self._pending(account), None
            if busy := self._reading.get(account_id):
                # One read at a time: an older one must not replace what a newer one found.
                await asyncio.wait([busy])
                continue
            self._reading[account_id] = done = asyncio.get_running_loop().create_future()
            try:
                with self._commit.reading() as before:
                    data = await self._storage.read(account_id)
                account = self._accounts.get(account_id)
                if account is None or account.revision <= before:
                    state = self._judge(account_id, data)
                    self._remember(account_id, state)
                    for read in self._listings:
                        read.add(account_id)
                    return state, data
            except Exception as error:  # noqa: BLE001 - promise 10
                _log.warning("cannot read the session of %r: %r", account_id, error)
                self._accounts.setdefault(account_id, Account(account_id))
                return None, None
            finally:
                del self._reading[account_id]
                done.set_result(None)

    def _judge(self, account_id: str, data: bytes | None) -> SessionState | None:
        """Return the record's state if it is one, and this account's."""
        state = None if data is None else self._decode(account_id, data)
        if state is not None and state.account_id != account_id:
            _log.warning("the record of %r is %r's", account_id, state.account_id)
            return None
        return state

    def _pending(self, account: Account) -> SessionState | None:
        """Return the state that is not on storage yet, as it would be written now."""
        if account.state is None:
            return None
        stamp = self._clock() if account.changed or account.stamp is None else account.stamp
        return replace(account.state, last_seq=account.last_seq, saved_at=stamp)

    def _remember(self, account_id: str, state: SessionState | None) -> None:
        """Know what storage holds; an account denied a session stays so until `load` gives one."""
        account = self._accounts.get(account_id)
        if account is None:
            account = self._accounts[account_id] = Account(account_id)
            account.remember(state)
        else:
            had_session = account.has_session
            account.remember(state)
            account.has_session &= had_session

    def _deny(self, account_id: str) -> None:
        """Let the account have no session until the next `save`; what is unsaved stays so."""
        self._accounts[account_id].has_session = False
        self._due.pop(account_id, None)

    async def _remove_expired(self, state: SessionState, data: bytes | None) -> None:
        _log.info("the session of %r has expired", state.account_id)
        if data is None:  # not on storage yet
            if not self._closed:
                self._commit.change(state.account_id, None, None)
            return
        try:
            await self._storage.discard(state.account_id, data)
        except Exception as error:  # noqa: BLE001 - promise 10
            _log.warning("cannot remove the session of %r: %r", state.account_id, error)

    def _is_expired(self, state: SessionState, now: float | None = None) -> bool:
        """Judge the age; a stamp from as far in the future is as bad."""
        if self._max_age is None:
            return False
        now = self._clock() if now is None else now
        return abs(now - state.saved_at) > self._max_age

    def _is_garbage(self, data: bytes) -> bool:
        try:
            state = decode(data)
        except InvalidRecordError:
            return True
        account = self._accounts.get(state.account_id)
        return self._is_expired(state) and not (account is not None and account.unsaved)

    def _decode(self, name: str, data: bytes) -> SessionState | None:
        try:
            return decode(data)
        except InvalidRecordError as error:
            _log.warning("the record of %r is corrupt: %s", name, error)
            return None


def _is_turn(known: SessionState, state: SessionState) -> bool:
    """Whether this is another session, or another count of Resumes, which a crash must not undo."""
    return known.session_id != state.session_id or known.failed_resumes != state.failed_resumes


def _is_other(state: SessionState, asked: dict[str, Any]) -> bool:
    """Whether the record holds another value than was asked for; none at all matches."""
    return any(
        value is not None and getattr(state, name) not in (None, value)
        for name, value in asked.items()
    )


async def _in_pieces(items: list[_T]) -> AsyncIterator[list[_T]]:
    """Yield the items in pieces that take less than a millisecond; let the loop in between."""
    for start in range(0, len(items), _PIECE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + _PIECE]


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds as a float, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
