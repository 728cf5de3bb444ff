"""`why` where it is a probe: of a record that is as it should be, in a directory.

Kubernetes and the like ask every minute, in containers with a tenth of a processor. asyncio, the
storages and what they need take several times as long to import as the answer takes. So the record
is read here, and everything that is out of the ordinary (absent, corrupt, a link, a database, a
server) is left to the storage.
"""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING, cast

from ..state import MAX_RECORD_BYTES, account_of

if TYPE_CHECKING:
    from ..storages import Storage

_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))


class _Read:
    """A record that was read already, in the place of its storage."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, account_id: str) -> bytes:
        return self._data


def answer(options: argparse.Namespace) -> int | None:
    """Print the answer and return the exit code; `None` if it is for the storage to give."""
    from .looking import why
    from .rows import VARIABLE

    where = options.storage or os.environ.get(VARIABLE) or ""
    data = _record(where, options.account)
    if data is None:
        return None
    answering = why(cast("Storage", _Read(data)), options)
    try:
        answering.send(None)
    except StopIteration as end:
        return int(end.value)
    raise AssertionError("why waited for something")


def _record(where: str, account_id: str) -> bytes | None:
    """Return what `FileStorage.read` would return, if that is the account's record."""
    if not where or ":" in where or where.startswith("~") or not hasattr(os, "O_NOFOLLOW"):
        return None
    if not account_id.replace("-", "").replace("_", "").isalnum() or not account_id.isascii():
        return None  # its file's name is made differently
    try:
        file = os.open(f"{where}{os.sep}session-{account_id}.json", _FLAGS)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD_BYTES:
            return None
        data = os.read(file, MAX_RECORD_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(file)
    return data if account_of(data) == account_id else None
