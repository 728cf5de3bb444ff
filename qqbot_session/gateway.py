"""`GatewaySession`, the Identify and Resume rules of QQ's gateway for any WebSocket library.

Rules:

* Pure: decoded payloads in, events and payloads out. No socket, clock, task, store or log; it
  never sees the token but to put it into a handshake. Not for use from several threads.
* Every `now` is seconds since the epoch (`time.time()`), because ages outlive the process.
* A payload is checked in full before anything changes: after `GatewayProtocolError` everything
  is as it was, and the socket may be read on (promise 19).
* What is stored is the number up to which everything is handled; heartbeats report the highest
  number received (promise 18).
* A session ends only when the gateway says so, its Resumes went unanswered, or it is too old.
* Policy is a table: `CLOSE_RULES`.

One `Connection` per socket, made by `GatewaySession.connect` just before the socket is. Once a
newer one is made, or it was closed, the older one changes nothing any more: what it receives is
`Stale`, and its close is `Next.IGNORE`. Late frames and closes of a replaced socket so need no
care. Who has only one socket at a time may call the same methods on the `GatewaySession` itself:
they act on the latest connection, and make one after `closed`.

The session of a bot belongs to its app, environment, shard and intents: give production and
sandbox, and every shard, an account id of its own.

Sources: the files named without a repository are in tencent-connect/bot-docs, below
`docs/develop/api-v2/dev-prepare/`: interface-framework/event-emit.md, interface-framework/
opcode.md and error-trace/websocket.md. What no document says is marked "our choice".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any

from .closes import CLOSE_RULES, IDENTIFY_WAIT, IGNORE, CloseRule, Next
from .errors import GatewayProtocolError
from .events import (
    Dispatch,
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
from .recent import MAX_REMEMBERED, RecentEvents
from .state import (
    MAX_EXTRA_BYTES,
    MAX_INTEGER,
    MAX_SECONDS,
    SessionState,
    check_app_id,
    check_intents,
    check_shard,
)
from .watermark import Watermark, check_limit

__all__ = [
    "CLOSE_RULES",
    "MAX_REMEMBERED",
    "CloseRule",
    "Connection",
    "Dispatch",
    "Event",
    "GatewaySession",
    "HeartbeatAck",
    "HeartbeatRequest",
    "Hello",
    "InvalidSession",
    "Next",
    "Ready",
    "Reconnect",
    "Resumed",
    "Stale",
    "Unknown",
]

_MAX_SESSION_ID = 512  # characters; the gateway's are UUIDs
_REFUSED_WAIT = 60.0  # seconds; our choice, as long as the clients we read wait for a rate limit
_BACK_OFF = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds, by closes without READY or RESUMED
_SETTLED_ABOVE = "settledAbove"  # fields of ours in `SessionState.extra`
_RECENT_EVENTS = "recentEvents"


class _Phase(Enum):
    OPENED = "opened"
    IDENTIFYING = "identifying"
    RESUMING = "resuming"
    RUNNING = "running"
    REFUSED = "refused"


class Connection:
    """One socket's part of a `GatewaySession`; `GatewaySession.connect` makes it.

    Attributes:
        heartbeat_interval: seconds, from Hello; `None` before it.
        acknowledged: whether the last heartbeat was acknowledged. If it is not when the next one
            is due, the line is dead: close it with 4000.
    """

    __slots__ = ("_gateway", "_phase", "acknowledged", "heartbeat_interval")

    def __init__(self, gateway: GatewaySession) -> None:
        self._gateway = gateway
        self._phase = _Phase.OPENED
        self.heartbeat_interval: float | None = None
        self.acknowledged = True

    def __repr__(self) -> str:
        return f"<Connection phase={self._phase.value} stale={self.stale}>"

    @property
    def stale(self) -> bool:
        """Whether the connection was replaced by a newer one, or closed."""
        return self._gateway._connection is not self

    def receive(self, payload: object, now: float) -> Event:
        """Take one decoded frame and say what it means.

        Also lets go what has been held too long (`released` of the event); heartbeat
        acknowledgements see to it that this happens on a quiet line, too.

        Args:
            payload: the decoded JSON.
            now: seconds since the epoch.

        Raises:
            GatewayProtocolError: the frame has not the documented shape. Nothing has changed.
        """
        _check_now(now)
        if self.stale:
            return Stale()
        if not isinstance(payload, Mapping):
            raise GatewayProtocolError(f"a payload must be an object, not {_short(payload)}")
        op = payload.get("op")
        if not isinstance(op, int) or isinstance(op, bool):
            raise GatewayProtocolError(f"op must be an integer, not {_short(op)}")
        rule = _OPERATIONS.get(op)
        event = Unknown(op, payload) if rule is None else rule(self, payload, now)
        released = self._gateway._watermark.release(now)
        return replace(event, released=tuple(released)) if released else event

    def handshake(self, token: str, now: float) -> dict[str, Any]:
        """Return what answers Hello: Resume if there is something to resume, else Identify.

        A Resume counts as failed until RESUMED comes, so save the state after sending it. An
        Identify forgets the old session. Resume needs the token's prefix as Identify does, which
        is what all clients but botgo send.

        Args:
            token: the access token, with or without `QQBot ` before it. It is not kept.
            now: seconds since the epoch.

        Raises:
            RuntimeError: the connection was replaced or closed.
        """
        _check_now(now)
        bearer = _bearer(token)
        if self.stale:
            raise RuntimeError("handshake on a connection that was replaced or closed")
        data = self._gateway._resume_data(now)
        self._phase = _Phase.IDENTIFYING if data is None else _Phase.RESUMING
        self.acknowledged = True
        if data is None:
            return {"op": 2, "d": {"token": bearer, **self._gateway._identify_data()}}
        return {"op": 6, "d": {"token": bearer, **data}}

    def heartbeat(self) -> dict[str, Any]:
        """Return a heartbeat: the highest number received, or `None` before there is any."""
        self.acknowledged = False
        return {"op": 1, "d": self._gateway.received}

    def closed(self, code: int | None) -> CloseRule:
        """Say what follows from the end of this connection, and end it.

        Call it for every end: a close by either side, a broken line, a socket that never opened.
        The rule is the table's row with what else is known put in: `next` is IDENTIFY instead of
        RESUME if there is nothing to resume or it was tried too often; `wait` is at least 5 s
        before an Identify (the gateway's `max_concurrency` is per 5 s), at least 60 s after a
        token was refused twice in a row or an Identify was answered with op 9 (which means bad
        token, intents or limits, so the token is refreshed), and grows up to 60 s while neither
        READY nor RESUMED comes. Both are our choice.

        Args:
            code: the close code, `None` if there was no close frame.
        """
        if code is not None and (not isinstance(code, int) or isinstance(code, bool)):
            raise TypeError(f"code must be an int or None, not {code!r}")
        if self.stale:
            return IGNORE
        return self._gateway._judge(code, refused=self._phase is _Phase.REFUSED)

    def _on_hello(self, payload: Mapping[str, Any], now: float) -> Event:
        data = payload.get("d")
        value = data.get("heartbeat_interval") if isinstance(data, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise GatewayProtocolError(f"heartbeat_interval must be a number, not {_short(value)}")
        if not 0 < value <= MAX_INTEGER:  # false for NaN too
            raise GatewayProtocolError(f"heartbeat_interval is out of range: {_short(value)}")
        self.heartbeat_interval = value / 1000
        return Hello(self.heartbeat_interval)

    def _on_dispatch(self, payload: Mapping[str, Any], now: float) -> Event:
        seq = _sequence_number(payload.get("s"))
        kind = _text("t", payload.get("t")) or ""
        event_id = _text("id", payload.get("id"))
        data = payload.get("d")
        if kind == "READY":
            return self._on_ready(data, seq, now)
        if kind == "RESUMED":  # its `d` is an empty string
            self._phase = _Phase.RUNNING
            self._gateway._resumed(seq, now)
            return Resumed(seq)
        replayed = self._phase is _Phase.RESUMING
        return self._gateway._dispatched(Dispatch(kind, seq, event_id, data, replayed), now)

    def _on_ready(self, data: object, seq: int | None, now: float) -> Event:
        if not isinstance(data, Mapping):
            raise GatewayProtocolError(f"READY must carry an object, not {_short(data)}")
        session_id = _session_id(data.get("session_id"))
        self._phase = _Phase.RUNNING
        self._gateway._begin(session_id, seq, now)
        return Ready(session_id, seq, data.get("user"))

    def _on_invalid_session(self, payload: Mapping[str, Any], now: float) -> Event:
        # What `d` means is not documented; clients read it as Discord's, and only `false` was seen.
        resumable = payload.get("d") is True
        if self._phase is _Phase.IDENTIFYING:
            self._phase = _Phase.REFUSED
        if not resumable:
            self._gateway._forget()
        return InvalidSession(resumable)

    def _on_acknowledgement(self, payload: Mapping[str, Any], now: float) -> Event:
        self.acknowledged = True
        return HeartbeatAck()


_OPERATIONS: Mapping[int, Callable[[Connection, Mapping[str, Any], float], Event]] = {
    # interface-framework/opcode.md
    0: Connection._on_dispatch,
    1: lambda connection, payload, now: HeartbeatRequest(),  # the table allows it both ways
    7: lambda connection, payload, now: Reconnect(),
    9: Connection._on_invalid_session,
    10: Connection._on_hello,
    11: Connection._on_acknowledgement,
}


class GatewaySession:
    """What one bot, or one shard of it, knows about its gateway session.

    Args:
        account_id: the key of the record.
        app_id: the bot's app id.
        intents: what Identify asks for.
        shard: `(shard id, shard count)` for Identify. READY's is not used: its sample is `[0, 0]`.
        resume: the stored state. Dropped if it is another account's, or holds another app id,
            shard or intents; what it leaves unset matches.
        max_resumes: Resumes in a row without RESUMED, counted across restarts, before an
            Identify; `None` = no limit. Without it a dead session is resumed for ever.
        max_session_age: seconds since Identify after which the next handshake is an Identify,
            `None` = never. A report tells of sessions that went silent after three days of
            Resumes (bot-docs issue 191).
        close_rules: replaces `CLOSE_RULES`; without the row `None`, that of `CLOSE_RULES` applies.
        max_held_seconds: an event unsettled for longer no longer holds the mark; `None` = never.
        max_held: nor do the oldest of more unsettled events than this; `None` = no limit.
        remember_events: how many recently handled events to know again by their ids, stored with
            the session; 0 = none, at most 512. Messages were seen to come again minutes later,
            across restarts (field reports). An id is known once its event is settled.

    Raises:
        TypeError, ValueError: an argument is wrong; the error names it.
    """

    def __init__(
        self,
        account_id: str,
        *,
        app_id: str,
        intents: int,
        shard: tuple[int, int] = (0, 1),
        resume: SessionState | None = None,
        max_resumes: int | None = 3,
        max_session_age: float | None = 2 * 86400.0,
        close_rules: Mapping[int | None, CloseRule] = CLOSE_RULES,
        max_held_seconds: float | None = 300.0,
        max_held: int | None = 1000,
        remember_events: int = 0,
    ) -> None:
        check_app_id(app_id)
        check_intents(intents)
        check_shard(shard)
        check_limit("max_resumes", max_resumes, (int,), 0)
        check_limit("max_session_age", max_session_age, (int, float), 0.0)
        check_limit("remember_events", remember_events, (int,), 0, MAX_REMEMBERED)
        _check_rules(close_rules)
        self._max_resumes = max_resumes
        self._max_session_age = max_session_age
        self._close_rules = close_rules
        self._watermark = Watermark(max_held_seconds=max_held_seconds, max_held=max_held)
        self._recent = RecentEvents(remember_events or 0)
        self._connection: Connection | None = None
        self._setbacks = 0  # closes since READY or RESUMED
        self._refused_tokens = 0  # closes with `refresh_token` since READY or RESUMED
        self._key: tuple[object, ...] = ()  # what `_state` was made of
        self._state: SessionState | None = None
        # All but the cursors; without a session, its `session_id` is None.
        self._session = SessionState(
            account_id=account_id, app_id=app_id, intents=intents, shard=shard
        )
        _check_room(self._session)
        if resume is not None:
            self._restore(resume)

    def __repr__(self) -> str:
        session_id = self._session.session_id
        return (
            f"<GatewaySession account_id={self._session.account_id!r} "
            f"session={None if session_id is None else session_id[:4] + '…'!r} "
            f"received={self.received} settled={self.settled}>"
        )

    @property
    def account_id(self) -> str:
        """The key of the record."""
        return self._session.account_id

    @property
    def received(self) -> int | None:
        """The highest number received in this session: what heartbeats report."""
        return self._watermark.received

    @property
    def settled(self) -> int | None:
        """The number up to which everything received is settled: what a Resume asks from."""
        return self._watermark.settled

    @property
    def state(self) -> SessionState | None:
        """The state to save; `None` = there is no session: clear the record.

        It is the same object until something in it changes. Its `extra` holds what the resumed
        record's held and, above the mark, the settled numbers, then the recent events' ids; ours
        are left out if they do not fit.
        """
        above = self._watermark.above()
        key = (self._session, self.settled, above, self._recent.text)
        if key != self._key:
            self._key = key
            self._state = self._make_state(above)
        return self._state

    def connect(self) -> Connection:
        """Return the connection for a new socket; every earlier one changes nothing any more."""
        self._connection = Connection(self)
        return self._connection

    def receive(self, payload: object, now: float) -> Event:
        """Do `Connection.receive` on the latest connection."""
        return self._latest().receive(payload, now)

    def handshake(self, token: str, now: float) -> dict[str, Any]:
        """Do `Connection.handshake` on the latest connection."""
        return self._latest().handshake(token, now)

    def heartbeat(self) -> dict[str, Any]:
        """Do `Connection.heartbeat` on the latest connection."""
        return self._latest().heartbeat()

    def closed(self, code: int | None) -> CloseRule:
        """Do `Connection.closed` on the latest connection."""
        return self._latest().closed(code)

    @contextmanager
    def handling(self, event: Dispatch) -> Iterator[None]:
        """Settle the event when the body ends well.

        If it raises, cancellation included, the event stays unsettled, so that a Resume, after
        a crash or in this process, delivers it again. It holds the mark until then, but no longer
        than `max_held_seconds` and `max_held` allow. Who knows better calls `settle`.
        """
        try:
            yield
        except BaseException:
            if event.seq is not None and not event.already_handled:
                self._watermark.fail(event.seq, event.generation)
            raise
        self.settle(event)

    def settle(self, event: Dispatch) -> None:
        """Note that the event needs nothing more, in any order and any number of times.

        The cursors ignore an event of an earlier session. One that is `already_handled` needs no
        settling: it changes nothing.
        """
        if event.already_handled:
            return
        if event.seq is not None:
            self._watermark.settle(event.seq, event.generation)
        self._recent.add(event.fingerprint)

    def _latest(self) -> Connection:
        return self._connection or self.connect()

    def _restore(self, record: SessionState) -> None:
        if not isinstance(record, SessionState):
            raise TypeError(f"resume must be a SessionState or None, not {record!r}")
        if not self._owns(record):
            return
        extra = dict(record.extra)
        above = extra.pop(_SETTLED_ABOVE, None)
        self._recent.restore(extra.pop(_RECENT_EVENTS, None))
        kept = replace(self._session, intent_level_index=record.intent_level_index, extra=extra)
        self._session = kept
        if record.resumable and len(record.session_id or "") <= _MAX_SESSION_ID:
            self._watermark.restore(record.last_seq, above)
            self._session = replace(
                kept,
                session_id=record.session_id,
                last_connected_at=record.last_connected_at,
                # The original's records do not say; when it connected is the next best.
                established_at=record.established_at or record.last_connected_at or None,
                failed_resumes=record.failed_resumes,
            )

    def _owns(self, record: SessionState) -> bool:
        """Whether the record is this account's and has nothing that says otherwise."""
        mine = self._session
        return (
            record.account_id == mine.account_id
            and record.app_id in (None, mine.app_id)
            and record.shard in (None, mine.shard)
            and record.intents in (None, mine.intents)
        )

    def _make_state(self, above: str) -> SessionState | None:
        if self._session.session_id is None:
            return None
        ours = {_SETTLED_ABOVE: above, _RECENT_EVENTS: self._recent.text}
        ours = {name: text for name, text in ours.items() if text}
        bare = replace(self._session, last_seq=self.settled)
        while ours:
            try:
                return replace(bare, extra={**bare.extra, **ours})
            except ValueError:  # too long together with the record's own
                ours.popitem()
        return bare

    def _may_resume(self) -> bool:
        tries = self._session.failed_resumes
        exhausted = self._max_resumes is not None and tries >= self._max_resumes
        return self._session.session_id is not None and self.settled is not None and not exhausted

    def _is_too_old(self, now: float) -> bool:
        since = self._session.established_at
        if since is None or self._max_session_age is None:
            return False
        return now - since > self._max_session_age

    def _resume_data(self, now: float) -> dict[str, Any] | None:
        """Count a Resume and return its data, or forget the session and return `None`."""
        if not self._may_resume() or self._is_too_old(now):
            self._forget()
            return None
        old = self._session
        self._session = replace(
            old,
            failed_resumes=min(old.failed_resumes + 1, MAX_INTEGER),
            established_at=now if old.established_at is None else old.established_at,
        )
        return {"session_id": old.session_id, "seq": self.settled}

    def _identify_data(self) -> dict[str, Any]:
        shard = list(self._session.shard or ())
        return {"intents": self._session.intents, "shard": shard, "properties": {}}

    def _begin(self, session_id: str, seq: int | None, now: float) -> None:
        self._watermark.reset()
        self._session = replace(self._session, session_id=session_id, established_at=now)
        self._resumed(seq, now)

    def _resumed(self, seq: int | None, now: float) -> None:
        self._setbacks = self._refused_tokens = 0
        if self._session.session_id is not None:
            self._session = replace(self._session, last_connected_at=now, failed_resumes=0)
        if seq is not None:
            self._watermark.receive(seq, now)
            self._watermark.settle(seq, self._watermark.generation)

    def _forget(self) -> None:
        self._watermark.reset()
        self._session = replace(
            self._session, session_id=None, established_at=None, failed_resumes=0
        )

    def _dispatched(self, event: Dispatch, now: float) -> Dispatch:
        generation = self._watermark.generation
        fingerprint = self._recent.fingerprint(event)
        handled = fingerprint in self._recent
        if event.seq is not None:
            handled = not self._watermark.receive(event.seq, now) or handled
            if fingerprint in self._recent:
                self._watermark.settle(event.seq, generation)
        return replace(
            event, already_handled=handled, fingerprint=fingerprint, generation=generation
        )

    def _judge(self, code: int | None, refused: bool) -> CloseRule:
        """End the latest connection; `refused`: its Identify was answered with op 9."""
        rule = self._close_rules.get(code) or self._close_rules.get(None) or CLOSE_RULES[None]
        self._connection = None
        if rule.next is not Next.RESUME:
            self._forget()
        if rule.next is Next.STOP:
            return rule
        waits = [rule.wait, _BACK_OFF[min(self._setbacks, len(_BACK_OFF) - 1)]]
        self._setbacks += 1
        self._refused_tokens += rule.refresh_token
        if refused or self._refused_tokens > 1:
            waits.append(_REFUSED_WAIT)
        resumes = rule.next is Next.RESUME and self._may_resume()
        if not resumes:
            waits.append(IDENTIFY_WAIT)
        return CloseRule(
            next=Next.RESUME if resumes else Next.IDENTIFY,
            refresh_token=rule.refresh_token or refused,
            wait=max(waits),
            meaning=rule.meaning,
        )


# Checks


def _check_now(now: object) -> None:
    if not isinstance(now, int | float) or isinstance(now, bool):
        raise TypeError(f"now must be seconds as a float, not {now!r}")
    if not 0 <= now <= MAX_SECONDS:  # false for NaN too
        raise ValueError(f"now must be seconds since the epoch, not {now!r}")


def _check_rules(rules: object) -> None:
    if not isinstance(rules, Mapping):
        raise TypeError(f"close_rules must be a mapping, not {rules!r}")
    for code, rule in rules.items():
        if not isinstance(rule, CloseRule):
            raise TypeError(f"close_rules must hold CloseRule, not {rule!r} for {code!r}")


def _check_room(session: SessionState) -> None:
    """Raise `ValueError` unless every later state will fit in a record, whatever comes."""
    replace(
        session,
        session_id="\U0010ffff" * _MAX_SESSION_ID,
        last_seq=MAX_INTEGER,
        last_connected_at=MAX_SECONDS,
        intent_level_index=MAX_INTEGER,
        established_at=MAX_SECONDS,
        failed_resumes=MAX_INTEGER,
        extra={"": "\ud800" + "x" * (MAX_EXTRA_BYTES - 32)},
    )


def _bearer(token: object) -> str:
    """Return the token with its prefix; an error never shows it."""
    if not isinstance(token, str):
        raise TypeError(f"token must be a str, not {type(token).__name__}")
    if not token:
        raise ValueError("token must not be empty: ''")
    return token if token.startswith("QQBot ") else f"QQBot {token}"


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
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SESSION_ID:
        raise GatewayProtocolError("READY must carry a session_id of 1 to 512 characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise GatewayProtocolError("READY's session_id has characters that no record can hold")
    return value


def _short(value: object) -> str:
    """Describe what the gateway sent; its text is not shown whole, nor are huge integers."""
    if isinstance(value, bool | float | None):
        return repr(value)
    return type(value).__name__
