"""`ShardRunner`: keep one shard connected, its events handled, and its session remembered.

Rules:

* `Connection` knows the protocol: the runner sends what it says, sleeps until its timer, and closes
  when it asks. The store knows storage, and `Handlers` runs the handlers.
* Every event is handled in a task of its own, so that reading never waits for a handler.
* Only the socket, and what opens it, can end a line. A handler's error is logged, a malformed frame
  is skipped, and any other error is a bug of ours: it ends `run`, so that it cannot become a loop
  of reconnects (promise 20).
* Time is the loop's clock, dated once per line, so that a step of the wall clock does not look like
  a dead line.
* Nothing is silent: `ShardLog` has a line for every step.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from . import watch
from .errors import GatewayProtocolError, GatewayRefusedError, SessionWriteError
from .gateway import (
    CloseRule,
    Connection,
    Dispatch,
    Event,
    GatewaySession,
    HeartbeatAck,
    Hello,
    Next,
    Ready,
    Resumed,
)
from .guard import check_handler
from .judging import LoadReason, Verdict
from .loop.alarm import Alarm
from .loop.handlers import Handlers, requests_to_cancel
from .loop.log import ShardLog
from .state import SessionState, check_app_id, check_shard
from .store import AsyncSessionStore
from .words import Secret, whenever

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""The largest frame that the sockets in `integrations` take; a larger one ends the line."""

_TOKEN_WAIT = 10.0  # seconds for `token`; these are our choice
_CONNECT_WAIT = 10.0  # seconds for `connect`
_WRITE_WAIT = 2.0  # seconds for what should be on storage first
_GOODBYE = 2.0  # seconds for the peer to answer a close frame
_CLOSE_CODE = 4000  # 1000 might end the session
_ROUNDS = 20_000  # of PBKDF2, for a refusal: some 10 ms; QQ's secrets are random
_pause = asyncio.sleep


class Socket(Protocol):
    """One open WebSocket, as `ShardRunner` uses it; whatever it raises ends the line."""

    async def send(self, frame: str, /) -> object:
        """Send a text frame."""
        ...

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last; to be cancelled loses no frame."""
        ...

    async def close(self, code: int, /) -> int | None:
        """Close if it is open; return the code the line ended with, `None` without one.

        Cancelled when the peer does not answer within 2 s: then cut the line.
        """
        ...


class Pacer(Protocol):
    """What paces the Identifies of many shards, as `qqbot_session.pace.Pace` does."""

    async def before_identify(self, shard: tuple[int, int], /) -> object:
        """Wait until this shard may Identify; what it raises is a failed try."""
        ...

    def identified(self, shard: tuple[int, int], /) -> object:
        """Note that the shard's Identify goes out now."""
        ...

    def withdraw(self, shard: tuple[int, int], /) -> object:
        """Note that the shard's line has ended: an Identify that did not go out is not coming."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a shard is, for a probe. All times are seconds since the epoch.

    Attributes:
        connected_since: when READY or RESUMED came; `None` while there is no session on a line.
        last_frame_at: when the gateway last said anything.
        last_ack_at: when it last acknowledged a heartbeat.
        last_close_code: how the last line ended; `None` without a code.
        last_close_meaning: the same as a sentence; empty before the first end.
        next_try_at: when the next line will be opened; `None` while there is one.
        in_flight: events whose handlers run, or wait for a place.
    """

    connected_since: float | None = None
    last_frame_at: float | None = None
    last_ack_at: float | None = None
    last_close_code: int | None = None
    last_close_meaning: str = ""
    next_try_at: float | None = None
    in_flight: int = 0


class ShardRunner:
    """Keep one shard connected, and handle every event that comes.

    Args:
        store: remembers the session; not closed here.
        gateway: the shard's session, as `open_gateway` makes it.
        connect: opens a socket; given up after 10 s.
        token: returns an access token, a fresh one if its argument is true; given up after 10 s.
        handle: the bot's work, called in a task of its own for each event, and in a copy of the
            context that `run` is called in. The event counts as handled when it returns or
            raises (which is logged); not when it is cancelled. `answers.hold` in it holds the
            event open for longer, and `Answers.awaited(handle)` until it was answered.
        observe: called on the loop with every event as it comes, READY, RESUMED and those that are
            `already_handled` included, before its handler starts. If it raises, that is logged.
        before_identify: awaited before `token` and `connect` when the next handshake will be an
            Identify, for as long as it takes: the place to pace the Identifies of many shards.
        pace: the same for many shards at once, and told when each Identify goes out.
        concurrency: how many handlers run at a time; `None` = no limit, which is right for most.
            With a limit, handlers that wait for a later event can deadlock.
            Handlers start in the order of their events. Those that wait for a place are in memory,
            not handled, and come again after a restart.
        grace: seconds that handlers get to finish once `run` is cancelled. A second cancellation
            ends the grace.
        log: writes the log lines; by default to the logger `qqbot_session`.

    `connect`, `token` and `before_identify` may raise `GatewayRefusedError` if trying again is
    useless, which ends `run`. Any other error of theirs is a failed try.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """

    __slots__ = (
        "__weakref__",
        "_before_identify",
        "_cancels",
        "_connect",
        "_connected_since",
        "_ending",
        "_epoch",
        "_gateway",
        "_handlers",
        "_last_ack_at",
        "_last_close_code",
        "_last_close_meaning",
        "_last_frame_at",
        "_log",
        "_loop",
        "_next_try_at",
        "_observe",
        "_pace",
        "_refresh_token",
        "_running",
        "_store",
        "_token",
        "_write_first",
    )
    _loop: asyncio.AbstractEventLoop  # once there is a line

    def __init__(
        self,
        store: AsyncSessionStore,
        gateway: GatewaySession,
        *,
        connect: Callable[[], Awaitable[Socket]],
        token: Callable[[bool], Awaitable[str]],
        handle: Callable[[Dispatch], Awaitable[object]],
        observe: Callable[[Event], object] | None = None,
        before_identify: Callable[[], Awaitable[object]] | None = None,
        pace: Pacer | None = None,
        concurrency: int | None = None,
        grace: float = 5.0,
        log: ShardLog | None = None,
    ) -> None:
        check_options(concurrency, grace)
        check_handler("handle", handle, "event")
        self._store, self._gateway = store, gateway
        self._connect, self._token = connect, token
        self._observe = observe
        self._before_identify = before_identify
        self._pace = pace
        self._running = self._ending = False
        self._refresh_token = False
        self._write_first = False  # whether something must be on storage before it is sent
        self._cancels = 0  # requests to cancel our task that came before `run`
        self._epoch = 0.0  # what dates the loop's clock, which nobody sets
        self._log = log or ShardLog(gateway.account_id)
        self._handlers = Handlers(
            gateway,
            handle,
            self._log,
            line=self,
            concurrency=concurrency,
            grace=grace,
        )
        self._connected_since: float | None = None  # these are what `Health` says
        self._last_frame_at: float | None = None
        self._last_ack_at: float | None = None
        self._last_close_code: int | None = None
        self._last_close_meaning = ""
        self._next_try_at: float | None = None

    @whenever
    def __repr__(self) -> str:
        return f"<ShardRunner {self._gateway!r} {self.health!r}>"

    @property
    def account_id(self) -> str:
        """Whose line it is."""
        return self._gateway.account_id

    @property
    def health(self) -> Health:
        """How the shard is now."""
        return Health(
            connected_since=self._connected_since,
            last_frame_at=self._last_frame_at,
            last_ack_at=self._last_ack_at,
            last_close_code=self._last_close_code,
            last_close_meaning=self._last_close_meaning,
            next_try_at=self._next_try_at,
            in_flight=self._handlers.in_flight,
        )

    async def run(self) -> None:
        """Keep the line up until cancelled.

        1. Open it: `before_identify` if need be, `token`, `connect`.
        2. Read it, start a handler for each event, and beat, until it ends or is to be closed.
        3. Close it, ask the rules what follows, wait, and begin again.
        4. Cancelled: close it, give the handlers `grace` seconds, cancel those that are left.

        Raises:
            GatewayRefusedError: trying again is useless.
            RuntimeError: it is running already, or another runner has the same `GatewaySession`.
        """
        if self._running:
            raise RuntimeError(f"run is running already: {self!r}")
        self._running, self._ending = True, False
        watch.lines.add(self)
        self._cancels = requests_to_cancel()
        try:
            while True:
                connection, alarm, code = self._begin_line(), Alarm(), None
                try:
                    if (socket := await self._open(connection, alarm)) is not None:
                        code = await self._live(connection, alarm, socket)
                finally:
                    alarm.stop()
                    if self._pace is not None:
                        self._pace.withdraw(self._gateway.shard)
                await _pause(self._end_line(connection, code).wait)
        finally:
            self._ending = True
            try:
                await self._handlers.finish()
            finally:
                try:
                    self._record()
                finally:
                    self._running = False
                    watch.lines.discard(self)

    # A line

    def _begin_line(self) -> Connection:
        self._handlers.line_opened()
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time() - self._loop.time()
        return self._gateway.connect()

    def _end_line(self, connection: Connection, code: int | None) -> CloseRule:
        """Return what follows from the line's end."""
        theirs = code if connection.close_with is None else None  # else it is our own
        rule = connection.closed(code)
        if rule.next is Next.IGNORE:  # to open the next line would end the other's, and so on
            raise RuntimeError(f"another line was opened for the same session: {self._gateway!r}")
        self._refresh_token |= rule.refresh_token
        self._record()
        self._note_close(code, rule)
        if rule.next is Next.STOP:
            raise GatewayRefusedError(self._gateway.account_id, theirs, rule.meaning)
        return rule

    async def _open(self, connection: Connection, alarm: Alarm) -> Socket | None:
        """Open a socket and give the connection a token; `None` if there is none to be had now."""
        try:
            if not self._gateway.resumable:
                await self._wait_for_turn()
            alarm.set(self._loop.time() + _TOKEN_WAIT)
            token = await self._token(self._refresh_token)
            alarm.heed()
            self._end_if_asked()
            token = Secret(token) if isinstance(token, str) else token  # no traceback shows it
            self._refresh_token = False
            alarm.set(self._loop.time() + _CONNECT_WAIT)
            socket = await self._connect()
            alarm.heed()
        except GatewayRefusedError:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the next try is as good
            late = alarm.heed()
            self._raise_if_asked_to_end(error)
            self._log.no_line(TimeoutError() if late else error)
            return None
        self._next_try_at = None
        self._log.connected()
        try:
            connection.opened(token, self._now())
        except BaseException:  # the token is none
            alarm.stop()
            await self._close(socket, _CLOSE_CODE)
            raise
        return socket

    async def _wait_for_turn(self) -> None:
        """Wait until an Identify may be sent."""
        if (wait := self._gateway.until_identify(self._now())) > 1.0:
            self._log.waiting(wait, self._gateway.refusal)
            self._next_try_at = time.time() + wait
            await _pause(wait)
        if self._before_identify is not None:
            await self._before_identify()
        if self._pace is not None:
            await self._pace.before_identify(self._gateway.shard)

    async def _live(self, connection: Connection, alarm: Alarm, socket: Socket) -> int | None:
        """Serve an open line until it ends or is to be closed, and close it; return its code.

        One coroutine: this is where a line waits for days, and what it takes in memory.
        """
        code, due = None, 0.0
        is_quiet = False  # whether there is nothing to do but to wait for the next frame
        try:
            self._end_if_asked()
            while is_quiet or connection.close_with is None:
                frame = ours = None  # so that nothing is kept while it waits
                try:
                    if not is_quiet:
                        if (timer := connection.get_timer()) is not None and timer != due:
                            due = timer
                            alarm.set(due - self._epoch)
                        if self._write_first:
                            await self._write()
                        for ours in connection.frames_to_send():
                            await socket.send(ours)
                    if not alarm.rings:  # else `send` has kept that to itself
                        frame = await socket.receive()
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a broken line
                    if not alarm.rings:
                        self._raise_if_asked_to_end(error)
                        self._log.broken(error)
                        break
                if frame is not None:
                    is_quiet = self._take(connection, frame)
                elif not alarm.rings:
                    break
                if alarm.rings or alarm.task.cancelling() > self._cancels:
                    is_quiet = False
                    if alarm.heed():
                        self._wake(connection, due)
                    self._end_if_asked()
        except asyncio.CancelledError:
            self._ending = True
            connection.abandoned()
            self._record()  # before the peer's farewell, which may take its time
            raise
        finally:
            alarm.stop()
            self._handlers.replay_ended()
            code = await self._close(socket, connection.close_with or _CLOSE_CODE)
            self._connected_since = None
        return code

    def _wake(self, connection: Connection, due: float) -> None:
        """Do what is due, unless the task is to end."""
        self._end_if_asked()
        connection.handle_timer(max(self._now(), due))  # loops wake a tick early
        self._record()

    async def _close(self, socket: Socket, code: int) -> int | None:
        try:
            async with asyncio.timeout(_GOODBYE):
                return await socket.close(code)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - gone is closed, too
            self._raise_if_asked_to_end(error)
            self._log.closing(error)
        return None

    # Events

    def _take(self, connection: Connection, frame: str | bytes) -> bool:
        """Take a frame; return whether it changes nothing of what is to be done on the line."""
        now = self._last_frame_at = self._now()
        try:
            event = connection.receive(frame, now)
        except GatewayProtocolError as error:
            self._log.skipped(error, now - self._epoch)
            return True
        if type(event) is not Dispatch:
            self._note(event, now)
        elif event.renumbered:
            self._log.renumbered(event)
        elif event.deaths and event.already_handled:
            self._log.deadly(event)
        if event.released:
            self._log.released(event.released)
        if self._observe is not None:
            self._show(event)
        if type(event) is Dispatch and not event.already_handled:
            self._handlers.take(event)  # recorded when it was handled: a receipt is worth no write
            return True
        self._record()
        return False

    def _note(self, event: Event, now: float) -> None:
        if isinstance(event, HeartbeatAck):
            self._last_ack_at = now
        elif isinstance(event, Ready | Resumed):
            self._connected_since = now
            self._log.session(event)
            self._handlers.replay_ended()
            self._write_first = isinstance(event, Ready)  # its first event may kill this process
        elif isinstance(event, Hello):
            self._greeted(event)

    def _greeted(self, hello: Hello) -> None:
        if hello.heartbeat_interval < 1.0:
            self._log.short_interval(hello.heartbeat_interval)
        if hello.handshake is None:
            return
        if hello.handshake == "Identify":
            self._write_first = True  # whatever happens to this process, it counts
            if self._pace is not None:
                self._pace.identified(self._gateway.shard)
        self._log.handshake(hello.handshake, self._gateway.settled)

    def _note_close(self, code: int | None, rule: CloseRule) -> None:
        self._last_close_code, self._last_close_meaning = code, rule.meaning
        self._next_try_at = None if rule.next is Next.STOP else time.time() + rule.wait
        self._log.closed(code, rule)

    def _show(self, event: Event) -> None:
        try:
            answer = self._observe(event)  # type: ignore[misc]
            if answer is not None and asyncio.iscoroutine(answer):
                answer.close()
                raise TypeError("observe is async, and nobody awaits it")
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - not the line's error
            self._log.observer_failed(event, error)

    # Small things

    def _record(self) -> None:
        if self._running:  # else it is for a handler that has outlived `run`
            self._store.record_nowait(self._gateway)
            if self._ending:  # there may be no time for a window
                self._store.flush_nowait(self._gateway.account_id)

    async def _write(self) -> None:
        """Wait until the account is on storage, but not for long: its writes are retried anyway."""
        self._write_first = False
        with contextlib.suppress(TimeoutError, SessionWriteError):
            async with asyncio.timeout(_WRITE_WAIT):
                await self._store.flush(self._gateway.account_id)

    def _now(self) -> float:
        return self._epoch + self._loop.time()

    def _raise_if_asked_to_end(self, error: BaseException) -> None:
        """Raise `CancelledError` if we were cancelled, whatever a library made of that.

        A cancellation that nobody asked for is the failure of the library that it came out of.
        """
        if requests_to_cancel() > self._cancels:
            raise error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError

    def _end_if_asked(self) -> None:
        """Raise `CancelledError` if we were cancelled, though what we called returned."""
        if requests_to_cancel() > self._cancels:
            raise asyncio.CancelledError


def account_id_for(app_id: str, shard: tuple[int, int] = (0, 1), *, sandbox: bool = False) -> str:
    """Return the account id of a bot's shard: `102000000-0-1`, with `-sandbox` in the sandbox."""
    check_app_id(app_id)
    check_shard(shard)
    return f"{app_id}-{shard[0]}-{shard[1]}" + ("-sandbox" if sandbox else "")


async def open_gateway(
    store: AsyncSessionStore,
    app_id: str,
    *,
    intents: int,
    shard: tuple[int, int] = (0, 1),
    sandbox: bool = False,
    secret: str | None = None,
    **rules: Any,
) -> GatewaySession:
    """Return a shard's session, with what the store remembers of it.

    What was spent of the Identifies, and that QQ refused the bot, counts without a session, too.

    Args:
        intents: what Identify asks for.
        shard: `(shard id, shard count)`.
        secret: the bot's secret: a bot that was refused and has another one by now may try again
            at once. Only a salted digest of it is stored, and only with a refusal.
        rules: further arguments of `GatewaySession`.
    """
    account_id = account_id_for(app_id, shard, sandbox=sandbox)
    if secret is not None:
        secret = hidden = Secret(secret)  # no traceback shows the argument
        rules.setdefault("fingerprint", lambda earlier: _fingerprint(hidden, earlier))
    verdict = await store.load_verdict(account_id, app_id=app_id, shard=shard, intents=intents)
    gateway = GatewaySession(
        account_id, app_id=app_id, intents=intents, shard=shard, resume=_kept(verdict), **rules
    )
    if verdict.reason is LoadReason.EXPIRED and gateway.state is not None:  # `load` has removed it
        store.record_nowait(gateway)
    return gateway


def _kept(verdict: Verdict) -> SessionState | None:
    """Return what a record is still good for: all of it, or all but its session."""
    state = verdict.state
    if state is None or verdict.reason is LoadReason.RESUMABLE:
        return state
    return replace(state, session_id=None, last_seq=None, established_at=None, failed_resumes=0)


def _fingerprint(secret: str, earlier: str) -> str:
    """Return a salted digest of the secret, with the salt of an earlier one."""
    salt = earlier.partition(":")[0] or os.urandom(16).hex()
    digest = hashlib.pbkdf2_hmac("sha256", secret.encode(), salt.encode(), _ROUNDS)
    return f"{salt}:{digest.hex()}"


def check_options(concurrency: object, grace: object) -> None:
    if concurrency is not None:
        if not isinstance(concurrency, int) or isinstance(concurrency, bool):
            raise TypeError(f"concurrency must be an int or None, not {concurrency!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
    if not isinstance(grace, int | float) or isinstance(grace, bool):
        raise TypeError(f"grace must be seconds as a float, not {grace!r}")
    if not grace >= 0:  # true for NaN
        raise ValueError(f"grace must be at least 0 seconds, not {grace!r}")
