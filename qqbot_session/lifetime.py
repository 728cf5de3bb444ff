"""How the lines of many shards live and end together, and how a signal ends them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any


async def run_together(lines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them until one ends, then end all in order; raise what ended the first.

    Cancelled, cancel and await them all; every further cancellation is passed on to them.
    """
    tasks = [asyncio.create_task(line) for line in lines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    raise asyncio.CancelledError  # by a stranger, all of them


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    asked: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            asked = error
            for task in pending:
                task.cancel()
    if asked is not None:
        raise asked


@contextlib.contextmanager
def handling_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[int], object]
) -> Iterator[None]:
    """Call `stop` on the loop for SIGTERM and Ctrl-C; afterwards they are as they were.

    The loop need not run yet. Outside the main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGBREAK")  # Ctrl-Break and a closed window, on Windows
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, stop, number)
        except NotImplementedError:  # every loop on Windows
            signal.signal(number, lambda n, _: loop.call_soon_threadsafe(stop, n) and None)
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            if handler is not None:  # None: not Python's to put back
                signal.signal(number, handler)
