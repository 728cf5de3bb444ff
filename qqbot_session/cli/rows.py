"""What a storage holds, as an operator sees it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..judging import LoadReason, Verdict, account_of_key, inspect, is_stranger, judge, shown_key
from ..words import address
from . import terminal
from .codes import UnreachableError, UsageError

if TYPE_CHECKING:
    from ..state import SessionState
    from ..storages import Storage

VARIABLE = "QQBOT_SESSION_STORAGE"

STATUS = {
    LoadReason.RESUMABLE: "resumes",
    LoadReason.OTHER_APP: "other",
    LoadReason.OTHER_SHARD: "other",
    LoadReason.OTHER_INTENTS: "other",
}
STATUSES = ("resumes", "expired", "no session", "corrupt", "stranger", "not a file")
"""What `list` may say of a record, in the order in which a summary counts them."""
COLOURS = {"resumes": "32", "expired": "33", "corrupt": "31", "not a file": "31", "stranger": "33"}


@dataclass(frozen=True, slots=True)
class Row:
    """One record.

    Attributes:
        account: the account id, or the storage's name for what has none.
        state: what the record holds, `None` if it is no record.
        age: seconds since it was saved; negative if that lies ahead.
        status: one of `STATUSES`, or what only `why` says: `other`, `refused`, `absent`.
        detail: what the status does not say by itself; empty if it does.
    """

    account: str
    state: SessionState | None
    age: float | None
    status: str
    detail: str = ""

    def fields(self, *, full: bool) -> dict[str, Any]:
        """Return what `--json` prints of it."""
        state = self.state
        session_id = state.session_id if state else None
        return {
            "account": self.account,
            "session_id": terminal.short(session_id, full=full) if session_id else None,
            "last_seq": state.last_seq if state else None,
            "age": None if self.age is None else round(self.age, 3),
            "saved_at": state.saved_at if state else None,
            "app_id": state.app_id if state else None,
            "intents": state.intents if state else None,
            "shard": list(state.shard) if state and state.shard else None,
            "failed_resumes": state.failed_resumes if state else None,
            "status": self.status,
            "detail": self.detail or None,
        }


def judged(key: str, data: bytes, now: float, max_age: float | None) -> Row:
    """Return the row of a record that `scan` yielded, or that `read` gave for an account."""
    verdict = judge(inspect(account_of_key(key), data), now=now, max_age=max_age)
    made = row(shown_key(key), verdict)
    if made.status == "corrupt" and is_stranger(key, data):
        return Row(made.account, None, None, "stranger", f"not a session: {verdict.detail}")
    return made


def row(account: str, verdict: Verdict) -> Row:
    """Return the row for a verdict on an account's record."""
    state, status = verdict.state, STATUS.get(verdict.reason, verdict.reason.value)
    return Row(state.account_id if state else account, state, verdict.age, status, verdict.detail)


async def scanned(
    storage: Storage, max_age: float | None
) -> AsyncIterator[tuple[str | None, bytes, Row]]:
    """Yield key, data and row of everything in a record's place.

    The key is `None` for what is no file and can never be discarded.
    """
    now = time.time()
    progress, count = terminal.Progress("records read"), 0
    try:
        async for key, data in storage.scan():
            progress(count := count + 1)
            yield key, data, judged(key, data, now, max_age)
    finally:
        progress.end()
    if (directory := getattr(storage, "directory", None)) is not None:
        from .doctor import irregular

        for name in irregular(directory):
            yield None, b"", Row(name, None, None, "not a file")


def open_storage(where: object, *, may_be_new: bool = False) -> Storage:
    """Return the storage; a directory or a database that is not there is no empty one.

    Raises:
        UsageError: no storage has such an address, or what it needs is not installed.
        UnreachableError: there is nothing at the path.
    """
    from ..storages import storage_of

    where = address(where)
    try:
        storage = storage_of(where)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    path = getattr(storage, "directory", None) or getattr(storage, "path", None)
    if isinstance(path, str) and not may_be_new and not os.path.lexists(path):
        raise UnreachableError(f"there is no {path}")
    return storage


def account_id(text: str) -> str:
    """Return an account id as it was typed.

    Raises:
        UsageError: it is none, such as bytes that are not UTF-8.
    """
    from ..state import check_account_id

    try:
        return check_account_id(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
