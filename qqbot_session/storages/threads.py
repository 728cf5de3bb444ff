"""`Threads`, on which a storage does its work.

Rules:

* A thread does one job at a time, in the order in which the jobs were given to it, and it starts
  with its first job.
* After a fork everything begins anew: the threads of the parent do not exist in the child.
* At `atexit` no thread can be started any more; then, and only then, the caller does the work.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import aiofiles.os

_P = ParamSpec("_P")
_T = TypeVar("_T")

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
