"""The settings of a `LocalGateway`, and the failures it is scripted to cause."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal, get_args

Shard = tuple[int, int]
Refusal = int | Literal["op9"] | None
Withheld = Literal["HELLO", "READY", "RESUMED"]


@dataclass(kw_only=True, eq=False, repr=False)
class Settings:
    """The keyword arguments of `LocalGateway`, which says what they mean."""

    app_id: str = "102000000"
    client_secret: str = "local-secret"
    host: str = "127.0.0.1"
    port: int = 0
    heartbeat_interval: float = 45.0
    shards: int = 1
    session_starts: int = 1000
    session_reset: float = 86_400.0
    max_concurrency: int = 1
    identify_window: float | None = None
    gateway_rate: float | None = None
    payload_rate: int | None = None
    granted_intents: int | None = None
    deduplicate_replies: bool = False
    token_lifetime: float = 7200.0
    replay_limit: int = 10_000
    session_ttl: float | None = None
    unknown_session_code: int | None = 4006
    ready_shard: Shard | None = None
    latency: float = 0.0

    def __post_init__(self) -> None:
        """Be there for `LocalGateway` to override: the constructor calls it."""


def check_code(code: Refusal) -> None:
    """Raise `ValueError` for a code that no close frame can carry (RFC 6455, 7.4)."""
    if code not in (None, "op9") and not (type(code) is int and 1000 <= code < 5000):
        raise ValueError(f"not a close code of 1000 to 4999, 'op9' or None: {code!r}")


@dataclass(slots=True)
class Script:
    """The failures that the next clients will meet."""

    upgrades: deque[int | None] = field(default_factory=deque)  # HTTP statuses; None = cut off
    identifies: deque[Refusal] = field(default_factory=deque)
    resumes: deque[Refusal] = field(default_factory=deque)
    withheld: Counter[Withheld] = field(default_factory=Counter)
    half_open: int = 0
    late: int = 0
    acks_muted: bool = False

    def withhold(self, frame: Withheld, times: int) -> None:
        if frame not in get_args(Withheld):
            raise ValueError(f"not one of {get_args(Withheld)}: {frame!r}")
        self.withheld[frame] += times

    def refuse(self, queue: deque[Refusal], times: int, code: Refusal) -> None:
        check_code(code)
        queue.extend([code] * times)

    def withholds(self, frame: Withheld) -> bool:
        """Return whether this frame is to be left out, and count it."""
        if self.withheld[frame] <= 0:
            return False
        self.withheld[frame] -= 1
        return True

    def opens_half(self) -> bool:
        """Return whether this line is to be half-open, and count it."""
        self.half_open -= 1
        if self.half_open >= 0:
            return True
        self.half_open = 0
        return False
