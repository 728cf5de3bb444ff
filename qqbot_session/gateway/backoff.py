"""How long to wait before the next try.

Rules:

* The wait grows with every close until a line has lived. Jitter shortens it, so that the bots of a
  fleet come back one by one, but never below what the table's row says.
* The back-off only spreads the tries. A separate budget bounds the Identifies of a day, however
  long the lines between them lived: QQ grants a bot a number of session starts a day (1000 in the
  docs' sample, openapi/wss/shard_url_get.md), shared by everything that runs as that bot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .closes import IDENTIFY_WAIT, CloseRule

_TOKEN_WAIT = 60.0  # seconds; our choice, as long as the clients we read wait for a rate limit
_REFUSED_WAIT = 20.0  # seconds after op 9 upon an Identify, of which the third stops; our choice
_BACK_OFF = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds, by closes since a line lived
_JITTER = 0.25  # the part of the back-off that chance may take away

_AGAIN = 3600.0  # seconds in which a second 4902 makes another process the likely cause
_LAST_RESET_WAIT = 900.0  # seconds; the waits for those double up to here

_IDENTIFIES = 20  # at once; our choice, as the time for one more
_REFILL = 500.0  # seconds, so 193 on the worst day
EARLY = 1.0
"""Seconds that a caller may wake up before its time."""


class BackOff:
    """How long to wait before the next try.

    Args:
        jitter: returns a number from 0 to 1, such as `random.random`.
    """

    __slots__ = (
        "_full_at",
        "_jitter",
        "_refused_tokens",
        "_reset_at",
        "_resets",
        "_setbacks",
    )

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._setbacks = 0  # closes since a line has lived
        self._refused_tokens = 0  # closes with `refresh_token` since READY or RESUMED
        self._resets = 0  # closes with 4902, each less than an hour after the one before
        self._reset_at = 0.0
        self._full_at = 0.0  # when there will be `_IDENTIFIES` again

    def accepted(self) -> None:
        """READY or RESUMED came."""
        self._refused_tokens = 0

    def lived(self) -> None:
        """A heartbeat was acknowledged after READY or RESUMED."""
        self._setbacks = 0

    @property
    def full_at(self) -> float:
        """When the budget of Identifies will be full again, in seconds; for the record."""
        return self._full_at

    def restore(self, full_at: float) -> None:
        """Take over what earlier processes spent of the budget."""
        self._full_at = max(self._full_at, full_at)

    def until_identify(self, now: float) -> float:
        """Return the seconds until the budget has an Identify left."""
        return max(0.0, self._until_identify(now))

    def may_identify(self, now: float) -> bool:
        """Whether the budget has an Identify left; if so, it has one less."""
        if self._until_identify(now) > EARLY:
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
        if refused:
            waits.append(_REFUSED_WAIT)
        if self._refused_tokens > 1:
            waits.append(_TOKEN_WAIT)
        if identifies:
            waits += [IDENTIFY_WAIT, self._until_identify(now)]
        return max(waits)

    def reset(self, rule: CloseRule, now: float) -> CloseRule:
        """Return what a close with 4902 means: the table's row, until it comes again and again."""
        self._resets = self._resets + 1 if now - self._reset_at < _AGAIN else 1
        self._reset_at = now
        if self._resets < 2:
            return rule
        meaning = (
            f"The gateway has reset the session {self._resets} times: another process probably "
            "runs this bot, and each ends the other's session. Run one of them, or use a lease "
            "(see docs/why-identify.md, Two copies of one bot)."
        )
        wait = min(IDENTIFY_WAIT * 2.0 ** min(self._resets - 1, 16), _LAST_RESET_WAIT)
        return replace(rule, wait=max(rule.wait, wait), meaning=meaning)

    def _until_identify(self, now: float) -> float:
        self._full_at = min(self._full_at, now + _IDENTIFIES * _REFILL)  # a clock was set back
        return self._full_at - (_IDENTIFIES - 1) * _REFILL - now
