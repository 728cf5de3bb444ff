"""Calls into other people's code: a storage, a hook, a clock.

Rules:

* Any of them may raise anything, return anything, hang, or cancel the task it runs in. This module
  reports it, and the caller carries on.
* A storage's calls run in tasks of their own, so whatever they do to their task does not affect
  ours.
* KeyboardInterrupt, SystemExit and GeneratorExit are never caught.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import Context
from itertools import islice
from types import FunctionType
from typing import Any, TypeVar

from .logs import EXITS, say
from .state import MAX_SECONDS

ATTEMPTS = 3
"""How often a call that is cancelled is made again, and a state that changes is written again."""

TASK_NAME = "qqbot_session:"
"""The prefix of our tasks' names."""

_PIECE = 500  # accounts: what is done to one takes a microsecond or two
_STORAGE = f"{TASK_NAME}storage"
_MOST_LAYERS = 100  # of a decorated handler; some objects have every attribute
_PATIENCE = 2.0  # seconds that closing goes on after its cancellation

_T = TypeVar("_T")


def call_hook(name: str, hook: Callable[[_T], object], details: _T) -> None:
    """Call one of the bot's hooks, and log what it raises."""
    try:
        answer = hook(details)
        if asyncio.iscoroutine(answer):
            answer.close()
            raise TypeError(f"{name} is async, and nobody awaits it: {hook!r}")
    except EXITS:
        raise
    except BaseException:  # noqa: BLE001 - a hook is not worth a session
        say(logging.ERROR, "%s failed: %r", name, hook, exc_info=True)


def check_handler(name: str, handler: object, *arguments: str) -> None:
    """Check that a handler accepts these arguments and is a coroutine function.

    Anything that cannot be checked passes: functions not written in Python, lambdas, and functions
    that take `*args`, such as a decorator's, because what they return may be a coroutine.

    Raises:
        TypeError: it does not; the error shows the right signature.
    """
    if type(handler) is FunctionType and not vars(handler):  # seen without `inspect`, which is slow
        code = handler.__code__
        fits = (code.co_argcount, code.co_kwonlyargcount) == (len(arguments), 0)
        if fits and (code.co_flags & inspect.CO_COROUTINE or code.co_name == "<lambda>"):
            return
    right = f"`async def {name}({', '.join(arguments)})`"
    if not callable(handler) or isinstance(handler, type):
        raise TypeError(f"{name} must be {right}, not {handler!r:.100}")
    try:
        _bind(handler, arguments)
    except ValueError:  # it has no signature
        return
    except TypeError as error:
        raise TypeError(f"{name} must be {right}: {handler!r:.100}: {error}") from None
    if not _may_be_async(handler):
        raise TypeError(f"{name} must be {right}; {handler!r:.100} is not async")


def _bind(handler: Callable[..., object], arguments: Sequence[str]) -> None:
    """Raise `TypeError` unless the handler can be called with these arguments."""
    own = inspect.signature(handler, follow_wrapped=False)
    own.bind(*arguments)
    if _takes_any(own):  # a decorator's, which may add arguments to those that it passes on
        inspect.signature(handler).bind_partial(*arguments)


def _may_be_async(handler: object) -> bool:
    layers = list(islice(_layers(handler), _MOST_LAYERS))
    last: Any = layers[-1]
    if any(map(inspect.iscoroutinefunction, layers)):
        return True
    if not (inspect.isfunction(last) or inspect.ismethod(last)):
        return not isinstance(last, type)
    if inspect.isgeneratorfunction(last) or inspect.isasyncgenfunction(last):
        return False
    return last.__name__ == "<lambda>" or _takes_any(inspect.signature(last))


def _layers(handler: Any) -> Iterator[object]:
    """Yield the handler, what it wraps, what that wraps, and so on."""
    while True:
        yield handler
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif isinstance(handler, type) or inspect.isroutine(handler):
            return
        else:
            handler = type(handler).__call__


def _takes_any(signature: inspect.Signature) -> bool:
    return any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values())


def read_clock(clock: Callable[[], float]) -> float:
    """Return the time in seconds since the epoch.

    Raises:
        ValueError: it is not a time that a record could hold.
    """
    now = clock()
    if isinstance(now, int | float) and 0 <= now <= MAX_SECONDS:  # false for NaN too
        return float(now)
    if asyncio.iscoroutine(now):
        now.close()
    raise ValueError(f"the clock must give seconds since 1970, not {now!r:.100}")


async def guarded(function: Callable[..., Awaitable[_T]], *args: object) -> _T:
    """Await somebody else's call in a task of its own; however it fails, raise an `Exception`.

    Only a cancelled caller gets a `CancelledError`, whatever the call does to its own task. If that
    task alone is cancelled, as by code that cancels every task there is, the call is made again.
    """
    for _ in range(ATTEMPTS):
        # Like `asyncio.wait([call])`, at half the cost.
        ended = asyncio.get_running_loop().create_future()
        then = functools.partial(_end, ended)
        call = begin(function, *args, then=then)
        call.add_done_callback(then)  # again: should something be raised within the first call
        try:
            await ended
        except asyncio.CancelledError:
            _ = call.cancel()
            raise
        if not (call.cancelled() and call.cancelling()):
            break
    result: _T = outcome(call)
    return result


def begin(
    function: Callable[..., Awaitable[_T]],
    *args: object,
    context: Context | None = None,
    then: Callable[[asyncio.Task[_T]], object] | None = None,
) -> asyncio.Task[_T]:
    """Call it in a task that bypasses any factory, by default in the caller's context.

    Args:
        then: called when the task is done, in place of `retrieve`.
    """

    async def call() -> _T:
        return await function(*args)

    task = asyncio.Task(call(), loop=asyncio.get_running_loop(), name=_STORAGE, context=context)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.add_done_callback(then or retrieve)
    return task


def _end(ended: asyncio.Future[None], call: asyncio.Task[Any]) -> None:
    retrieve(call)
    if not ended.done():
        ended.set_result(None)


def outcome(call: asyncio.Task[_T]) -> _T:
    if call.cancelled():
        raise RuntimeError("it was cancelled by somebody else")
    error = call.exception()
    if error is None or isinstance(error, Exception):
        return call.result()
    raise RuntimeError(f"it raised {type(error).__name__}") from error


class Patience:
    """Waits on after a cancellation, for two more seconds in total.

    Attributes:
        cancelled: the first cancellation, which the caller must raise in the end.
    """

    def __init__(self) -> None:
        self.cancelled: asyncio.CancelledError | None = None
        self._end = math.inf

    async def wait(self, waited: Iterable[asyncio.Future[Any]], *, spare: float = 0.0) -> None:
        """Wait until all are done or the time is up.

        Args:
            spare: seconds to leave for what is waited for afterwards.
        """
        loop = asyncio.get_running_loop()
        pending = {future for future in waited if not future.done()}
        while pending:
            left = None if self.cancelled is None else max(0.0, self._end - spare - loop.time())
            try:
                await asyncio.wait(pending, timeout=left)
            except asyncio.CancelledError as error:
                self._note(error)
            if loop.time() >= self._end - spare:
                break
            pending = {future for future in pending if not future.done()}

    async def turn(self) -> None:
        """Give the loop a turn."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            self._note(error)

    def _note(self, error: asyncio.CancelledError) -> None:
        if self.cancelled is None:
            self.cancelled = error
            self._end = asyncio.get_running_loop().time() + _PATIENCE


def in_pieces(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield the items in pieces that take the loop less than a millisecond each."""
    left = iter(items)
    while piece := list(islice(left, _PIECE)):
        yield piece


async def in_turns(items: Iterable[_T]) -> AsyncIterator[list[_T]]:
    """Yield the items in such pieces, and give the loop a turn between them."""
    for number, piece in enumerate(in_pieces(items)):
        if number:
            await asyncio.sleep(0)
        yield piece


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel the task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


def retrieve(task: asyncio.Task[Any]) -> None:
    """Mark the task's exception as seen; a KeyboardInterrupt has already left through the loop."""
    if not task.cancelled():
        _ = task.exception()
