"""QQ's gateway protocol for any WebSocket library: pure, no socket, clock, task or log.

`GatewaySession` holds what one bot, or one of its shards, knows about its session. `Connection` is
one socket's part of it. The events say what a frame means, and `CLOSE_RULES` what a close means.
"""

from .closes import CLOSE_RULES, CloseRule, Next
from .connection import Connection
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
from .recent import MAX_REMEMBERED
from .refusals import Refusal
from .session import GatewaySession

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
    "Refusal",
    "Resumed",
    "Stale",
    "Unknown",
]
