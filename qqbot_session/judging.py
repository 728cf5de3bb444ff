"""What a record is worth now: the verdict, and the words for it.

Rules:

* Pure: no I/O, no clock, no log. Every `now` is seconds since the epoch.
* `load`, `cleanup`, `qqbot-session` and its `doctor` all judge here, in one order and one wording,
  so that none of them says what another denies.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from .errors import InvalidRecordError, name_one
from .state import MAX_RECORD_BYTES, SessionState, decode


class LoadReason(Enum):
    """Why a `load` returned what it returned."""

    RESUMABLE = "resumable"
    ABSENT = "absent"
    NO_SESSION = "no session"
    EXPIRED = "expired"
    OTHER_APP = "another app"
    OTHER_SHARD = "another shard"
    OTHER_INTENTS = "other intents"
    CORRUPT = "corrupt"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"


_ASKED = {
    "app_id": LoadReason.OTHER_APP,
    "shard": LoadReason.OTHER_SHARD,
    "intents": LoadReason.OTHER_INTENTS,
}


class Verdict:
    """What is known of an account's record.

    Attributes:
        reason: `RESUMABLE` for any state of the account until `judge` has looked at it.
        detail: what the reason does not say by itself.
        state: what the record holds; `None` if there is none, or it is not the account's.
        data: the record, if it was read.
        age: seconds since it was saved, negative if that lies ahead; `None` if not known.
    """

    __slots__ = ("age", "data", "detail", "reason", "state")

    def __init__(
        self,
        reason: LoadReason,
        detail: str = "",
        state: SessionState | None = None,
        data: bytes | None = None,
        age: float | None = None,
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.state = state
        self.data = data
        self.age = age

    @property
    def words(self) -> str:
        """The verdict for a log or a terminal, in one line."""
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value


def inspect(account_id: str | None, data: bytes | None) -> Verdict:
    """Say what was read for an account, before its age is judged.

    Args:
        account_id: `None` for a record that the storage vouches for, as `scan` does.
    """
    if data is None:
        return Verdict(LoadReason.ABSENT, "no record")
    try:
        state = decode(data)
    except InvalidRecordError as error:
        return Verdict(LoadReason.CORRUPT, str(error), data=data)
    if account_id is not None and state.account_id != account_id:
        detail = f"the record belongs to {name_one(state.account_id)}"
        return Verdict(LoadReason.FOREIGN, detail, data=data)
    return Verdict(LoadReason.RESUMABLE, state=state, data=data)


def judge(
    found: Verdict,
    *,
    now: float | None,
    max_age: float | None,
    asked: Mapping[str, object] | None = None,
) -> Verdict:
    """Say whether what was found can be resumed, and if not, why.

    Args:
        now: `None` if the clock is broken: then no age is judged.
        max_age: seconds, `None` = never expires.
        asked: the `app_id`, `shard` and `intents` that the session must have; `None` = any.
    """
    state = found.state
    if state is None:
        return found
    age = None if now is None else now - state.saved_at
    reason, detail = LoadReason.RESUMABLE, ""
    other = [
        (name, value, held)
        for name, value in (asked or {}).items()
        if value is not None and (held := getattr(state, name)) not in (None, value)
    ]
    if other:
        name, value, held = other[0]
        reason, detail = _ASKED[name], f"asked for {value!r}, found {held!r}, {_saved(age)}"
    elif is_expired(state, now, max_age):
        reason, detail = LoadReason.EXPIRED, f"{_saved(age)}, max_age {max_age:g} s"
    elif not state.resumable:
        missing = "sequence number" if state.session_id else "session id"
        reason, detail = LoadReason.NO_SESSION, f"it has no {missing}, {_saved(age)}"
    return Verdict(reason, detail, state, found.data, age)


def is_expired(state: SessionState, now: float | None, max_age: float | None) -> bool:
    """Whether the session's last sign of life is too old, or as far in the future."""
    return max_age is not None and now is not None and abs(now - state.saved_at) > max_age


def is_stranger(key: str, data: bytes) -> bool:
    """Whether a corrupt record of `scan` was never one: another program's file of the same name.

    What a crash tore begins as every record does, or is empty, or all zeros; and none is so long.
    """
    if account_of_key(key) is not None:  # nobody else writes under such a key
        return False
    torn = data.startswith(_BEGINNINGS) or any(each.startswith(data) for each in _BEGINNINGS)
    return len(data) > MAX_RECORD_BYTES or not (torn or not data.strip(b"\0"))


_BEGINNINGS = tuple(  # `encode` and the original indent by two, and begin with one of these
    b'{\n  "%s"' % name
    for name in (b"sessionId", b"lastSeq", b"lastConnectedAt", b"intentLevelIndex", b"accountId",
                 b"savedAt", b"appId")
)  # fmt: skip


def account_of_key(key: str) -> str | None:
    """Return the account id that a key of `scan` is; `None` for one that starts with NUL."""
    return None if key.startswith("\0") else key


def shown_key(key: str) -> str:
    """Return a key of `scan` as it may be shown to people."""
    return key.lstrip("\0")


def _saved(age: float | None) -> str:
    if age is None:
        return "saved at an unknown time"
    return f"saved {age:.0f} s ago" if age > -0.5 else f"saved {-age:.0f} s in the future"
