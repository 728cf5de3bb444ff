"""Group commit: how unsaved accounts reach the storage.

Rules:

* An account with unsaved state has one `asyncio.Task`. It joins a batch at once, parks until the
  window after its write (or the back-off after a failure) is over, joins again if it is unsaved,
  and ends if it is not. So the first change after a quiet window is written at once, and under
  constant traffic there is one write per window, which is never pushed back.
* Accounts that are due together are one batch, one `Storage.commit`; batches are written one
  after the other by one task, which takes the newest states at the last moment. A state is
  unsaved until the commit that took it, or a later one, has succeeded.
* To be cancelled means to make one more attempt, at once. An account's task waits for it; the
  writing task commits the batch it was cancelled in once more, and what is queued behind it.
* Coroutines are started by hand before they become tasks (`_primed`), so that a task cancelled
  before its first step finds itself inside its `try`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType, coroutine
from typing import Any

from .errors import StoreClosedError, WrongEventLoopError
from .state import SessionState, encode
from .storages.base import Storage

_log = logging.getLogger("qqbot_session")

_BATCH = 128  # accounts per commit: below a millisecond of encoding on the loop
_FIRST_RETRY = 1.0  # seconds, doubled by each further failure
_LAST_RETRY = 30.0  # seconds
_LAST_ATTEMPTS = 3  # of a cancelled task, if each finds a newer state


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteDetails:
    """One commit, as `on_write` sees it.

    Args:
        account_ids: the accounts written or deleted, failed ones included.
        bytes: handed to the storage.
        seconds: from handing over to the answer.
        failures: the error per account that failed.
    """

    account_ids: tuple[str, ...]
    bytes: int
    seconds: float
    failures: Mapping[str, BaseException] = field(hash=False)


class Account:
    """What one account's newest state is, and how far it is from being on storage."""

    __slots__ = (
        "batch",
        "changed",
        "has_session",
        "id",
        "last_seq",
        "revision",
        "stamp",
        "state",
        "task",
        "turn",
        "wake",
    )

    def __init__(self, account_id: str) -> None:
        self.id = account_id
        self.state: SessionState | None = None  # None: no record
        self.last_seq: int | None = None  # the newest, ahead of the state's own
        self.has_session = False  # whether `update_last_seq` and `touch` find a session
        self.revision = 0  # the change that made this the newest
        self.turn = 0  # the change that began or ended its session
        self.changed = False  # newer than what was last encoded
        self.stamp: float | None = None  # `saved_at` of what was encoded and is not on storage yet
        self.batch: Batch | None = None  # the latest it joined
        self.task: asyncio.Task[None] | None = None
        self.wake: asyncio.Future[None] | None = None  # what the task is parked on

    @property
    def unsaved(self) -> bool:
        return self.changed or self.stamp is not None

    def remember(self, state: SessionState | None) -> None:
        self.state = state
        self.last_seq = None if state is None else state.last_seq
        self.has_session = state is not None and state.resumable


class Batch:
    """Accounts that are written together."""

    __slots__ = ("accounts", "done", "taken")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.accounts: dict[str, Account] = {}
        self.done = done  # set when the attempt has been made
        self.taken = False


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an account's latest attempt failed, and the seconds until the next."""

    error: BaseException
    delay: float


class GroupCommit:
    """Owner of every account, of their tasks and of the one that writes.

    Attributes:
        accounts: all that were seen, by account id.
        due: those with a session whose newest state is not encoded yet: assigning `state` and
            `last_seq` is all it takes to change one of them.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        debounce: float,
        clock: Callable[[], float],
        on_write: Callable[[WriteDetails], object] | None,
    ) -> None:
        self.accounts: dict[str, Account] = {}
        self.due: dict[str, Account] = {}
        self._changes = 0
        self._readers = 0
        self._storage = storage
        self._debounce = debounce
        self._clock = clock
        self._on_write = on_write
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[Batch] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._failing: dict[str, _Failure] = {}
        self._aborted = False

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop all tasks belong to, which is the first one seen.

        Raises:
            WrongEventLoopError: there is none, or it is another one.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongEventLoopError("a session store needs a running event loop") from None
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongEventLoopError(f"this store belongs to {self._loop!r}, not to {loop!r}")
        return loop

    @contextmanager
    def reading(self) -> Iterator[int]:
        """Be open while storage is read; give the number of the latest change before that.

        An account whose `revision` or `turn` is higher was changed meanwhile.
        """
        self._readers += 1
        try:
            yield self._changes
        finally:
            self._readers -= 1

    def unsaved(self) -> list[Account]:
        """Return the accounts whose newest state is not on storage."""
        return [account for account in self.accounts.values() if account.unsaved]

    def change(
        self,
        account_id: str,
        state: SessionState | None,
        last_seq: int | None,
        *,
        at_once: bool = False,
    ) -> Account:
        """Make this the account's newest state.

        Args:
            state: `None` deletes the record.
            last_seq: the newest number, in place of the state's own.
            at_once: do not wait for the window or the back-off.

        Raises:
            WrongEventLoopError: see `running_loop`; nothing was changed.
        """
        loop = self.running_loop()
        account = self.accounts.get(account_id)
        if account is None:
            account = self.accounts[account_id] = Account(account_id)
        self._changes += 1
        account.revision = self._changes
        if session_of(account.state) != session_of(state):
            account.turn = self._changes
        account.remember(state)
        account.last_seq = last_seq
        account.changed = True
        if account.has_session:
            self.due[account_id] = account
        else:
            self.due.pop(account_id, None)
        if account.task is None:
            self._start(account, loop)
        elif at_once:
            _ = self.join(account)
        return account

    def _start(self, account: Account, loop: asyncio.AbstractEventLoop) -> None:
        name = f"qqbot_session:{account.id}"
        account.task = loop.create_task(_primed(self._keep(account)), name=name)

    def join(self, account: Account) -> asyncio.Future[None]:
        """Put the account into the next batch; the future is set when that was attempted."""
        if account.batch is None or account.batch.taken:
            loop = self.running_loop()
            if not self._queue or self._queue[-1].taken or len(self._queue[-1].accounts) >= _BATCH:
                self._queue.append(Batch(loop.create_future()))
            account.batch = self._queue[-1]
            account.batch.accounts[account.id] = account
            if self._writer is None or self._writer.done():
                self._writer = loop.create_task(_primed(self._write()), name="qqbot_session:commit")
        return account.batch.done

    async def attempt(self, accounts: Iterable[Account]) -> dict[str, BaseException]:
        """Try each account once, at once; return the errors of those not on storage.

        An account whose write is in flight joins the next batch too: by then that write has
        ended, and there is nothing more to do if it succeeded.
        """
        accounts = list(accounts)
        pending = {self.join(account) for account in accounts}
        if pending:
            await asyncio.wait(pending)  # never cancels what it waits for
        return {a.id: self._failing[a.id].error for a in accounts if a.id in self._failing}

    async def abort(self) -> None:
        """End every task without another attempt."""
        self._aborted = True
        tasks = [account.task for account in self.accounts.values() if account.task is not None]
        if self._writer is not None and not self._writer.done():
            tasks.append(self._writer)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            while self._queue:  # somebody may still wait for these
                batch = self._queue.popleft()
                for account_id in batch.accounts:
                    error = StoreClosedError("closed before it was written")
                    self._failing[account_id] = _Failure(error, 0.0)
                if not batch.done.done():
                    batch.done.set_result(None)

    async def _keep(self, account: Account) -> None:
        """Be the account's task: one park per write."""
        try:
            await _first_step()
            while account.unsaved:
                _ = self.join(account)
                account.wake = self.running_loop().create_future()
                await account.wake
        except asyncio.CancelledError:
            await self._attempt_last(account)
            raise
        finally:
            account.task = account.wake = None
            if not account.unsaved:
                account.batch = None  # an idle account keeps no more than its state
                if not self._readers:
                    account.revision = account.turn = 0  # nobody is going to ask
                if not self.due:
                    self.due.clear()  # an emptied dictionary keeps its table until then

    async def _attempt_last(self, account: Account) -> None:
        """Attempt at once what is unsaved, and again what is changed during the attempt."""
        for _ in range(_LAST_ATTEMPTS):
            if not account.unsaved or self._aborted:
                return
            await asyncio.wait([self.join(account)])
            if account.id in self._failing:
                break
        if account.unsaved and not self._aborted and account.batch is not None:
            # Should the loop go on after all, there will be another task.
            failure = self._failing.get(account.id)
            delay = self._debounce if failure is None else failure.delay
            self.running_loop().call_later(delay, self._wake, account.batch, [account])

    async def _write(self) -> None:
        """Be the writing task: attempt every batch that is queued, then end."""
        cancelled: asyncio.CancelledError | None = None
        try:
            await _first_step()
        except asyncio.CancelledError as error:
            cancelled = error
        while self._queue and not self._aborted:
            try:
                if cancelled is None:
                    await asyncio.sleep(0)  # who else is due in this turn of the loop?
                await self._commit(self._queue[0])
            except asyncio.CancelledError as error:
                cancelled = error  # this batch counts as failed and is committed once more
            else:
                self._queue.popleft()
        if cancelled is not None:
            raise cancelled

    async def _commit(self, batch: Batch) -> None:
        batch.taken = True
        changes: dict[str, bytes | None] = {}
        failures: Mapping[str, BaseException] = {}
        started = time.perf_counter()
        try:
            for account in batch.accounts.values():
                if account.unsaved:
                    changes[account.id] = self._take(account)
            if changes:
                failures = await self._storage.commit(changes)
        except Exception as error:  # noqa: BLE001 - a storage may fail in any way it likes
            failures = {a.id: error for a in batch.accounts.values() if a.unsaved}
        seconds = time.perf_counter() - started
        was_failing = bool(self._failing)
        self._finish(batch, failures)
        self._log_turns(failures, was_failing=was_failing)
        if changes:
            self._report(changes, failures, seconds)

    def _take(self, account: Account) -> bytes | None:
        """Encode the newest state; a retry without a newer one keeps its first stamp."""
        stamp = account.stamp
        if stamp is None or account.changed:
            stamp = self._clock()
        state = account.state
        data = None if state is None else encode(state, account.last_seq, stamp)
        account.stamp = stamp
        account.changed = False
        self.due.pop(account.id, None)
        return data

    def _finish(self, batch: Batch, failures: Mapping[str, BaseException]) -> None:
        """Note what was attempted, and when each account may join again."""
        loop = self.running_loop()
        parked: dict[float, list[Account]] = {}
        for account in batch.accounts.values():
            error = failures.get(account.id)
            failed = self._failing.pop(account.id, None)
            if error is None:
                account.stamp = None
                delay = self._debounce
            else:
                delay = _FIRST_RETRY if failed is None else min(failed.delay * 2, _LAST_RETRY)
                self._failing[account.id] = _Failure(error, delay)
            parked.setdefault(delay, []).append(account)
        for delay, accounts in parked.items():
            loop.call_later(delay, self._wake, batch, accounts)
        batch.done.set_result(None)

    def _wake(self, batch: Batch, accounts: Iterable[Account]) -> None:
        """Wake the tasks whose window this was: those that have not joined another batch."""
        for account in accounts:
            if account.batch is not batch or self._aborted:
                continue
            if account.wake is not None and not account.wake.done():
                account.wake.set_result(None)
            elif account.task is None and account.unsaved:  # its task was cancelled
                self._start(account, self.running_loop())

    def _log_turns(self, failures: Mapping[str, BaseException], *, was_failing: bool) -> None:
        """Log when failures begin and when none is left."""
        if self._failing and not was_failing:
            first, error = next(iter(failures.items()))
            _log.warning(
                "cannot write the session of %r (%d account(s)): %r; retrying",
                *(first, len(failures), error),
            )
        elif was_failing and not self._failing:
            _log.warning("every session is on storage again")

    def _report(
        self,
        changes: Mapping[str, bytes | None],
        failures: Mapping[str, BaseException],
        seconds: float,
    ) -> None:
        if self._on_write is None:
            return
        details = WriteDetails(
            account_ids=tuple(changes),
            bytes=sum(len(data) for data in changes.values() if data is not None),
            seconds=seconds,
            failures=MappingProxyType(dict(failures)),
        )
        try:
            self._on_write(details)
        except Exception:  # noqa: BLE001 - a hook is not worth a session
            _log.exception("on_write failed: %r", self._on_write)


def session_of(state: SessionState | None) -> str | None:
    """Return the session id, `None` where there is no session."""
    return None if state is None else state.session_id


@coroutine
def _first_step() -> Generator[None, None, None]:
    yield


def _primed(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Run the coroutine to its `_first_step`, where a task takes it over."""
    work.send(None)
    return work
