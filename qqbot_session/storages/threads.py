"""`Threads`, on which a storage does its work, and `Together`, which makes one job of many reads.

Rules:

* A thread does one job at a time, in the order in which the jobs were given to it, and it starts
  with its first job.
* After a fork, and on another event loop, everything begins anew: the threads of the parent do not
  exist in the child, and nobody wakes the waiters of a loop that has ended.
* At `atexit` no thread can be started any more; then, and only then, the caller does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import aiofiles.os

_P = ParamSpec("_P")
_T = TypeVar("_T")

_AT_ONCE = 128  # reads per job: decoding them takes the loop about a millisecond
_CLOSING = 5.0  # seconds that one thread waits for another to have closed its part


class Threads:
    """Threads by name.

    Args:
        prefix: what the names of the threads begin with.
        afresh: called in a forked child before its first job.
    """

    def __init__(self, prefix: str, afresh: Callable[[], object] = lambda: None) -> None:
        self._prefix = prefix
        self._afresh = afresh
        self._executors: dict[str, ThreadPoolExecutor] = {}
        self._retired: dict[str, ThreadPoolExecutor] = {}
        self._process = os.getpid()

    async def run(
        self, name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call the function on the thread of that name."""
        self._notice_fork()
        if not threading.main_thread().is_alive():
            return function(*args, **kwargs)
        executor = self._executors.get(name)
        if executor is None:
            executor = ThreadPoolExecutor(1, f"{self._prefix}-{name}")
            self._executors[name] = executor
            if name in self._retired:  # its last jobs come first
                executor.submit(self._retired.pop(name).shutdown)
        result: _T = await aiofiles.os.wrap(function)(*args, executor=executor, **kwargs)
        return result

    async def aclose(self, last: Callable[[str], object] | None = None) -> None:
        """Let every thread end after its last job; the next call would start a new one.

        Args:
            last: the last job of each thread, called with its name and waited for: one thread
                after the other, in the order of their names.
        """
        self._notice_fork()
        executors, self._executors = self._executors, {}
        self._retired |= executors
        if last is None:
            for executor in executors.values():
                executor.shutdown(wait=False)
            return
        if not threading.main_thread().is_alive():
            for name in sorted(executors):
                last(name)
            return
        loop = asyncio.get_running_loop()
        closing = []
        before = threading.Event()
        before.set()
        for name, executor in sorted(executors.items()):
            after = threading.Event()
            closing.append(loop.run_in_executor(executor, _in_turn, before, after, last, name))
            executor.shutdown(wait=False)
            before = after
        if closing:
            await asyncio.shield(asyncio.gather(*closing))

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._executors, self._retired = {}, {}
            self._afresh()


def _in_turn(
    before: threading.Event, after: threading.Event, last: Callable[[str], object], name: str
) -> None:
    before.wait(_CLOSING)
    try:
        last(name)
    finally:
        after.set()


class _Lead(Exception):
    """The waiter that gets this makes the next call, for itself and for others."""


class Together:
    """Reads that are asked for while another one is under way share the next call.

    Args:
        read_many: reads up to 128 records at once; an answer may be the error of that one record.
            What it raises is the error of all of them.
    """

    def __init__(
        self, read_many: Callable[[list[str]], Awaitable[Mapping[str, bytes | Exception | None]]]
    ) -> None:
        self._read_many = read_many
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._busy = False
        self._waiting: list[tuple[str, asyncio.Future[bytes | None]]] = []

    async def read(self, account_id: str) -> bytes | None:
        """Return what `read_many` answers for the account, or raise it."""
        account_id.encode()  # what can be no record's name fails alone
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._process != os.getpid():
            self._loop, self._process = loop, os.getpid()
            self._busy, self._waiting = False, []
        if self._busy:
            future: asyncio.Future[bytes | None] = loop.create_future()
            self._waiting.append((account_id, future))
            try:
                return await future
            except _Lead:
                pass
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and _is_lead(future):
                    self._pass_on()  # it was to lead, and was cancelled before it could
                raise
        self._busy = True
        return await self._lead(account_id)

    async def _lead(self, account_id: str) -> bytes | None:
        others = self._waiting[: _AT_ONCE - 1]
        del self._waiting[: _AT_ONCE - 1]
        others = [other for other in others if not other[1].done()]
        try:
            answers = await self._read_many([account_id, *(id_ for id_, _ in others)])
        except Exception as error:
            for _, future in others:
                _settle(future, error)
            raise
        except BaseException:  # this caller's own affair: the others ask again
            self._waiting[:0] = others
            raise
        finally:
            self._pass_on()
        for id_, future in others:
            _settle(future, answers[id_])
        answer = answers[account_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _pass_on(self) -> None:
        """Let the first who still waits make the next call."""
        self._busy = False
        while self._waiting and not self._busy:
            _, future = self._waiting.pop(0)
            if not future.done():
                future.set_exception(_Lead())
                self._busy = True


def _is_lead(future: asyncio.Future[bytes | None]) -> bool:
    return isinstance(future.exception(), _Lead)


def _settle(future: asyncio.Future[bytes | None], answer: bytes | Exception | None) -> None:
    if future.done():  # its waiter was cancelled
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        with contextlib.suppress(asyncio.CancelledError):
            _ = future.exception()  # retrieved, should nobody wait any more
    else:
        future.set_result(answer)
