"""What the gateway makes of a client's frames: heartbeats, Identify, Resume.

Frames and close codes follow the bot-docs (event-emit.md, opcode.md, websocket.md); the codes
4003 to 4005 follow botgo's errs/err.go.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from .apps import Apps
from .line import Line
from .records import Delivery, Heartbeat, Identify, Records, Resume
from .sessions import Event, Session, Sessions
from .settings import Refusal, Script, Settings, Shard

_PATIENCE = 2.0  # heartbeat intervals without a heartbeat until a line is closed
_LEAST_PATIENCE = 2.5  # seconds; `qqbot_session` sends a heartbeat a second at most
_SERVER_OPS = frozenset({0, 7, 9, 10, 11})

_log = logging.getLogger("qqbot_session.testing")


class Frames:
    """Greet lines, answer what they send, and hand them events."""

    def __init__(
        self, settings: Settings, script: Script, apps: Apps, sessions: Sessions, records: Records
    ) -> None:
        self._settings, self._script = settings, script
        self._apps, self._sessions, self._records = apps, sessions, records

    def greet(self, line: Line) -> None:
        if self._script.opens_half():
            line.freeze()
        if not self._script.withholds("HELLO"):
            interval = max(1, round(self._settings.heartbeat_interval * 1000))
            line.push({"op": 10, "d": {"heartbeat_interval": interval}})
        self._expect_heartbeat(line)

    def receive(self, line: Line, text: str | bytes) -> None:
        if line.closing:
            return
        if line.floods():
            line.close(4008, "sent too fast")
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

    def deliver(self, line: Line, event: Event, replayed: bool = False) -> Callable[[], bool]:
        """Queue an event; return a function that tells whether it is sent, or never will be."""

        def record() -> None:
            number = line.client.number
            delivery = Delivery(number, event.seq, event.type, event.id, replayed, time.monotonic())
            self._records.add(delivery)

        return line.push(event.payload, record)

    def _expect_heartbeat(self, line: Line) -> None:
        limit = max(self._settings.heartbeat_interval * _PATIENCE, _LEAST_PATIENCE)
        # In two steps: after the loop was held up, a heartbeat may come, or lie unread.
        close = (limit / 5, line.close, 4009, "Session timed out")
        line.later("heartbeat", limit * 4 / 5, line.later, "heartbeat", *close)

    def _on_heartbeat(self, line: Line, d: object) -> None:
        self._records.add(Heartbeat(line.client.number, d, time.monotonic()))
        if line.session is not None:  # before, it does not delay the time-out
            self._expect_heartbeat(line)
        if not self._script.acks_muted:
            line.push({"op": 11})

    def _on_identify(self, line: Line, d: object) -> None:
        token, intents, shard = _fields(d, "token", "intents", "shard")
        number = line.client.number
        _log.debug("client %d: Identify, shard %s, intents %s", number, shard, intents)
        self._records.add(Identify(number, token, intents, shard, time.monotonic()))
        app_id = self._admit(line, d, token, self._script.identifies, bare=False)
        if app_id is None:
            return
        valid_shard = shard_of(shard)
        if valid_shard is None:
            line.close(4010, "invalid shard")
        elif type(intents) is not int or intents < 0:
            line.close(4013, "invalid intents")
        elif not self._may_create(app_id, intents):
            _refuse(line, 4903)
        else:
            self._start(line, app_id, valid_shard, intents)

    def _may_create(self, app_id: str, intents: int) -> bool:
        granted = self._settings.granted_intents
        return (
            self._apps.remaining(app_id) > 0
            and not self._apps.too_fast(app_id)
            and (
                granted is None or not intents & ~granted
            )  # DeepSeek-Reasonix#7512: op 9, not 4014
        )

    def _admit(
        self, line: Line, d: object, token: object, refusals: deque[Refusal], *, bare: bool
    ) -> str | None:
        """Return the app whose handshake may go on; else answer as the gateway would.

        Args:
            bare: whether the token may lack its prefix.
        """
        app_id = self._app_of(line, token, bare) if _may_start(line, d) else None
        return None if app_id is None or _refused(line, refusals) else app_id

    def _app_of(self, line: Line, token: object, bare: bool) -> str | None:
        """Return the token's app, or answer as the gateway would.

        botgo sends the bare token with Resume (websocket/client/client.go).
        """
        text = token if isinstance(token, str) else ""
        key = text.removeprefix("QQBot ")
        app_id, good = self._apps.find(key)
        if app_id is None or (key == text and not bare):
            _refuse(line, 4903)  # op 9, then 4903: openclaw-qqbot#18
        elif not good:
            line.close(4004, "authentication failed")
        else:
            return app_id
        return None

    def _start(self, line: Line, app_id: str, shard: Shard, intents: int) -> None:
        for old in self._sessions.chosen(shard, app_id):
            self._sessions.remove(old)
            if old.line is not None:
                old.line.close(4902, "reset by identify")
        self._apps.spend(app_id)
        session = self._sessions.begin(app_id, shard, intents)
        ready = {
            "version": 1,
            "session_id": session.id,
            "user": {"id": app_id, "username": "local bot", "bot": True},
            "shard": list(self._settings.ready_shard or shard),
        }
        self._attach(line, session)
        if not self._script.withholds("READY"):
            frame = {"op": 0, "s": 1, "t": "READY", "d": ready}
            line.push(frame, lambda: _started(line, "READY"))

    def _attach(self, line: Line, session: Session) -> None:
        line.session, session.line = session, line
        line.client.session_id = session.id
        self._expect_heartbeat(line)

    def _on_resume(self, line: Line, d: object) -> None:
        token, session_id, seq = _fields(d, "token", "session_id", "seq")
        number = line.client.number
        _log.debug("client %d: Resume %.8s… from %s", number, session_id, seq)
        self._records.add(Resume(number, token, session_id, seq, time.monotonic()))
        app_id = self._admit(line, d, token, self._script.resumes, bare=True)
        if app_id is None:
            return
        session = self._sessions.find(session_id, app_id)
        if session is None:
            _refuse(line, self._settings.unknown_session_code)
        elif type(seq) is not int or not session.can_resume_from(seq):
            line.close(4007, "invalid seq")
        else:
            self._continue(line, session, seq)

    def _continue(self, line: Line, session: Session, seq: int) -> None:
        """Replay, then RESUMED (bot-docs, event-emit.md); `d` is an empty string there."""
        if session.line is not None:
            session.line.close(4902, "reset by resume")  # seen in bot-node-sdk#94
        for event in session.after(seq):
            self.deliver(line, event, replayed=True)
        self._attach(line, session)
        frame = {"op": 0, "s": session.next_seq(), "t": "RESUMED", "d": ""}
        if not self._script.withholds("RESUMED"):
            line.push(frame, lambda: _started(line, "RESUMED"))

    _RECEIVERS: ClassVar[dict[int, Callable[[Frames, Line, object], None]]] = {
        1: _on_heartbeat,
        2: _on_identify,
        6: _on_resume,
    }


def shard_of(value: object) -> Shard | None:
    """Return `(id, count)`; without any, bot-docs' `[0, 1]` for "not sharded"."""
    match value:
        case None:
            return (0, 1)
        case [int(number), int(count)] if 0 <= number < count and bool not in map(type, value):
            return (number, count)
    return None


def _fields(d: object, *names: str) -> list[Any]:
    fields = d if isinstance(d, dict) else {}
    return [fields.get(name) for name in names]


def _may_start(line: Line, d: object) -> bool:
    if not isinstance(d, dict):
        line.close(4002, "invalid payload")
    elif line.session is not None:
        line.close(4005, "already authenticated")
    return not line.closing


def _refused(line: Line, refusals: deque[Refusal]) -> bool:
    if not refusals:
        return False
    match refusals.popleft():
        case None:
            line.drop()
        case "op9":
            _refuse(line, None)
        case code:
            line.close(code, "refused by the script")
    return True


def _refuse(line: Line, code: int | None) -> None:
    line.push({"op": 9, "d": False})
    if code is not None:
        line.close(code, "session refused")


def _started(line: Line, how: Literal["READY", "RESUMED"]) -> None:
    line.client.started = how
