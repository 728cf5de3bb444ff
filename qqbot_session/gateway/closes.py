"""What a close of the line means: a table.

Sources: error-trace/websocket.md in tencent-connect/bot-docs, below `docs/develop/api-v2/
dev-prepare/`, where nothing else is said. What no document says is marked "our choice".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

IDENTIFY_WAIT = 5.0  # seconds; Identifies are limited per 5 s (openapi/wss/shard_url_get.md)


class Next(Enum):
    """What to do after a close."""

    RESUME = "resume"
    """Connect again; the handshake will be a Resume, unless the session is too old by then."""
    IDENTIFY = "identify"
    """Connect again; the handshake will be an Identify."""
    STOP = "stop"
    """Do not connect again: it would fail until somebody fixes the cause."""
    IGNORE = "ignore"
    """Nothing: this connection was replaced or closed before."""


@dataclass(frozen=True, slots=True)
class CloseRule:
    """What a close means.

    Attributes:
        next: what to do.
        refresh_token: fetch a new access token first, whatever the cached one's expiry says.
        wait: seconds to wait at least.
        meaning: a sentence for the log.
    """

    next: Next
    refresh_token: bool = False
    wait: float = 0.0
    meaning: str = ""


def _resume(meaning: str, wait: float = 1.0, refresh_token: bool = False) -> CloseRule:
    return CloseRule(Next.RESUME, refresh_token, wait, meaning)


def _identify(meaning: str) -> CloseRule:
    return CloseRule(Next.IDENTIFY, False, IDENTIFY_WAIT, meaning)


def _stop(meaning: str) -> CloseRule:
    return CloseRule(Next.STOP, False, 0.0, meaning)


# Where nothing else is said, a row is error-trace/websocket.md's. Its rule of thumb below the table
# contradicts the table for 4001, 4002, 4008 and 4010 to 4014; the table is the more careful text.
CLOSE_RULES: Mapping[int | None, CloseRule] = MappingProxyType(
    {
        # Our choice for no close frame, 1xxx and every code not listed: the session outlives the
        # line. Clients that give a session up here Identify without need.
        None: _resume("The line dropped."),
        4001: _stop("The gateway refused an opcode."),
        4002: _stop("The gateway refused a payload."),
        # botgo errs/err.go, the only place that names it. What to do is our choice.
        4004: _resume("The gateway refused the access token.", refresh_token=True),
        4006: _identify("The session id is not valid."),
        4007: _identify("The sequence number is not valid."),
        # The wait is our choice; the clients we read wait 60 s.
        4008: _resume("Payloads were sent too fast.", wait=60.0),
        4009: _resume("The connection expired."),
        4010: _stop("The shard is not valid."),
        4011: _stop("The bot is in too many guilds for this number of shards."),
        4012: _stop("The version is not valid."),
        4013: _stop("The intents are not valid."),
        4014: _stop("The bot may not use these intents."),
        **{code: _identify("The gateway had an internal error.") for code in range(4900, 4914)},
        4914: _stop("The bot is delisted: only the sandbox may connect."),
        4915: _stop("The bot is banned."),
    }
)
"""The rule per close code; `None` stands for no close frame and every code not listed."""

RESET = 4902
"""The code that a bot also meets again and again while another process runs it (field reports)."""

NO_VERDICT = frozenset({4004, 4008})
"""Codes that say nothing of the session: a Resume that meets them was not refused."""

IGNORE = CloseRule(Next.IGNORE, meaning="The connection was replaced or closed before.")
"""What the close of a connection means that was replaced or closed before."""
