"""`SqliteStorage`: all records in one SQLite database, for a fleet on one machine.

Rules:

* One thread and one connection for what changes the database, one of each for what reads it. A
  batch is one statement in one hop: each step of a statement gives the interpreter's lock away,
  and a busy loop gives it back late.
* A batch succeeds or fails whole: SQLite's atomicity is the whole of it. Only accounts that are
  another's by a lease fail alone.
* What stands at the path is compared with what is open before each use, the database and its
  `-wal`: SQLite itself would go on writing, and report success, into a file that was deleted.
* Only a database that carries our application id is ever opened, and only one that also is corrupt
  is ever set aside. 100 bytes tell; they are read before SQLite sees the file, because SQLite
  begins by changing it.
* Both connections are opened anew together: within a process they share what SQLite knows of the
  file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, TypeVar

from ..errors import LeaseLostError
from ..logs import say
from .base import READ_LIMIT, NotRegularError, is_of

__all__ = ["NotOurDatabaseError", "SqliteStorage"]

_T = TypeVar("_T")
_Thread = Literal["writer", "reader"]
_File = tuple[int, int] | None  # device and inode

_log = logging.getLogger(__name__)

_OLDEST = (3, 24, 0)  # the first with an upsert
_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html#the_database_header
_APPLICATION_ID = 0x51515353  # "QQSS"
_VERSION = 1
_PATIENCE = 1.0  # seconds for another process's lock: longer is a stall, less makes traffic fail
_ROWS = 300  # of three variables each; SQLite allows 999 everywhere
_PAGE = 256  # records per hop of a scan: a reader that stays open lets the log grow without bound
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NETWORK = ("nfs", "cifs", "smb", "ceph", "afs", "fuse.sshfs", "fuse.glusterfs", "glusterfs")

# `sessions` has a rowid: accounts that are due together were inserted together, and so lie on the
# same pages; 13 times fewer bytes reach the disk than with the table in the order of its keys.
_SCHEMA = (
    "CREATE TABLE sessions (account_id TEXT PRIMARY KEY NOT NULL, record BLOB NOT NULL)",
    "CREATE TABLE leases (account_id TEXT PRIMARY KEY NOT NULL, token TEXT NOT NULL,"
    " ends REAL NOT NULL, ttl REAL NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
# Of an empty blob `substr` is NULL.
_RECORD = f"ifnull(substr(CAST(record AS BLOB), 1, {READ_LIMIT}), x'')"
_READ = f"SELECT {_RECORD} FROM sessions WHERE account_id = ?"
_SCAN = (
    f"SELECT rowid, account_id, {_RECORD} FROM sessions"
    f" WHERE rowid > ? ORDER BY rowid LIMIT {_PAGE}"
)
_DISCARD = f"DELETE FROM sessions WHERE account_id = ? AND {_RECORD} = ?"

# `ends` is in seconds of the machine's monotonic clock, which all its processes share. A lease that
# ends much later than `ttl` from now is of an earlier boot, and over; much, because now is when the
# clock was read, and a statement may have waited for another's since.
_WAITED = 60.0  # seconds
_MAY_WRITE = (  # `column2` is the writer's token: the lease's, or NULL where nobody holds one
    "column2 IS (SELECT token FROM leases WHERE account_id = column1"
    f" AND (token = column2 OR (ends > ? AND ends <= ? + ttl + {_WAITED})))"
)
_HOLDER = "SELECT token, ends, ttl FROM leases WHERE account_id = ?"
_ACQUIRE = (
    "INSERT INTO leases VALUES (:id, :token, :now + :ttl, :ttl)"
    " ON CONFLICT (account_id) DO UPDATE SET token = :token, ends = :now + :ttl, ttl = :ttl"
    f" WHERE token = :token OR ends <= :now OR ends > :now + leases.ttl + {_WAITED}"
)
_RENEW = (
    "UPDATE leases SET ends = :now + :ttl, ttl = :ttl WHERE account_id = :id AND token = :token"
)
_REMEMBER = (
    "INSERT INTO leases VALUES (:id, :token, :now + :ttl, :ttl) ON CONFLICT (account_id) DO NOTHING"
)
_RELEASE = "UPDATE leases SET token = '', ends = 0 WHERE account_id = ? AND token = ?"


class NotOurDatabaseError(NotRegularError):
    """Something else than a database of ours stands at the path; it is left alone."""


class SqliteStorage:
    """Records in one SQLite database, which is made when first written to.

    For ten to a hundred thousand accounts on one machine. Several processes may use one database;
    one that finds it locked waits a second at most, and then has failed. Where two bots could be
    the same account, `AsyncSessionStore.lease` decides.

    Args:
        path: the database file; made with mode 0600, its directory with 0700. A relative path is
            resolved at its first use. Beside it SQLite keeps `-wal` and `-shm`, which are part of
            it. Not on a network file system: its log needs memory that all users share.
        durable: whether a commit survives a power loss too. `False` still is atomic, and survives
            the end of the process at any moment; a power loss may undo the last batches.

    A database of ours that turns out corrupt is renamed to `<path>.corrupt-<nanoseconds>`, and a
    new one takes what is written. Anything else at the path is an error and stays as it is. Full
    or read-only disks are errors too; reading needs a writable directory.

    Do not fork while it is in use: a child opens its own connections, but SQLite warns of more. A
    process that is stopped, not ended, in the middle of a write keeps the database locked until it
    goes on; for machines and containers that are suspended there is Redis.

    Raises:
        TypeError, ValueError: `path` cannot be a path.
        RuntimeError: this Python's SQLite is older than 3.24.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"path must be a str or os.PathLike[str], not {path!r}")
        if not name or "\0" in name or name.startswith(":"):
            raise ValueError(f"path must be a path, not {path!r}")
        expanded = os.path.expanduser(name)
        if expanded.startswith("~"):
            raise ValueError(f"path names no user's home directory: {path!r}")
        if not isinstance(durable, bool):
            raise TypeError(f"durable must be a bool, not {durable!r}")
        if sqlite3.sqlite_version_info < _OLDEST:
            raise RuntimeError(f"SQLite 3.24 or later is needed, not {sqlite3.sqlite_version}")
        self.path = expanded
        self.durable = durable
        self._database = _Database(expanded, durable=durable)
        self._threads: dict[_Thread, ThreadPoolExecutor] = {}
        self._retired: dict[_Thread, ThreadPoolExecutor] = {}
        self._process = os.getpid()
        self._tokens: dict[str, str] = {}  # of the leases acquired here
        self._until: dict[str, float] = {}  # monotonic; nobody else can have the lease before

    def __repr__(self) -> str:
        return f"<SqliteStorage path={self.path!r} durable={self.durable}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        return await self._hop("reader", self._read, account_id)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records, all of them or none.

        Returns:
            A `LeaseLostError` for each account that another process holds the lease of; all
            others are written.

        Raises:
            sqlite3.Error, OSError: nothing is written.
        """
        return await self._hop("writer", self._commit, changes)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every account id with its record.

        Raises:
            sqlite3.Error, OSError: it cannot be read to its end. A corrupt database has then been
                set aside.
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

    async def aclose(self) -> None:
        """Close the connections after their last job; the next call would open new ones."""
        if self._process != os.getpid():
            return
        threads, self._threads = self._threads, {}
        self._retired |= threads
        if not threading.main_thread().is_alive():
            self._database.close()
            return
        loop = asyncio.get_running_loop()
        closing = [
            loop.run_in_executor(executor, self._database.close, name)
            for name, executor in threads.items()
        ]
        for executor in threads.values():
            executor.shutdown(wait=False)
        await asyncio.gather(*closing)

    async def _hop(self, name: _Thread, function: Callable[..., _T], *args: object) -> _T:
        if self._process != os.getpid():  # after a fork the parent's threads are not here
            self._process = os.getpid()
            self._threads, self._retired = {}, {}
            self._database.abandon()
        if not threading.main_thread().is_alive():  # `atexit`: no thread can be had any more
            return function(*args)
        executor = self._threads.get(name)
        if executor is None:
            executor = ThreadPoolExecutor(1, f"qqbot_session-sqlite-{name}")
            self._threads[name] = executor
            if name in self._retired:  # what it has still to do comes first
                executor.submit(self._retired.pop(name).shutdown)
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    # From here on: on a thread.

    def _read(self, account_id: str) -> bytes | None:
        def read(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(_READ, (account_id,)).fetchone()
            return None if row is None else row[0]

        return self._database.run("reader", read, None)

    def _page(self, after: int) -> tuple[list[tuple[str, bytes]], int | None]:
        """Return some records, and after which row the next ones are if there may be any."""

        def read(connection: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
            return connection.execute(_SCAN, (after,)).fetchall()

        try:
            rows: list[tuple[int, str, bytes]] = self._database.run("reader", read, [])
        except sqlite3.DatabaseError as error:
            # Whoever has a session writes it again at its next event; nobody could list it here.
            if _code(error) in _DAMAGED:
                self._database.set_aside(error)
            raise
        found = [(account_id, data) for _, account_id, data in rows if is_of(account_id, data)]
        return found, rows[-1][0] if len(rows) == _PAGE else None

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
            with _transaction(connection):
                return self._write(connection, changes)

        return self._database.run("writer", write, {})

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
        now = time.monotonic()
        values += (now, now)
        return connection.execute(_upsert_of(len(kept)), values).rowcount

    def _refused(
        self, connection: sqlite3.Connection, account_ids: Sequence[str]
    ) -> Mapping[str, Exception]:
        values: list[Any] = []
        for account_id in account_ids:
            values += (account_id, self._tokens.get(account_id))
        now = time.monotonic()
        marks = ", ".join(["(?, ?)"] * len(account_ids))
        query = f"SELECT column1 FROM (VALUES {marks}) WHERE NOT ({_MAY_WRITE})"
        return _not_ours(id_ for (id_,) in connection.execute(query, [*values, now, now]))

    def _acquire(self, account_id: str, token: str, ttl: float) -> bool:
        def acquire(connection: sqlite3.Connection) -> bool:
            if self._is_anothers(connection, account_id, token):  # to look costs no transaction
                return False
            now = time.monotonic()
            lease = {"id": account_id, "token": token, "now": now, "ttl": ttl}
            return connection.execute(_ACQUIRE, lease).rowcount > 0

        asked = time.monotonic()
        if not self._database.run("writer", acquire, False):
            return False
        self._tokens[account_id] = token
        self._until[account_id] = asked + ttl
        return True

    def _is_anothers(self, connection: sqlite3.Connection, account_id: str, token: str) -> bool:
        now = time.monotonic()
        holder = connection.execute(_HOLDER, (account_id,)).fetchone()
        if holder is None:  # nobody's, or forgotten: then its holder may set it again
            return self._until.get(account_id, now) > now
        other, ends, ttl = holder
        if other == token or not now < ends <= now + ttl + _WAITED:
            return False
        self._until[account_id] = ends
        return True

    def _renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        def renew(connection: sqlite3.Connection) -> set[str]:
            lost = set()
            with _transaction(connection):
                now = time.monotonic()
                for account_id, token in held.items():
                    lease = {"id": account_id, "token": token, "now": now, "ttl": ttl}
                    if not connection.execute(_RENEW, lease).rowcount and not (
                        now < self._until.get(account_id, now)
                        and connection.execute(_REMEMBER, lease).rowcount
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


class _ReplacedError(Exception):
    """Something else stands at the path than what is open."""


class _Database:
    """The two connections to one database, and what stands at its path. Used on threads."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._resolved = os.path.isabs(path)
        self._open: dict[_Thread, tuple[sqlite3.Connection, str, tuple[_File, _File]]] = {}
        self._locks: dict[_Thread, threading.Lock] = {}
        self._warned = False
        self.abandon()

    def abandon(self) -> None:
        """Forget the connections of the process that this one was forked from.

        SQLite forbids to use them here, and to close them.
        """
        _inherited.extend(connection for connection, _, _ in self._open.values())
        self._open = {}
        self._locks = {"writer": threading.Lock(), "reader": threading.Lock()}

    def exists(self) -> bool:
        return _file_at(self._where()) is not None

    def run(self, name: _Thread, work: Callable[[sqlite3.Connection], _T], missing: _T) -> _T:
        """Return what `work` makes of the connection, or `missing` if there is none to read."""
        try:
            return self._attempt(name, work, missing)
        except _ReplacedError:
            self._part()
        except sqlite3.DatabaseError as error:
            if name == "writer" and _code(error) in _DAMAGED:
                self.set_aside(error)
            elif _code(error) in _BUSY:
                raise
            else:  # the next attempt opens it anew, whatever this was
                self.close()
                raise
        return self._attempt(name, work, missing)

    def close(self, only: _Thread | None = None) -> None:
        for name, lock in self._locks.items():
            if only in (None, name):
                with lock:
                    if opened := self._open.pop(name, None):
                        opened[0].close()

    def _part(self) -> None:
        """Close what is no longer at the path; its log must not become that of what is there now.

        SQLite tells a log's database by its name alone. So the log goes into the database it is
        of, wherever that is by now; what cannot is kept under another name.
        """
        for name, lock in self._locks.items():
            with lock, contextlib.suppress(sqlite3.Error):
                if name in self._open:
                    self._open[name][0].execute("PRAGMA wal_checkpoint(TRUNCATE)")
        left = {log: identity for _, log, identity in self._open.values()}
        self.close()
        for log, (database, file) in left.items():
            if file == _file_at(log) and database != _file_at(self._path) and os.path.getsize(log):
                os.rename(log, f"{log}.of-another-{time.time_ns()}")
                _warn("%s was replaced while it was in use; its log is kept", self._path)

    def set_aside(self, error: Exception) -> None:
        """Rename the corrupt database that is open, unless another process has done so."""
        found = [identity for _, _, (identity, _) in self._open.values()]
        self.close()
        real = os.path.realpath(self._where())
        if (found and _file_at(real) not in found) or not _holds_ours(real):
            return
        aside = f"{real}.corrupt-{time.time_ns()}"
        for suffix in ("-wal", "-shm", ""):  # the database last: until then others see it changed
            with contextlib.suppress(FileNotFoundError):
                os.rename(real + suffix, aside + suffix)
        text = "the database %s is corrupt (%s); set aside as %s"
        _warn(text, real, error, aside, level=logging.ERROR)

    def _attempt(self, name: _Thread, work: Callable[[sqlite3.Connection], _T], missing: _T) -> _T:
        with self._locks[name]:
            connection = self._connection(name)
            return missing if connection is None else work(connection)

    def _where(self) -> str:
        if not self._resolved:
            self._path, self._resolved = os.path.abspath(self._path), True
        return self._path

    def _connection(self, name: _Thread) -> sqlite3.Connection | None:
        path = self._where()
        if name in self._open:
            connection, log, identity = self._open[name]
            if identity != (_file_at(path), _file_at(log)):
                raise _ReplacedError
            return connection
        if name == "writer":
            self._make(path)
        if not _holds_ours(path) and name == "reader":
            return None
        real = os.path.realpath(path)
        connection = self._connect(real)
        self._open[name] = (connection, f"{real}-wal", (_file_at(path), _file_at(f"{real}-wal")))
        return connection

    def _make(self, path: str) -> None:
        if _file_at(path) is not None:
            return
        directory = os.path.dirname(path)
        _make_directory(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.close(os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600))
        _sync_directory(directory)

    def _connect(self, real: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            real, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = _text
            _prepare(connection, real)
            level = "FULL" if self._durable else "NORMAL"
            for pragma in (
                f"synchronous = {level}",
                "cache_size = -8000",
                "journal_size_limit = 67108864",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
        except BaseException:
            connection.close()
            raise
        self._warn_of_a_network(real)
        return connection

    def _warn_of_a_network(self, real: str) -> None:
        if not self._warned:
            self._warned = True
            kind = _file_system_of(real)
            if kind.startswith(_NETWORK):
                _warn(
                    "%s is on a network file system (%s): more than one machine must not use it",
                    *(real, kind),
                )


def _warn(text: str, *args: object, level: int = logging.WARNING) -> None:
    say(level, text, *args, logger=_log, stacklevel=2)


_inherited: list[sqlite3.Connection] = []


def _prepare(connection: sqlite3.Connection, real: str) -> None:
    """Let the database have its tables, and a log that readers and a writer can share."""
    # Whatever `durable` says: a torn first page would be nobody's.
    connection.execute("PRAGMA synchronous = FULL")
    if _number(connection, "application_id") != _APPLICATION_ID:
        with _transaction(connection):
            if _number(connection, "application_id") != _APPLICATION_ID:  # nobody else was faster
                for statement in _SCHEMA:
                    connection.execute(statement)
    version = _number(connection, "user_version")
    if version > _VERSION:
        raise NotOurDatabaseError(f"{real!r} is of a later version of this library: {version}")
    until = time.monotonic() + _PATIENCE
    while not _has_log(connection, real):  # SQLite does not wait where two begin it at once
        if time.monotonic() > until:
            raise sqlite3.OperationalError(f"{real!r} is locked")
        time.sleep(0.01)


def _has_log(connection: sqlite3.Connection, real: str) -> bool:
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_BUSY:
            raise
        return False
    if mode != "wal":
        raise sqlite3.OperationalError(f"{real!r} is where SQLite cannot have a write-ahead log")
    return True


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _not_ours(account_ids: Iterable[str]) -> dict[str, Exception]:
    return {id_: LeaseLostError(f"the lease of {id_!r} is not ours") for id_ in account_ids}


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


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _text(data: bytes) -> str:
    """Decode an account id, also one that somebody else's tool broke."""
    return data.decode("utf-8", "replace")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _file_at(path: str) -> _File:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _holds_ours(path: str) -> bool:
    """Return whether a database of ours is at the path, `False` where one can be made.

    Raises:
        NotOurDatabaseError: something else is there.
    """
    try:
        file = os.open(
            path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        )
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotOurDatabaseError(f"{path!r} is no regular file")
        head = os.read(file, 100)
    finally:
        os.close(file)  # before SQLite opens it: a close drops the process's locks on the file
    if not head or (not head.strip(b"\0") and os.path.exists(f"{os.path.realpath(path)}-journal")):
        return False  # nothing, or what somebody died over and the journal undoes
    if head[:16] == _MAGIC and head[68:72] == _APPLICATION_ID.to_bytes(4, "big"):
        return True
    raise NotOurDatabaseError(f"{path!r} is no database of ours and is left alone")


def _make_directory(directory: str) -> None:
    missing = []
    while not os.path.isdir(directory) and directory != os.path.dirname(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    """Put the directory's names on the disk where that can be done; SQLite asks for no more."""
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _file_system_of(path: str) -> str:
    """Return the kind of file system, '' where the system does not say."""
    if sys.platform != "linux":
        return ""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:  # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                return after.split()[0]
    return ""
