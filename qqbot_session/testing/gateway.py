"""`LocalGateway`: QQ's gateway and HTTP endpoints on loopback, for the tests of any bot.

    async with LocalGateway(heartbeat_interval=0.5) as qq:
        bot = start_bot(api=qq.api_url, token_url=qq.token_url)
        await qq.wait_for(lambda qq: qq.identifies)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        await qq.wait_for(lambda qq: qq.sent)  # its answer
        await qq.drop()  # the line dies; the bot should come back and Resume
        await qq.wait_for(lambda qq: qq.resumes)

Rules:

* There is one session per (app id, shard). An Identify for the same pair ends the older session.
* Numbers count per session: READY is 1, every event takes one, and so does RESUMED.
* An event goes to the sessions whose intents ask for it; to others it does not exist.
* What was emitted since a session began can be replayed, up to `replay_limit` events, whether or
  not it was delivered before.
* One line per session: a Resume takes the session from the line that held it (close 4902).
* Once a line has begun to close, its session is offline: later events wait for a Resume.
* What a client did is recorded as it happens, and records are never taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

try:
    from aiohttp import web

    from .api import TOKEN, Answer, Api, failure
    from .line import GOODBYE, Line
except ImportError as error:
    raise ImportError(
        'qqbot_session.testing needs aiohttp: pip install "qqbot_session[testing]"'
    ) from error

from .apps import Apps
from .frames import Frames
from .payloads import Samples, malformed_frame
from .records import Call, Client, Delivery, Heartbeat, Identify, Records, Resume, Sent
from .sessions import Event, Session, Sessions
from .settings import Refusal, Script, Settings, Shard, Withheld, check_code

_HANG_UP = 0.2  # seconds that clients have to read the last close frame
_ANY = ("0.0.0.0", "::", "")  # listened on by who wants to be reached by other names
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UPLOAD = 64 << 20  # bytes of a body; files come as base64 within JSON

P = ParamSpec("P")
T = TypeVar("T")


def _at_home(
    method: Callable[Concatenate[LocalGateway, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[LocalGateway, P], Coroutine[Any, Any, T]]:
    """Run the method on the gateway's own loop, whichever loop awaits it."""

    @functools.wraps(method)
    async def wrapper(self: LocalGateway, /, *args: P.args, **kwargs: P.kwargs) -> T:
        home = self._home
        if home is None or home is asyncio.get_running_loop():
            return await method(self, *args, **kwargs)
        future = asyncio.run_coroutine_threadsafe(method(self, *args, **kwargs), home)
        return await asyncio.wrap_future(future)

    return wrapper


class LocalGateway(Settings, Samples):
    """QQ on loopback, with a script for misfortune and a record of what each client did.

    `async with` serves from the running loop; `serving()` from a thread of its own, for tests that
    are not asyncio's and bots that block. The methods may be called from any loop and thread.

    What can be told, at first or while it runs (attributes of the same names):

    Args:
        app_id: the app that the token endpoint knows; `add_app` adds more.
        client_secret: its secret.
        host: where to listen. A request for another `Host` is refused with 421, so that no web page
            in a browser on this machine can talk to it by a name of its own (DNS rebinding);
            `0.0.0.0` and `::` answer to any.
        port: where to listen; 0 for any free port.
        heartbeat_interval: seconds. A line without a heartbeat (before its Identify or Resume:
            without either) for two intervals, but at least 2.5 s, is closed with 4009.
        shards: the number of shards that `/gateway/bot` suggests.
        session_starts: Identifies granted per app until the budget is reset; then op 9, 4903.
        session_reset: seconds from an app's first Identify until its budget is full again.
        max_concurrency: what `/gateway/bot` tells.
        identify_window: seconds in which an app may Identify `max_concurrency` times, then op 9,
            4903; QQ's are 5. `None` = not enforced.
        gateway_rate: calls of `/gateway` and `/gateway/bot` a minute beyond the first ten, then
            error 100001; QQ's are 2, for `/gateway`. `None` = not enforced.
        payload_rate: frames a client may send a minute, then 4008. `None` = not enforced.
        granted_intents: an Identify with others gets op 9, 4903. `None` = all are granted.
        deduplicate_replies: refuse the same `msg_id` and `msg_seq` again, as QQ does (40054005).
        token_lifetime: seconds.
        replay_limit: events kept per session.
        session_ttl: seconds a session stays resumable while offline; `None` = for ever.
        unknown_session_code: closes the line after op 9 for a Resume of no known session;
            `None` = op 9 alone.
        ready_shard: what READY tells instead of the shard asked for; bot-docs' sample has (0, 0).
        latency: seconds by which everything is sent late, HTTP answers too.

    What there is to read; every list in the order in which it happened:

    Attributes:
        clients: one record per connection.
        identifies: all clients' Identifies, and so `resumes`, `heartbeats`, `delivered`.
        sent: the bots' answers: messages, files, interactions; with the status each was given.
        calls: every other HTTP call.
        requests: how often each HTTP path was asked for, `/websocket` too, refused or not.

    Misfortunes. Those that strike lines act on the lines of one `shard` (`(id, count)`) or on all
    open ones, return how many they struck, and do not wait for the client:

    | misfortune | how |
    | --- | --- |
    | a line dies | `drop()` |
    | a close code | `close(4009)` |
    | op 7 | `reconnect()` |
    | op 9, d true, false or absent | `invalid_session(True)`, `(False)`, `(None)` |
    | op 1 from the gateway | `ask_heartbeat()` |
    | a half-open line | `freeze()`, from the start `open_half()` |
    | heartbeats without acknowledgement | `mute_acks()` |
    | frames that must not crash a client | `send_malformed("binary")`; `send(anything)` |
    | the same message, new number | `duplicate()` |
    | the same number again | `repeat()` |
    | numbers out of order | `reorder()` |
    | a gap in the numbers | `skip_numbers()` |
    | events too old to be replayed | `exhaust_replay()` |
    | sessions gone | `expire_sessions()` |
    | tokens ended early | `revoke_tokens()` |
    | no Hello, no READY, no RESUMED | `withhold("HELLO")`, `("READY")`, `("RESUMED")` |
    | a refused upgrade | `refuse_upgrades(code=503)` |
    | a refused Identify, a refused Resume | `refuse_identifies()`, `refuse_resumes(code=4006)` |
    | `/gateway` asked too often | `rate_limit()`; enforced: `gateway_rate=2` |
    | token or `/gateway`: 5xx, HTML, junk | `respond("POST", qq.TOKEN, "<html>", status=502)` |
    | an error of QQ's | `fail("GET", "/gateway", 100001, "too often")` |
    | a call that is never answered, cut off | `hang("POST", qq.TOKEN)`, `cut("POST", qq.TOKEN)` |
    | everything late | `latency = 0.5` |
    | too many Identifies | `session_starts`, `identify_window` |
    | too many frames, intents not granted | `payload_rate`, `granted_intents` |
    | READY with a shard nobody asked for | `ready_shard = (0, 0)` |
    """

    TOKEN = TOKEN

    def __post_init__(self) -> None:
        self.clients: list[Client] = []
        self._change = asyncio.Event()
        self._records = Records(self._changed)
        self._apps = Apps(self, time.monotonic)
        self._sessions = Sessions(self, time.monotonic)
        self._script = Script()
        self._frames = Frames(self, self._script, self._apps, self._sessions, self._records)
        self._api = Api(self, self._apps, self._records, lambda: self.ws_url, self._changed)
        self._lines: list[Line] = []
        self._runner: web.AppRunner | None = None
        self._home: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return (
            f"<LocalGateway {self.host}:{self.port} clients={len(self.clients)}"
            f" open={len(self._open())} sessions={len(self._sessions)}"
            f" identifies={len(self.identifies)} resumes={len(self.resumes)}"
            f" heartbeats={len(self.heartbeats)} delivered={len(self.delivered)}"
            f" sent={len(self.sent)}>"
        )

    # Where it is, and what it saw

    @property
    def api_url(self) -> str:
        """The stand-in for https://api.sgroup.qq.com and https://api.bot.qq.com."""
        return f"http://{self.host}:{self.port}"

    @property
    def token_url(self) -> str:
        """The stand-in for https://bots.qq.com/app/getAppAccessToken."""
        return self.api_url + TOKEN

    @property
    def ws_url(self) -> str:
        """The address that `/gateway` returns."""
        return f"ws://{self.host}:{self.port}/websocket"

    @property
    def identifies(self) -> list[Identify]:
        return self._records.of(Identify)

    @property
    def resumes(self) -> list[Resume]:
        return self._records.of(Resume)

    @property
    def heartbeats(self) -> list[Heartbeat]:
        return self._records.of(Heartbeat)

    @property
    def delivered(self) -> list[Delivery]:
        return self._records.of(Delivery)

    @property
    def sent(self) -> list[Sent]:
        return self._records.of(Sent)

    @property
    def calls(self) -> list[Call]:
        return self._records.of(Call)

    @property
    def requests(self) -> Counter[str]:
        return self._api.requests

    def add_app(self, app_id: str, client_secret: str) -> None:
        """Add an app that the token endpoint accepts."""
        self._apps.add(app_id, client_secret)

    def remaining(self, app_id: str | None = None) -> int:
        """Return how many Identifies an app has left; by default, the first app."""
        return self._apps.remaining(app_id or self.app_id)

    # Beginning and end

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError(f"already serving: {self!r}")
        app = web.Application(client_max_size=_UPLOAD, middlewares=[self._refuse_other_hosts])
        app.on_shutdown.append(self._hang_up)
        app.router.add_get("/websocket{slash:/?}", self._websocket)
        app.router.add_route("*", "/{path:.*}", self._api.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=GOODBYE)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except BaseException:
            await self._runner.cleanup()
            self._runner = None
            raise
        self.port = self._runner.addresses[0][1]
        self._home = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @_at_home
    async def aclose(self) -> None:
        """Stop listening and close every line with 1001. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
            self._home = None

    @contextlib.contextmanager
    def serving(self) -> Iterator[Self]:
        """Serve from a thread of its own while the block lasts."""
        loop = asyncio.new_event_loop()
        name = "LocalGateway"
        thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.__aenter__(), loop).result()
            try:
                yield self
            finally:
                asyncio.run_coroutine_threadsafe(self.aclose(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @web.middleware
    async def _refuse_other_hosts(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self.host not in _ANY and _name_of(request.host) not in {self.host, *_LOOPBACK}:
            return web.Response(status=421, text="this gateway has another name\n")
        return await handler(request)

    async def _hang_up(self, _: web.Application) -> None:
        """End the lines without waiting for the clients' answers."""
        self._api.hang_up()
        lines = list(self._lines)
        for line in lines:
            line.close(1001, "the gateway shuts down")
        with contextlib.suppress(TimeoutError):
            await self.wait_for(lambda _: all(line.ended for line in lines), timeout=_HANG_UP)
        for line in lines:
            stuck = line.transport.get_write_buffer_size()
            (line.transport.abort if stuck else line.transport.close)()

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        self._api.count(request)
        if self._script.upgrades:
            return _refuse_upgrade(request, self._script.upgrades.popleft())
        ws = web.WebSocketResponse(timeout=GOODBYE, autoclose=False, autoping=False)
        await ws.prepare(request)
        client = Client(len(self.clients) + 1, time.monotonic(), self._records)
        transport = request.transport
        if transport is None:  # gone already
            return ws
        line = Line(ws, transport, client, self, self._changed)
        self.clients.append(client)
        self._lines.append(line)
        self._frames.greet(line)
        self._changed()
        try:
            await line.run(functools.partial(self._receive, line))
        finally:
            self._lines.remove(line)
        return ws

    def _receive(self, line: Line, text: str | bytes) -> None:
        self._frames.receive(line, text)
        self._changed()

    # Feeding

    @_at_home
    async def emit(
        self,
        event_type: str,
        data: object,
        *,
        event_id: str | None = None,
        shard: Shard | None = None,
        app_id: str | None = None,
    ) -> tuple[int, ...]:
        """Give every session that asked for it, or those of one shard or app, an event.

        Return once the event is handed to the sockets of those that are online; for those that
        are offline it is kept. The sequence number in each session is returned, oldest session
        first: an empty tuple means there was no session, and the event is gone.
        """
        event_id = event_id or f"{event_type}:{uuid4().hex}"
        sessions = [s for s in self._sessions.chosen(shard, app_id) if s.wants(event_type)]
        return await self._publish([(s, s.add(event_type, event_id, data)) for s in sessions])

    @_at_home
    async def duplicate(self, event_id: str | None = None) -> tuple[int, ...]:
        """Deliver an event (default: each session's last) again, with a new number and its old id.

        Seen in the field minutes after the first delivery (QwenPaw#7946).
        """
        found = [(session, session.find(event_id)) for session in self._sessions.chosen()]
        return await self._publish([(s, s.add(e.type, e.id, e.data)) for s, e in found if e])

    @_at_home
    async def repeat(self, event_id: str | None = None) -> tuple[int, ...]:
        """Deliver an event (default: each session's last) again, under its old number."""
        found = [(session, session.find(event_id)) for session in self._sessions.chosen()]
        return await self._publish([(session, event) for session, event in found if event])

    @_at_home
    async def send(
        self, frame: Mapping[str, object] | str | bytes, *, shard: Shard | None = None
    ) -> int:
        """Send any frame, numbered or not, valid or not; text and bytes go out as they are."""
        lines = self._open(shard)
        sent = [line.push(frame) for line in lines]
        await self._until(lambda: all(done() for done in sent))
        return len(lines)

    async def send_malformed(self, kind: str, *, shard: Shard | None = None) -> int:
        """Send a frame that must not crash a client: a kind of `MALFORMED`, or `"huge"` (5 MB)."""
        return await self.send(malformed_frame(kind), shard=shard)

    async def ask_heartbeat(self, *, shard: Shard | None = None) -> int:
        """Send op 1; the client should answer with a heartbeat at once (bot-docs, opcode.md)."""
        return await self.send({"op": 1}, shard=shard)

    def reorder(self, times: int = 1) -> None:
        """Deliver each of the next events of online sessions after the one that follows it."""
        self._script.late += times

    def skip_numbers(self, count: int = 1) -> None:
        """Leave a gap in every session's numbers."""
        for session in self._sessions.chosen():
            session.last_seq += count

    # What strikes open lines

    @_at_home
    async def drop(self, *, shard: Shard | None = None) -> int:
        """Abort the connections without a close frame."""
        lines = self._open(shard)
        for line in lines:
            line.drop()
        return len(lines)

    @_at_home
    async def close(self, code: int, reason: str = "", *, shard: Shard | None = None) -> int:
        """Close the lines with a code, and return when the close frames are sent."""
        check_code(code)
        lines = self._open(shard)
        for line in lines:
            line.close(code, reason)
        await self._until(lambda: all(line.ended or line.frozen for line in lines))
        return len(lines)

    @_at_home
    async def reconnect(
        self, then: int = 4009, *, delay: float = 1.0, shard: Shard | None = None
    ) -> int:
        """Send op 7; answer the client's close with `then`, or close so after `delay` seconds.

        The field sees 4009 either way (openclaw#78890).
        """
        check_code(then)
        for line in self._open(shard):
            line.farewell = then
            line.later("reconnect", delay, line.close, then, "Session timed out")
        return await self.send({"op": 7}, shard=shard)

    @_at_home
    async def invalid_session(
        self, resumable: bool | None = False, *, shard: Shard | None = None
    ) -> int:
        """Send op 9, `None` = without `d`; the session is kept only if `resumable`.

        The line stays open, without a session: it may Identify again, and times out if it does not.
        """
        frame = {"op": 9} if resumable is None else {"op": 9, "d": resumable}
        lines = self._open(shard)
        sent = [line.push(frame) for line in lines]
        for line in lines:
            if line.session is not None and not resumable:
                self._sessions.remove(line.session)
            line.release()
        await self._until(lambda: all(done() for done in sent))
        return len(lines)

    @_at_home
    async def freeze(self, *, shard: Shard | None = None) -> int:
        """Leave the lines half-open: nothing is sent, read or closed on them any more.

        Their sessions believe themselves online, so what is emitted is lost until a Resume.
        """
        lines = self._open(shard)
        for line in lines:
            line.freeze()
        return len(lines)

    def mute_acks(self, muted: bool = True) -> None:
        """Stop or resume acknowledging heartbeats; they are still recorded."""
        self._script.acks_muted = muted

    # What waits for whoever comes next

    def refuse_upgrades(self, times: int = 1, code: int | None = 503) -> None:
        """Refuse the next WebSocket upgrades with an HTTP status; `None` = cut the connection."""
        self._script.upgrades.extend([code] * times)

    def open_half(self, times: int = 1) -> None:
        """Let the next connections open, and then be half-open: see `freeze`."""
        self._script.half_open += times

    def withhold(self, frame: Withheld, times: int = 1) -> None:
        """Leave out the next `"HELLO"`, `"READY"` or `"RESUMED"`; all else goes on as if sent."""
        self._script.withhold(frame, times)

    def refuse_identifies(self, times: int = 1, code: Refusal = "op9") -> None:
        """Refuse the next Identifies, as `refuse_resumes` does; this uses up no session start."""
        self._script.refuse(self._script.identifies, times, code)

    def refuse_resumes(self, times: int = 1, code: Refusal = 4006) -> None:
        """Refuse the next Resumes with a close code, op 9 (`d: false`, line open), or, with
        `None`, by dropping the line. The sessions themselves stay."""
        self._script.refuse(self._script.resumes, times, code)

    def expire_sessions(self) -> None:
        """End every session: offline ones now, the others when their lines end."""
        for session in self._sessions.chosen():
            session.expired = True

    def exhaust_replay(self) -> None:
        """Forget the events so far: a Resume that needs one of them gets 4007."""
        for session in self._sessions.chosen():
            session.forget_events()

    def revoke_tokens(self) -> None:
        """End all access tokens: HTTP says 11244, handshakes close with 4004."""
        self._apps.revoke()

    # HTTP

    def respond(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        status: int = 200,
        times: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Script an endpoint's answers, whatever token the calls carry; the newest script wins.

        Args:
            method: of the calls, `"GET"`.
            path: of the calls; `{name}` stands for any one part, `"/v2/users/{openid}/messages"`.
            body: text goes out as HTML, bytes as they are, `None` empty, all else as JSON. A
                function is given the `Call` and returns one of these.
            status: of the answer.
            times: calls answered so, then the endpoint is itself again; `None` = always.
            headers: of the answer, beside or instead of its own.
            delay: seconds until the answer.
        """
        self._api.script(method, path, Answer(body, status, headers or {}, delay), times)

    def fail(
        self,
        method: str,
        path: str,
        code: int,
        message: str = "failed by the script",
        *,
        status: int = 400,
        times: int | None = 1,
    ) -> None:
        """Answer calls to an endpoint with an error in QQ's format: see `respond`."""
        self._api.script(method, path, failure(code, message, status), times)

    def hang(self, method: str, path: str, times: int | None = 1) -> None:
        """Never answer calls to an endpoint; the connections stay open."""
        self._api.script(method, path, Answer(hang=True), times)

    def cut(self, method: str, path: str, times: int | None = 1) -> None:
        """Cut the connections of calls to an endpoint, without an answer."""
        self._api.script(method, path, Answer(status=None), times)

    def clear_responses(self) -> None:
        """Forget what `respond`, `fail`, `hang` and `cut` said."""
        self._api.clear_script()

    def rate_limit(self, times: int = 1) -> None:
        """Answer the next calls of `/gateway` and `/gateway/bot` with error 100001."""
        self._api.rate_limited += times

    # Waiting

    @_at_home
    async def wait_for(
        self,
        condition: Callable[[Self], object],
        timeout: float = 30.0,  # noqa: ASYNC109  (it is what asyncio.wait_for calls it)
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

    def _open(self, shard: Shard | None = None) -> list[Line]:
        return [
            line
            for line in self._lines
            if not line.closing
            and (shard is None or (line.session is not None and line.session.shard == shard))
        ]

    async def _publish(self, events: list[tuple[Session, Event]]) -> tuple[int, ...]:
        sent = [done for session, event in events for done in self._deliver(session, event)]
        await self._until(lambda: all(done() for done in sent))
        return tuple(event.seq for _, event in events)

    def _deliver(self, session: Session, event: Event) -> list[Callable[[], bool]]:
        if session.line is None:
            return []
        if self._script.late > 0:
            self._script.late -= 1
            session.late.append(event)
            return []
        line, events = session.line, [event, *session.late]
        session.late.clear()
        return [self._frames.deliver(line, event) for event in events]


def _name_of(host: str) -> str | None:
    """Return the name in a `Host` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _refuse_upgrade(request: web.Request, status: int | None) -> web.Response:
    if status is None and request.transport is not None:
        request.transport.abort()
    return web.Response(status=status or 503)
