"""What clients did, by kind, in the order in which it happened.

All times are `time.monotonic()`, in seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Party = Literal["client", "gateway"]
Kind = TypeVar("Kind", "Identify", "Resume", "Heartbeat", "Delivery", "Sent", "Call")


@dataclass(frozen=True, slots=True)
class Identify:
    """An Identify as it came; `client` is the number of its connection."""

    client: int
    token: object
    intents: object
    shard: object
    at: float


@dataclass(frozen=True, slots=True)
class Resume:
    """A Resume as it came."""

    client: int
    token: object
    session_id: object
    seq: object
    at: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A heartbeat, with the number its sender received last."""

    client: int
    d: object
    at: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that was handed to a client's socket."""

    client: int
    seq: int
    type: str
    id: str
    replayed: bool
    at: float


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP call and its answer.

    Attributes:
        app_id: whose token it carried; `None` without a valid one.
        body: JSON as it parses, text where it does not, `None` where there was none.
        status: the HTTP status given; `None` = none, the call was left hanging or cut off.
        answer: the body given.
    """

    method: str
    path: str
    app_id: str | None
    body: Any
    status: int | None
    answer: Any
    at: float


@dataclass(frozen=True, slots=True)
class Sent(Call):
    """A call of an endpoint by which a bot answers.

    Attributes:
        kind: `"c2c"`, `"group"`, `"channel"` or `"direct"` for a message, `"c2c file"` or
            `"group file"` for rich media, `"interaction"` for the answer to a button.
        to: the openid, group's openid, channel, direct message's guild, or interaction.
    """

    kind: str
    to: str

    @property
    def ok(self) -> bool:
        """Whether QQ accepted it."""
        return self.status is not None and self.status < 300

    @property
    def content(self) -> Any:
        """The message's text."""
        return self._field("content")

    @property
    def msg_id(self) -> Any:
        """The message it answers."""
        return self._field("msg_id")

    @property
    def msg_seq(self) -> Any:
        """Which answer to that message it is; QQ takes a missing one for 1."""
        return self._field("msg_seq")

    @property
    def event_id(self) -> Any:
        """The event it answers."""
        return self._field("event_id")

    def _field(self, name: str) -> Any:
        return self.body.get(name) if isinstance(self.body, Mapping) else None


class Records:
    """One list per kind of record, and who is notified of new ones."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self._lists: defaultdict[type, list[Any]] = defaultdict(list)
        self._tell = tell

    def of(self, kind: type[Kind]) -> list[Kind]:
        return self._lists[kind]

    def add(self, record: Identify | Resume | Heartbeat | Delivery | Call) -> None:
        self._lists[type(record)].append(record)
        self._tell()


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
    _records: Records = field(repr=False)
    started: Literal["READY", "RESUMED"] | None = None
    session_id: str | None = None
    closed_at: float | None = None
    close_code: int | None = None
    closed_by: Party | None = None

    @property
    def identifies(self) -> list[Identify]:
        return self._own(Identify)

    @property
    def resumes(self) -> list[Resume]:
        return self._own(Resume)

    @property
    def heartbeats(self) -> list[Heartbeat]:
        return self._own(Heartbeat)

    @property
    def delivered(self) -> list[Delivery]:
        return self._own(Delivery)

    def _own(self, kind: Any) -> list[Any]:
        return [record for record in self._records.of(kind) if record.client == self.number]
