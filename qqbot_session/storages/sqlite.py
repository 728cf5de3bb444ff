"""`SqliteStorage`: all records in one SQLite database, for a fleet on one machine.

Rules:

* One thread and one connection for what changes the database, one of each for what reads it. A
  batch is one statement in one hop: each step of a statement gives the interpreter's lock away,
  and a busy loop gives it back late. Reads that wait for one another are one statement, too.
* A batch succeeds or fails as a whole, by SQLite's own atomicity. Only accounts whose lease
  somebody else holds fail alone.
* Whether a lease has ended is decided inside the statement that takes it, once that has the lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from ..errors import LeaseLostError
from ..logs import say
from ..words import whenever
from .base import READ_LIMIT, RecordChangedError, is_of
from .database import (
    DAMAGED,
    IS_KEY,
    Database,
    NotOurDatabaseError,
    Thread,
    has_log,
    rescue,
    shares_memory,
    transaction,
)
from .database import SCHEMA as _SCHEMA  # noqa: F401 - the format, for whoever looks for it here
from .places import expanded
from .threads import Threads
from .together import Together

__all__ = ["NotOurDatabaseError", "SqliteStorage"]

_T = TypeVar("_T")
_Row = tuple[int, str, bytes]

_log = logging.getLogger(__name__)

_OLDEST = (3, 24, 0)  # the first with an upsert
_ROWS = 300  # of three variables each; SQLite allows 999 everywhere
_PAGE = 256  # records per hop of a scan: a reader that stays open lets the log grow without bound

# Of an empty blob `substr` is NULL.
_RECORD = f"ifnull(substr(CAST(record AS BLOB), 1, {READ_LIMIT}), x'')"
_SCAN = (
    f"SELECT rowid, account_id, {_RECORD} FROM sessions"
    f" WHERE rowid > ? AND {IS_KEY} ORDER BY rowid LIMIT {_PAGE}"
)
_DISCARD = f"DELETE FROM sessions WHERE account_id = ? AND {_RECORD} = ?"
_MAKE_ANEW = "INSERT INTO sessions VALUES (?, ?) ON CONFLICT (account_id) DO NOTHING"
_REPLACE = f"UPDATE sessions SET record = ? WHERE account_id = ? AND {_RECORD} = ?"

# `now()` is the machine's monotonic clock in seconds, which all its processes share, when the
# statement has the lock. A lease that ends later than `ttl` from now is of an earlier boot, and
# over.
_HELD = "ends > now() AND ends <= now() + ttl"
_MAY_WRITE = (  # `column2` is the writer's token: the lease's, or NULL where nobody holds one
    "column2 IS (SELECT token FROM leases WHERE account_id = column1"
    f" AND (token = column2 OR ({_HELD})))"
)
_HOLDERS = f"SELECT account_id, token FROM leases WHERE token != '' AND {_HELD} ORDER BY account_id"
_HOLDER = f"SELECT token, ends, {_HELD} FROM leases WHERE account_id = ?"
_ACQUIRE = (
    "INSERT INTO leases VALUES (:id, :token, now() + :ttl, :ttl)"
    " ON CONFLICT (account_id) DO UPDATE SET token = :token, ends = excluded.ends, ttl = :ttl"
    " WHERE token = :token OR NOT (leases.ends > now() AND leases.ends <= now() + leases.ttl)"
)
_RENEW = (
    "UPDATE leases SET ends = now() + :ttl, ttl = :ttl WHERE account_id = :id AND token = :token"
)
_REMEMBER = (
    "INSERT INTO leases SELECT :id, :token, now() + :ttl, :ttl WHERE now() < :until"
    " ON CONFLICT (account_id) DO NOTHING"
)
_RELEASE = "UPDATE leases SET token = '', ends = 0 WHERE account_id = ? AND token = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What `SqliteStorage.examine` found.

    Attributes:
        journal: SQLite's journal mode: `wal`, or `delete` where a volume has no shared memory.
        damage: what is wrong with the database; empty if it is intact.
        held: each account whose lease somebody holds, in order, and the lease's token.
        shares_memory: whether the volume lets processes share memory, as `wal` needs.
    """

    journal: str
    damage: str
    held: tuple[tuple[str, str], ...]
    shares_memory: bool


class SqliteStorage:
    """Records in one SQLite database, which is created by the first write.

    For ten to a hundred thousand accounts on one machine. Several processes may share a database;
    a process that finds it locked waits for up to two seconds, then its call fails. Where two bots
    could be the same account, use `AsyncSessionStore.lease`.

    Args:
        path: the database file; created with mode 0600, its directory with 0700. A relative path
            is resolved on first use. Beside it SQLite keeps `-wal` and `-shm`, which belong to it.
            Do not put it on a network file system: its users must share memory.
        durable: whether a commit survives a power loss too. With `False` a commit is still atomic
            and survives the death of the process; a power loss may undo the last batches.

    Reading changes nothing, whatever it finds. When a write finds one of our databases corrupt, it
    renames it to `<path>.corrupt-<nanoseconds>` and carries what can still be read over into a new
    one. Anything else at the path is an error and is left alone, as are full and read-only disks.

    A forked child opens connections of its own. A process that is stopped (not killed) during a
    write keeps the database locked until it continues; for machines and containers that get
    suspended, use Redis.

    Raises:
        TypeError, ValueError: `path` cannot be a path.
        RuntimeError: this Python's SQLite is older than 3.24.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"path must be a str or os.PathLike[str], not {path!r}")
        name = str.__str__(name)
        if not name or "\0" in name or name.startswith(":"):
            raise ValueError(f"path must be a path, not {path!r}")
        if not isinstance(durable, bool):
            raise TypeError(f"durable must be a bool, not {durable!r}")
        if sqlite3.sqlite_version_info < _OLDEST:
            raise RuntimeError(f"SQLite 3.24 or later is needed, not {sqlite3.sqlite_version}")
        self.path = expanded("path", name)
        self.durable = durable
        self._database = Database(self.path, durable=durable)
        self._threads = Threads("qqbot_session-sqlite", self._begin_afresh)
        self._reads = Together(lambda ids: self._hop("reader", self._read, ids))
        self._tokens: dict[str, str] = {}  # of the leases acquired here
        self._until: dict[str, float] = {}  # monotonic; nobody else can have the lease before

    @whenever
    def __repr__(self) -> str:
        return f"<SqliteStorage path={self.path!r} durable={self.durable}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        account_id.encode()  # what can be no record's name fails alone
        return await self._ask(account_id)

    _own_read = read

    def _ask(self, account_id: str) -> asyncio.Future[bytes | None]:
        return self._reads.ask(account_id)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records, all of them or none.

        Returns:
            A `LeaseLostError` for each account that another process holds the lease of; all
            others are written.

        Raises:
            sqlite3.Error, OSError: nothing is written.
        """
        return await self._hop("writer", self._commit, changes)

    async def exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        """Write each record whose place still holds what was read there; `None` is nothing.

        Returns:
            The failures per account id: a `RecordChangedError` where something else is by now.
        """
        return await self._hop("writer", self._exchange, changes)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every account id with its record.

        If the database is damaged, yield what can still be read, with one warning.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        after: int | None = -(2**63)
        while after is not None:
            page, after = await self._hop("reader", self._page, after)
            for item in page:
                yield item

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it is still `expected`."""
        return await self._hop("writer", self._discard, key, expected)

    async def sweep(self, older_than: float) -> int:
        """Do nothing: no interrupted write leaves anything behind."""
        return 0

    async def acquire(self, account_id: str, token: str, ttl: float) -> bool:
        """Take the account's lease, unless somebody else on this machine holds it."""
        return await self._hop("writer", self._acquire, account_id, token, ttl)

    async def renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        """Let leases end `ttl` seconds from now; return why each that did not is lost."""
        return await self._hop("writer", self._renew, held, ttl)

    async def release(self, account_id: str, token: str) -> None:
        """Give the lease up."""
        await self._hop("writer", self._release, account_id, token)

    async def held(self) -> AsyncIterator[tuple[str, str]]:
        """Yield each account whose lease somebody holds, and the lease's token."""
        for each in await self._hop("reader", self._held):
            yield each

    async def examine(self) -> Examination | None:
        """Look for damage, which reads all of it; `None` if there is no database.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        return await self._hop("reader", self._examine)

    async def aclose(self) -> None:
        """Close the connections after their last job; the next call would open new ones."""
        await self._threads.aclose(self._database.close)  # type: ignore[arg-type]

    async def _hop(self, name: Thread, function: Callable[..., _T], *args: object) -> _T:
        return await self._threads.run(name, function, *args)

    def _begin_afresh(self) -> None:
        """Forget, in a forked child, what is the parent's: connections and leases."""
        self._database.abandon()
        self._tokens, self._until = {}, {}

    # From here on: on a thread.

    def _read(self, account_ids: Sequence[str]) -> list[bytes | Exception | None]:
        absent: dict[str, bytes | Exception | None] = dict.fromkeys(account_ids)

        def read(connection: sqlite3.Connection) -> dict[str, bytes | Exception | None]:
            try:
                found = dict(connection.execute(_read_of(len(account_ids)), account_ids))
            except sqlite3.DatabaseError as error:
                if len(account_ids) == 1 or error.sqlite_errorcode & 0xFF not in DAMAGED:
                    raise
                found = {id_: _read_alone(connection, id_) for id_ in account_ids}
            return absent | found

        found = self._database.run("reader", read, absent)
        return [found[account_id] for account_id in account_ids]

    def _page(self, after: int) -> tuple[list[tuple[str, bytes]], int | None]:
        """Return some records, and after which row the next ones are if there may be any."""

        def read(connection: sqlite3.Connection) -> tuple[list[_Row], int | None]:
            try:
                rows = connection.execute(_SCAN, (after,)).fetchall()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in DAMAGED:
                    raise
                rows = list(rescue(connection, after))
                text = "the database %s is damaged (%s): %d more record(s) can be read"
                say(logging.WARNING, text, self.path, error, len(rows), logger=_log)
                return rows, None
            return rows, rows[-1][0] if len(rows) == _PAGE else None

        nothing: tuple[list[_Row], int | None] = ([], None)
        rows, behind = self._database.run("reader", read, nothing)
        return [(id_, data) for _, id_, data in rows if is_of(id_, data)], behind

    def _held(self) -> list[tuple[str, str]]:
        def ask(connection: sqlite3.Connection) -> list[tuple[str, str]]:
            return list(connection.execute(_HOLDERS))

        return self._database.run("reader", ask, [])

    def _examine(self) -> Examination | None:
        def examine(connection: sqlite3.Connection) -> Examination:
            real = os.path.realpath(self.path)
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return Examination(
                journal="wal" if has_log(real) else "delete",
                damage="" if answer == "ok" else answer,
                held=tuple(connection.execute(_HOLDERS)),
                shares_memory=shares_memory(os.path.dirname(real)),
            )

        return self._database.run("reader", examine, None)

    def _discard(self, key: str, expected: bytes) -> bool:
        def discard(connection: sqlite3.Connection) -> bool:
            return connection.execute(_DISCARD, (key, expected)).rowcount > 0

        return self._database.exists() and self._database.run("writer", discard, False)

    def _commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        kept = [(account_id, data) for account_id, data in changes.items() if data is not None]
        if not kept and not self._database.exists():
            return {}  # nothing there to delete

        def write(connection: sqlite3.Connection) -> Mapping[str, Exception]:
            # One statement is a transaction of its own. Should it find a lease of another's, the
            # same batch is written once more in a transaction that says whose.
            if len(kept) == len(changes) <= _ROWS and self._upsert(connection, kept) == len(kept):
                return {}
            with transaction(connection):
                return self._write(connection, changes)

        return self._database.run("writer", write, {})

    def _exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        def exchange(connection: sqlite3.Connection) -> Mapping[str, Exception]:
            failures: dict[str, Exception] = {}
            with transaction(connection):
                for some in _pieces(list(changes)):
                    failures |= self._refused(connection, some)
                for account_id in changes.keys() - failures.keys():
                    expected, data = changes[account_id]
                    if expected is None:
                        done = connection.execute(_MAKE_ANEW, (account_id, data))
                    else:
                        done = connection.execute(_REPLACE, (data, account_id, expected))
                    if not done.rowcount:
                        failures[account_id] = RecordChangedError(account_id)
            return failures

        return self._database.run("writer", exchange, {})

    def _write(
        self, connection: sqlite3.Connection, changes: Mapping[str, bytes | None]
    ) -> Mapping[str, Exception]:
        refused: dict[str, Exception] = {}
        for some in _pieces(list(changes)):
            refused |= self._refused(connection, some)
        may = [(id_, data) for id_, data in changes.items() if id_ not in refused]
        for kept in _pieces([(id_, data) for id_, data in may if data is not None]):
            self._upsert(connection, kept)
        for gone in _pieces([id_ for id_, data in may if data is None]):
            marks = ", ".join("?" * len(gone))
            connection.execute(f"DELETE FROM sessions WHERE account_id IN ({marks})", gone)
        return refused

    def _upsert(self, connection: sqlite3.Connection, kept: Sequence[tuple[str, bytes]]) -> int:
        """Write what may be written; return how many that were."""
        if not kept:
            return 0
        values: list[Any] = []
        for account_id, data in kept:
            values += (account_id, self._tokens.get(account_id), data)
        return connection.execute(_upsert_of(len(kept)), values).rowcount

    def _refused(
        self, connection: sqlite3.Connection, account_ids: Sequence[str]
    ) -> Mapping[str, Exception]:
        values: list[Any] = []
        for account_id in account_ids:
            values += (account_id, self._tokens.get(account_id))
        marks = ", ".join(["(?, ?)"] * len(account_ids))
        query = f"SELECT column1 FROM (VALUES {marks}) WHERE NOT ({_MAY_WRITE})"
        return _not_ours(id_ for (id_,) in connection.execute(query, values))

    def _acquire(self, account_id: str, token: str, ttl: float) -> bool:
        def acquire(connection: sqlite3.Connection) -> bool:
            if self._is_anothers(connection, account_id, token):  # to look costs no transaction
                return False
            lease = {"id": account_id, "token": token, "ttl": ttl}
            return connection.execute(_ACQUIRE, lease).rowcount > 0

        asked = time.monotonic()
        if not self._database.run("writer", acquire, False):
            return False
        self._tokens[account_id] = token
        self._until[account_id] = asked + ttl
        return True

    def _is_anothers(self, connection: sqlite3.Connection, account_id: str, token: str) -> bool:
        holder = connection.execute(_HOLDER, (account_id,)).fetchone()
        if holder is None:  # nobody's, or forgotten: then its holder may set it again
            return self._until.get(account_id, 0.0) > time.monotonic()
        other, ends, is_held = holder
        if other == token or not is_held:
            return False
        self._until[account_id] = ends
        return True

    def _renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        def renew(connection: sqlite3.Connection) -> set[str]:
            lost = set()
            with transaction(connection):
                for account_id, token in held.items():
                    lease = {"id": account_id, "token": token, "ttl": ttl}
                    until = {"until": self._until.get(account_id, 0.0)}
                    if not connection.execute(_RENEW, lease).rowcount and not (
                        connection.execute(_REMEMBER, lease | until).rowcount
                    ):
                        lost.add(account_id)
            return lost

        asked = time.monotonic()
        lost = self._database.run("writer", renew, set(held))
        for account_id in held.keys() - lost:
            self._until[account_id] = asked + ttl
        return _not_ours(lost)

    def _release(self, account_id: str, token: str) -> None:
        if self._tokens.get(account_id) == token:
            del self._tokens[account_id], self._until[account_id]
        if self._database.exists():
            self._database.run(
                "writer", lambda connection: connection.execute(_RELEASE, (account_id, token)), None
            )


def _read_alone(connection: sqlite3.Connection, account_id: str) -> bytes | Exception | None:
    try:
        row = connection.execute(_read_of(1), (account_id,)).fetchone()
    except sqlite3.DatabaseError as error:
        return error
    return None if row is None else row[1]


def _not_ours(account_ids: Iterable[str]) -> dict[str, Exception]:
    return {id_: LeaseLostError(f"the lease of {id_!r} is not ours") for id_ in account_ids}


@lru_cache(_ROWS)
def _read_of(rows: int) -> str:
    marks = ", ".join("?" * rows)
    return f"SELECT account_id, {_RECORD} FROM sessions WHERE account_id IN ({marks})"


@lru_cache(_ROWS)
def _upsert_of(rows: int) -> str:
    return (
        "INSERT INTO sessions (account_id, record) SELECT column1, column3"
        f" FROM (VALUES {', '.join(['(?, ?, ?)'] * rows)}) WHERE {_MAY_WRITE}"
        " ON CONFLICT (account_id) DO UPDATE SET record = excluded.record"
    )


def _pieces(items: list[_T]) -> Iterator[list[_T]]:
    for start in range(0, len(items), _ROWS):
        yield items[start : start + _ROWS]
