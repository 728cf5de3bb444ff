"""When an event is handled: at the end of its handler, or of what the application still does.

    async def on_c2c_message_create(self, message):
        await queue.put((message, hold()))  # the event stays open...

    async def worker():
        message, held = await queue.get()
        with held:                          # ...until the end of this
            await message.reply(content="...")

Rules:

* An event is handled when its handler has ended and everything that `hold` and `until` hold it open
  for has ended, too. Cancelling one of those means that nobody handled the event: it comes again.
* With `Answers`, a message is handled when QQ accepted an answer to it (the answer's `msg_id`), or
  refused one as a repetition; when its handler raised; when `skip_answer` was called; or when the
  time for an answer is over. Whoever calls `hold` or `until` knows better: then only that counts.
* A typing indicator and an unfinished stream are no answers.
* Nothing here bounds how many events are open. An orderly stop gives them the handlers' grace;
  what is open then comes again.

The passive reply's `msg_id`: bot-docs, server-inter/message/send-receive/send.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any, Literal, Self, TypeAlias, TypeVar

from .gateway import Dispatch
from .words import whenever

REPEATED = 40054005
"""QQ's error code for an answer that it has already accepted."""

_REPEATED_WORDS = "消息被去重"  # its message, where a framework drops the code
_TYPING = 6  # msg_type of a typing indicator
_STREAM_DONE = 10  # state of a stream's last part
_T = TypeVar("_T")
_Handle: TypeAlias = Callable[[Dispatch], Awaitable[object]]


class _Answer:
    """The answer that a message waits for."""

    __slots__ = ("accepted", "in_handler", "is_needed")

    def __init__(self) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_handler = True  # which has not ended yet
        self.is_needed = True


class Work:
    """What one event still needs before it is handled; made for every event, so it is small."""

    __slots__ = ("answer", "held")

    def __init__(self) -> None:
        """Begin the event that is handled in this context; at its end, set `held` to `None`."""
        self.held: list[asyncio.Future[Any]] | tuple[()] | None = ()  # a list once there are any
        self.answer: _Answer | None = None
        _current.set(self)

    async def end(self) -> None:
        """Wait for all that holds the event open.

        Raises:
            CancelledError: the event was not handled.
        """
        if held := self.held:
            await end_of(held)
            for future in held:
                future.result()


_current: ContextVar[Work] = ContextVar("qqbot_session_event")


class Hold:
    """What holds one event open; as a context manager, it does so until the end of the body.

    A body that raises has handled the event, like a handler; one that is cancelled has not: the
    event comes again. Use it from any thread, any number of times: the first end counts.
    """

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    @whenever
    def __repr__(self) -> str:
        return f"<Hold {'ended' if self.ended else 'open'}>"

    @property
    def ended(self) -> bool:
        """Whether it holds the event no longer."""
        return self._future.done()

    def release(self) -> None:
        """The event is handled."""
        _on_its_loop(self._future, _finish)

    def cancel(self) -> None:
        """The event was not handled: it comes again."""
        _on_its_loop(self._future, asyncio.Future.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.release()
        else:
            self.cancel()


def hold() -> Hold:
    """Hold the event that is being handled open until the returned object says that it is done.

    Call it in the event's handler, or in a task started there, while the event is open.

    Raises:
        RuntimeError: no event is being handled here.
    """
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _held_by("hold").append(future)
    return Hold(future)


def until(awaitable: Awaitable[_T]) -> asyncio.Future[_T]:
    """Hold the event that is being handled open until the awaitable has ended; see `hold`.

    Returns:
        The task in which it runs, or the awaitable itself if it is a future.
    """
    held = _held_by("until")
    future = asyncio.ensure_future(awaitable)
    held.append(future)
    return future


def skip_answer() -> None:
    """Say that the message being handled gets no answer; no effect where none is awaited."""
    work = _current.get(None)
    if work is not None and work.answer is not None:
        work.answer.is_needed = False
        _finish(work.answer.accepted)


def handler_raised() -> None:
    """Say so where a framework swallows it: then nothing holds the event open any more."""
    work = _current.get(None)
    if work is not None and work.held is not None:
        if work.held:
            work.held.clear()
        skip_answer()


def being_handled() -> bool:
    """Whether the caller runs in the handler of an event, or in a task started there."""
    work = _current.get(None)
    return work is not None and work.held is not None


async def handle_whole(handle: _Handle, event: Dispatch) -> None:
    """Call the handler, then wait for all that holds the event open.

    Raises:
        CancelledError: the event was not handled.
    """
    work = Work()
    try:
        await handle(event)
        if work.held:
            await work.end()
    finally:
        work.held = None


async def end_of(futures: Collection[asyncio.Future[Any]]) -> None:
    """Wait for these, and for those added meanwhile.

    Raises:
        CancelledError: one of them was cancelled, or the caller was: then all of them are.
    """
    try:
        while pending := [future for future in futures if not future.done()]:
            await asyncio.wait(pending)  # `await future` could have our cancellation swallowed
    finally:
        for future in futures:
            future.cancel()
    if any(future.cancelled() for future in futures):
        raise asyncio.CancelledError


class Answers:
    """The messages of one bot that wait for their answers.

        answers = Answers()
        ShardRunner(..., handle=answers.awaited(handle))
        answers.sent(body)  # where the bot sends, once QQ has accepted it

    Args:
        timeout: seconds, from the end of the handler, after which a message that got no answer
            needed none. 60 is our choice.
        in_handler: whether an answer that the handler itself sends counts. Turn it off for an
            application whose handler acknowledges the message ("working on it…") and answers later.
    """

    def __init__(self, timeout: float = 60.0, *, in_handler: bool = True) -> None:
        if not isinstance(timeout, int | float) or isinstance(timeout, bool):
            raise TypeError(f"timeout must be seconds as a float, not {timeout!r}")
        if not timeout > 0:  # true for NaN
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        self._timeout = timeout
        self._in_handler = in_handler
        self._waiting: dict[str, Work] = {}

    @whenever
    def __repr__(self) -> str:
        return f"<Answers timeout={self._timeout:g} waiting={len(self._waiting)}>"

    def awaited(self, handle: _Handle) -> _Handle:
        """Return a handler that ends when the message was answered."""

        async def handle_and_wait(event: Dispatch) -> None:
            work, message_id = _current.get(None), _message_id(event)
            if work is None or work.held is None:
                await handle_whole(handle_and_wait, event)
            elif message_id is None:
                await handle(event)
            else:
                await self._wait(work, message_id, handle, event)

        return handle_and_wait

    async def _wait(self, work: Work, message_id: str, handle: _Handle, event: Dispatch) -> None:
        answer = work.answer = _Answer()
        self._waiting[message_id] = work
        try:
            await handle(event)
            answer.in_handler = False
            if answer.is_needed and not work.held:
                await asyncio.wait([answer.accepted], timeout=self._timeout)
        finally:
            if self._waiting.get(message_id) is work:
                del self._waiting[message_id]

    def sent(self, body: object, error: BaseException | None = None) -> None:
        """Note what was sent to QQ's message endpoints, from any thread.

        Args:
            body: the request's JSON, or as much of it as there is.
            error: what the call raised. Only a repetition was an answer all the same.
        """
        if isinstance(body, Mapping) and _is_answer(body) and (error is None or _repeats(error)):
            self.accepted(body["msg_id"])

    def accepted(self, message_id: str) -> None:
        """Note that QQ accepted an answer to the message with this id, from any thread."""
        work = self._waiting.get(message_id)
        if work is None or (answer := work.answer) is None:
            return
        inside = answer.in_handler and _current.get(None) is work
        if self._in_handler or not inside:
            _on_its_loop(answer.accepted, _finish)


Until: TypeAlias = Literal["handled", "answered"] | Answers
"""When an event is done: when its handler has ended, or when its message was answered."""


def answers_for(until: Until) -> Answers | None:
    """Return what awaits the answers, `None` if nothing does.

    Raises:
        ValueError: it is neither `"handled"` nor `"answered"` nor `Answers`.
    """
    if isinstance(until, Answers):
        return until
    if until not in ("handled", "answered"):
        raise ValueError(f"until must be 'handled', 'answered' or Answers(…), not {until!r}")
    return Answers() if until == "answered" else None


def _held_by(name: str) -> list[asyncio.Future[Any]]:
    """Return what the event at hand is held open for; the caller is named if there is none."""
    work = _current.get(None)
    if work is None:
        raise RuntimeError(f"{name}() holds an event open: call it in the event's handler")
    if work.held is None:
        raise RuntimeError(f"{name}() comes too late: the event has been handled")
    if isinstance(work.held, tuple):
        work.held = []
    return work.held


def _on_its_loop(
    future: asyncio.Future[None], function: Callable[[asyncio.Future[None]], object]
) -> None:
    """Call it now, or on the future's loop if that is another thread's."""
    loop = future.get_loop()
    if loop is asyncio._get_running_loop():
        function(future)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(function, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _message_id(event: Dispatch) -> str | None:
    """Return the id that an answer would name; `None` if the event is no message."""
    if not event.type.endswith("MESSAGE_CREATE") or not isinstance(event.data, Mapping):
        return None
    message_id = event.data.get("id")
    return message_id if isinstance(message_id, str) and message_id else None


def _is_answer(body: Mapping[str, Any]) -> bool:
    if not isinstance(body.get("msg_id"), str) or body.get("msg_type") == _TYPING:
        return False
    stream = body.get("stream")
    state = stream.get("state") if isinstance(stream, Mapping) else body.get("input_state")
    return state in (None, _STREAM_DONE)


def _repeats(error: BaseException) -> bool:
    """Whether QQ refused an answer because it had accepted it before."""
    code = getattr(error, "code", None)
    return code == REPEATED or str(REPEATED) in str(error) or _REPEATED_WORDS in str(error)
