"""Run the lines of many shards, and end them together on an error, a cancellation or a signal.

Rules:

* Signals belong to the process. The first one ends everything of ours in it, in order: every bot,
  in every loop and thread. The second one ends the grace of what is still running.
* The program's own handlers still run. One set with `loop.add_signal_handler` runs at once; one
  set with `signal.signal` runs when ours have ended, so that what it closes stays open until
  then. Afterwards every handler is back in its place.
* A signal that is ignored stays ignored. SIGHUP is taken only where it would kill the process,
  and never counts as the second signal: the terminal and the shell both send it. Nor does what
  comes within a quarter of a second of the first: launchers such as `uv run` under PM2 (0.2 s
  later), `nb run` and watchfiles hand on a signal that their child has had already.
* Only `signal.signal` is used, on every loop and system: not every loop can add or remove signal
  handlers, and adding one would replace the program's.
* A loop that is blocked cannot stop anything. The second signal then ends the process, as SIGKILL
  would: nothing is lost, and what was being handled comes again.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import Any

from .logs import say

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGBREAK: Windows; a closed window, too
_NUMBERS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_HANGUP = getattr(signal, "SIGHUP", None)
_ECHO = 0.25  # seconds after the first signal in which another is the same one, handed on
_HEED = 0.5  # seconds that a loop has to take up a signal once the second has come
_LOOK = 0.5  # seconds between two looks at whether the loop still turns
_BLOCKED = 5.0  # seconds for which a loop may stand still without a warning


async def run_together(lines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them until one ends, then end the others in order; raise the first one's error.

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


async def run_until_stopped(
    life: Coroutine[Any, Any, None], *, signals: bool = True, hand_on: bool = False
) -> None:
    """Await `life` in a task of its own until it ends, a signal comes, or the caller is cancelled.

    `life` is cancelled by the first signal or cancellation, whichever comes first, and again by
    the second of the same kind: programs often cancel a bot on the signal that it also got.

    Args:
        hand_on: as in `handling_signals`.

    Returns:
        After a signal, when `life` has ended.

    Raises:
        asyncio.CancelledError: the caller was cancelled.
        Exception: what `life` raised.
    """
    loop, work = asyncio.get_running_loop(), asyncio.create_task(life)
    asked = {"signals": 0, "cancellations": 0}

    def stop(kind: str) -> None:
        before = max(asked.values())
        asked[kind] += 1
        if max(asked.values()) > before:
            work.cancel()

    def heed(number: int) -> None:
        stop("signals")
        _process.tell(number)

    taking = handling_signals(loop, heed, hand_on=hand_on) if signals else contextlib.nullcontext()
    with watching(loop), taking:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                stop("cancellations")
    if asked["cancellations"] and (work.cancelled() or work.exception() is None):
        raise asyncio.CancelledError
    if not (work.cancelled() and asked["signals"]):
        work.result()


@contextlib.contextmanager
def handling_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[int], object], *, hand_on: bool = False
) -> Iterator[None]:
    """Call `stop` on the loop for SIGTERM, SIGHUP and Ctrl-C; see the module's rules.

    The loop need not run yet. Outside the main thread no signal is taken, but those that were
    taken there end this, too.

    Args:
        hand_on: whether a signal does what it would have done without us, once all of ours have
            ended: for a bot that is only a part of its program.
    """
    in_main = threading.current_thread() is threading.main_thread()
    key = object()
    _process.stops[key] = loop, stop
    if _process.came:  # the process is ending already
        loop.call_soon_threadsafe(stop, _process.came[0])
    if in_main:
        _process.takers += 1
        _process.take()
    try:
        with watching(loop):
            yield
    finally:
        del _process.stops[key]
        if in_main:
            _process.takers -= 1
            _process.hands_on |= hand_on
            _process.give_back()


class _Process:
    """What the signals of this process end, and what came of them so far."""

    def __init__(self) -> None:
        self.stops: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[int], object]]] = {}
        self.takers = 0  # those of them that are in the main thread
        self.came: list[int] = []
        self._told = 0  # how many of them the log has been told of
        self._first = 0.0  # when the first came, on the monotonic clock
        self.hands_on = False  # the signals, to what is there by default
        self._heard = True  # by the main thread's loop: the latest signal

    def take(self) -> None:
        """Put our handler over the program's, unless it is there already."""
        for number in _NUMBERS:
            now = signal.getsignal(number)
            if isinstance(now, _Taken) or now is signal.SIG_IGN or now is None:
                continue  # None: not Python's, so it could not be put back
            if number != _HANGUP or now is signal.SIG_DFL:  # else it may mean "reload"
                signal.signal(number, _Taken(now))

    def give_back(self) -> None:
        """When the last of ours has ended: put the program's handlers back, and call them."""
        if self.takers:
            return
        came, self.came, self._told = dict.fromkeys(self.came), [], 0
        hands_on, self.hands_on = self.hands_on, False
        for number in _NUMBERS:
            if isinstance(now := signal.getsignal(number), _Taken):
                signal.signal(number, now.before)
        for number in came:
            handler = signal.getsignal(number)
            if callable(handler) and (hands_on or not _is_asyncios(handler)):
                handler(number, None)
            elif hands_on and handler is signal.SIG_DFL:
                signal.raise_signal(number)

    def signalled(self, number: int) -> None:
        """Tell everything of ours, in the signal's handler: the loop may be anywhere."""
        now = time.monotonic()
        if self.came and (number == _HANGUP or now < self._first + _ECHO):
            return
        if not self.came:
            self._first = now
        self.came.append(number)
        if not self._heard:
            try:
                _thread.start_new_thread(self._end_if_blocked, (number,))
            except RuntimeError:  # no more threads
                os._exit(128 + number)
        self._heard = False
        for loop, stop in list(self.stops.values()):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(self._deliver, stop, number)

    def tell(self, number: int) -> None:
        """Log the signal, once for all that it ends."""
        if self._told < len(self.came):
            self._told = len(self.came)
            text = "%s: stopping; another signal ends the grace"
            say(logging.INFO, text, signal.Signals(number).name, extra={"qqbot_reason": "signal"})

    def _deliver(self, stop: Callable[[int], object], number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            self._heard = True
        stop(number)

    def _end_if_blocked(self, number: int) -> None:
        """End the process, in a thread of its own: the main thread may hold any lock."""
        time.sleep(_HEED)
        if not self._heard:
            _thread.start_new_thread(_last_words, (number,))
            time.sleep(_HEED)
            os._exit(128 + number)


class _Taken:
    """Our handler of a signal, over the one that it was put over."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _process.takers:
            _process.signalled(number)
        elif callable(self.before):  # a program had put ours back after our end
            self.before(number, frame)
        else:
            signal.signal(number, self.before)
            signal.raise_signal(number)


_process = _Process()
if hasattr(os, "register_at_fork"):  # a child's signals end nothing in its parent
    os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]


def _is_asyncios(handler: object) -> bool:
    """Whether Ctrl-C would only be raised, as KeyboardInterrupt: who has stopped needs none."""
    owner = getattr(getattr(handler, "func", None), "__self__", None)
    return handler is signal.default_int_handler or isinstance(owner, asyncio.Runner)


def is_main_task(task: asyncio.Task[Any] | None) -> bool:
    """Whether `asyncio.run` was called for this task, so that the program ends with it."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Taken):
        handler = handler.before
    return task is not None and getattr(handler, "keywords", {}).get("main_task") is task


def _last_words(number: int) -> None:
    text = "%s again, and the event loop is blocked: ending the process at once"
    say(logging.ERROR, text, signal.Signals(number).name, extra={"qqbot_reason": "blocked"})
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


@contextlib.contextmanager
def watching(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Warn when the loop stood still for more than 5 s, and see that the signals stay ours."""
    if (watch := _watches.get(loop)) is None:
        watch = _watches[loop] = _Watch(loop)
    watch.users += 1
    try:
        yield
    finally:
        watch.users -= 1
        if not watch.users:
            watch.handle.cancel()
            del _watches[loop]


class _Watch:
    """Looks at a loop twice a second, for all who want it watched."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.users = 0
        self._loop = loop
        self._due = 0.0
        self.handle: asyncio.Handle = loop.call_soon(self._wait)  # the loop need not run yet

    def _wait(self) -> None:
        self._due = self._loop.time() + _LOOK
        self.handle = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        late = self._loop.time() - self._due
        if late > _BLOCKED:
            text = "the event loop was blocked for %.0f s, most likely by a handler"
            say(logging.WARNING, text, late, extra={"qqbot_reason": "blocked"})
        if _process.takers and threading.current_thread() is threading.main_thread():
            _process.take()  # a program may have put its own over ours
        self._wait()


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
