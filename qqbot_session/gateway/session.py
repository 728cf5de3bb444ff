"""`GatewaySession` and its `Connection`: QQ's gateway protocol for any WebSocket library.

Rules:

* Pure: frames in, events, frames and a timer out. No socket, clock, task, store or log. Not for
  use from several threads.
* The loop around it sends `frames_to_send`, sleeps until `get_timer`, passes on what it receives,
  and closes the socket when `close_with` says so. Heartbeats, time-outs and answers are decided
  here.
* Every `now` is seconds since the epoch, because ages outlive the process. Take it from a clock
  that nobody adjusts, such as `time.time()` read once per line plus what `time.monotonic()` has
  advanced since: then a step of the wall clock neither looks like a dead line nor lets an event go
  (promise 11).
* What is stored is the number up to which everything is handled; heartbeats report the highest
  number received (promise 18).
* A session ends only when the gateway says so, when its Resumes go unanswered, or when it is too
  old.
* Policy is a table: `CLOSE_RULES`.

Each socket has its own `Connection`, which `GatewaySession.connect` makes just before the socket is
opened. Once a newer one exists, or once it was closed, a connection has no effect: whatever it
receives is `Stale`, and its close is `Next.IGNORE`. So late frames and closes of a replaced socket
need no special care.

The session of a bot belongs to its app, environment, shard and intents: give production and
sandbox, and every shard, an account id of its own.

Sources: the files named without a repository are in tencent-connect/bot-docs, below
`docs/develop/api-v2/dev-prepare/`: interface-framework/event-emit.md, interface-framework/
opcode.md and error-trace/websocket.md. What no document says is marked "our choice".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from ..state import (
    MAX_EXTRA_BYTES,
    MAX_INTEGER,
    MAX_SECONDS,
    SessionState,
    check_account_id,
    check_app_id,
    check_intents,
    check_shard,
    extra_length,
    known_valid,
    read_only,
)
from ..words import whenever
from .backoff import EARLY, BackOff
from .closes import CLOSE_RULES, NO_VERDICT, RESET, CloseRule, Next
from .connection import MAX_SESSION_ID, Connection, Phase
from .deaths import MAX_DEATHS, Deaths
from .events import Dispatch
from .recent import MAX_REMEMBERED, RecentEvents
from .refusals import Refusal, milliseconds, refusal_from_json
from .watermark import Watermark, check_limit

_REFUSALS = 3  # Identifies in a row answered with op 9, then it stops; our choice
_SETTLED_ABOVE = "settledAbove"  # fields of ours in `SessionState.extra`
_HELD_SECONDS = "heldSeconds"
_RECENT_EVENTS = "recentEvents"
_IDENTIFIES = "identifyBudgetFullAt"  # milliseconds since the epoch
_REFUSAL = "refusal"
_ADDRESS = "gatewayUrl"
_MAX_ADDRESS = 512  # characters
_DEATHS = "deaths"
_ENDED = "endedInOrder"
_TEXTS = (_DEATHS, _SETTLED_ABOVE, _HELD_SECONDS, _RECENT_EVENTS)

_EARLIER = 32  # sessions of this process whose events may still settle
_TIME = 16  # bytes of a time in milliseconds
# The longest account id, session id and `extra` leave room for this many characters.
_SHORT_APP_ID = 512

_BLANK = SessionState(account_id="-")
_generations = count(1)


class GatewaySession:
    """What one bot, or one shard of it, knows about its gateway session.

    If an SDK gives you sequence numbers but no frames, make the frames yourself. A connection that
    was never `opened` has nothing to send and no timer, and
    `receive({"op": 0, "t": "READY", "s": seq, "d": {"session_id": ...}}, now)` begins a session,
    `{"op": 0, "t": "RESUMED", "s": seq}` goes on with it, `{"op": 0, "t": type, "s": seq,
    "d": data}` is an event, and `{"op": 9, "d": False}` ends it.

    Args:
        account_id: the key of the record.
        app_id: the bot's app id.
        intents: what Identify asks for.
        shard: `(shard id, shard count)` for Identify. READY's is not used: its sample is `[0, 0]`.
        resume: the stored state. It is ignored if it belongs to another account, app, shard or
            intents; fields that it leaves unset match anything.
        max_resumes: how many Resumes in a row the gateway may refuse or leave unanswered before an
            Identify, counted across restarts; `None` = no limit, which can retry a dead session
            for ever. A Resume that brings an event to handle counts as answered. One that ends
            with 4004 or 4008, or was `abandoned`, is not counted.
        max_session_age: seconds since Identify after which the next handshake is an Identify,
            `None` = never. A report tells of sessions that went silent after three days of
            Resumes (bot-docs issue 191).
        close_rules: replaces `CLOSE_RULES`; without the row `None`, that of `CLOSE_RULES` applies.
        max_held_seconds: how long an event may hold the mark, in seconds summed over restarts,
            while its handler runs and after the handler ended without settling it; `None` = for
            ever. Between two lines, whose clocks may differ, only the wait that `closed` asked for
            is counted.
        failed: what happens to an event whose handler raised: `"settle"` counts it as handled,
            `"keep"` leaves it open, so that the next Resume brings it again. An event whose
            handler was cancelled always stays open.
        remember_events: how many recently handled events to recognise by their ids, stored with
            the session; 0 = none, at most 512. The same message has been seen again under a new
            number, within a second, and minutes later across restarts (field reports).
        jitter: returns a number from 0 to 1 that shortens the back-off, by a quarter at most.
        fingerprint: makes a salted digest of the bot's secret, to be kept with a refusal: with
            another secret the bot may try again at once. It is called with the digest of the
            record, whose salt it must use, or with an empty string.

    Raises:
        TypeError, ValueError: an argument is wrong; the error names it.

    Attributes:
        account_id: the key of the record.
        generation: unique in the process and higher than that of every `GatewaySession` made
            earlier: what an older one says about the same account is out of date.
        turn: changes whenever something changes that a crash must not undo, such as the session or
            the count of its Resumes.
    """

    __slots__ = (
        "__weakref__",
        "_back_off",
        "_close_rules",
        "_connection",
        "_deaths",
        "_earlier",
        "_ended",
        "_fingerprint",
        "_in_hand",
        "_keeps_failed",
        "_kept",
        "_key",
        "_max_resumes",
        "_max_session_age",
        "_measured",
        "_now",
        "_recent",
        "_refusal",
        "_refusals",
        "_silent",
        "_state",
        "_watermark",
        "account_id",
        "generation",
        "turn",
    )

    def __init__(
        self,
        account_id: str,
        *,
        app_id: str,
        intents: int,
        shard: tuple[int, int] = (0, 1),
        resume: SessionState | None = None,
        max_resumes: int | None = 3,
        max_session_age: float | None = None,
        close_rules: Mapping[int | None, CloseRule] = CLOSE_RULES,
        max_held_seconds: float | None = 300.0,
        failed: Literal["settle", "keep"] = "settle",
        remember_events: int = 256,
        jitter: Callable[[], float] = random.random,
        fingerprint: Callable[[str], str] | None = None,
    ) -> None:
        # All but the cursors; without a session, its `session_id` is None.
        self._kept = known_valid(
            _BLANK,
            account_id=check_account_id(account_id),
            app_id=check_app_id(app_id),
            intents=check_intents(intents),
            shard=check_shard(shard),
        )
        _check_room(self._kept)
        check_limit("max_resumes", max_resumes, (int,), 0)
        check_limit("max_session_age", max_session_age, (int, float), 0.0)
        check_limit("remember_events", remember_events, (int,), 0, MAX_REMEMBERED)
        _check_rules(close_rules, failed, jitter)
        self.generation, self.turn = next(_generations), 0
        self._max_resumes, self._max_session_age = max_resumes, max_session_age
        self._close_rules = close_rules
        self._keeps_failed = failed == "keep"
        self._watermark = Watermark(max_held_seconds=max_held_seconds)
        self._earlier: tuple[int, ...] = ()  # the sessions before this one
        self._recent = RecentEvents(remember_events or 0)
        self._deaths = Deaths()
        self._ended = False  # whether the process is stopping in order
        self._in_hand: dict[str, int] = {}  # number by name, of this session's unsettled events
        self._back_off = BackOff(jitter)
        self._refusals = 0  # Identifies in a row answered with op 9
        self._refusal: Refusal | None = None  # the latest, while no READY followed
        self._fingerprint = fingerprint
        self._silent = False  # whether another session's record is left alone for now
        self._now = 0.0  # seconds since the epoch, no later than it is
        self._connection: Connection | None = None
        self._measured: tuple[object, int] = (None, 0)  # the record's own `extra`, and its bytes
        self._key: tuple[object, ...] = ()  # what `_state` was made of
        self._state: SessionState | None = None
        self.account_id = self._kept.account_id
        if resume is not None:
            self._restore(resume)

    @whenever
    def __repr__(self) -> str:
        session_id = self._session.session_id
        return (
            f"<GatewaySession account_id={self.account_id!r} "
            f"session={None if session_id is None else session_id[:4] + '…'!r} "
            f"received={self.received} settled={self.settled}>"
        )

    @property
    def shard(self) -> tuple[int, int]:
        """`(shard id, shard count)`."""
        return self._kept.shard or (0, 1)

    @property
    def received(self) -> int | None:
        """The highest number received in this session: what heartbeats report."""
        return self._watermark.received

    @property
    def settled(self) -> int | None:
        """The number up to which everything received is settled: what a Resume asks from."""
        return self._watermark.settled

    @property
    def handled(self) -> object:
        """Changes with what was handled, and costs an event nothing: see `ledger.Source`."""
        return *self._watermark.done, self._recent.changes

    @property
    def resumable(self) -> bool:
        """Whether the next handshake will be a Resume, unless the session is too old by then."""
        return self._may_resume() and not self._is_too_old(self._now)

    @property
    def refusal(self) -> Refusal | None:
        """The latest refusal by QQ, in this process or before; `None` after READY."""
        return self._refusal

    def until_identify(self, now: float) -> float:
        """Return the seconds until the next Identify may be sent.

        It is what the budget and the latest refusal demand, across restarts. A loop that waits as
        long as `closed` says need only ask before its first line: otherwise that line is closed at
        once, and `closed` says how long to wait.

        Args:
            now: seconds since the epoch.
        """
        waits = [self._back_off.until_identify(now)]
        if self._refusal is not None:
            waits.append(self._refusal.wait(now))
        return max(waits)

    @property
    def address(self) -> str | None:
        """The gateway's address that was last `remember_address`ed, here or before a restart.

        It comes from the record, so whoever can write there can change it: check where it leads
        before a token goes there.
        """
        address = self._session.extra.get(_ADDRESS)
        return address if isinstance(address, str) else None

    def remember_address(self, address: str) -> None:
        """Keep the gateway's address with the session, for a Resume that need not ask for it."""
        if len(address) <= _MAX_ADDRESS and address != self.address:
            with suppress(ValueError):  # no room left in the record
                extra = {**self._session.extra, _ADDRESS: address}
                self._session = replace(self._session, extra=extra)

    @property
    def state(self) -> SessionState | None:
        """The state to save; `None` = there is nothing to remember: clear the record.

        Without a session there is something to remember while the budget of Identifies is not
        full, or QQ has refused the bot: `session_id` and `last_seq` are `None` then.

        It is the same object until something in it changes. Its `extra` holds what the resumed
        record's held, the budget and the refusal, and, above the mark, the settled numbers, the
        seconds that open events were held, and the recent events' digests; ours are left out if
        they do not fit.
        """
        watermark = self._watermark
        above, held = watermark.above(), watermark.held()
        begun = () if self._ended else watermark.begun()
        deaths = self._deaths.text(begun, watermark.is_left)
        key = (
            self.turn, watermark.settled, above, held, self._recent.changes, deaths,
            self._ended, self._back_off.full_at, self._refusal, self._silent,
        )  # fmt: skip
        if key != self._key:
            self._key = key
            self._state = self._make_state(above, held, deaths)
        return self._state

    def connect(self) -> Connection:
        """Return the connection for a new socket; earlier ones have no effect from now on."""
        self._connection = Connection(self)
        self._ended = False
        self._watermark.wait(0.0)
        return self._connection

    def handling(self, event: Dispatch) -> AbstractContextManager[None]:
        """Settle the event when the body succeeds; its time runs from here on.

        If the body raises, the rule `failed` applies, and the error goes on; `SystemExit` settles
        the event. If it is cancelled or interrupted (`CancelledError`, `KeyboardInterrupt`, all
        else that is no `Exception`), the event stays open, so that a Resume, after a crash or in
        this process, delivers it again. It holds the mark until then, but no longer than
        `max_held_seconds`.
        """
        return _Handling(self, event)

    def begin(self, event: Dispatch) -> None:
        """Note that the event's handler starts, so that `max_held_seconds` begin to run.

        Use it when you cannot use `handling`, and call `settle` or `fail` when the handler ends. An
        event that was never begun holds the mark for ever, so settle the events that you skip.
        """
        if event.seq is not None and not event.already_handled:
            self._watermark.begin(event.seq, event.generation)

    def settle(self, event: Dispatch) -> None:
        """Note that the event is done. Events may be settled in any order, and more than once.

        The cursors ignore an event of an earlier session, and everything ignores an event of
        another `GatewaySession`. An event that is `already_handled` need not be settled.
        """
        watermark = self._watermark
        if event.already_handled:
            return
        if event.generation != watermark.generation and event.generation not in self._earlier:
            return
        if event.seq is not None:
            watermark.settle(event.seq, event.generation)
        if event.name is not None:
            self._in_hand.pop(event.name, None)
            self._recent.add(event.name)

    def ending(self) -> None:
        """Note that the process is stopping in order, before its handlers get their grace.

        Otherwise the events that the next process's Resume brings count as begun in this one, as
        if it had died. What kills it from now on is a supervisor that waits no longer.
        """
        self._ended = True

    def settles(self, error: BaseException) -> bool:
        """Whether an event counts as handled if its handler raised this error.

        `SystemExit` is the handler's own decision. Anything else that is not an `Exception` comes
        from outside, and the event stays open. A group is judged by the errors in it.
        """
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.settles, error.exceptions))
        return isinstance(error, SystemExit) or (
            isinstance(error, Exception) and not self._keeps_failed
        )

    def fail(self, event: Dispatch) -> None:
        """Note that nobody handles the event any more: a Resume brings it again."""
        if event.seq is not None and not event.already_handled:
            self._watermark.fail(event.seq, event.generation)
            if event.name is not None and self._in_hand.get(event.name) == event.seq:
                del self._in_hand[event.name]

    @property
    def _session(self) -> SessionState:
        return self._kept

    @_session.setter
    def _session(self, session: SessionState) -> None:
        if session != self._kept:
            self._kept = session
            self.turn += 1

    def _change(self, **changes: Any) -> None:
        """Replace fields of the session by values that need no check: times are `_moment`s."""
        self._session = known_valid(self._kept, **changes)

    def _restore(self, record: SessionState) -> None:
        if not isinstance(record, SessionState):
            raise TypeError(f"resume must be a SessionState or None, not {record!r}")
        mine = self._session
        if record.account_id != mine.account_id or record.app_id not in (None, mine.app_id):
            return
        self._now = record.saved_at
        extra = dict(record.extra)
        self._back_off.restore(milliseconds(extra.pop(_IDENTIFIES, None)) or 0.0)
        refusal = refusal_from_json(extra.pop(_REFUSAL, None))
        if not self._owns(record):
            self._silent = True
            return
        if refusal is not None and refusal.fingerprint == self._digest(refusal.fingerprint or ""):
            self._refusal, self._refusals = refusal, _REFUSALS - 1  # one more is enough
        above, held = extra.pop(_SETTLED_ABOVE, None), extra.pop(_HELD_SECONDS, None)
        deaths, ended = extra.pop(_DEATHS, None), extra.pop(_ENDED, None)
        self._recent.restore(extra.pop(_RECENT_EVENTS, None))
        changes: dict[str, Any] = {"intent_level_index": record.intent_level_index}
        if extra:
            changes["extra"] = read_only(extra)
        if record.resumable and len(record.session_id or "") <= MAX_SESSION_ID:
            self._watermark.restore(record.last_seq, above, held)
            self._deaths.restore(deaths, in_order=ended is True)
            changes |= {
                "session_id": record.session_id,
                "last_connected_at": record.last_connected_at,
                # The original's records do not say; when it connected is the next best.
                "established_at": record.established_at or record.last_connected_at or None,
                "failed_resumes": record.failed_resumes,
            }
        self._change(**changes)

    def _owns(self, record: SessionState) -> bool:
        """Whether the session of this account and app has this shard and these intents."""
        mine = self._session
        return record.shard in (None, mine.shard) and record.intents in (None, mine.intents)

    def _make_state(self, above: str, held: str, deaths: str) -> SessionState | None:
        session = self._session
        ours: dict[str, Any] = {}  # what matters most comes first
        if (spent := self._back_off.full_at) > self._now:
            ours[_IDENTIFIES] = round(spent * 1000)
        if self._refusal is not None:
            ours[_REFUSAL] = read_only(self._refusal.to_json())
        if session.session_id is None and (self._silent or not ours):
            return None
        if self._ended and session.session_id is not None:
            ours[_ENDED] = True
        if deaths:
            ours[_DEATHS] = deaths
        if above:
            ours[_SETTLED_ABOVE] = above
        if held:
            ours[_HELD_SECONDS] = held
        if self._recent.limit and (recent := self._recent.text()):
            ours[_RECENT_EVENTS] = recent
        return known_valid(session, last_seq=self.settled, extra=self._with_ours(ours))

    def _with_ours(self, ours: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the record's own `extra` and as much of ours as fits."""
        theirs = self._session.extra
        if theirs and theirs is not self._measured[0]:
            self._measured = (theirs, extra_length(theirs))
        room = MAX_EXTRA_BYTES - (self._measured[1] if theirs else 0)
        fitting = {}
        for name, value in ours.items():
            # Texts of ASCII that JSON does not escape, and times; 16 bytes are around each of them.
            size = len(value) if type(value) is str else _TIME
            if name == _REFUSAL:
                size = extra_length({name: value})
            if (room := room - size - len(name) - 16) < 0:
                break
            fitting[name] = value
        return read_only({**theirs, **fitting}, plain=_TEXTS)

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
        self._watermark.hold_still()
        self._change(
            failed_resumes=min(old.failed_resumes + 1, MAX_INTEGER),
            established_at=_moment(now) if old.established_at is None else old.established_at,
        )
        return {"session_id": old.session_id, "seq": self.settled}

    def _digest(self, earlier: str) -> str | None:
        return None if self._fingerprint is None else self._fingerprint(earlier)

    def _may_identify(self, now: float) -> bool:
        """Whether an Identify may be sent now; if so, the budget has one less."""
        if self._refusal is not None and self._refusal.wait(now) > EARLY:
            return False
        return self._back_off.may_identify(now)

    def _identify_data(self) -> dict[str, Any]:
        self._silent = False
        return {"intents": self._session.intents, "shard": list(self.shard), "properties": {}}

    def _begin(self, session_id: str, seq: int | None, now: float) -> None:
        self._new_cursors()
        self._refusals, self._refusal = 0, None
        self._change(session_id=session_id, established_at=_moment(now))
        self._resumed(seq, now)

    def _resumed(self, seq: int | None, now: float) -> None:
        self._back_off.accepted()
        if self._session.session_id is not None:
            self._change(last_connected_at=_moment(now), failed_resumes=0)
        self._watermark.resumed(seq)
        self._deaths.resumed()

    def _forget(self) -> None:
        self._new_cursors()
        self._change(session_id=None, established_at=None, failed_resumes=0)

    def _new_cursors(self) -> None:
        self._earlier = (*self._earlier, self._watermark.generation)[-_EARLIER:]
        self._in_hand.clear()
        self._watermark.reset()
        self._deaths = Deaths()

    def _dispatched(
        self, kind: str, seq: int | None, event_id: str | None, data: object, replayed: bool
    ) -> Dispatch:
        watermark, recent = self._watermark, self._recent
        name = recent.name(kind, event_id, data) if recent.limit else None
        handled = name is not None and (
            name in recent.names
            or (bool(recent.restored) and name in recent)
            or (name in self._in_hand and self._is_copy(name, seq))
        )
        renumbered, deaths = False, 0
        if seq is not None:
            needed = watermark.receive(seq)
            if handled:
                watermark.settle(seq, watermark.generation)
            elif name is not None and not needed and not replayed:
                renumbered = name not in self._in_hand  # another event had this number
                needed = renumbered
            if name is not None and needed and not handled:
                self._in_hand[name] = seq
            handled = handled or not needed
            if (self._deaths.known or self._deaths.in_doubt) and not handled:
                deaths = self._deaths.received(seq, replayed=replayed)
                if handled := deaths >= MAX_DEATHS:
                    self._let_go(seq, name)
        if replayed and not handled and self._session.failed_resumes:
            self._change(failed_resumes=0)  # the Resume was answered
        event = Dispatch(kind, seq, event_id, data, replayed, handled, name, watermark.generation)
        if renumbered or deaths:
            event.renumbered, event.deaths = renumbered, deaths
        return event

    def _let_go(self, seq: int, name: str | None) -> None:
        """Let an event go that kills each process: it comes again under no number."""
        self._watermark.let_go(seq)
        if name is not None:
            self._in_hand.pop(name, None)
            self._recent.add(name)

    def _is_copy(self, name: str, seq: int | None) -> bool:
        """Whether another number's event, which holds the mark, is the same and in hand."""
        first = self._in_hand[name]
        return first != seq and self._watermark.is_open(first)

    def _abandon(self, phase: Phase) -> None:
        self._connection = None
        if phase is Phase.RESUMING:
            self._take_back_resume()

    def _take_back_resume(self) -> None:
        """Count the Resume that was sent last no more: it was not refused."""
        self._change(failed_resumes=max(0, self._session.failed_resumes - 1))

    def _judge(self, code: int | None, phase: Phase) -> CloseRule:
        """End the latest connection, which was in that phase."""
        rule = self._close_rules.get(code) or self._close_rules.get(None) or CLOSE_RULES[None]
        if code == RESET:
            rule = self._back_off.reset(rule, self._now)
        refused = phase is Phase.REFUSED
        self._connection = None
        self._refusals += refused
        if refused and self._refusals >= _REFUSALS and rule.next is not Next.STOP:
            meaning = _refusal(self._session.intents or 0)
            if code in self._close_rules and code is not None:
                meaning += f" It closed with {code}: {rule.meaning}"
            rule = CloseRule(Next.STOP, meaning=meaning)
        if rule.next is not Next.RESUME:
            self._forget()
        if rule.next is Next.STOP:
            told = code if code in self._close_rules else None
            self._refusal = Refusal(self._now, told, rule.meaning[:500], self._digest(""))
            self._silent = False
            return rule
        if phase is Phase.RESUMING and code in NO_VERDICT:
            self._take_back_resume()
        identifies = rule.next is Next.IDENTIFY or not self.resumable
        wait = self._back_off.wait(rule, identifies=identifies, refused=refused, now=self._now)
        meaning = rule.meaning
        if identifies and self._refusal is not None and self._refusal.wait(self._now) > wait:
            wait = self._refusal.wait(self._now)
            meaning = f"QQ has refused the bot: {self._refusal.reason}"
        self._now += wait  # at least that late it is when the next line opens
        self._watermark.wait(wait)
        return CloseRule(
            next=Next.IDENTIFY if identifies else Next.RESUME,
            refresh_token=rule.refresh_token or refused,
            wait=wait,
            meaning=meaning,
        )


class _Handling:
    """What `GatewaySession.handling` returns; made for every event, so without a base or a dict."""

    __slots__ = ("_event", "_gateway")

    def __init__(self, gateway: GatewaySession, event: Dispatch) -> None:
        self._gateway = gateway
        self._event = event

    def __enter__(self) -> None:
        event = self._event
        if event.seq is not None and not event.already_handled:
            self._gateway._watermark.begin(event.seq, event.generation)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        gateway = self._gateway
        if error is None or gateway.settles(error):
            gateway.settle(self._event)
        else:
            gateway.fail(self._event)


# Checks


def _refusal(intents: int) -> str:
    bits = " | ".join(f"1 << {bit}" for bit in range(intents.bit_length()) if intents >> bit & 1)
    return (
        f"The gateway refused {_REFUSALS} Identifies in a row: the bot may not use the intents "
        f"{intents} ({bits or 'none'}), or its token is not valid."
    )


def _check_rules(rules: object, failed: object, jitter: object) -> None:
    if failed not in ("settle", "keep"):
        raise ValueError(f"failed must be 'settle' or 'keep', not {failed!r}")
    if not callable(jitter):
        raise TypeError(f"jitter must be callable, not {jitter!r}")
    if rules is CLOSE_RULES:
        return
    if not isinstance(rules, Mapping):
        raise TypeError(f"close_rules must be a mapping, not {rules!r}")
    for code, rule in rules.items():
        if not isinstance(rule, CloseRule):
            raise TypeError(f"close_rules must hold CloseRule, not {rule!r} for {code!r}")


def _check_room(session: SessionState) -> None:
    """Raise `ValueError` unless every later state will fit in a record, whatever comes."""
    if len(session.app_id or "") <= _SHORT_APP_ID:
        return
    replace(
        session,
        session_id="\U0010ffff" * MAX_SESSION_ID,
        last_seq=MAX_INTEGER,
        last_connected_at=MAX_SECONDS,
        intent_level_index=MAX_INTEGER,
        established_at=MAX_SECONDS,
        failed_resumes=MAX_INTEGER,
        extra={"": "\ud800" + "x" * (MAX_EXTRA_BYTES - 32)},
    )


def _moment(now: float) -> float:
    """Return a time as a state holds it, to the millisecond."""
    return round(now * 1000) / 1000
