"""What the gateway said: one class per kind of frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class _Event:
    """What every event carries.

    Attributes:
        released: sequence numbers of events that were held too long, or were too many, and now no
            longer hold the mark: worth a warning, because a crash may lose them.
    """

    released: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Hello(_Event):
    """Op 10, the first frame: answer with `handshake`, then beat every `heartbeat_interval` s."""

    heartbeat_interval: float


@dataclass(frozen=True, slots=True)
class Ready(_Event):
    """READY: Identify succeeded and there is a new session; `user` is the bot, as received."""

    session_id: str = field(repr=False)
    seq: int | None
    user: Any = field(hash=False)


@dataclass(frozen=True, slots=True)
class Resumed(_Event):
    """RESUMED: Resume succeeded and everything missed has been delivered."""

    seq: int | None


@dataclass(frozen=True, slots=True)
class Dispatch(_Event):
    """An event for the bot.

    Attributes:
        type: its name, such as `C2C_MESSAGE_CREATE`; empty if the frame had none.
        seq: its sequence number.
        id: its event id. A redelivery may or may not repeat it.
        data: what it is about, as received.
        replayed: it came between Resume and RESUMED.
        already_handled: skip it. Its number was settled before, or a handler of this process still
            has it, or its id is in the memory of recent events. Only ever set when that is certain.
        fingerprint: what the memory of recent events knows it by; `None` without that memory.
        generation: the `Watermark.generation` it belongs to.
    """

    type: str
    seq: int | None = None
    id: str | None = None
    data: Any = field(default=None, hash=False)
    replayed: bool = False
    already_handled: bool = False
    fingerprint: str | None = field(default=None, repr=False)
    generation: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class Reconnect(_Event):
    """Op 7: close the socket (with 4000, not 1000) and connect again. The session is kept."""


@dataclass(frozen=True, slots=True)
class InvalidSession(_Event):
    """Op 9: close the socket and connect again. The session is kept only if `resumable`."""

    resumable: bool


@dataclass(frozen=True, slots=True)
class HeartbeatRequest(_Event):
    """Op 1 from the gateway: answer with `heartbeat` at once."""


@dataclass(frozen=True, slots=True)
class HeartbeatAck(_Event):
    """Op 11: the line is alive. Save the state, unchanged as it is, to refresh its `saved_at`."""


@dataclass(frozen=True, slots=True)
class Stale(_Event):
    """A frame of a connection that was replaced or closed. It changed nothing: ignore it."""


@dataclass(frozen=True, slots=True)
class Unknown(_Event):
    """An op that no document names. It changed nothing: ignore it."""

    op: int
    payload: Mapping[str, Any] = field(hash=False)


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
