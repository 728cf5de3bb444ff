"""What a close of the line means, a table; and how long to wait before the next try.

Rules:

* The wait grows with every close until a line has lived. It is cut short by chance, so that the
  bots of a fleet come back one by one; never below what a row of the table says.
* The back-off spreads the tries. What bounds a day's Identifies is a budget of its own, whatever
  lived between: QQ gives a bot a number of session starts a day (1000 in the docs' sample,
  openapi/wss/shard_url_get.md), to be shared with whatever else runs as that bot.

Sources: error-trace/websocket.md in tencent-connect/bot-docs, below `docs/develop/api-v2/
dev-prepare/`, where nothing else is said. What no document says is marked "our choice".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

_IDENTIFY_WAIT = 5.0  # seconds; Identifies are limited per 5 s (openapi/wss/shard_url_get.md)
_REFUSED_WAIT = 60.0  # seconds; our choice, as long as the clients we read wait for a rate limit
_BACK_OFF = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds, by closes since a line lived
_JITTER = 0.25  # the part of the back-off that chance may take away

_IDENTIFIES = 20  # at once; our choice, as the time for one more
_REFILL = 500.0  # seconds, so 193 on the worst day
_EARLY = 1.0  # seconds that a caller may wake up before its time


class Next(Enum):
    """What to do after a close."""

    RESUME = "resume"
    """Connect again; the handshake will be a Resume, unless the session is too old by then."""
    IDENTIFY = "identify"
    """Connect again; the handshake will be an Identify."""
    STOP = "stop"
    """Do not connect again: it would fail until somebody mends the cause."""
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
    return CloseRule(Next.IDENTIFY, False, _IDENTIFY_WAIT, meaning)


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

NO_VERDICT = frozenset({4004, 4008})
"""Codes that say nothing of the session: a Resume that meets them was not refused."""

IGNORE = CloseRule(Next.IGNORE, meaning="The connection was replaced or closed before.")
"""What the close of a connection means that was replaced or closed before."""


class Pace:
    """How long to wait before the next try.

    Args:
        jitter: returns a number from 0 to 1, such as `random.random`.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._setbacks = 0  # closes since a line has lived
        self._refused_tokens = 0  # closes with `refresh_token` since READY or RESUMED
        self._full_at = 0.0  # when there will be `_IDENTIFIES` again

    def accepted(self) -> None:
        """READY or RESUMED came."""
        self._refused_tokens = 0

    def lived(self) -> None:
        """A heartbeat was acknowledged after READY or RESUMED."""
        self._setbacks = 0

    def may_identify(self, now: float) -> bool:
        """Whether the budget has an Identify left; if so, it has one less."""
        if self._until_identify(now) > _EARLY:
            return False
        self._full_at = max(self._full_at, now) + _REFILL
        return True

    def wait(self, rule: CloseRule, *, identifies: bool, refused: bool, now: float) -> float:
        """Count a close, and return the seconds to wait before the next try.

        Args:
            rule: the table's row.
            identifies: whether an Identify comes next.
            refused: whether this line's Identify was answered with op 9.
            now: seconds, no later than it is.
        """
        back_off = _BACK_OFF[min(self._setbacks, len(_BACK_OFF) - 1)]
        self._setbacks += 1
        self._refused_tokens += rule.refresh_token
        waits = [rule.wait, back_off * (1.0 - _JITTER * self._jitter())]
        if refused or self._refused_tokens > 1:
            waits.append(_REFUSED_WAIT)
        if identifies:
            waits += [_IDENTIFY_WAIT, self._until_identify(now)]
        return max(waits)

    def _until_identify(self, now: float) -> float:
        self._full_at = min(self._full_at, now + _IDENTIFIES * _REFILL)  # a clock was set back
        return self._full_at - (_IDENTIFIES - 1) * _REFILL - now
