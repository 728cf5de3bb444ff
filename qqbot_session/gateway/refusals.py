"""A refusal by QQ, as the record keeps it for the next start.

Rules:

* A bot that QQ refused, and that a supervisor restarts again and again, must not spend the day's
  session starts: the next Identify waits for `RETRY_AFTER`, whatever restarts the process.
* Only the same bot waits: with another secret, other intents or another app it may try at once. Of
  the secret, only a salted digest is kept, and that is made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ..state import MAX_INTEGER, MAX_SECONDS

RETRY_AFTER = 900.0  # seconds after a refusal, so fewer than 100 tries a day; our choice
_MAX_TEXT = 500  # characters of a reason or a fingerprint


@dataclass(frozen=True, slots=True)
class Refusal:
    """That QQ refused the bot.

    Attributes:
        at: when, in seconds since the epoch.
        code: the close code; `None` if there was none that says why.
        reason: why, as a sentence.
        fingerprint: a salted digest of the secret that was used, as `GatewaySession` was given it.
    """

    at: float
    code: int | None
    reason: str
    fingerprint: str | None = field(default=None, repr=False)

    def wait(self, now: float) -> float:
        """Return the seconds until another try, not more than `RETRY_AFTER` if a clock was set."""
        return min(max(0.0, self.at + RETRY_AFTER - now), RETRY_AFTER)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        fields = {"at": round(self.at * 1000), "code": self.code, "reason": self.reason}
        return fields if self.fingerprint is None else fields | {"fingerprint": self.fingerprint}


def refusal_from_json(value: object) -> Refusal | None:
    """Return the refusal, or `None` if the value is not what we write."""
    if not isinstance(value, Mapping):
        return None
    at, code, reason = milliseconds(value.get("at")), value.get("code"), value.get("reason")
    fingerprint = value.get("fingerprint")
    if at is None or not _is_text(reason) or not (fingerprint is None or _is_text(fingerprint)):
        return None
    if code is not None and (type(code) is not int or not 0 <= code <= MAX_INTEGER):
        return None
    return Refusal(at, code, reason, fingerprint)


def milliseconds(value: object) -> float | None:
    """Return a time of the record in seconds, or `None` if the value is not what we write."""
    if type(value) is not int or not 0 <= value <= MAX_SECONDS * 1000:
        return None
    return value / 1000


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT
