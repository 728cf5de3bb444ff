"""`AsyncSessionStore`: every account's session, remembered across restarts.

Rules:

* What this process last saved or cleared counts until it is on storage. From then on storage
  counts: each `load` reads it, and the result replaces what was remembered.
* Arguments are checked before anything changes. Storage errors never reach the caller, except
  through `flush` and `aclose`, which name what is not on storage.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from . import watch
from .commit import GroupCommit, WriteDetails
from .errors import (
    SessionWriteError,
    StoreClosedError,
    describe,
    name_one,
    name_some,
)
from .guard import Patience, begin, call_hook, guarded, in_turns, read_clock
from .judging import (
    LoadReason,
    Verdict,
    account_of_key,
    inspect,
    is_expired,
    is_stranger,
    judge,
    shown_key,
)
from .ledger import Account, Ledger, Mark, Source, is_turn
from .logs import EXITS, say
from .reading import Reading
from .state import (
    MAX_INTEGER,
    ResumableState,
    SessionState,
    check_account_id,
    check_app_id,
    check_intents,
    check_last_seq,
    check_seconds,
    check_shard,
    check_state,
)
from .storages import Storage, storage_of
from .words import address, whenever

if TYPE_CHECKING:
    from .lease import Lease, Leases

_LEFT_OVER_AGE = 3600.0  # seconds
_STALE = 0.1  # of `max_age`: an older stamp is renewed when the store is closed
_ASK_AGAIN = 1.0  # seconds before an update reads an unreadable account again
_A_MOMENT = 1.0  # seconds that closing spends on that, at most

_ALARMING = (LoadReason.CORRUPT, LoadReason.FOREIGN, LoadReason.UNREADABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadDetails:
    """One `load`, as `on_load` sees it.

    Args:
        reason: `RESUMABLE` if the state was returned, otherwise why `None` was. `FOREIGN` means
            another account's record in this one's place, `NO_SESSION` a record without a session
            id or number.
        age: seconds since the record's `saved_at`, negative if that is in the future; `None` if
            there is no record or the clock is broken.
        state: what was found, even if it was not returned.
    """

    account_id: str
    reason: LoadReason
    age: float | None
    state: SessionState | None


class AsyncSessionStore:
    """Keep what each bot account needs to Resume its gateway session after a restart.

    `save`, `save_nowait`, `record`, `update_last_seq` and `touch` take effect at once and never
    wait for storage: call them on every event. Each account with unsaved state has its own task,
    which coalesces changes made within `debounce` and writes the newest state.

    Use it as `async with AsyncSessionStore("sessions") as store:`, or call `aclose` yourself. It
    belongs to the event loop in which it is first used. A call from any other loop or thread raises
    `WrongEventLoopError`; for repeated calls within one window, only in asyncio's debug mode.

    Args:
        storage: a directory, which becomes a `FileStorage`; `sqlite:PATH`; `redis://…` or
            `rediss://…`; or any `Storage`. `None` is the directory of the TypeScript original,
            `~/.openclaw/qqbot/sessions`. The store closes only a storage that it made itself.
        debounce: seconds between two writes of an account; 0 means the next turn of the loop. This
            is also how much of the sequence number a `kill -9` can lose. During the first 4 seconds
            after an account's first write here, it is at most a quarter of that time, or 50 ms. The
            first new number after a quiet window is written at once; a mere sign of life waits for
            one window.
        max_age: seconds after the last sign of life until a session counts as expired; `None` means
            never. QQ documents no limit; 300 is the original's.
        on_write: called on the loop after each commit with its `WriteDetails`; if it raises, the
            error is logged.
        on_load: likewise, called for each `load` with its `LoadDetails`.
        clock: the wall clock, in seconds since the epoch. While it raises or returns something
            else, nothing can be stamped: writes fail and are retried, and no age is judged.

    Raises:
        TypeError, ValueError: an argument is wrong; the error names it.
    """

    def __init__(
        self,
        storage: Storage | str | os.PathLike[str] | None = None,
        *,
        debounce: float = 1.0,
        max_age: float | None = 300.0,
        on_write: Callable[[WriteDetails], object] | None = None,
        on_load: Callable[[LoadDetails], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._closed = True  # for `__del__`, should a check raise
        storage = address(storage)
        check_seconds("debounce", debounce)
        if max_age is not None:
            check_seconds("max_age", max_age)
        for name, value in (("on_write", on_write), ("on_load", on_load), ("clock", clock)):
            if not callable(value) and (value is not None or name == "clock"):
                raise TypeError(f"{name} must be callable, not {value!r}")
        self._storage = storage_of(storage)
        self._owns_storage = self._storage is not storage
        self._max_age = max_age
        self._on_load = on_load
        self._clock = clock
        self._ledger = Ledger()
        self._commit = GroupCommit(
            self._ledger, self._storage, debounce=debounce, clock=clock, on_write=on_write
        )
        self._reading = Reading(
            self._ledger, self._storage, running_loop=self._commit.running_loop, now=self._now
        )
        self._due = self._ledger.due
        self._marked = self._ledger.marked
        self._leases: Leases | None = None
        self._closing: asyncio.Future[None] | None = None
        self._renewed: set[str] = set()  # accounts to which closing is a sign of life
        self._unwritten: dict[str, BaseException] | None = None  # what `aclose` came to
        self._closed = False
        if max_age is not None and debounce > max_age:
            text = "debounce %g s is longer than max_age %g s: a crash may make a session expire"
            say(logging.WARNING, text, debounce, max_age)

    @whenever
    def __repr__(self) -> str:
        closed = " closed" if self._closed else ""
        return (
            f"<AsyncSessionStore storage={self._storage!r} accounts={len(self._ledger.accounts)}"
            f" unsaved={len(self._ledger.unsaved())}{closed}>"
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
        """Close; if the body raised, a failed write is logged rather than raised."""
        try:
            await self.aclose()
        except SessionWriteError as error:
            if exc is None:
                raise
            say(logging.ERROR, "%s", error)

    def __del__(self) -> None:
        if not self._closed and self._commit.is_ours() and (unsaved := self._ledger.unsaved()):
            names = name_some([account.id for account in unsaved])
            say(logging.ERROR, "the store was never closed, and these are unsaved: %s", names)
            message = f"never closed, with unsaved state: {self!r}"
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    # What a bot remembers

    async def save(self, state: SessionState) -> None:
        """Make this the account's state; returns without suspending.

        Raises:
            TypeError: it is not a `SessionState`.
            StoreClosedError: after `aclose`.
        """
        # The next state of a session that is due already: all there is to do, and written out in
        # both methods, because calling one from the other is a third of what either costs. It is
        # the same session if its id is the same object, as in what was made by `replace`.
        try:
            account = self._due[state.account_id]
            last_seq = state.last_seq
            if (
                type(state) is SessionState
                and last_seq is not None
                and state.session_id is account.state.session_id  # type: ignore[union-attr]
                and not state.failed_resumes
            ):
                account.state = state
                account.last_seq = last_seq
                return
        except (AttributeError, KeyError, TypeError):  # no state, or not due
            pass
        self._save(state)

    def save_nowait(self, state: SessionState) -> None:
        """Do what `save` does, for a callback on the loop that cannot await."""
        try:
            account = self._due[state.account_id]
            last_seq = state.last_seq
            if (
                type(state) is SessionState
                and last_seq is not None
                and state.session_id is account.state.session_id  # type: ignore[union-attr]
                and not state.failed_resumes
            ):
                account.state = state
                account.last_seq = last_seq
                return
        except (AttributeError, KeyError, TypeError):  # no state, or not due
            pass
        self._save(state)

    async def record(self, gateway: Source) -> None:
        """Note that the gateway session has news, or clear the account if it has ended.

        Call it after every event, every close and every heartbeat's acknowledgement, for which it
        works like `touch`. It never suspends, and nearly always does nothing: the state is fetched
        when it is written or loaded. A record that `load` refused is left alone until there is a
        new session.

        A `GatewaySession` older than the account's newest one changes nothing, and is warned of
        once.

        Raises:
            ValueError: another shard was already recorded under this account id.
        """
        try:
            mark = self._marked[gateway.account_id]
            if mark.source is gateway and mark.turn == gateway.turn:
                return
        except (AttributeError, KeyError, TypeError):  # nothing is due, or no gateway session
            pass
        self._record(gateway)

    def record_nowait(self, gateway: Source) -> None:
        """Do what `record` does, for a callback on the loop that cannot await."""
        try:
            mark = self._marked[gateway.account_id]
            if mark.source is gateway and mark.turn == gateway.turn:
                return
        except (AttributeError, KeyError, TypeError):  # nothing is due, or no gateway session
            pass
        self._record(gateway)

    async def update_last_seq(self, account_id: str, last_seq: int) -> bool:
        """Raise the account's sequence number; returns without suspending.

        A number that is not higher than the known one only counts as a sign of life. An account
        that this store does not know is first read from storage, whatever its age; after a failed
        read, at most once a second.

        Returns:
            Whether the account has a session; if not, nothing was changed.
        """
        try:
            account = self._due[account_id]
            if type(last_seq) is int:
                if account.last_seq < last_seq <= MAX_INTEGER:  # type: ignore[operator]
                    account.last_seq = last_seq
                    return True
                if 0 <= last_seq <= account.last_seq:  # type: ignore[operator]
                    return True  # it will be stamped anyway
        except (KeyError, TypeError):  # not due, or not even hashable
            pass
        last_seq = check_last_seq(last_seq)
        return await self._renew(account_id, last_seq, touches=False)

    async def touch(self, account_id: str) -> bool:
        """Note a sign of life, such as a heartbeat's acknowledgement, which renews `saved_at`.

        Returns:
            Whether the account has a session.
        """
        try:
            self._due[account_id].touched = True
            return True
        except (KeyError, TypeError):  # not due, or not even hashable
            if type(account_id) is str and account_id in self._marked:
                return True
        return await self._renew(account_id, 0, touches=True)

    async def clear(self, account_id: str) -> None:
        """Forget the account's session, and wait for one attempt to delete its record.

        Overrides every earlier `save`. If the storage fails, the deletion stays pending and is
        retried. It is not an error if the account has no record.
        """
        self._check_open()
        account = self._ledger.account(check_account_id(account_id))
        self._change(account, None, None)
        await self._commit.attempt([account])

    # What there is

    async def load(
        self,
        account_id: str,
        *,
        app_id: str | None = None,
        shard: tuple[int, int] | None = None,
        intents: int | None = None,
    ) -> ResumableState | None:
        """Return the session to Resume, or `None` to Identify.

        Returns `None` if there is no record, it cannot be read, it is corrupt or another account's,
        it has no session id or number, it has expired (and is then removed), or its app, shard or
        intents differ from those asked for (and is then left alone). A log line and `on_load` say
        which. After that, the account has no session until the next `save`.

        A failed read is retried for 2 seconds, but not while earlier reads keep failing. If it
        still fails, the account remains unknown, unless this store has written it: then the answer
        is what it wrote.

        Args:
            app_id: compared if it is given and the record has one; likewise `shard` and `intents`.
            shard: `(shard id, shard count)`.
        """
        verdict = await self.load_verdict(account_id, app_id=app_id, shard=shard, intents=intents)
        resumable = verdict.reason is LoadReason.RESUMABLE
        return cast(ResumableState, verdict.state) if resumable else None

    async def load_verdict(
        self,
        account_id: str,
        *,
        app_id: str | None = None,
        shard: tuple[int, int] | None = None,
        intents: int | None = None,
    ) -> Verdict:
        """Do what `load` does, but return the whole verdict.

        For `open_gateway`: what a record says of Identifies and refusals holds without a session.
        """
        self._check_open()
        account_id = check_account_id(account_id)
        asked: dict[str, object] = {
            "app_id": None if app_id is None else check_app_id(app_id),
            "shard": None if shard is None else check_shard(shard),
            "intents": None if intents is None else check_intents(intents),
        }
        _ = self._commit.running_loop()
        found = await self._reading.newest(account_id)
        verdict = judge(found, now=self._now(), max_age=self._max_age, asked=asked)
        if not self._closed:
            await self._heed(account_id, verdict)
        self._tell(account_id, verdict)
        return verdict

    async def load_all(self, *, include_expired: bool = False) -> list[ResumableState]:
        """Return every session that can be resumed, in the order of their account ids.

        Records without a session are skipped, corrupt and foreign ones with a warning. Nothing is
        removed. What is listed replaces what was remembered. What is not listed may only be
        unreadable, so it is not forgotten.

        Args:
            include_expired: also return sessions older than `max_age`.
        """
        self._check_open()
        _ = self._commit.running_loop()
        found = await self._reading.find_all()
        now = self._now()
        sessions: list[ResumableState] = []
        async for account_ids in in_turns(sorted(found)):
            for account_id in account_ids:
                state = found[account_id]
                if state is None or not state.resumable:
                    continue
                if include_expired or not is_expired(state, now, self._max_age):
                    sessions.append(cast(ResumableState, state))
        return sessions

    async def cleanup(self) -> int:
        """Remove expired and corrupt records, and left-overs of interrupted writes.

        Accounts with unsaved state are skipped, and so is what cannot be read or removed. A record
        that another process renews meanwhile stays (`FileStorage.discard` says how). A file that
        bears a record's name and never was one is left: `qqbot-session cleanup --yes` removes it.

        Returns:
            How many records were removed.
        """
        self._check_open()
        _ = self._commit.running_loop()
        removed = 0
        kept: dict[str, Exception] = {}

        async def remove() -> None:
            nonlocal removed
            async for key, data in self._storage.scan():
                if self._closed:
                    return
                if self._is_garbage(key, data):
                    removed += await self._discard(key, data, kept)
            _ = await self._storage.sweep(_LEFT_OVER_AGE)

        try:
            await guarded(remove)
        except Exception as error:  # noqa: BLE001 - promise 10
            say(logging.WARNING, "cannot clean up: %s", describe(error))
        _tell_of_kept(kept)
        return removed

    def lease(self, account_id: str, *, ttl: float = 15.0) -> AbstractAsyncContextManager[Lease]:
        """Be the only process that writes the account: `async with store.lease(id): ...`.

        Waits until no other process holds the lease. Run the bot in the body, and load the account
        there: no other process is running it. At the end of the body, unsaved state is flushed, the
        lease is given up, and this store forgets the account.

        The storage itself refuses everybody else's writes, including late ones of a former holder.
        If the lease cannot be renewed in time, the body is cancelled after two thirds of `ttl`, a
        third before anybody else may begin; a process that was suspended finds out when it goes on.
        Closing the store ends the body, too. `SqliteStorage` and `RedisStorage` have leases; files
        do not, because nothing there can refuse a late write.

        Args:
            ttl: seconds, at least 1, after which another process may begin if this one dies.

        Raises:
            TypeError: the storage has no leases.
            LeaseLostError: from the `async with`, if the body was ended.
            StoreClosedError: likewise, if the store is closed before the lease is held.
            RuntimeError: this store already holds the lease or waits for it.
        """
        self._check_open()
        if self._leases is None:
            from .lease import Leases

            self._leases = Leases(self._storage, flush=self.flush, forget=self._commit.forget)
        return self._leases.hold(check_account_id(account_id), ttl)

    # The end

    async def flush(self, account_id: str | None = None) -> None:
        """Write everything that is unsaved now, and wait until it is on storage.

        Args:
            account_id: flush only this account.

        Raises:
            SessionWriteError: the attempt failed for some accounts, which the error names. They
                are retried.
        """
        accounts = self._accounts(account_id)
        if failures := await self._commit.attempt(accounts):
            raise SessionWriteError(failures)

    def flush_nowait(self, account_id: str | None = None) -> None:
        """Start the write that `flush` waits for, for example while a bot is stopping.

        Args:
            account_id: flush only this account.
        """
        for account in self._accounts(account_id):
            if account.unsaved:
                _ = self._commit.join(account)

    async def aclose(self) -> None:
        """Write what is unsaved, end every task, and close the storage if the store made it.

        Closing also counts as a sign of life for every account that was saved here but for which
        neither `touch` nor `record` was called, so that a bot without events for longer than
        `max_age` can be restarted. Where they were called, the last call counts: the connection may
        be dead.

        Every caller, even a later one, returns once this has ended. A cancelled caller waits for
        two more seconds at most; then a log line says what is not on storage.

        Raises:
            SessionWriteError: some accounts are not on storage; the error names them.
        """
        _ = self._commit.running_loop()
        self._closed = self._reading.closed = True
        self._ledger.freeze()
        patience = Patience()
        while self._unwritten is None:
            if self._closing is None or self._closing.done():
                await self._close(patience)
            else:
                await patience.wait([self._closing])
            if patience.cancelled is not None:
                unsaved = [account.id for account in self._ledger.unsaved()]
                if unsaved := [key for key in unsaved if key not in self._renewed]:
                    names = name_some(unsaved)
                    say(logging.ERROR, "closing was cancelled, and these are unsaved: %s", names)
                raise patience.cancelled
        if self._unwritten:
            raise SessionWriteError(self._unwritten)

    async def _renew_quiet(self) -> None:
        """Renew the accounts whose signs of life nobody reports, unless others wrote them."""
        now = self._now()
        if self._max_age is None or now is None:
            return
        quiet = self._ledger.quiet(now - self._max_age * _STALE)
        async with asyncio.timeout(_A_MOMENT):
            async for accounts in in_turns(quiet):
                reads = [self._reading.ask(account.id) for account in accounts]
                records = await asyncio.gather(*reads, return_exceptions=True)
                for account, data in zip(accounts, records, strict=True):
                    if not isinstance(data, BaseException) and not account.unsaved:
                        self._renew_as_read(account, inspect(account.id, data).state)

    def _renew_as_read(self, account: Account, state: SessionState | None) -> None:
        if state is not None and state == account.newest(0.0):
            self._renewed.add(account.id)
            newest = account.state, account.last_seq
            self._ledger.change(account, *newest, moves=False, warm=False)

    async def _close(self, patience: Patience) -> None:
        """Do the work of `aclose`; callers that come in the meantime wait for it."""
        self._closing = done = self._commit.running_loop().create_future()
        try:
            renewing = begin(self._renew_quiet)
            await patience.wait([renewing])
            _ = renewing.cancel()
            await self._commit.close(patience)
            release = begin(self._release, asyncio.current_task())
            await patience.wait([release])
            _ = release.cancel()
            failures = self._commit.failures()  # a sign of life is not worth an error
            self._unwritten = {key: failures[key] for key in failures.keys() - self._renewed}
        finally:
            done.set_result(None)  # should it have ended in any other way, the next caller tries

    async def _release(self, closer: asyncio.Task[object] | None) -> None:
        """Give up the leases, and close the storage if the store made it."""
        try:
            if self._leases is not None:
                await self._leases.aclose(closer)
            if self._owns_storage:
                await self._storage.aclose()
        except Exception as error:  # noqa: BLE001 - the records are what matters
            say(logging.WARNING, "cannot close the storage: %s", describe(error))

    def _accounts(self, account_id: str | None) -> Iterable[Account]:
        self._check_open()
        _ = self._commit.running_loop()
        if account_id is None:
            return self._ledger.each()
        account = self._ledger.accounts.get(check_account_id(account_id))
        return [] if account is None else [account]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the store on {self._storage!r} is closed")

    # Changes

    def _change(
        self,
        account: Account,
        state: SessionState | None,
        last_seq: int | None,
        *,
        moves: bool = True,
    ) -> None:
        """Make this the newest state, after making sure that it will be written."""
        loop = self._commit.running_loop()
        is_urgent = account.state is not state and is_turn(account.state, state)
        self._commit.write_soon(account, moves=moves, at_once=is_urgent)
        # Under asyncio's debug mode every call comes this way, and its loop is checked.
        warm = not loop.get_debug()
        self._ledger.change(account, state, last_seq, moves=moves, warm=warm)

    def _save(self, state: SessionState) -> None:
        self._check_open()
        state = check_state(state)
        self._change(self._ledger.account(state.account_id), state, state.last_seq)

    def _record(self, gateway: Source) -> None:
        self._check_open()
        loop = self._commit.running_loop()
        try:
            account_id = gateway.account_id
            if type(account_id) is not str or account_id not in self._ledger.accounts:
                account_id = check_account_id(account_id)
            account = self._ledger.accounts.get(account_id)
            handled = gateway.handled
            noted = None if account is None else self._ledger.noted(account, gateway)
            if noted is None:
                _ = gateway.turn, gateway.generation, gateway.shard
        except AttributeError:
            raise TypeError(f"gateway must be a GatewaySession, not {gateway!r}") from None
        if account is not None and noted is not None:
            moves = noted.handled != handled
            self._commit.write_soon(account, moves=moves, at_once=False)
            self._ledger.renew(account, noted, gateway, moves=moves, warm=not loop.get_debug())
            return
        mark = None if account is None else account.mark
        if mark is not None and _is_outdated(mark, gateway):
            return
        state = gateway.state
        if state is not None:
            account = account or self._ledger.account(account_id)
            last_seq = account.last_seq if state is account.state else state.last_seq
            self._change(account, state, last_seq)
            self._ledger.mark(account, gateway, warm=not loop.get_debug())
            return
        if account is None:
            may_have = not self._reading.is_unreadable(account_id)
        else:
            may_have = account.has_session
        if may_have:
            account = account or self._ledger.account(account_id)
            self._change(account, None, None)
        if account is not None:
            self._ledger.note(account, gateway)

    async def _renew(self, account_id: str, last_seq: int, *, touches: bool) -> bool:
        """Note a sign of life, and the number if it is higher than the known one."""
        if self._closed:
            self._check_open()
        accounts = self._ledger.accounts
        if type(account_id) is not str or account_id not in accounts:
            account_id = check_account_id(account_id)
        account = accounts.get(account_id)
        if account is None:
            _ = self._commit.running_loop()
            if self._reading.is_unreadable(account_id, within=_ASK_AGAIN):
                return False
            _ = await self._reading.newest(account_id)
            self._check_open()
            account = accounts.get(account_id)
            if account is None:  # unreadable
                return False
            if account.turned:  # the number was an earlier session's
                last_seq = 0
        if account.mark is not None:
            account.ask()
        if not account.has_session or account.last_seq is None:
            return False
        account.touched |= touches
        moves = last_seq > account.last_seq
        self._change(account, account.state, max(account.last_seq, last_seq), moves=moves)
        return True

    # Reading

    async def _is_resumable(self, account_id: str) -> bool:
        """Whether `load` would return a session; this one says and removes nothing."""
        found = await self._reading.newest(account_id)
        verdict = judge(found, now=self._now(), max_age=self._max_age, asked={})
        return verdict.reason is LoadReason.RESUMABLE

    # Judging

    def _tell(self, account_id: str, verdict: Verdict) -> None:
        """Log why there is nothing to resume, if so, and call the hook in any case."""
        reason, age = verdict.reason, verdict.age
        if reason is not LoadReason.RESUMABLE:
            fields = {
                "qqbot_account": account_id,
                "qqbot_reason": reason.value,
                "qqbot_age": age,
            }
            level = logging.WARNING if reason in _ALARMING else logging.INFO
            say(level, "Identify %s: %s", name_one(account_id), verdict.words, extra=fields)
        hooks = [hook for hook in (self._on_load, *watch.on_load) if hook is not None]
        if hooks:
            details = LoadDetails(
                account_id=account_id, reason=reason, age=age, state=verdict.state
            )
            for hook in hooks:
                call_hook("on_load", hook, details)

    async def _heed(self, account_id: str, verdict: Verdict) -> None:
        """Make what the store knows agree with what `load` is about to return."""
        account = self._ledger.accounts.get(account_id)
        if account is None:
            return  # unreadable, and so unknown
        if verdict.reason is LoadReason.RESUMABLE:
            account.denied = False
            return
        self._ledger.deny(account)
        if verdict.reason is not LoadReason.EXPIRED:
            return
        if account.unsaved:
            self._change(account, None, None)
        elif verdict.data is not None:
            began = self._ledger.moment()
            kept: dict[str, Exception] = {}
            if await self._discard(account_id, verdict.data, kept) and not self._closed:
                _ = self._ledger.learn(account_id, None, began)
            _tell_of_kept(kept)

    async def _discard(self, key: str, data: bytes, kept: dict[str, Exception]) -> bool:
        """Remove a record; if that fails, note it in `kept`."""
        try:
            return bool(await guarded(self._storage.discard, key, data))
        except Exception as error:  # noqa: BLE001 - promise 10
            kept[shown_key(key)] = error
            return False

    def _now(self) -> float | None:
        """Return the time, or `None` if the clock is broken: no age is judged then."""
        try:
            return read_clock(self._clock)
        except EXITS:
            raise
        except BaseException:  # noqa: BLE001 - each write that needs it says so
            return None

    def _is_garbage(self, key: str, data: bytes) -> bool:
        found = inspect(account_of_key(key), data)
        if found.state is None:
            return found.reason is LoadReason.CORRUPT and not is_stranger(key, data)
        account = self._ledger.accounts.get(found.state.account_id)
        is_unsaved = account is not None and account.unsaved
        return not is_unsaved and is_expired(found.state, self._now(), self._max_age)


def _tell_of_kept(kept: Mapping[str, Exception]) -> None:
    """Log which records could not be removed, thousands of them in one line."""
    if kept:
        reason = describe(next(iter(kept.values())))
        say(logging.WARNING, "cannot remove the record of %s: %s", name_some(kept), reason)


def _is_outdated(mark: Mark, gateway: Source) -> bool:
    """Whether this gateway session is older than the one that recorded last; warn once.

    Raises:
        ValueError: it belongs to another shard.
    """
    if mark.shard != gateway.shard:
        raise ValueError(
            f"account {gateway.account_id!r} is shard {mark.shard!r}'s, not {gateway.shard!r}'s: "
            "give each shard an account id of its own"
        )
    if gateway.generation >= mark.generation:
        return False
    if mark.outdated < gateway.generation:
        mark.outdated = gateway.generation
        name = name_one(gateway.account_id)
        say(logging.WARNING, "ignoring an older gateway session of %s", name)
    return True
