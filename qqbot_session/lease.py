"""Leases: which process may write an account and run its bot.

Rules:

* The storage decides who holds a lease, in the same step in which it writes, so it refuses a late
  write of a former holder. This module ends the former holder's body before anybody else may
  begin, because no storage can prevent two connections to QQ.
* The holder counts from the moment it *asked* for the latest renewal that was granted, so it never
  counts on more time than the storage grants. It renews every third of `ttl`, retries every
  twelfth, and gives up at two thirds, a third before anybody else can get the lease.
* When a lease is lost, everything about the account is forgotten at once: state, retries, task.
* One task renews all leases of a store, with one call for all leases of the same `ttl`.
* A cancellation does not interrupt the end of a body: unsaved state is written first, for up to two
  more seconds.
* Closing the store ends every body and every wait. A lease is given up once its body has ended; a
  body that does not end keeps it until it lapses.

The intervals are those of client-go's leaderelection and etcd's keep-alive, neither of which
checks the holder in the write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from .errors import LeaseLostError, StoreClosedError, name_some
from .guard import TASK_NAME, Patience, begin, end, outcome
from .logs import say
from .state import check_seconds
from .storages.base import LeasingStorage, Storage
from .words import whenever

_SHORTEST = 1.0  # seconds: below, one hiccup of a network or a disk ends a bot
_TOLD_TOGETHER = 1.0  # seconds


class Lease:
    """The right to write an account, until the `async with` ends.

    Attributes:
        account_id: the account.
        ttl: seconds after the latest renewal until another process may get the lease.
        lost: why it is no longer held; `None` while it is.
    """

    def __init__(self, account_id: str, ttl: float) -> None:
        self.account_id = account_id
        self.ttl = ttl
        self.lost: str | None = None
        from .storages.holders import new_token

        self._token = new_token()
        self._next = 0.0  # when to renew it, in the loop's time
        self._end: asyncio.TimerHandle | None = None
        self._body: asyncio.Task[object] | None = None
        self._left = asyncio.Event()  # set once its `async with` has ended
        self._cancelled = False  # whether we cancelled the body

    @whenever
    def __repr__(self) -> str:
        state = "held" if self.lost is None else f"lost: {self.lost}"
        return f"<Lease account_id={self.account_id!r} ttl={self.ttl} {state}>"


class Leases:
    """All leases of one store.

    Args:
        storage: the store's.
        flush: writes an account's unsaved state.
        forget: drops everything known about an account, saved or not.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        flush: Callable[[str], Awaitable[None]],
        forget: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._flush = flush
        self._forget = forget
        self._asked: dict[str, Lease] = {}  # held or waited for
        self._closing = asyncio.Event()
        self._held: dict[str, Lease] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost: dict[str, list[str]] = {}  # accounts by why, not told yet
        self._waiting: dict[str, list[str]] = {}  # likewise

    def hold(self, account_id: str, ttl: float) -> AbstractAsyncContextManager[Lease]:
        """Return a context manager that waits for the lease and holds it."""
        if not isinstance(self._storage, LeasingStorage):
            raise TypeError(
                f"a lease needs a storage that refuses late writes, such as SQLite or Redis;"
                f" {self._storage!r} cannot"
            )
        ttl = check_seconds("ttl", ttl, least=_SHORTEST)
        return self._hold(self._storage, account_id, ttl)

    async def aclose(self, closer: asyncio.Task[object] | None) -> None:
        """End every body and every wait, and give up the leases.

        Args:
            closer: the task that closes the store. If it is a body, it goes on without its lease.
        """
        self._closing.set()
        seconds = [0.0]
        leaving = []
        for lease in list(self._asked.values()):
            is_held = self._held.get(lease.account_id) is lease
            if is_held and lease._body is closer:
                assert isinstance(self._storage, LeasingStorage)
                await self._give_up(self._storage, lease)
                continue
            if is_held:
                self._lose(lease, "given up, because its store was closed")
            seconds.append(lease.ttl if is_held else lease.ttl / 6)
            leaving.append(begin(lease._left.wait))
        if leaving:
            _, late = await asyncio.wait(leaving, timeout=max(seconds))
            for task in late:
                task.cancel()
        if self._task is not None:
            await end(self._task)

    @contextlib.asynccontextmanager
    async def _hold(
        self, storage: LeasingStorage, account_id: str, ttl: float
    ) -> AsyncIterator[Lease]:
        if account_id in self._asked:
            raise RuntimeError(f"this store already holds or awaits the lease of {account_id!r}")
        lease = self._asked[account_id] = Lease(account_id, ttl)
        try:
            await self._acquire(storage, lease)
            body = lease._body = asyncio.current_task()
            assert body is not None
            before = body.cancelling()
            try:
                yield lease
            except BaseException as error:
                others = body.uncancel() > before if lease._cancelled else True
                await self._leave(storage, lease, failed=True)
                if lease.lost is None or others or not isinstance(error, asyncio.CancelledError):
                    raise
            else:
                await self._leave(storage, lease, failed=False)
                if lease._cancelled:
                    body.uncancel()
            if lease.lost is not None:
                raise LeaseLostError(f"the lease of {account_id!r} was {lease.lost}")
        finally:
            del self._asked[account_id]
            lease._left.set()

    async def _leave(self, storage: LeasingStorage, lease: Lease, *, failed: bool) -> None:
        """Write the last state while we may; the body's own error takes precedence."""
        lease._body = None
        patience = Patience()
        error: Exception | None = None
        if lease.lost is None:
            error = await self._write_last(lease, patience)
        giving_up = begin(self._give_up, storage, lease)
        await patience.wait([giving_up])
        if patience.cancelled is not None:
            raise patience.cancelled
        if error is not None and not failed and lease.lost is None:
            raise error

    async def _write_last(self, lease: Lease, patience: Patience) -> Exception | None:
        flushing = begin(self._flush, lease.account_id)
        await patience.wait([flushing])
        try:
            if not flushing.done():
                _ = flushing.cancel()
                raise TimeoutError("the last write did not finish in time")
            outcome(flushing)
        except StoreClosedError:  # everything was attempted then
            return None
        except Exception as error:  # noqa: BLE001 - the body's own error comes first
            _say(logging.ERROR, "leaving the lease of %s: %s", [lease.account_id], error)
            return error
        return None

    async def _acquire(self, storage: LeasingStorage, lease: Lease) -> None:
        """Wait until the lease is held, and for a storage that is out of reach."""
        loop = asyncio.get_running_loop()
        said: str | None = None
        try:
            while True:
                if self._closing.is_set():
                    raise StoreClosedError("the store was closed while waiting for the lease")
                asked = loop.time()
                why = "another process holds it"
                try:
                    if not await storage.acquire(lease.account_id, lease._token, lease.ttl):
                        # Anything known or unsaved here is older than what the holder writes.
                        self._forget(lease.account_id)
                    elif _doubt(storage, lease.account_id):
                        why = f"the storage may have forgotten a holder ({lease.ttl:g} s at most)"
                    elif not self._closing.is_set() and self._note(lease, asked):
                        return
                    else:
                        continue
                except Exception as error:  # noqa: BLE001 - as with any write of ours
                    why = f"{error!r}"
                if why != said:
                    said = why
                    if not self._waiting:
                        _ = loop.call_later(_TOLD_TOGETHER, self._tell_of_waiting)
                    self._waiting.setdefault(why, []).append(lease.account_id)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(lease.ttl / 6 * random.uniform(0.8, 1.2)):
                        await self._closing.wait()
        except (asyncio.CancelledError, StoreClosedError):
            patience = Patience()
            await patience.wait([begin(self._release, storage, lease)])
            if patience.cancelled is not None:
                raise patience.cancelled from None
            raise

    def _note(self, lease: Lease, asked: float) -> bool:
        """Count the lease from when it was asked for; return whether any of it is left."""
        loop = asyncio.get_running_loop()
        ends = asked + lease.ttl * 2 / 3
        if loop.time() >= ends:
            return False
        if lease._end is not None:
            lease._end.cancel()
        lease._end = loop.call_at(ends, self._lose, lease, "not renewed in time")
        lease._next = asked + lease.ttl / 3
        self._held[lease.account_id] = lease
        self._schedule(lease._next)
        return True

    def _schedule(self, at: float) -> None:
        """Renew no later than at this time; earlier does no harm."""
        if self._task is None and (self._timer is None or at < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(at, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._held:
            self._task = begin(self._renew)
            self._task.set_name(f"{TASK_NAME}leases")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or task.exception() is not None:  # by somebody who cancels all there is
            for lease in self._held.values():
                lease._next = asyncio.get_running_loop().time() + lease.ttl / 12
        if self._held:
            self._schedule(min(lease._next for lease in self._held.values()))

    async def _renew(self) -> None:
        """Renew every lease, with one call for all of the same `ttl`."""
        by_ttl: dict[float, list[Lease]] = {}
        for lease in self._held.values():
            by_ttl.setdefault(lease.ttl, []).append(lease)
        await asyncio.gather(*[self._renew_all(ttl, leases) for ttl, leases in by_ttl.items()])

    async def _renew_all(self, ttl: float, leases: list[Lease]) -> None:
        assert isinstance(self._storage, LeasingStorage)
        asked = asyncio.get_running_loop().time()
        held = {lease.account_id: lease._token for lease in leases}
        failures: Mapping[str, BaseException]
        try:
            async with asyncio.timeout(ttl / 3):
                failures = await self._storage.renew(held, ttl)
        except Exception as error:  # noqa: BLE001 - tried again until the time is over
            failures = dict.fromkeys(held, error)
        failed: dict[str, BaseException] = {}
        for lease in leases:
            failure = failures.get(lease.account_id)
            if self._held.get(lease.account_id) is not lease:
                continue
            if failure is None:
                self._note(lease, asked)
            elif isinstance(failure, LeaseLostError):
                self._lose(lease, "taken over")
            else:
                lease._next = asyncio.get_running_loop().time() + ttl / 12
                failed[lease.account_id] = failure
        if failed:  # one line for all: a server that is away is away for a thousand
            text = "cannot renew the lease of %s: %r"
            _say(logging.WARNING, text, list(failed), next(iter(failed.values())))

    def _lose(self, lease: Lease, why: str) -> None:
        """End the body, and stop all writes of the account."""
        if lease.lost is None and self._drop(lease):
            lease.lost = why
            if not self._lost:
                _ = asyncio.get_running_loop().call_soon(self._tell_of_lost)
            self._lost.setdefault(why, []).append(lease.account_id)
            self._forget(lease.account_id)
            if lease._body is not None:
                lease._cancelled = lease._body.cancel()

    def _tell_of_lost(self) -> None:
        lost, self._lost = self._lost, {}
        for why, account_ids in lost.items():
            _say(logging.WARNING, "the lease of %s was %s", account_ids, why)

    def _tell_of_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        still = self._asked.keys() - self._held.keys()
        for why, account_ids in waiting.items():
            if account_ids := [account_id for account_id in account_ids if account_id in still]:
                _say(logging.WARNING, "waiting for the lease of %s: %s", account_ids, why)

    def _drop(self, lease: Lease) -> bool:
        if lease._end is not None:
            lease._end.cancel()
        if self._held.get(lease.account_id) is not lease:
            return False
        del self._held[lease.account_id]
        if not self._held and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    async def _give_up(self, storage: LeasingStorage, lease: Lease) -> None:
        self._drop(lease)
        self._forget(lease.account_id)  # including what the body saved while it was ending
        await self._release(storage, lease)

    async def _release(self, storage: LeasingStorage, lease: Lease) -> None:
        with contextlib.suppress(Exception):  # then it ends by itself
            async with asyncio.timeout(lease.ttl / 6):
                await storage.release(lease.account_id, lease._token)


def _doubt(storage: LeasingStorage, account_id: str) -> float:
    """Return for how many seconds a holder that the storage has forgotten may still be at work."""
    doubt = getattr(storage, "doubt", None)
    return 0.0 if doubt is None else float(doubt(account_id))


def _say(level: int, text: str, account_ids: Sequence[str], *values: object) -> None:
    extra = {"qqbot_reason": "lease"}
    if len(account_ids) == 1:
        extra["qqbot_account"] = account_ids[0]
    say(level, text, name_some(account_ids), *values, extra=extra, stacklevel=2)
