"""Group commit: when unsaved accounts are written to storage.

Rules:

* An account with unsaved state has one `asyncio.Task`. It joins a batch at once and then parks
  until the window after its write (or the back-off after a failure) is over. If the account is
  unsaved by then it joins another batch; if not, the task ends. So the first change after a quiet
  window is written at once, constant traffic causes one write per window, and no write is ever
  pushed back. An idle account has neither a task nor a timer.
* A change that only renews a sign of life waits for a window first, and does not delay a change
  that moves the session on. So a lone event costs one write, at the end of its handler.
* Accounts that are due together form one batch, which is one `Storage.commit`. One task writes the
  batches in order, and takes the newest states at the last moment.
* A commit that raises has failed for the storage as a whole: the batches behind it fail, too.
* Cancellation means one more attempt, at once. An account's task waits for that attempt; the
  writing task works through its queue, and repeats a commit that was cancelled along with it.
* Tasks bypass the loop's task factory and run in an empty context. Their coroutines are started by
  hand (`_primed`), so that a task cancelled before its first step is already inside its `try`.
  However a task ends, KeyboardInterrupt included, its done-callback cleans up. A batch leaves the
  queue only when it is finished.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from types import MappingProxyType, coroutine
from typing import Any

from . import watch
from .errors import StoreClosedError, WrongEventLoopError, describe, name_some
from .guard import (
    ATTEMPTS,
    TASK_NAME,
    Patience,
    begin,
    call_hook,
    in_pieces,
    in_turns,
    outcome,
    read_clock,
    retrieve,
)
from .ledger import Account, Ledger
from .logs import EXITS, say
from .storages.base import Storage

# Accounts per commit: below a millisecond of encoding on the loop. With 256 a row costs 3 to 12 %
# less, and a batch for Redis takes a millisecond in one turn.
_BATCH = 128
_ASKED = 4  # accounts encoded in the time that a source takes to make its state
_FIRST_RETRY = 1.0  # seconds, doubled by each further failure
_LAST_RETRY = 30.0  # seconds
_YOUNG = 4.0  # seconds for which an account's windows are a quarter of its age
_FIRST_WINDOW = 0.05  # seconds
_TOLD_TOGETHER = 1.0  # seconds
_TORN = 30  # commits in a row that may be cancelled, and the writing task with them
_FOR_THE_END = 0.1  # seconds of a cancelled closing that are kept from a hung attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteDetails:
    """One commit, as `on_write` sees it.

    Args:
        account_ids: the accounts written or deleted, failed ones included.
        bytes: handed to the storage; 0 if an earlier commit failed for the storage as a whole.
        seconds: from handing over to the answer.
        failures: the error per account that failed.
    """

    account_ids: tuple[str, ...]
    bytes: int
    seconds: float
    failures: Mapping[str, BaseException] = field(hash=False)


class Keeper:
    """Looks after an account while it is unsaved, and for one quiet window after that."""

    __slots__ = ("account", "batch", "closed", "patient", "task", "wake")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.batch: Batch | None = None  # the latest one it joined
        self.task: asyncio.Task[None] | None = None
        self.wake: asyncio.Future[None] | None = None  # what the task is parked on
        self.patient = False  # the task waits for a window before it joins a batch
        self.closed = False  # even a change that moves must wait for the end of the window


class Batch:
    """Accounts that are written together."""

    __slots__ = ("done", "keepers", "outage", "taken", "torn")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.keepers: dict[str, Keeper] = {}
        self.done = done  # set once the attempt was made
        self.taken = False
        self.torn = 0  # how many times its commit was cancelled
        self.outage: BaseException | None = None  # why it is not even attempted


class _Failure:
    """Why an account's latest attempt failed, and the seconds until the next."""

    __slots__ = ("delay", "error")

    def __init__(self, error: BaseException, delay: float) -> None:
        self.error = error
        self.delay = delay


class GroupCommit:
    """Owns the task of every account that is not idle, and the task that writes."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        *,
        debounce: float,
        clock: Callable[[], float],
        on_write: Callable[[WriteDetails], object] | None,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._debounce = debounce
        self._clock = clock
        self._on_write = on_write
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: int | None = None  # the loop's
        self._on_end = self._end  # made once, and not per account
        self._context = Context()  # nobody's: the first saver's would live as long as the account
        self._keepers: dict[str, Keeper] = {}
        self._queue: deque[Batch] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._call: asyncio.Task[Any] | None = None  # the storage's commit
        self._failing: dict[str, _Failure] = {}
        self._begun: dict[str, BaseException] = {}  # failing, and not told yet
        self._healed: list[str] = []
        self._untold_since: float | None = None
        self._aborted = False

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that all tasks belong to: the first one seen.

        Raises:
            WrongEventLoopError: no loop is running, or another one is.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongEventLoopError("a session store needs a running event loop") from None
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        elif self._loop is not loop:
            raise WrongEventLoopError(f"this store belongs to {self._loop!r}, not to {loop!r}")
        return loop

    def is_ours(self) -> bool:
        """Whether this process saved here: not if it was forked from the one that did."""
        return self._process in (None, os.getpid())

    # What the store asks for

    def write_soon(self, account: Account, *, moves: bool, at_once: bool) -> None:
        """Make sure that the account, which is about to change, gets written.

        Args:
            moves: the change is more than a sign of life.
            at_once: do not wait for the window or the back-off.
        """
        keeper = self._keeper(account)
        if keeper.task is None or keeper.task.done():
            keeper.patient = not (moves or at_once)
            self._start(keeper)
        elif at_once or (moves and not keeper.closed):
            _ = self._join(keeper)

    def join(self, account: Account) -> asyncio.Future[None]:
        """Put the account into the next batch; the future is set once that was attempted."""
        return self._join(self._keeper(account))

    def _join(self, keeper: Keeper) -> asyncio.Future[None]:
        if self._writer is None or self._writer.done():
            self._start_writer()  # first: if this raises, the account's own timer still runs
        if keeper.batch is None or keeper.batch.taken:
            if not self._queue or self._queue[-1].taken or len(self._queue[-1].keepers) >= _BATCH:
                self._queue.append(Batch(self.running_loop().create_future()))
            batch = self._queue[-1]
            batch.keepers[keeper.account.id], keeper.batch = keeper, batch
        return keeper.batch.done

    async def attempt(self, accounts: Iterable[Account]) -> dict[str, BaseException]:
        """Try to write each unsaved account now; return the errors of those that failed.

        An account whose write is in flight joins the next batch, too. That write has ended by
        then, and if it succeeded there is nothing left to do.
        """
        pending: set[asyncio.Future[None]] = set()
        tried: list[str] = []
        async for piece in in_turns(accounts):
            for account in piece:
                if account.unsaved:
                    pending.add(self.join(account))
                    tried.append(account.id)
        if pending:
            await asyncio.wait(pending)  # never cancels what it waits for
        if not self._failing:  # nearly always; to look for 100,000 accounts holds the loop
            return {}
        return {key: self._failing[key].error for key in tried if key in self._failing}

    async def close(self, patience: Patience) -> None:
        """Try to write everything that is unsaved, and end every task."""
        pending: set[asyncio.Future[None]] = set()
        for piece in in_pieces(() if self._aborted else self._ledger.each()):
            await patience.turn()
            pending |= {self.join(account) for account in piece if account.unsaved}
        await patience.wait(pending, spare=_FOR_THE_END)
        self._aborted = True
        tasks = [*(keeper.task for keeper in self._keepers.values()), self._writer, self._call]
        alive = [task for task in tasks if task is not None and not task.done()]
        for some in in_pieces(alive):
            for task in some:
                _ = task.cancel()
            await patience.turn()
        await patience.wait(alive, spare=_FOR_THE_END / 2)
        for batch in self._queue:  # somebody may still wait for these
            if not batch.done.done():
                batch.done.set_result(None)
        self._queue.clear()
        for account in self._ledger.unsaved():
            if account.id not in self._failing:
                error = StoreClosedError("closed before it was written")
                self._failing[account.id] = _Failure(error, 0.0)
        self._tell_of_turns()

    def failures(self) -> dict[str, BaseException]:
        """Return the latest error of every account that is failing."""
        return {account_id: failure.error for account_id, failure in self._failing.items()}

    def forget(self, account_id: str) -> None:
        """Drop everything known about the account, including unsaved state."""
        self._ledger.forget(account_id)
        self._failing.pop(account_id, None)
        keeper = self._keepers.pop(account_id, None)
        if keeper is not None and keeper.task is not None:
            _ = keeper.task.cancel()

    # Tasks

    def _keeper(self, account: Account) -> Keeper:
        keeper = self._keepers.get(account.id)
        if keeper is None:
            keeper = self._keepers[account.id] = Keeper(account)
        keeper.account = account  # it may have been forgotten and known again
        return keeper

    def _start(self, keeper: Keeper) -> None:
        task = self._task(self._keep(keeper), keeper.account.id, self._context)
        keeper.task = task
        task.add_done_callback(self._on_end, context=self._context)

    def _start_writer(self) -> None:
        self._writer = self._task(self._write(), "commit", Context())
        self._writer.add_done_callback(self._end_writer, context=self._context)

    def _task(
        self, work: Coroutine[Any, Any, None], name: str, context: Context
    ) -> asyncio.Task[None]:
        """Make a task that no factory wraps, and that does not complain when its loop is closed.

        The store reports what is lost with a loop.
        """
        try:
            task = asyncio.Task(
                _primed(work),
                loop=self._loop,
                name=TASK_NAME + name,
                context=context,
            )
        except BaseException:  # such as a RecursionError, deep in a handler
            work.close()
            raise
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    async def _keep(self, keeper: Keeper) -> None:
        """Run as the account's task."""
        try:
            await _first_step()
            if keeper.task is not asyncio.current_task():
                return  # a stray: the call that made it was interrupted, so another takes its place
            while keeper.account.unsaved:
                if keeper.patient:
                    keeper.patient = False
                    if keeper.batch is None:  # by what its timer knows whether it still waits
                        keeper.batch = Batch(self.running_loop().create_future())
                        keeper.batch.taken = True
                    self._wake_later(self._debounce, keeper.batch, [keeper])
                else:
                    _ = self.join(keeper.account)
                keeper.wake = self.running_loop().create_future()
                await keeper.wake
        except asyncio.CancelledError:
            await self._attempt_last(keeper.account)
            raise

    async def _attempt_last(self, account: Account) -> None:
        """Try at once to write what is unsaved, and again if it changes during the attempt."""
        for _ in range(ATTEMPTS):
            if not account.unsaved or self._aborted:
                return
            await asyncio.wait([self.join(account)])
            if account.id in self._failing:
                return

    def _end(self, task: asyncio.Task[None]) -> None:
        """Clean up after an account's task; if the account is still unsaved, retry later."""
        retrieve(task)
        keeper = self._keepers.get(task.get_name().removeprefix(TASK_NAME))
        if keeper is not None and keeper.task is task:
            keeper.task = keeper.wake = None
            if not keeper.account.unsaved:
                self._release(keeper)
            elif not self._aborted:
                failure = self._failing.get(keeper.account.id)
                delay = self._debounce if failure is None else failure.delay
                self._wake_later(delay, keeper.batch, [keeper])

    def _release(self, keeper: Keeper) -> None:
        keeper.batch = None  # so that no timer wakes it: the account may have another by then
        if self._keepers.get(keeper.account.id) is keeper:
            del self._keepers[keeper.account.id]
            if not self._keepers:
                self._keepers.clear()  # an emptied dictionary keeps its table until then

    def _end_writer(self, task: asyncio.Task[None]) -> None:
        """Start another writing task if this one was torn away from its queue."""
        retrieve(task)
        if self._writer is task and self._queue and not self._aborted:
            self._start_writer()

    # Windows

    def _wake_later(self, delay: float, batch: Batch | None, keepers: list[Keeper]) -> None:
        loop = self.running_loop()
        _ = loop.call_later(delay, self._wake, batch, keepers, context=self._context)

    def _wake(self, batch: Batch | None, keepers: list[Keeper]) -> None:
        """End a window: unsaved accounts join the next batch, the tasks of all others end.

        The task of an account that joins stays parked: waking it would cost more than encoding.
        """
        try:
            for keeper in keepers:
                if keeper.batch is not batch or self._aborted:
                    continue
                is_over = keeper.task is None or keeper.task.done()  # it was cancelled
                if is_over and keeper.account.unsaved:
                    self._start(keeper)
                elif is_over:
                    self._release(keeper)
                elif keeper.account.unsaved:
                    _ = self._join(keeper)
                elif keeper.wake is not None and not keeper.wake.done():
                    keeper.wake.set_result(None)
        except BaseException:  # such as a KeyboardInterrupt: nobody else wakes those that are left
            self._wake_later(0.0, batch, keepers)
            raise

    # Writing

    async def _write(self) -> None:
        """Run as the writing task: try every queued batch, then end, cancelled or not."""
        with suppress(asyncio.CancelledError):
            await _first_step()
        if self._writer is not asyncio.current_task():
            return  # see `_keep`
        while self._queue and not self._aborted:
            await _let_others_in()  # who else is due in this turn of the loop?
            await self._commit(self._queue[0])

    async def _commit(self, batch: Batch) -> None:
        batch.taken = True
        changes: dict[str, bytes | None] = {}
        failures: dict[str, BaseException] = {}
        seconds = 0.0
        if batch.outage is None:
            await self._take(batch, changes, failures)
            started = time.perf_counter()
            if changes and not await self._hand_over(batch, changes, failures):
                return  # this batch is committed again at once, unless the store is closed
            seconds = time.perf_counter() - started
        else:
            unsaved = [k.account.id for k in batch.keepers.values() if k.account.unsaved]
            failures = dict.fromkeys(unsaved, batch.outage)
        self._finish(batch, failures)
        self._tell_of_turns()
        self._report(changes, failures, seconds)

    async def _take(
        self, batch: Batch, changes: dict[str, bytes | None], failures: dict[str, BaseException]
    ) -> None:
        """Encode the newest states, in pieces that each take less than a millisecond."""
        work, now = 0, None
        for account_id, keeper in batch.keepers.items():
            account = keeper.account
            if not account.unsaved:
                continue
            cost = 1 if account.mark is None else _ASKED
            if work + cost > _BATCH:
                work, now = 0, None
                await _let_others_in()
            work += cost
            try:
                if now is None and account.changed and account.state is not None:
                    now = read_clock(self._clock)
                changes[account_id] = self._ledger.take(account, now or 0.0)
                keeper.closed, account.moved = account.moved, False
            except EXITS:
                raise
            except BaseException as error:  # noqa: BLE001 - a clock or a source may raise anything
                failures[account_id] = error

    async def _hand_over(
        self,
        batch: Batch,
        changes: Mapping[str, bytes | None],
        failures: dict[str, BaseException],
    ) -> bool:
        """Let the storage commit; note what failed, whatever it returns or raises.

        Returns:
            Whether the attempt has ended: not if it was cancelled, unless that goes on and on.
        """
        self._call = call = begin(self._storage.commit, changes, context=Context())
        try:
            cancelled = await self._wait_for(call)
        finally:
            self._call = None
        if not call.done():
            return False
        torn = call.cancelled() and (cancelled or call.cancelling() > 0)
        if torn:
            batch.torn += 1
            if batch.torn < (_TORN if cancelled else ATTEMPTS):
                return False
        try:
            answer = outcome(call)
        except Exception as error:  # noqa: BLE001 - a storage may fail in any way it likes
            for queued in () if torn else self._queue:  # a time-out for each would be too many
                queued.taken, queued.outage = True, error
            failures |= dict.fromkeys(changes, error)
            return True
        answered = _answered(answer, changes)
        failures |= {key: error for key, error in answered.items() if key in changes}
        return True

    async def _wait_for(self, call: asyncio.Task[Any]) -> bool:
        """Wait until it is done or the store is closed; return whether we were cancelled."""
        cancelled = False
        while not call.done() and not (cancelled and self._aborted):
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:
                cancelled = True
        return cancelled

    def _finish(self, batch: Batch, failures: Mapping[str, BaseException]) -> None:
        """Note the outcome, and when each account may join the next batch."""
        now = self.running_loop().time()
        moment = self._ledger.moment()
        parked: dict[float, list[Keeper]] = {}
        for account_id, keeper in batch.keepers.items():
            account = keeper.account
            if account.born is None:
                account.born = now
            age = now - account.born
            delay = self._debounce
            if age < _YOUNG:
                delay = min(delay, max(_FIRST_WINDOW, age / 4))
            if account_id in failures and account.unsaved:  # it may have been forgotten meanwhile
                delay = self._note_failure(account_id, failures[account_id])
                keeper.closed = True
            else:
                self._ledger.acknowledge(account, moment)
                if self._failing and self._failing.pop(account_id, None) is not None:
                    self._healed.append(account_id)
            parked.setdefault(delay, []).append(keeper)
        for delay, keepers in parked.items():
            self._wake_later(delay, batch, keepers)
        if not batch.done.done():
            batch.done.set_result(None)
        if self._queue and self._queue[0] is batch:
            self._queue.popleft()  # last: if anything is raised before this, all is done again

    def _note_failure(self, account_id: str, error: BaseException) -> float:
        """Return how many seconds remain until the account's next attempt."""
        failed = self._failing.get(account_id)
        delay = _FIRST_RETRY if failed is None else min(failed.delay * 2, _LAST_RETRY)
        self._failing[account_id] = _Failure(error, delay)
        if failed is None:
            self._begun[account_id] = error
        return delay

    # What others are told

    def _tell_of_turns(self) -> None:
        """Log which accounts began to fail and which recovered, many of them in one line."""
        if not self._begun and not self._healed:
            return
        now = self.running_loop().time()
        if self._untold_since is None:
            self._untold_since = now
        if self._queue and not self._aborted and now < self._untold_since + _TOLD_TOGETHER:
            return
        begun, healed = self._begun, self._healed
        self._begun, self._healed, self._untold_since = {}, [], None
        if begun:
            reason = describe(next(iter(begun.values())))
            say(logging.WARNING, "cannot write %s: %s; retrying", name_some(begun), reason)
        if healed:
            say(logging.WARNING, "on storage again: %s", name_some(healed))

    def _report(
        self,
        changes: Mapping[str, bytes | None],
        failures: Mapping[str, BaseException],
        seconds: float,
    ) -> None:
        hooks = [hook for hook in (self._on_write, *watch.on_write) if hook is not None]
        if not hooks or not (changes or failures):
            return
        details = WriteDetails(
            account_ids=tuple(changes | failures),  # type: ignore[operator]
            bytes=sum(len(data) for data in changes.values() if data is not None),
            seconds=seconds,
            failures=MappingProxyType(dict(failures)),
        )
        for hook in hooks:
            call_hook("on_write", hook, details)


def _answered(answer: object, changes: Iterable[str]) -> dict[str, BaseException]:
    """Return what a commit returned, which may be anything, as failures."""
    try:
        return {key: _as_error(error) for key, error in dict(answer).items()}  # type: ignore[call-overload]
    except Exception:  # noqa: BLE001 - not even a mapping
        wrong = TypeError(f"commit returned {type(answer).__name__}, not the failures")
        return dict.fromkeys(changes, wrong)


def _as_error(error: object) -> BaseException:
    if isinstance(error, BaseException):
        return error
    return TypeError(f"commit answered {error!r:.100} in place of an error")


async def _let_others_in() -> None:
    """Give the loop a turn; a cancellation merely ends it early."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


@coroutine
def _first_step() -> Generator[None, None, None]:
    yield


def _primed(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Run the coroutine up to its `_first_step`, where a task takes over."""
    work.send(None)
    return work
