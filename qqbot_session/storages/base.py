"""The `Storage` contract, and `MemoryStorage` for the tests of people who use us.

A storage keeps one record, some bytes, per account id. It knows nothing of JSON, of age or of
retries. Its errors are any `Exception`; the store turns them into warnings and retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Protocol, runtime_checkable

from ..state import MAX_RECORD_BYTES, account_of
from ..words import whenever

READ_LIMIT = MAX_RECORD_BYTES + 1
"""The most bytes that a read returns: one more than a record may have, so that excess shows."""

_BACKSLASH = 0x5C  # as a number it is found eight times as fast; what is longer, with `find`


def is_of(account_id: str, data: bytes) -> bool:
    """Return whether the account's record names this account or, being corrupt, none at all.

    Almost always a look at the bytes is enough; decoding each record would double the cost of a
    listing.
    """
    named = b'"accountId": "%s"' % account_id.encode("utf-8", "replace")
    if data.find(named) >= 0 and data.count(b"accountId") == 1 and _BACKSLASH not in data:
        return True
    return account_of(data) in (None, account_id)


def ask(storage: Storage, account_id: str) -> asyncio.Future[bytes | None] | None:
    """Ask a storage of ours for a record, without a task for each.

    Returns:
        `None` where `read` must be called: it is somebody else's, or does not know whom to ask yet.
    """
    own = getattr(type(storage), "_own_read", None)
    if own is None or getattr(storage.read, "__func__", None) is not own:
        return None
    answer: asyncio.Future[bytes | None] | None = storage._ask(account_id)  # type: ignore[attr-defined]
    return answer


class NotRegularError(OSError):
    """There is a link, a device or the like where a record should be.

    It will not go away by itself, so retrying is pointless.
    """


class RecordChangedError(Exception):
    """Somebody has written the account's record since it was read.

    Args:
        account_id: whose record.
    """

    def __init__(self, account_id: str) -> None:
        super().__init__(account_id)
        self.account_id = account_id

    def __str__(self) -> str:
        return f"the record of {self.account_id!r} has changed since it was read"


@runtime_checkable
class Storage(Protocol):
    """Where records live. Every method may be called while others run."""

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record, its first `READ_LIMIT` bytes at most, or `None`.

        Raises:
            NotRegularError: what is there is not a record, and retrying will not make it one.
            Exception: there may be a record, but it cannot be read now.
        """
        ...

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write every record of the batch, each atomically; `None` deletes.

        Commits take effect in the order of their calls, also when a caller is cancelled.

        Returns:
            The failures per account id; empty when all is on storage.

        Raises:
            Exception: the storage as a whole is at fault: no account of this batch is certain to
                be stored, and trying others now is pointless. A storage that can tell the accounts
                apart returns failures instead.
        """
        ...

    def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield `(key, data)` of every readable record; the key is for `discard` alone.

        It yields what `read` would return for some account id. So a record that names another
        account than the one it is kept for, such as a copy, is left out; a corrupt record, which
        names none, is included. An account may come twice if a storage keeps records in two
        places; then `read` decides which one counts. Records that cannot be read are left out,
        with one warning for all of them.

        Raises:
            Exception: the storage cannot be listed.
        """
        ...

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it has not changed since it was read.

        Args:
            key: an account id, or a key that `scan` yielded.
            expected: what `read` or `scan` returned.

        Returns:
            Whether a record was deleted.

        Raises:
            Exception: this record could not be deleted; the next one may be.
        """
        ...

    async def sweep(self, older_than: float) -> int:
        """Remove left-overs of interrupted writes that are older than this many seconds.

        Returns:
            How many were removed. One that cannot be removed does not stop the others.

        Raises:
            Exception: the storage cannot be listed.
        """
        ...

    async def aclose(self) -> None:
        """Release resources; the records stay."""
        ...


@runtime_checkable
class ExchangingStorage(Storage, Protocol):
    """A storage that can compare and write in one step: `copy` overwrites nothing newer there."""

    async def exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        """Write each record whose place still holds what was read there.

        Args:
            changes: per account id what `read` returned, and what to write.

        Returns:
            The failures per account id: a `RecordChangedError` where something else is by now.
            That account's record stays as it is.
        """
        ...


@runtime_checkable
class LeasingStorage(Storage, Protocol):
    """A storage that can say who may write an account, and refuses the writes of all others.

    It remembers the token of each lease it acquired, and `commit` compares it in the same step in
    which it writes: while somebody holds an account's lease, a write without that lease fails for
    this account with a `LeaseLostError`.

    A storage whose server can lose what it acknowledged may also have `doubt(account_id)`: for how
    many seconds somebody whom it has forgotten may still believe to hold the lease that `acquire`
    has just taken here. The store goes on acquiring it until that is 0, and begins then.
    """

    async def acquire(self, account_id: str, token: str, ttl: float) -> bool:
        """Take the account's lease, unless somebody else holds it.

        Args:
            token: names the holder; nobody else has the same.
            ttl: seconds until the lease ends unless it is renewed.

        Returns:
            Whether it is held now.
        """
        ...

    async def renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        """Let leases end `ttl` seconds from now.

        A lease that the storage forgot before it ended is set again: nobody can have held it since.

        Args:
            held: the token of each account id.

        Returns:
            The failures per account id: a `LeaseLostError` where somebody else has the lease or
            may have had it, any other error where it is not known. To raise is to fail for all.
        """
        ...

    async def release(self, account_id: str, token: str) -> None:
        """Give the lease up, so that the next holder need not wait for its end."""
        ...


class MemoryStorage:
    """Records in a dictionary: for tests, and for bots that need no restart.

    Args:
        records: what is there already; used as given, not copied.
    """

    def __init__(self, records: dict[str, bytes] | None = None) -> None:
        self.records: dict[str, bytes] = {} if records is None else records

    @whenever
    def __repr__(self) -> str:
        return f"<MemoryStorage records={len(self.records)}>"

    async def read(self, account_id: str) -> bytes | None:
        data = self.records.get(account_id)
        return None if data is None else data[:READ_LIMIT]

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        for account_id, data in changes.items():
            if data is None:
                self.records.pop(account_id, None)
            else:
                self.records[account_id] = data
        return {}

    async def exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        failures: dict[str, Exception] = {}
        for account_id, (expected, data) in changes.items():
            there = self.records.get(account_id)
            if (None if there is None else there[:READ_LIMIT]) == expected:
                self.records[account_id] = data
            else:
                failures[account_id] = RecordChangedError(account_id)
        return failures

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        for account_id, data in list(self.records.items()):
            if is_of(account_id, data[:READ_LIMIT]):
                yield account_id, data[:READ_LIMIT]

    async def discard(self, key: str, expected: bytes) -> bool:
        data = self.records.get(key)
        if data is None or data[:READ_LIMIT] != expected:
            return False
        del self.records[key]
        return True

    async def sweep(self, older_than: float) -> int:
        return 0

    async def aclose(self) -> None:
        """Do nothing: the records stay readable."""
