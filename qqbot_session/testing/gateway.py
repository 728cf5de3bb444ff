"""`LocalGateway`: QQ's gateway and HTTP endpoints on loopback, for the tests of any bot.

    async with LocalGateway(heartbeat_interval=0.5) as gateway:
        bot = start_bot(api=gateway.api_url, token_url=gateway.token_url)
        await gateway.wait_for(lambda g: g.identifies)
        await gateway.emit("C2C_MESSAGE_CREATE", gateway.c2c_message("hello"))
        await gateway.drop()  # the line dies; the bot should come back and Resume
        await gateway.wait_for(lambda g: g.resumes)

Rules:

* There is one session per (app id, shard). An Identify for the same pair ends the older session.
* Numbers count per session: READY is 1, every event takes one, and so does RESUMED.
* What was emitted since a session began can be replayed, up to `replay_limit` events, whether or
  not it was delivered before.
* One line per session: a Resume takes the session from the line that held it (close 4902).
* Once a line has begun to close, its session is offline: later events wait for a Resume.
* What a client did is recorded as it happens, and records are never taken back.

Not modelled: intents are recorded and not applied, `max_concurrency` is told and not enforced,
and `remaining` does not refill. Frames and close codes follow the bot-docs (event-emit.md,
opcode.md, websocket.md); the codes 4003 to 4005 follow botgo's errs/err.go.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, ClassVar, Literal, Self
from uuid import uuid4

try:
    import aiohttp
    from aiohttp import web
except ImportError as error:
    raise ImportError(
        'qqbot_session.testing needs aiohttp: pip install "qqbot_session[testing]"'
    ) from error

__all__ = ["Client", "Delivery", "Heartbeat", "Identify", "LocalGateway", "Resume"]

Shard = tuple[int, int]
Party = Literal["client", "gateway"]

_log = logging.getLogger("qqbot_session.testing")

_PATIENCE = 2.0  # heartbeat intervals without a heartbeat until a line is closed
_GOODBYE = 1.0  # seconds a client has to answer a close frame
_OLD_TOKEN = 60.0  # seconds before its end at which a token is replaced; bot-docs, api-use.md
_BEIJING = timezone(timedelta(hours=8))


@dataclass(frozen=True, slots=True)
class Identify:
    """An Identify as it came. `at` is a `time.monotonic()`."""

    token: object
    intents: object
    shard: object
    at: float


@dataclass(frozen=True, slots=True)
class Resume:
    """A Resume as it came. `at` is a `time.monotonic()`."""

    token: object
    session_id: object
    seq: object
    at: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A heartbeat, with the number its sender received last. `at` is a `time.monotonic()`."""

    d: object
    at: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that was handed to a client's socket. `at` is a `time.monotonic()`."""

    seq: int
    type: str
    id: str
    replayed: bool
    at: float


@dataclass(slots=True, eq=False)
class Client:
    """What one connection did. The gateway writes it; read it only.

    Attributes:
        number: 1 for the gateway's first connection.
        connected_at: a `time.monotonic()`, as all times here.
        started: how its session began, once that frame is sent.
        session_id: of the session it was given or resumed.
        closed_at: `None` while the line is open.
        close_code: from the close frame of `closed_by`; `None` when there was none.
        closed_by: who ended the line first. A line that just died counts as the client's.
    """

    number: int
    connected_at: float
    identifies: list[Identify] = field(default_factory=list)
    resumes: list[Resume] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    delivered: list[Delivery] = field(default_factory=list)
    started: Literal["READY", "RESUMED"] | None = None
    session_id: str | None = None
    closed_at: float | None = None
    close_code: int | None = None
    closed_by: Party | None = None


@dataclass(frozen=True, slots=True)
class _Event:
    seq: int
    type: str
    id: str
    data: object

    @property
    def payload(self) -> dict[str, object]:
        return {"op": 0, "s": self.seq, "t": self.type, "id": self.id, "d": self.data}


@dataclass(slots=True, eq=False)
class _Session:
    id: str
    app_id: str
    shard: Shard
    replay_limit: int
    last_seq: int = 1  # READY's
    buffer: deque[_Event] = field(default_factory=deque)
    lost_seq: int = 0  # the newest event that cannot be replayed any more
    line: _Line | None = None
    offline_since: float = 0.0
    expired: bool = False

    def add(self, event_type: str, event_id: str, data: object) -> _Event:
        event = _Event(self.next_seq(), event_type, event_id, data)
        self.buffer.append(event)
        if len(self.buffer) > self.replay_limit:
            self.lost_seq = self.buffer.popleft().seq
        return event

    def next_seq(self) -> int:
        self.last_seq += 1
        return self.last_seq

    def forget_events(self) -> None:
        if self.buffer:
            self.lost_seq = self.buffer[-1].seq
            self.buffer.clear()

    def find(self, event_id: str | None) -> _Event | None:
        return next((e for e in reversed(self.buffer) if event_id in (None, e.id)), None)


@dataclass(slots=True)
class _App:
    secret: str
    token: str = ""
    expires_at: float = 0.0  # time.monotonic()
    starts: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    text: str
    on_sent: Callable[[], object]


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str


class _Line:
    """One WebSocket connection: what goes out, in order, and how it ends.

    The request's own task writes; it owns the one that reads, and the timers.
    """

    def __init__(
        self, ws: web.WebSocketResponse, transport: asyncio.Transport, client: Client
    ) -> None:
        self.ws = ws
        self.transport = transport
        self.client = client
        self.session: _Session | None = None
        self.farewell: int | None = None  # the answer to the client's close; None = its own code
        self.closing = False
        self.changed: Callable[[], object] = lambda: None
        self._outbox: asyncio.Queue[_Frame | _Close | None] = asyncio.Queue()
        self._pushed = self._written = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def ended(self) -> bool:
        return self.client.closed_at is not None

    def push(
        self, frame: Mapping[str, object] | str, on_sent: Callable[[], object] = lambda: None
    ) -> Callable[[], bool]:
        """Queue a frame; return a function that tells whether it is sent, or never will be."""
        if self.closing:
            return lambda: True
        self._outbox.put_nowait(_Frame(frame if isinstance(frame, str) else _dump(frame), on_sent))
        self._pushed += 1
        ticket = self._pushed
        return lambda: self._written >= ticket or self.ended

    def close(self, code: int, reason: str = "") -> None:
        """Close after what is queued; a client that hinders it is cut off."""
        if not self.closing:
            self.detach()
            self._outbox.put_nowait(_Close(code, reason))
            self.later("cut off", _GOODBYE, self.drop)

    def drop(self) -> None:
        self.detach()
        self._end(None, "gateway")
        self.transport.abort()

    def detach(self) -> None:
        """Take the session off the line for good."""
        self.closing = True
        self.release()

    def release(self) -> None:
        """Take the session offline; the line stays and may Identify again."""
        session, self.session = self.session, None
        if session is not None and session.line is self:
            session.line = None
            session.offline_since = time.monotonic()

    def later(self, name: str, delay: float, call: Callable[..., object], *args: object) -> None:
        """Call once after `delay` seconds, instead of the earlier call of that name."""
        if earlier := self._timers.get(name):
            earlier.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(delay, call, *args)

    async def run(self, receive: Callable[[str | bytes], object]) -> None:
        name = f"LocalGateway reader {self.client.number}"
        reader = asyncio.create_task(self._read(receive), name=name)
        reader.add_done_callback(lambda _: self._outbox.put_nowait(None))
        try:
            farewell = await self._write()
            await _stop(reader)
            if farewell is not None:
                self._end(farewell.code, "gateway")
                await self.ws.close(code=farewell.code, message=farewell.reason.encode())
        finally:
            await _stop(reader)
            self.detach()
            self._end(None, "client")
            for timer in self._timers.values():
                timer.cancel()
        if not reader.cancelled():
            reader.result()

    async def _read(self, receive: Callable[[str | bytes], object]) -> None:
        while (message := await self.ws.receive()).type in _DATA:
            receive(message.data)
        if message.type is aiohttp.WSMsgType.CLOSE:
            self._answer_close(int(message.data or 1005))  # 1005: a close frame without a code

    def _answer_close(self, code: int) -> None:
        self.detach()
        self._end(code, "client")
        self.later("cut off", _GOODBYE, self.drop)
        while not self._outbox.empty():
            self._outbox.get_nowait()
        answer = 1000 if code == 1005 else code
        self._outbox.put_nowait(_Close(self.farewell or answer, ""))

    async def _write(self) -> _Close | None:
        while isinstance(item := await self._outbox.get(), _Frame):
            try:
                await self.ws.send_str(item.text)
            except (ConnectionError, aiohttp.ClientError):  # the peer is gone
                return None
            if self.transport.is_closing():  # a send that an abort cut short does not raise
                return None
            self._written += 1
            item.on_sent()
            self.changed()
        return item

    def _end(self, code: int | None, by: Party) -> None:
        if not self.ended:
            self.client.closed_at = time.monotonic()
            self.client.close_code, self.client.closed_by = code, by
            _log.debug("client %d: closed by the %s, code %s", self.client.number, by, code)
            self.changed()


_DATA = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})


@dataclass(kw_only=True, eq=False, repr=False)
class LocalGateway:
    """QQ on loopback, with a script for misfortune and a record of what each client did.

    The methods that strike lines act on those of one `shard` (`(id, count)`) or on all
    open ones, return how many they struck, and do not wait for the client.

    Args:
        app_id: the app that the token endpoint knows; `add_app` adds more.
        client_secret: its secret.
        host: where to listen.
        port: where to listen; 0 for any free port.
        heartbeat_interval: seconds. A line without a heartbeat (before its Identify or Resume:
            without either) for two intervals is closed with 4009.
        shards: the number of shards that `/gateway/bot` suggests.
        session_starts: Identifies granted per app.
        max_concurrency: what `/gateway/bot` tells.
        token_lifetime: seconds.
        replay_limit: events kept per session.
        session_ttl: seconds a session stays resumable while offline; `None` = for ever.
        unknown_session_code: closes the line after op 9 for a Resume of no known session;
            `None` = op 9 alone.

    Attributes:
        clients: one record per connection, in order.
        identifies: all clients' in one list, and so `resumes`, `heartbeats`, `delivered`.
        requests: how often each HTTP path was asked for.
    """

    app_id: str = "102000000"
    client_secret: str = "local-secret"
    host: str = "127.0.0.1"
    port: int = 0
    heartbeat_interval: float = 45.0
    shards: int = 1
    session_starts: int = 1000
    max_concurrency: int = 1
    token_lifetime: float = 7200.0
    replay_limit: int = 10_000
    session_ttl: float | None = None
    unknown_session_code: int | None = 4006
    clients: list[Client] = field(default_factory=list, init=False)
    identifies: list[Identify] = field(default_factory=list, init=False)
    resumes: list[Resume] = field(default_factory=list, init=False)
    heartbeats: list[Heartbeat] = field(default_factory=list, init=False)
    delivered: list[Delivery] = field(default_factory=list, init=False)
    requests: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self._apps = {self.app_id: _App(self.client_secret)}
        self._tokens: dict[str, tuple[str, float]] = {}  # to the app and the token's end
        self._sessions: dict[str, _Session] = {}
        self._lines: list[_Line] = []
        self._refusals: deque[int | Literal["op9"] | None] = deque()
        self._rate_limited = 0
        self._acks_muted = False
        self._change = asyncio.Event()
        self._runner: web.AppRunner | None = None

    def __repr__(self) -> str:
        return (
            f"<LocalGateway {self.host}:{self.port} clients={len(self.clients)}"
            f" open={len(self._open())} sessions={len(self._sessions)}"
            f" identifies={len(self.identifies)} resumes={len(self.resumes)}"
            f" heartbeats={len(self.heartbeats)} delivered={len(self.delivered)}>"
        )

    @property
    def api_url(self) -> str:
        """What stands for https://api.sgroup.qq.com."""
        return f"http://{self.host}:{self.port}"

    @property
    def token_url(self) -> str:
        """What stands for https://bots.qq.com/app/getAppAccessToken."""
        return f"{self.api_url}/app/getAppAccessToken"

    @property
    def ws_url(self) -> str:
        """What `/gateway` tells."""
        return f"ws://{self.host}:{self.port}/websocket"

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        app.on_shutdown.append(self._hang_up)
        app.router.add_post("/app/getAppAccessToken", self._post_token)
        app.router.add_get("/gateway", self._get_gateway)
        app.router.add_get("/gateway/bot", self._get_gateway_bot)
        app.router.add_get("/users/@me", self._get_me)
        app.router.add_get("/websocket{slash:/?}", self._websocket)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GOODBYE)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and close every line with 1001. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _hang_up(self, _: web.Application) -> None:
        """End the lines without waiting for the clients' answers."""
        lines = list(self._lines)
        for line in lines:
            line.close(1001, "the gateway shuts down")
        with contextlib.suppress(TimeoutError):
            await self.wait_for(lambda _: all(line.ended for line in lines), timeout=0.2)
        for line in lines:
            stuck = line.transport.get_write_buffer_size()
            (line.transport.abort if stuck else line.transport.close)()

    def add_app(self, app_id: str, client_secret: str) -> None:
        """Let the token endpoint know another app."""
        self._apps[app_id] = _App(client_secret)

    def remaining(self, app_id: str | None = None) -> int:
        """Return how many Identifies are left to an app, by default the first."""
        return max(0, self.session_starts - self._apps[app_id or self.app_id].starts)

    # Feeding

    async def emit(
        self,
        event_type: str,
        data: object,
        *,
        event_id: str | None = None,
        shard: Shard | None = None,
        app_id: str | None = None,
    ) -> tuple[int, ...]:
        """Give every session, or those of one shard or app, an event.

        Return once the event is handed to the sockets of those that are online; for those that
        are offline it is kept. The sequence number in each session is returned, oldest session
        first: an empty tuple means there was no session, and the event is gone.
        """
        event_id = event_id or f"{event_type}:{uuid4().hex}"
        sessions = self._chosen(shard, app_id)
        return await self._publish([(s, s.add(event_type, event_id, data)) for s in sessions])

    async def duplicate(self, event_id: str | None = None) -> tuple[int, ...]:
        """Deliver an event (default: each session's last) again, with a new number and its old id.

        Seen in the field minutes after the first delivery (QwenPaw#7946).
        """
        found = [(session, session.find(event_id)) for session in self._chosen()]
        return await self._publish([(s, s.add(e.type, e.id, e.data)) for s, e in found if e])

    async def send(self, frame: Mapping[str, object] | str, *, shard: Shard | None = None) -> int:
        """Send any frame, numbered or not, valid or not; text goes out as it is."""
        lines = self._open(shard)
        sent = [line.push(frame) for line in lines]
        await self._until(lambda: all(done() for done in sent))
        return len(lines)

    @staticmethod
    def c2c_message(content: str, *, user_openid: str = "U0") -> dict[str, Any]:
        """Return the `d` of a C2C_MESSAGE_CREATE, with a fresh id (bot-docs, message/event.md)."""
        return _message(content, author={"user_openid": user_openid})

    @staticmethod
    def group_at_message(
        content: str, *, group_openid: str = "G0", member_openid: str = "M0"
    ) -> dict[str, Any]:
        """Return the `d` of a GROUP_AT_MESSAGE_CREATE, with a fresh id."""
        author = {"member_openid": member_openid}
        return _message(content, author=author, group_openid=group_openid)

    @staticmethod
    def at_message(
        content: str, *, guild_id: str = "1", channel_id: str = "2", user_id: str = "3"
    ) -> dict[str, Any]:
        """Return the `d` of an AT_MESSAGE_CREATE, a guild channel's, with a fresh id."""
        author = {"id": user_id, "username": "a member", "avatar": "", "bot": False}
        return _message(content, author=author, guild_id=guild_id, channel_id=channel_id)

    # Misfortune

    async def drop(self, *, shard: Shard | None = None) -> int:
        """Abort the connections without a close frame."""
        lines = self._open(shard)
        for line in lines:
            line.drop()
        return len(lines)

    async def close(self, code: int, reason: str = "", *, shard: Shard | None = None) -> int:
        """Close the lines with a code, and return when the close frames are sent."""
        lines = self._open(shard)
        for line in lines:
            line.close(code, reason)
        await self._until(lambda: all(line.ended for line in lines))
        return len(lines)

    async def reconnect(
        self, then: int = 4009, *, delay: float = 1.0, shard: Shard | None = None
    ) -> int:
        """Send op 7; answer the client's close with `then`, or close so after `delay` seconds.

        The field sees 4009 either way (openclaw#78890).
        """
        for line in self._open(shard):
            line.farewell = then
            line.later("reconnect", delay, line.close, then, "Session timed out")
        return await self.send({"op": 7}, shard=shard)

    async def invalid_session(self, resumable: bool = False, *, shard: Shard | None = None) -> int:
        """Send op 9, with the session kept only if `resumable`; the line stays open.

        The line has no session any more: it may Identify again, and times out if it does not.
        """
        lines = self._open(shard)
        sent = [line.push({"op": 9, "d": resumable}) for line in lines]
        for line in lines:
            if line.session is not None and not resumable:
                self._sessions.pop(line.session.id, None)
            line.release()
        await self._until(lambda: all(done() for done in sent))
        return len(lines)

    def refuse_resumes(self, times: int = 1, code: int | Literal["op9"] | None = 4006) -> None:
        """Refuse the next Resumes with a close code, op 9 (`d: false`, line open), or, with
        `None`, by dropping the line. The sessions themselves stay."""
        self._refusals.extend([code] * times)

    def expire_sessions(self) -> None:
        """End every session: offline ones now, the others when their lines end."""
        for session in self._sessions.values():
            session.expired = True

    def exhaust_replay(self) -> None:
        """Forget the events so far: a Resume that needs one of them gets 4007."""
        for session in self._sessions.values():
            session.forget_events()

    def rate_limit(self, times: int = 1) -> None:
        """Answer the next calls of `/gateway` and `/gateway/bot` with error 100001."""
        self._rate_limited += times

    def revoke_tokens(self) -> None:
        """End all access tokens: HTTP says 11244, handshakes close with 4004."""
        for token, (app_id, _) in self._tokens.items():
            self._tokens[token] = (app_id, 0.0)
        for app in self._apps.values():
            app.expires_at = 0.0

    def mute_acks(self, muted: bool = True) -> None:
        """Stop acknowledging heartbeats, or start again; they are still recorded."""
        self._acks_muted = muted

    # Waiting

    async def wait_for(
        self,
        condition: Callable[[Self], object],
        timeout: float = 10.0,  # noqa: ASYNC109  (it is what asyncio.wait_for calls it)
    ) -> None:
        """Wait until `condition(self)` is true; it is asked again after every record.

        Raises:
            TimeoutError: after `timeout` seconds, with what there is instead.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: condition(self))
        except TimeoutError:
            raise TimeoutError(f"not within {timeout:g} s: {self!r}") from None

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    # Sessions

    def _chosen(self, shard: Shard | None = None, app_id: str | None = None) -> list[_Session]:
        self._remove_expired()
        return [
            session
            for session in self._sessions.values()
            if shard in (None, session.shard) and app_id in (None, session.app_id)
        ]

    def _open(self, shard: Shard | None = None) -> list[_Line]:
        return [
            line
            for line in self._lines
            if not line.closing
            and (shard is None or (line.session is not None and line.session.shard == shard))
        ]

    def _remove_expired(self) -> None:
        horizon = float("-inf") if self.session_ttl is None else time.monotonic() - self.session_ttl
        for session in list(self._sessions.values()):
            if session.line is None and (session.expired or session.offline_since <= horizon):
                del self._sessions[session.id]

    async def _publish(self, events: list[tuple[_Session, _Event]]) -> tuple[int, ...]:
        sent = [self._deliver(s.line, event) for s, event in events if s.line is not None]
        await self._until(lambda: all(done() for done in sent))
        return tuple(event.seq for _, event in events)

    def _deliver(self, line: _Line, event: _Event, replayed: bool = False) -> Callable[[], bool]:
        def record() -> None:
            delivery = Delivery(event.seq, event.type, event.id, replayed, time.monotonic())
            line.client.delivered.append(delivery)
            self.delivered.append(delivery)

        return line.push(event.payload, record)

    # The socket

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(timeout=_GOODBYE, autoclose=False)
        await ws.prepare(request)
        client = Client(len(self.clients) + 1, time.monotonic())
        transport = request.transport
        if transport is None:  # gone already
            return ws
        line = _Line(ws, transport, client)
        line.changed = self._changed
        self.clients.append(client)
        self._lines.append(line)
        _log.debug("client %d: connected", client.number)
        line.push({"op": 10, "d": {"heartbeat_interval": _milliseconds(self.heartbeat_interval)}})
        self._expect_heartbeat(line)
        try:
            await line.run(partial(self._receive, line))
        finally:
            self._lines.remove(line)
        return ws

    def _expect_heartbeat(self, line: _Line) -> None:
        limit = self.heartbeat_interval * _PATIENCE
        line.later("heartbeat", limit, line.close, 4009, "Session timed out")

    def _receive(self, line: _Line, text: str | bytes) -> None:
        if line.closing:
            return
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict) or type(op := payload.get("op")) is not int:
            line.close(4002, "invalid payload")
        elif op in self._RECEIVERS:
            self._RECEIVERS[op](self, line, payload.get("d"))
        elif op in _SERVER_OPS and line.session is None:
            line.close(4003, "not authenticated")
        else:
            line.close(4001, "invalid opcode")
        self._changed()

    def _on_heartbeat(self, line: _Line, d: object) -> None:
        heartbeat = Heartbeat(d, time.monotonic())
        line.client.heartbeats.append(heartbeat)
        self.heartbeats.append(heartbeat)
        if line.session is not None:  # before, it does not delay the time-out
            self._expect_heartbeat(line)
        if not self._acks_muted:
            line.push({"op": 11})

    def _on_identify(self, line: _Line, d: object) -> None:
        fields = d if isinstance(d, dict) else {}
        token, intents, shard = (fields.get(name) for name in ("token", "intents", "shard"))
        identify = Identify(token, intents, shard, time.monotonic())
        line.client.identifies.append(identify)
        self.identifies.append(identify)
        _log.debug("client %d: Identify, shard %s", line.client.number, shard)
        if not self._may_start(line, d):
            return
        app_id = self._app_of(line, token)
        valid_shard = _shard(shard)
        if app_id is None:
            return
        if valid_shard is None:
            line.close(4010, "invalid shard")
        elif type(intents) is not int or intents < 0:
            line.close(4013, "invalid intents")
        elif not self.remaining(app_id):
            _refuse(line, 4903)
        else:
            self._start(line, app_id, valid_shard)

    def _may_start(self, line: _Line, d: object) -> bool:
        if not isinstance(d, dict):
            line.close(4002, "invalid payload")
        elif line.session is not None:
            line.close(4005, "already authenticated")
        return not line.closing

    def _app_of(self, line: _Line, token: object, bare: bool = False) -> str | None:
        """Return the token's app, or answer as the gateway would.

        botgo sends the bare token with Resume (websocket/client/client.go).
        """
        text = token if isinstance(token, str) else ""
        key = text.removeprefix("QQBot ")
        app_id, expires_at = self._tokens.get(key, (None, 0.0))
        if app_id is None or (key == text and not bare):
            _refuse(line, 4903)  # op 9, then 4903: openclaw-qqbot#18
        elif expires_at <= time.monotonic():
            line.close(4004, "authentication failed")
        else:
            return app_id
        return None

    def _start(self, line: _Line, app_id: str, shard: Shard) -> None:
        for old in self._chosen(shard, app_id):
            del self._sessions[old.id]
            if old.line is not None:
                old.line.close(4902, "reset by identify")
        self._apps[app_id].starts += 1
        session = _Session(str(uuid4()), app_id, shard, self.replay_limit)
        self._sessions[session.id] = session
        ready = {
            "version": 1,
            "session_id": session.id,
            "user": {"id": app_id, "username": "local bot", "bot": True},
            "shard": list(shard),
        }
        self._attach(line, session, {"op": 0, "s": 1, "t": "READY", "d": ready})

    def _attach(self, line: _Line, session: _Session, frame: Mapping[str, object]) -> None:
        def record() -> None:
            line.client.started = "READY" if frame["t"] == "READY" else "RESUMED"

        line.session, session.line = session, line
        line.client.session_id = session.id
        line.push(frame, record)
        self._expect_heartbeat(line)

    def _on_resume(self, line: _Line, d: object) -> None:
        fields = d if isinstance(d, dict) else {}
        token, session_id, seq = (fields.get(name) for name in ("token", "session_id", "seq"))
        resume = Resume(token, session_id, seq, time.monotonic())
        line.client.resumes.append(resume)
        self.resumes.append(resume)
        _log.debug("client %d: Resume %.8s… from %s", line.client.number, session_id, seq)
        if not self._may_start(line, d):
            return
        app_id = self._app_of(line, token, bare=True)
        if app_id is None or self._refused(line):
            return
        self._remove_expired()
        session = self._sessions.get(session_id) if isinstance(session_id, str) else None
        if session is None or session.app_id != app_id or session.expired:
            _refuse(line, self.unknown_session_code)
        elif type(seq) is not int or not session.lost_seq <= seq <= session.last_seq:
            line.close(4007, "invalid seq")
        else:
            self._continue(line, session, seq)

    def _refused(self, line: _Line) -> bool:
        if not self._refusals:
            return False
        match self._refusals.popleft():
            case None:
                line.drop()
            case "op9":
                _refuse(line, None)
            case code:
                line.close(code, "refused by the script")
        return True

    def _continue(self, line: _Line, session: _Session, seq: int) -> None:
        """Replay, then RESUMED (bot-docs, event-emit.md); `d` is an empty string there."""
        if session.line is not None:
            session.line.close(4902, "reset by resume")  # seen in bot-node-sdk#94
        for event in session.buffer:
            if event.seq > seq:
                self._deliver(line, event, replayed=True)
        self._attach(line, session, {"op": 0, "s": session.next_seq(), "t": "RESUMED", "d": ""})

    _RECEIVERS: ClassVar[dict[int, Callable[[LocalGateway, _Line, object], None]]] = {
        1: _on_heartbeat,
        2: _on_identify,
        6: _on_resume,
    }

    # HTTP

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        self.requests[request.path] += 1
        self._changed()
        response: web.StreamResponse
        if request.path in _GUARDED and self._caller(request) is None:
            response = _failure(401, 11244, "token not exist or expire")
        elif request.path.startswith("/gateway") and self._rate_limited:
            self._rate_limited -= 1
            response = _failure(429, 100001, "frequency limit exceeded")
        else:
            response = await handler(request)
        if not response.prepared:
            response.headers["X-Tps-trace-ID"] = uuid4().hex
        return response

    def _caller(self, request: web.Request) -> str | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        app_id, expires_at = self._tokens.get(token, (None, 0.0))
        return app_id if scheme == "QQBot" and expires_at > time.monotonic() else None

    async def _post_token(self, request: web.Request) -> web.Response:
        """Answer as api-use.md says; `expires_in` is a string, as in its sample."""
        try:
            body = await request.json()
            app_id, secret = body["appId"], body["clientSecret"]
            app = self._apps.get(app_id)
        except (ValueError, TypeError, KeyError):
            return _failure(400, 100007, "appId or clientSecret missing")
        if app is None or app.secret != secret:
            return _failure(200, 100016, "invalid appid or secret")
        now = time.monotonic()
        if app.expires_at - now <= min(_OLD_TOKEN, self.token_lifetime / 2):
            app.token, app.expires_at = uuid4().hex, now + self.token_lifetime
            self._tokens[app.token] = (app_id, app.expires_at)
        expires_in = str(int(app.expires_at - now))
        return web.json_response({"access_token": app.token, "expires_in": expires_in})

    async def _get_gateway(self, _: web.Request) -> web.Response:
        return web.json_response({"url": self.ws_url})

    async def _get_gateway_bot(self, request: web.Request) -> web.Response:
        limit = {
            "total": self.session_starts,
            "remaining": self.remaining(self._caller(request)),
            "reset_after": 86_400_000,  # milliseconds
            "max_concurrency": self.max_concurrency,
        }
        body = {"url": self.ws_url, "shards": self.shards, "session_start_limit": limit}
        return web.json_response(body)

    async def _get_me(self, request: web.Request) -> web.Response:
        me = {"id": self._caller(request), "username": "local bot", "avatar": "", "bot": True}
        return web.json_response(me)


_GUARDED = frozenset({"/gateway", "/gateway/bot", "/users/@me"})
_SERVER_OPS = frozenset({0, 7, 9, 10, 11})


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _refuse(line: _Line, code: int | None) -> None:
    line.push({"op": 9, "d": False})
    if code is not None:
        line.close(code, "session refused")


def _shard(value: object) -> Shard | None:
    """Return `(id, count)`; without any, bot-docs' `[0, 1]` for "not sharded"."""
    match value:
        case None:
            return (0, 1)
        case [int(number), int(count)] if 0 <= number < count and bool not in map(type, value):
            return (number, count)
    return None


def _message(content: str, **fields: object) -> dict[str, Any]:
    now = datetime.now(_BEIJING).isoformat(timespec="seconds")
    return {"id": f"ROBOT1.0_{uuid4().hex}", "content": content, "timestamp": now, **fields}


def _failure(status: int, code: int, message: str) -> web.Response:
    return web.json_response({"code": code, "message": message}, status=status)


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


# The command

_WELCOME = """\
QQ's gateway on this machine, until Ctrl-C. Point your bot at:
  API        {0.api_url}
  token      {0.token_url}
  gateway    {0.ws_url}
  app id     {0.app_id}
  secret     {0.client_secret}
Once it has identified it gets a sample event every {1:g} s. Stop it and start it again
within moments: a bot that resumes loses none.
"""


async def _serve(port: int, heartbeat: float, every: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows has Ctrl-C alone
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop.set)
    async with LocalGateway(port=port, heartbeat_interval=heartbeat) as gateway:
        sys.stdout.write(_WELCOME.format(gateway, every))
        sys.stdout.flush()
        number = 0
        while not await _happens(stop, every):
            number += 1
            await _emit_sample(gateway, number)


async def _happens(event: asyncio.Event, within: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within)
    except TimeoutError:
        return False
    return True


async def _emit_sample(gateway: LocalGateway, number: int) -> None:
    if number % 2:
        event, data = "C2C_MESSAGE_CREATE", gateway.c2c_message(f"sample {number}")
    else:
        event, data = "GROUP_AT_MESSAGE_CREATE", gateway.group_at_message(f" sample {number}")
    if numbers := await gateway.emit(event, data):
        _log.debug("%s %r is number %s", event, data["content"], numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gateway until SIGINT or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qqbot_session.testing",
        description="Run QQ's gateway on this machine and emit sample events.",
    )
    parser.add_argument("--port", type=int, default=0, help="where to listen (default: any)")
    parser.add_argument("--heartbeat", type=float, default=45.0, help="interval in seconds")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between events")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s")
    _log.setLevel(logging.DEBUG)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.port, options.heartbeat, options.every))
    return 0
