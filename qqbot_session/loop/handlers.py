"""`Handlers`: the tasks that handle one shard's events, from their start to their end.

Rules:

* Each event has a task of its own. A handler's error is logged, and ends nothing else.
* Before the first handler of a replay starts, what it begins is on storage: one of these events may
  be what killed the process last time, and the record must know by the next. The events of a replay
  are gathered for that, so a Resume costs one write, and not one per event.
* An event that the record suspects (it was begun when a process died) starts alone, and the next
  one a second later or when it has ended: if it kills again, only it is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..answers import Work
from ..gateway import Dispatch, GatewaySession
from ..guard import begin
from .log import ShardLog

_GOODBYE = 2.0  # seconds for a cancelled handler to end; these are our choice
_CROWD = 2000  # handlers in flight that are worth a warning
_GATHER, _GATHER_MOST = (
    0.25,
    1.0,
)  # seconds that the events of a replay are gathered, unless it ends
_HEAD_START = 1.0  # seconds for which a suspect runs alone


class Line(Protocol):
    """What keeps the line up: a `ShardRunner`."""

    def _record(self) -> None:
        """Note that the session has news."""
        ...

    async def _write(self) -> None:
        """Wait until the session is on storage, for a while."""
        ...


class Handlers:
    """The handlers of one shard.

    Args:
        gateway: whose events they are.
        handle: the bot's work.
        log: writes the log lines.
        line: whose handlers they are.
        concurrency: how many run at a time; `None` = no limit.
        grace: seconds that they get to finish.
    """

    __slots__ = (
        "_concurrency",
        "_crowd",
        "_gate",
        "_gateway",
        "_grace",
        "_handle",
        "_held",
        "_line",
        "_log",
        "_replay_over",
        "_running",
        "_waiting",
    )

    def __init__(
        self,
        gateway: GatewaySession,
        handle: Callable[[Dispatch], Awaitable[object]],
        log: ShardLog,
        *,
        line: Line,
        concurrency: int | None,
        grace: float,
    ) -> None:
        self._gateway, self._handle, self._log = gateway, handle, log
        self._line = line
        self._concurrency, self._grace = concurrency, grace
        self._running: dict[asyncio.Task[None], Dispatch] = {}
        # A queue is made when it is needed: an empty one is as large as all else here.
        self._waiting: deque[Dispatch] | None = None  # for a place
        self._held: deque[Dispatch] | None = None  # of a replay, and what came behind it
        self._gate: asyncio.Task[None] | None = None  # starts what is held
        self._replay_over: asyncio.Event | None = None
        self._crowd = _CROWD

    @property
    def in_flight(self) -> int:
        """The events that are being handled, or wait for that."""
        return len(self._running) + len(self._waiting or ()) + len(self._held or ())

    def take(self, event: Dispatch) -> None:
        """Handle the event, in a task of its own."""
        if self._gate is None and not event.replayed:
            self._start(event)
            return
        if self._held is None:
            self._held = deque()
        self._held.append(event)
        if self._gate is None:
            self._replay_over = asyncio.Event()
            self._gate = begin(self._start_held, self._held, self._replay_over)

    def line_opened(self) -> None:
        self._crowd = _CROWD  # a warning per line, at most

    def replay_ended(self) -> None:
        """Note that RESUMED came, or that the line has ended."""
        if self._replay_over is not None:
            self._replay_over.set()

    async def finish(self) -> None:
        """Give the handlers their grace, and cancel those that are left."""
        if self._gate is not None:
            self._gate.cancel()
        for events in (self._held, self._waiting):
            while events:  # else a later `run` would take them for events that a handler has
                self._gateway.fail(events.popleft())
        self._gateway.ending()
        try:
            self._line._record()  # which raises if the store was closed first
        finally:
            try:
                if self._running:
                    await asyncio.wait(self._running, timeout=self._grace)
            finally:
                await self._cancel_late()

    async def _cancel_late(self) -> None:
        if late := set(self._running):
            self._log.cancelling(len(late), self._grace)
            for handler in late:
                handler.cancel()
            await asyncio.wait(late, timeout=_GOODBYE)

    # A replay

    async def _start_held(self, held: deque[Dispatch], replay_over: asyncio.Event) -> None:
        """Start the handlers of what is held, once what they begin is on storage."""
        patience = _GATHER
        try:
            while held:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await replay_over.wait()
                patience = min(2 * patience, _GATHER_MOST)
                events = _next_of(held)
                for event in events:
                    self._gateway.begin(event)
                self._line._record()
                await self._line._write()
                for event in events:
                    held.popleft()
                    self._start(event)
                if events[0].deaths:
                    await self._give_head_start(events[0])
                # Else, on a slow disk, a line might wait for a write with each event from now on.
                while held and not (held[0].replayed or held[0].deaths):
                    self._start(held.popleft())
        finally:
            self._gate = self._held = self._replay_over = None

    async def _give_head_start(self, suspect: Dispatch) -> None:
        alone = [handler for handler, event in self._running.items() if event is suspect]
        if alone:
            await asyncio.wait(alone, timeout=_HEAD_START)

    # One event

    def _start(self, event: Dispatch) -> None:
        """Start the event's handler, or let it wait for a place."""
        running = len(self._running)
        if running + len(self._waiting or ()) >= self._crowd:
            self._log.crowd(self._crowd)
            self._crowd = sys.maxsize
        if self._concurrency is not None and running >= self._concurrency:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(event)
            return
        work = self._work(event)
        try:
            handler = asyncio.get_running_loop().create_task(work)
        except Exception as error:  # noqa: BLE001 - a task factory of the process's
            work.close()
            self._log.handler(logging.ERROR, event, f"met a task factory: {error!r}", error)
            handler = asyncio.Task(self._work(event), loop=asyncio.get_running_loop())
        self._running[handler] = event
        handler.add_done_callback(self._ended)

    def _ended(self, handler: asyncio.Task[None]) -> None:
        event = self._running.pop(handler)
        if handler.cancelled():  # maybe before its first step
            self._gateway.fail(event)
        else:
            handler.exception()  # else asyncio says that nobody asked for it
        if self._waiting:
            self._start(self._waiting.popleft())

    async def _work(self, event: Dispatch) -> None:
        gateway, work = self._gateway, Work()
        try:
            gateway.begin(event)
            await self._handle(event)
            if work.held:
                await work.end()
            gateway.settle(event)
        except asyncio.CancelledError as error:
            gateway.fail(event)
            if not requests_to_cancel():  # nobody asked: it came out of what the handler awaited
                text = "was cancelled from within: its event stays open"
                self._log.handler(logging.WARNING, event, text, error)
            raise
        except BaseException as error:
            is_handled = gateway.settles(error)
            (gateway.settle if is_handled else gateway.fail)(event)
            fate = "its event counts as handled" if is_handled else "its event comes again"
            self._log.handler(logging.ERROR, event, f"failed: {error!r}; {fate}", error)
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
        finally:
            work.held = None
            self._line._record()


def _next_of(held: deque[Dispatch]) -> list[Dispatch]:
    """Return the next suspect, or all events before it."""
    events: list[Dispatch] = []
    for event in held:
        if event.deaths:
            return events or [event]
        events.append(event)
    return events


def requests_to_cancel() -> int:
    """Return how often the running task was asked to cancel."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
