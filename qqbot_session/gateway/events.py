"""What the gateway said: one class per kind of frame.

Events are values. They are not frozen only because making a frozen one takes four times as long.
What people wrote appears in no `repr`, because a `repr` ends up in logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(slots=True, unsafe_hash=True)
class _Event:
    """What every event carries.

    Attributes:
        released: sequence numbers of events that were held too long and no longer hold the mark:
            worth a warning, because a crash may lose them.
    """

    released: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(slots=True, unsafe_hash=True)
class Hello(_Event):
    """Op 10, the first frame.

    Attributes:
        heartbeat_interval: seconds, as received; less than 1 is taken as 1.
        handshake: what answers it, and is among the frames to send; `None` before `opened`, or if
            no Identify may be sent now.
    """

    heartbeat_interval: float
    handshake: Literal["Identify", "Resume"] | None = None


@dataclass(slots=True, unsafe_hash=True)
class Ready(_Event):
    """READY: Identify succeeded and there is a new session; `user` is the bot, as received."""

    session_id: str = field(repr=False)
    seq: int | None
    user: Any = field(hash=False, repr=False)


@dataclass(slots=True, unsafe_hash=True)
class Resumed(_Event):
    """RESUMED: Resume succeeded and everything missed has been delivered."""

    seq: int | None


@dataclass(slots=True, unsafe_hash=True)
class Dispatch(_Event):
    """An event for the bot.

    Attributes:
        type: its name, such as `C2C_MESSAGE_CREATE`; empty if the frame had none.
        seq: its sequence number.
        id: its event id. A redelivery may or may not repeat it.
        data: what it is about, as received.
        replayed: it came between Resume and RESUMED.
        already_handled: skip it. Its number was settled before, its id is in the memory of recent
            events, or a handler of this process still has it, under this number or another. Only
            set when that is certain.
        name: what the memory of recent events knows it by, with a digest in place of a long id;
            `None` without that memory.
        generation: which session of which `GatewaySession` of this process it belongs to.
        deaths: how many processes died while they handled it, as the record tells. From the third
            on it is let go, and `already_handled`: worth a warning.
        renumbered: its number was another event's before, and its id is new: worth a warning.
    """

    type: str
    seq: int | None = None
    id: str | None = None
    data: Any = field(default=None, hash=False, repr=False)
    replayed: bool = False
    already_handled: bool = False
    name: str | None = field(default=None, repr=False)
    generation: int = field(default=0, repr=False)
    deaths: int = field(default=0, repr=False)
    renumbered: bool = field(default=False, repr=False)


@dataclass(slots=True, unsafe_hash=True)
class Reconnect(_Event):
    """Op 7: the gateway asks the client to reconnect. The session is kept."""


@dataclass(slots=True, unsafe_hash=True)
class InvalidSession(_Event):
    """Op 9: the handshake was refused. The session is kept only if `resumable`."""

    resumable: bool


@dataclass(slots=True, unsafe_hash=True)
class HeartbeatRequest(_Event):
    """Op 1 from the gateway; the answer is among the frames to send."""


@dataclass(slots=True, unsafe_hash=True)
class HeartbeatAck(_Event):
    """Op 11: the line is alive. Recorded, it refreshes the record's `saved_at`."""


@dataclass(slots=True, unsafe_hash=True)
class Stale(_Event):
    """A frame of a connection that was replaced or closed. It had no effect: ignore it."""


@dataclass(slots=True, unsafe_hash=True)
class Unknown(_Event):
    """An op that no document names. It had no effect: ignore it."""

    op: int
    payload: Mapping[str, Any] = field(hash=False, repr=False)


Event: TypeAlias = (
    Hello
    | Ready
    | Resumed
    | Dispatch
    | Reconnect
    | InvalidSession
    | HeartbeatRequest
    | HeartbeatAck
    | Stale
    | Unknown
)
"""What `Connection.receive` returns."""
