"""One socket's part of a session: what its frames mean, and what to send when.

Rules:

* A frame is checked in full before anything changes. After `GatewayProtocolError` everything is as
  it was, and you can go on reading the socket (promise 19).
* Heartbeats, time-outs and answers are decided here. What outlives a socket belongs to
  `GatewaySession`.
* Any frame is a sign of life: a heartbeat's acknowledgement may be queued behind a long replay.
* The token is kept from `opened` until the handshake is written, and is never shown.

Sources: as in `session.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from ..errors import GatewayProtocolError
from ..state import MAX_INTEGER, MAX_SECONDS, parse_json
from ..words import Secret, whenever
from .closes import IGNORE, CloseRule
from .events import (
    Event,
    HeartbeatAck,
    HeartbeatRequest,
    Hello,
    InvalidSession,
    Ready,
    Reconnect,
    Resumed,
    Stale,
    Unknown,
)

if TYPE_CHECKING:
    from .session import GatewaySession

MAX_SESSION_ID = 512  # characters; the gateway's are UUIDs
_TEXT = (str, bytes)  # a constant, as `str | bytes` would be made anew for each frame
_MAX_FRAME = 4 * 2**20  # characters or bytes; our choice, aiohttp's default
_CLOSE_CODE = 4000  # our choice: 1000 and 1001 might end the session
_PATIENCE = 20.0  # seconds for Hello, then for READY or RESUMED after each event; our choice
_SHORTEST_INTERVAL = 1.0  # seconds between heartbeats, whatever Hello says; our choice
_VERDICT = 1.0  # seconds for the close frame that says why an Identify met op 9 (field reports)
_LATE = 1.0  # seconds; a timer that fires later judges nothing, and is asked again as much later


class Phase(Enum):
    """How far a connection has come."""

    OPENED = "opened"
    IDENTIFYING = "identifying"
    RESUMING = "resuming"
    RUNNING = "running"
    REFUSED = "refused"


_RESUMING = Phase.RESUMING  # looked up for every event
_ANSWERING = (Phase.RESUMING, Phase.IDENTIFYING)


class Connection:
    """One socket's part of a `GatewaySession`; `GatewaySession.connect` makes it.

    A loop for any WebSocket library::

        connection = gateway.connect()
        # open the socket, then
        connection.opened(token, now())
        while connection.close_with is None:
            # send each of connection.frames_to_send(), in order;
            # wait for a frame until connection.get_timer(), then
            connection.handle_timer(now())  # if none came
            event = connection.receive(frame, now())  # if one came
            # start what handles a Dispatch that is not already_handled;
            # store.record(gateway)
        # close the socket with close_with, if it is still open
        rule = connection.closed(code)
    """

    __slots__ = (
        "_beat_at",
        "_close_with",
        "_deadline",
        "_gateway",
        "_heard",
        "_interval",
        "_outbox",
        "_phase",
        "_token",
        "_unanswered",
    )

    def __init__(self, gateway: GatewaySession) -> None:
        self._gateway = gateway
        self._phase = Phase.OPENED
        self._token: Secret | None = None  # until it is in the handshake
        self._interval: float | None = None  # seconds between heartbeats, once Hello has come
        self._deadline: float | None = None  # for Hello, then for READY or RESUMED
        self._beat_at: float | None = None  # when the next heartbeat is due
        self._unanswered = False  # whether a heartbeat waits for its acknowledgement
        self._heard = False  # whether any frame came since that heartbeat
        self._outbox: list[str] = []
        self._close_with: int | None = None

    @whenever
    def __repr__(self) -> str:
        return f"<Connection phase={self._phase.value} stale={self.stale}>"

    @property
    def stale(self) -> bool:
        """Whether the connection was replaced by a newer one, or closed."""
        return self._gateway._connection is not self

    @property
    def close_with(self) -> int | None:
        """The code to close the socket with, now; `None` = go on."""
        return self._close_with if self._gateway._connection is self else _CLOSE_CODE

    def opened(self, token: str, now: float) -> None:
        """Note that the socket is open. From now on there are frames to send, and a timer.

        Args:
            token: the access token, with or without `QQBot ` in front. It is dropped as soon as
                the handshake is written.
            now: seconds since the epoch.
        """
        _check_now(now)
        bearer = _bearer(token)
        if self.stale or self._phase is not Phase.OPENED:
            return
        self._gateway._now = now
        self._token = bearer
        self._deadline = now + _PATIENCE
        if self._interval is not None:  # Hello was read before
            self._shake_hands(now)

    def frames_to_send(self) -> list[str]:
        """Return the frames to send now, in order; each frame is returned once."""
        frames, self._outbox = self._outbox, []
        return frames

    def get_timer(self) -> float | None:
        """Return when to call `handle_timer`, in seconds since the epoch; `None` = never.

        It may change with every other call.
        """
        if self._deadline is None or self._beat_at is None:
            return self._beat_at if self._deadline is None else self._deadline
        return min(self._deadline, self._beat_at)

    def handle_timer(self, now: float) -> None:
        """Do what is due: send a heartbeat, or give up a dead or silent line.

        It does no harm to call this too early. A call that is more than a second late gives nothing
        up, but asks to be called again a second later: the process was held up, and the frame that
        it waits for may still be unread in the socket.

        Args:
            now: seconds since the epoch.
        """
        _check_now(now)
        if self.stale:
            return
        self._gateway._now = now
        if self._deadline is not None and now >= self._deadline:
            self._deadline = self._give_up(self._deadline, now)
        if self._beat_at is not None and now >= self._beat_at:
            if self._unanswered and not self._heard:
                self._beat_at = self._give_up(self._beat_at, now)
            else:
                self._beat(now)

    def receive(self, frame: str | bytes | Mapping[str, Any], now: float) -> Event:
        """Take one frame and say what it means.

        It also lets go of events that were held too long (see `released`); heartbeat
        acknowledgements make sure that this happens on a quiet line as well.

        Args:
            frame: as the socket gave it, or decoded.
            now: seconds since the epoch.

        Raises:
            GatewayProtocolError: the frame does not have the documented shape. Nothing has changed.
        """
        if type(now) is not float or not 0.0 <= now <= MAX_SECONDS:
            _check_now(now)
        gateway = self._gateway
        if gateway._connection is not self:
            return Stale()
        self._heard = True
        payload = frame if type(frame) is dict else _decode(frame)
        op = payload.get("op")
        if type(op) is not int and (not isinstance(op, int) or isinstance(op, bool)):
            raise GatewayProtocolError(f"op must be an integer, not {_short(op)}")
        rule = _OPERATIONS.get(op)
        event = Unknown(op, payload) if rule is None else rule(self, payload, now)
        gateway._now = now
        if released := gateway._watermark.release(now):
            event.released = released
        return event

    def closed(self, code: int | None) -> CloseRule:
        """Say what follows from the end of this connection, and end it.

        Call it however the connection ended: closed by either side, broken, or never opened. The
        rule is the table's row, adjusted for what else is known. `next` is IDENTIFY instead of
        RESUME if there is nothing to resume or if that was tried too often, and STOP after the
        third Identify in a row that was answered with op 9, which means bad intents, a bad token or
        an exhausted limit.
        `wait` grows up to 60 s until a line has lived: a heartbeat was acknowledged after READY
        or RESUMED. It is at least 60 s after a token was refused twice in a row, and 20 s after
        op 9 upon an Identify, for which the token is refreshed; after 4902 it doubles up to 15
        minutes while that comes again within an hour. Before an Identify it is at least 5 s (the
        gateway's `max_concurrency` is per 5 s), and as long as the Identify budget demands, which
        is in the record: 20 at once, then one per 500 s. All waits are our choice.

        Args:
            code: the close code, `None` if there was no close frame.
        """
        if code is not None and (not isinstance(code, int) or isinstance(code, bool)):
            raise TypeError(f"code must be an int or None, not {code!r}")
        if self.stale:
            return IGNORE
        self._token = None
        self._outbox.clear()
        return self._gateway._judge(code, self._phase)

    def abandoned(self) -> None:
        """End the connection for a reason of our own, such as a stopping process.

        Call it instead of `closed` when no other connection follows. A Resume that has no answer
        yet says nothing about the session then, so it is not counted.
        """
        if not self.stale:
            self._token = None
            self._outbox.clear()
            self._gateway._abandon(self._phase)

    def _give_up(self, due: float, now: float) -> float:
        """Close the line, unless this call is late; return when to call again."""
        if now - due <= _LATE:
            self._close_with = _CLOSE_CODE
            return due
        return now + _LATE

    def _shake_hands(self, now: float) -> Literal["Identify", "Resume"] | None:
        """Write Resume if there is something to resume, else Identify; return which.

        Resume needs the token's prefix as Identify does, which is what all clients but botgo send.
        """
        gateway, token, self._token = self._gateway, self._token, None
        if (resume := gateway._resume_data(now)) is not None:
            self._phase = Phase.RESUMING
            self._greet(6, {"token": token, **resume})
        elif gateway._may_identify(now):
            self._phase = Phase.IDENTIFYING
            self._greet(2, {"token": token, **gateway._identify_data()})
        else:  # who waited as long as `closed` said does not come here
            self._close_with = _CLOSE_CODE
            return None
        self._deadline = now + _PATIENCE
        self._beat_at = now + (self._interval or _PATIENCE)  # should the replay take that long
        return "Identify" if self._phase is Phase.IDENTIFYING else "Resume"

    def _greet(self, op: int, data: object) -> None:
        self._outbox.append(Secret(json.dumps({"op": op, "d": data})))

    def _beat(self, now: float) -> None:
        self._send_beat()
        self._unanswered, self._heard = True, False
        self._beat_at = now + (self._interval or _PATIENCE)

    def _send_beat(self) -> None:
        received = self._gateway.received
        self._outbox.append(f'{{"op": 1, "d": {"null" if received is None else received}}}')

    def _run(self, now: float) -> None:
        """The session stands: a heartbeat goes out at once, unless one is on its way."""
        waited = self._deadline is not None and self._close_with is None
        self._phase, self._deadline = Phase.RUNNING, None
        if waited and not self._unanswered:
            self._beat(now)

    def _on_hello(self, payload: Mapping[str, Any], now: float) -> Event:
        data = payload.get("d")
        value = data.get("heartbeat_interval") if isinstance(data, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise GatewayProtocolError(f"heartbeat_interval must be a number, not {_short(value)}")
        if not 0 < value <= MAX_INTEGER:  # false for NaN too
            raise GatewayProtocolError(f"heartbeat_interval is out of range: {_short(value)}")
        self._interval = max(value / 1000, _SHORTEST_INTERVAL)
        return Hello(value / 1000, None if self._token is None else self._shake_hands(now))

    def _on_dispatch(self, payload: Mapping[str, Any], now: float) -> Event:
        seq, kind, event_id = payload.get("s"), payload.get("t"), payload.get("id")
        if type(seq) is not int or not 0 <= seq <= MAX_INTEGER:
            seq = _sequence_number(seq)
        if type(kind) is not str:
            kind = _text("t", kind) or ""
        if type(event_id) is not str:
            event_id = _text("id", event_id)
        data = payload.get("d")
        if kind == "READY":
            return self._on_ready(data, seq, now)
        if kind == "RESUMED":  # its `d` is an empty string
            self._gateway._resumed(seq, now)
            self._run(now)
            return Resumed(seq)
        replayed = self._phase is _RESUMING
        event = self._gateway._dispatched(kind, seq, event_id, data, replayed)
        if self._deadline is not None and self._phase in _ANSWERING:
            self._deadline = now + _PATIENCE
        return event

    def _on_ready(self, data: object, seq: int | None, now: float) -> Event:
        if not isinstance(data, Mapping):
            raise GatewayProtocolError(f"READY must carry an object, not {_short(data)}")
        session_id = _session_id(data.get("session_id"))
        self._gateway._begin(session_id, seq, now)
        self._run(now)
        return Ready(session_id, seq, data.get("user"))

    def _on_invalid_session(self, payload: Mapping[str, Any], now: float) -> Event:
        # What `d` means is not documented; clients read it as Discord's, and only `false` was seen.
        resumable = payload.get("d") is True
        if self._phase is Phase.IDENTIFYING:
            self._phase = Phase.REFUSED
            self._deadline, self._beat_at = now + _VERDICT, None
        elif self._phase is not Phase.REFUSED:
            self._close_with = _CLOSE_CODE
        if not resumable:
            self._gateway._forget()
        return InvalidSession(resumable)

    def _on_reconnect(self, payload: Mapping[str, Any], now: float) -> Event:
        self._close_with = _CLOSE_CODE
        return Reconnect()

    def _on_request(self, payload: Mapping[str, Any], now: float) -> Event:
        if self._phase is not Phase.OPENED:  # it may go unanswered, so it is no beat to wait for
            self._send_beat()
        return HeartbeatRequest()

    def _on_acknowledgement(self, payload: Mapping[str, Any], now: float) -> Event:
        self._unanswered = False
        if self._phase is Phase.RUNNING:
            self._gateway._back_off.lived()
        return HeartbeatAck()


_OPERATIONS: Mapping[int, Callable[[Connection, Mapping[str, Any], float], Event]] = {
    # interface-framework/opcode.md
    0: Connection._on_dispatch,
    1: Connection._on_request,  # the table allows it both ways
    7: Connection._on_reconnect,
    9: Connection._on_invalid_session,
    10: Connection._on_hello,
    11: Connection._on_acknowledgement,
}


# Checks


def _decode(frame: object) -> Mapping[str, Any]:
    """Return the payload of a frame."""
    if isinstance(frame, _TEXT):
        if len(frame) > _MAX_FRAME:
            raise GatewayProtocolError(f"a frame of {len(frame)} is longer than {_MAX_FRAME}")
        try:
            frame = parse_json(frame.decode() if isinstance(frame, bytes) else frame)
        except (ValueError, RecursionError) as error:
            raise GatewayProtocolError(f"a frame is not JSON: {type(error).__name__}") from None
    if type(frame) is not dict and not isinstance(frame, Mapping):  # the usual type first
        raise GatewayProtocolError(f"a payload must be an object, not {_short(frame)}")
    return frame


def _check_now(now: object) -> None:
    if not isinstance(now, int | float) or isinstance(now, bool):
        raise TypeError(f"now must be seconds as a float, not {now!r}")
    if not 0 <= now <= MAX_SECONDS:  # false for NaN too
        raise ValueError(f"now must be seconds since the epoch, not {now!r}")


def _bearer(token: object) -> Secret:
    """Return the token with its prefix; an error never shows it."""
    if not isinstance(token, str):
        raise TypeError(f"token must be a str, not {type(token).__name__}")
    if not token:
        raise ValueError("token must not be empty: ''")
    return Secret(token if token.startswith("QQBot ") else f"QQBot {token}")


def _sequence_number(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise GatewayProtocolError(f"s must be an integer, not {_short(value)}")
    if not 0 <= value <= MAX_INTEGER:
        raise GatewayProtocolError(f"s must be from 0 to 2**53 - 1, not {_short(value)}")
    return value


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise GatewayProtocolError(f"{name} must be a string, not {_short(value)}")
    return value


def _session_id(value: object) -> str:
    """Return it if a record can hold it."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SESSION_ID:
        raise GatewayProtocolError("READY must carry a session_id of 1 to 512 characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise GatewayProtocolError("READY's session_id has characters that no record can hold")
    return str.__str__(value)


def _short(value: object) -> str:
    """Describe what the gateway sent; its text is not shown whole, nor are huge integers."""
    if isinstance(value, bool | float | None):
        return repr(value)
    return type(value).__name__
