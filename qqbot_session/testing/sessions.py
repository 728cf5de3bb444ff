"""Sessions: their numbers, what can be replayed, and when they end. Pure but for the lines held."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import uuid4

from .line import Carried, Line
from .payloads import asks_for
from .settings import Settings, Shard


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    type: str
    id: str
    data: object

    @property
    def payload(self) -> dict[str, object]:
        return {"op": 0, "s": self.seq, "t": self.type, "id": self.id, "d": self.data}


@dataclass(slots=True, eq=False)
class Session:
    """What the gateway knows about one session; `line` is `None` while it is offline."""

    app_id: str
    shard: Shard
    intents: int
    replay_limit: int
    id: str = field(default_factory=lambda: str(uuid4()))
    last_seq: int = 1  # READY's
    buffer: deque[Event] = field(default_factory=deque)
    lost_seq: int = 0  # the newest event that cannot be replayed any more
    late: list[Event] = field(default_factory=list)  # they go out behind the next event
    line: Line | None = None
    offline_since: float = 0.0
    expired: bool = False

    def leave(self, line: Line) -> None:
        """Go offline if this line carries the session."""
        if self.line is line:
            self.line = None
            self.late.clear()
            self.offline_since = time.monotonic()

    def wants(self, event_type: str) -> bool:
        return asks_for(self.intents, event_type)

    def add(self, event_type: str, event_id: str, data: object) -> Event:
        event = Event(self.next_seq(), event_type, event_id, data)
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

    def can_resume_from(self, seq: int) -> bool:
        return self.lost_seq <= seq <= self.last_seq

    def after(self, seq: int) -> Iterator[Event]:
        return (event for event in self.buffer if event.seq > seq)

    def find(self, event_id: str | None) -> Event | None:
        return next((e for e in reversed(self.buffer) if event_id in (None, e.id)), None)


class Sessions:
    """All sessions, oldest first; one per app and shard."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._by_id: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def chosen(self, shard: Shard | None = None, app_id: str | None = None) -> list[Session]:
        """Return those that live, of one shard or app or of all."""
        self._remove_expired()
        return [
            session
            for session in list(self._by_id.values())
            if shard in (None, session.shard) and app_id in (None, session.app_id)
        ]

    def find(self, session_id: object, app_id: str) -> Session | None:
        """Return the app's session of that id that a line may resume."""
        self._remove_expired()
        session = self._by_id.get(session_id) if isinstance(session_id, str) else None
        return None if session is None or session.expired or session.app_id != app_id else session

    def begin(self, app_id: str, shard: Shard, intents: int) -> Session:
        session = Session(app_id, shard, intents, self._settings.replay_limit)
        self._by_id[session.id] = session
        return session

    def remove(self, session: Carried) -> None:
        self._by_id.pop(session.id, None)

    def _remove_expired(self) -> None:
        ttl = self._settings.session_ttl
        horizon = float("-inf") if ttl is None else self._clock() - ttl
        for session in list(self._by_id.values()):
            if session.line is None and (session.expired or session.offline_since <= horizon):
                self.remove(session)
