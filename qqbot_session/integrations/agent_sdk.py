"""qqbot-agent-sdk bots whose session survives a restart.

    async with AsyncSessionStore("sessions") as store:
        callbacks = await remember(callbacks, store, app_id=app_id)
        socket = QQWebSocket(callbacks)
        socket.start(url, asyncio.get_running_loop())
        await stop.wait()
        await socket.async_stop()
        await drain(callbacks)

Rules:

* The SDK keeps its loop, its closes and its waits. Its callbacks tell us what it received, and ask
  us what to resume from. A `GatewaySession` decides what follows for the session: its `Connection`
  hears everything, and nobody sends its frames.
* The SDK calls from a thread of its own. There, only `_line`, `_next` and `_untaken` are touched;
  the rest happens on the loop, by `call_soon_threadsafe` and so in order, and before the handler
  of the same event.
* It tells a number (`set_session`) right before the event that has it. A number whose event goes to
  no callback (nobody wants it, or it is RESUMED) counts as handled.
* With `until="answered"` a message is handled when QQ accepted an answer to it: see
  `qqbot_session.answers`.

What cannot be mended from here: three drops, each within 5 s, stop the SDK for ever; it does not
notice missing acknowledgements; it gives the session up if a Resume cannot be sent; it throws away
what a handler raises. Let the running handlers end (`drain`) before the store is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from ._shapes import missing, require, require_fields

try:
    from qqbot_agent_sdk import DEFAULT_INTENTS, QQApiClient, QQWebSocket, WSCallbacks
except ModuleNotFoundError as error:
    here = "qqbot_session.integrations.agent_sdk"
    raise missing(here, "agent-sdk", "qqbot-agent-sdk") from error

from .. import watch
from ..answers import Answers, Until, answers_for, handle_whole
from ..errors import StoreClosedError
from ..gateway import Dispatch, Event, GatewaySession, HeartbeatAck, Hello, Ready, Resumed
from ..logs import say
from ..shard import Health, check_options, open_gateway
from ..store import AsyncSessionStore
from ._console import Console

_HERE = "qqbot_session.integrations.agent_sdk"
_FIELDS = (
    "get_session",
    "set_session",
    "set_heartbeat_interval",
    "on_connected",
    "on_disconnected",
    "on_heartbeat_ack",
    "on_message_event",
    "on_interaction_event",
)
require_fields("qqbot-agent-sdk", WSCallbacks, _FIELDS, _HERE)
require("qqbot-agent-sdk", QQWebSocket, {"start": ("gateway_url", "main_loop")}, _HERE)

_GOODBYE = 2.0  # seconds for a cancelled handler to end; our choice
_LOG = logging.getLogger("qqbot_agent_sdk")

_Session: TypeAlias = tuple[str | None, int | None]
_Callback: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]


async def remember(
    callbacks: WSCallbacks,
    store: AsyncSessionStore,
    *,
    app_id: str,
    until: Until = "handled",
    api: Any = None,
) -> WSCallbacks:
    """Return callbacks that keep the session; call it on the loop that `start` is given.

    Args:
        callbacks: yours. Their `get_session` and `set_session` are not called any more.
        store: where the session is kept; not closed here.
        app_id: the bot's app id.
        until: when a message counts as handled: `"handled"`, at the end of its callback;
            `"answered"`, when QQ accepted an answer to it, or 60 s after its callback ended; or
            `qqbot_session.answers.Answers(…)` with other limits.
        api: the `QQApiClient` that sends the answers; by default the one whose `get_token` the
            callbacks have. With `Answers` you may call its `sent` yourself instead.

    Raises:
        ValueError: `until` is `"answered"`, and there is no `api`.
    """
    answers = answers_for(until)
    if api is None and isinstance(
        owner := getattr(callbacks.get_token, "__self__", None), QQApiClient
    ):
        api = owner
    if api is not None and answers is not None:
        _note_answers(api, answers)
    elif until == "answered":
        raise ValueError("until='answered' needs api=…, the QQApiClient that sends the answers")
    gateway = await open_gateway(store, app_id, intents=int(DEFAULT_INTENTS))
    _tell(logging.INFO, f"{gateway.account_id}: the session is kept in {store!r}")
    return _Bridge(callbacks, store, gateway, answers).callbacks()


async def drain(callbacks: WSCallbacks, grace: float = 5.0) -> None:
    """Let the running handlers end, after `async_stop` and before the store is closed.

    Args:
        callbacks: what `remember` returned.
        grace: seconds; handlers that take longer are cancelled, and their events come again.
    """
    check_options(None, grace)
    bridge = getattr(callbacks.get_session, "__self__", None)
    if not isinstance(bridge, _Bridge):
        raise TypeError("drain() takes the callbacks that remember() returned")
    await bridge.drain(grace)


class _Bridge:
    def __init__(
        self,
        inner: WSCallbacks,
        store: AsyncSessionStore,
        gateway: GatewaySession,
        answers: Answers | None,
    ) -> None:
        self._inner, self._store, self._gateway = inner, store, gateway
        self._answers = answers
        self._console = Console(gateway.account_id, "en", _tell)
        self._running: set[asyncio.Task[Any]] = set()  # handlers
        self._loop = asyncio.get_running_loop()
        self._connection = gateway.connect()
        self._events: dict[int, Dispatch] = {}  # whose handlers have not begun
        self._next: _Session = (None, None)  # what the next line resumes from
        self._line: _Session | None = None  # what was received on this one, from Hello on
        self._untaken: int | None = None  # a number whose event has not come yet
        self._health = Health()
        watch.lines.add(self)
        self._changed()

    @property
    def account_id(self) -> str:
        return self._gateway.account_id

    @property
    def health(self) -> Health:
        return replace(self._health, in_flight=len(self._running))

    def callbacks(self) -> WSCallbacks:
        inner, wrapped = self._inner, self._handled
        return replace(
            inner,
            get_session=self._get_session,
            set_session=self._set_session,
            set_heartbeat_interval=self._on_hello,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            on_heartbeat_ack=self._on_heartbeat_ack,
            on_message_event=wrapped(inner.on_message_event),
            on_interaction_event=inner.on_interaction_event and wrapped(inner.on_interaction_event),
        )

    async def drain(self, grace: float) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=grace)
        if late := set(self._running):
            _tell(logging.WARNING, f"cancelling {len(late)} handler(s): their events stay open")
            for handler in late:
                handler.cancel()
            await asyncio.wait(late, timeout=_GOODBYE)

    # In the SDK's thread

    def _get_session(self) -> _Session:
        return self._next if self._line is None else self._line

    def _set_session(self, session_id: str | None, seq: int | None) -> None:
        self._settle_untaken()
        before, self._line = self._get_session(), (session_id, seq)
        if session_id is None:  # READY tells its number first, and then its id
            if seq is None:
                self._call(self._forget)
        elif session_id != before[0]:
            self._feed(op=0, t="READY", s=seq, d={"session_id": session_id})
        else:
            self._untaken = seq
            asyncio.get_running_loop().call_soon(self._settle_untaken)

    def _on_hello(self, seconds: float) -> None:
        self._line = self._next
        self._call(self._begin)
        self._feed(op=10, d={"heartbeat_interval": seconds * 1000})
        self._inner.set_heartbeat_interval(seconds)

    def _on_connected(self) -> None:
        seq, self._untaken = self._untaken, None
        if seq is not None:
            self._feed(op=0, t="RESUMED", s=seq)
        self._inner.on_connected()

    def _on_disconnected(self) -> None:
        self._settle_untaken()
        self._line = None
        self._call(self._end)
        self._inner.on_disconnected()

    def _on_heartbeat_ack(self) -> None:
        self._feed(op=11)
        if self._inner.on_heartbeat_ack is not None:
            self._inner.on_heartbeat_ack()

    def _handled(self, callback: _Callback) -> _Callback:
        def take(kind: str, data: dict[str, Any]) -> Awaitable[None]:
            seq, self._untaken = self._untaken, None
            if seq is not None:
                self._feed(op=0, t=kind, s=seq)
            return self._handle(seq, callback, kind, data)

        return take

    def _settle_untaken(self) -> None:
        seq, self._untaken = self._untaken, None
        if seq is not None:
            self._call(self._settle, seq)

    def _feed(self, **frame: Any) -> None:
        self._call(self._receive, frame)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    # On the loop

    def _begin(self) -> None:
        self._connection = self._gateway.connect()
        self._connection.opened("the SDK's own", time.time())

    def _receive(self, frame: Mapping[str, Any]) -> Event:
        now = time.time()
        event = self._connection.receive(frame, now)
        self._health = replace(self._health, last_frame_at=now)
        self._connection.frames_to_send()  # which the SDK has sent
        self._console.count(event)
        if isinstance(event, Hello) and event.handshake is not None:
            self._console.handshake(event.handshake, self._gateway.settled)
        elif isinstance(event, HeartbeatAck):
            self._health = replace(self._health, last_ack_at=now)
        elif isinstance(event, Ready | Resumed):
            self._health = replace(self._health, connected_since=now)
            self._console.session(event)
        if event.released:
            self._console.released(event.released)
        if isinstance(event, Dispatch) and event.seq is not None:
            self._events[event.seq] = event
        self._changed()
        return event

    def _forget(self) -> None:
        self._connection = self._gateway.connect()
        self._receive({"op": 9, "d": False})

    def _end(self) -> None:
        self._connection.closed(None)
        self._health = replace(self._health, connected_since=None)
        self._changed()

    def _settle(self, seq: int) -> None:
        """Settle what no callback got, unless the SDK dropped it because it had it before."""
        new = seq > (self._gateway.received or 0)
        event = self._receive({"op": 0, "t": "", "s": seq})
        self._events.pop(seq, None)
        if new and isinstance(event, Dispatch):
            self._gateway.settle(event)
            self._changed()

    async def _handle(
        self, seq: int | None, callback: _Callback, kind: str, data: dict[str, Any]
    ) -> None:
        async def call(_: Dispatch) -> None:
            await callback(kind, data)

        event = self._events.pop(seq, None) if seq is not None else None
        if event is None:  # a number that came before, on the same line
            await callback(kind, data)
        elif not event.already_handled:
            event = replace(event, data=data)
            handle = self._answers.awaited(call) if self._answers is not None else call
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                with self._gateway.handling(event):
                    await handle_whole(handle, event)
            except Exception as error:
                text = f"the handler of {kind}, number {seq}, failed"
                say(logging.ERROR, "%s", text, exc_info=error, logger=_LOG)
                raise
            finally:
                self._running.discard(task)
                self._changed()

    def _changed(self) -> None:
        state = self._gateway.state if self._gateway.resumable else None
        self._next = (None, None) if state is None else (state.session_id, state.last_seq)
        with contextlib.suppress(StoreClosedError):  # what comes after that comes again
            self._store.record_nowait(self._gateway)


def _note_answers(api: Any, answers: Answers) -> None:
    """Hear what the API client sends."""
    request = api.request

    async def noting(route: Any, *args: Any, **kwargs: Any) -> Any:
        bodies = [part for part in (*args, *kwargs.values()) if isinstance(part, Mapping)]
        body = bodies[0] if bodies else None
        try:
            answer = await request(route, *args, **kwargs)
        except Exception as error:
            answers.sent(body, error)
            raise
        answers.sent(body)
        return answer

    api.request = noting


def _tell(level: int, text: str, stacklevel: int = 1) -> None:
    """Write a line to the SDK's log."""
    say(level, "%s", text, logger=_LOG, stacklevel=stacklevel + 1)
