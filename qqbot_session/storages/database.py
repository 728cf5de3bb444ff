"""`Database`: one SQLite database, our two connections to it, and the file at its path.

Rules:

* Only SQLite opens the file. Closing any descriptor of a file drops all POSIX locks that the
  process holds on it, including those of SQLite's connections; SQLite knows this and defers its
  own closes.
  The one exception, `_head_is_ours`, runs only after SQLite has said that this is no database, and
  never while this process has a connection to it.
* A connection for reading changes nothing: it is read-only and, if nobody else has the database
  open, treats the file as immutable, so that SQLite creates no `-wal` and no `-shm` beside it.
* Only a database with our application id and our tables is used, and only a failed write sets one
  aside. What can still be read goes into the database that takes its place.
* Before and after each use, the database at the path and its `-wal` are compared with those that
  are open: SQLite itself would go on writing, and report success, to a file that has been deleted.
* No statement runs for ever, whatever the schema.
* Connections are closed before a fork: the child would inherit SQLite's bookkeeping of locks, but
  not the locks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from ..logs import say
from .base import READ_LIMIT, NotRegularError
from .places import (
    IN_USE,
    NETWORK,
    file_system_of,
    missing_directories,
    open_to_others,
    private_names,
    sync_directory,
)

_T = TypeVar("_T")
Thread = Literal["reader", "writer"]
_File = tuple[int, ...] | None  # device, inode and, where a file must not change, more of `stat`

_log = logging.getLogger("qqbot_session.storages.sqlite")

APPLICATION_ID = 0x51515353  # "QQSS"
_VERSION = 1
_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html#the_database_header
_PATIENCE = 2.0  # seconds for another process's lock: longer is a stall, less makes traffic fail
_LONGEST = 10.0  # seconds of computing for one job; a listing takes a hundredth
_STEPS = 1_000_000  # of SQLite's between two looks at the clock: some milliseconds
_TRIES = 5  # at a database that is replaced meanwhile
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NEEDS_A_WRITER = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_BESIDE = ("-wal", "-shm", "-journal")

# `sessions` has a rowid: accounts that are due together were inserted together, and so lie on the
# same pages; 13 times fewer bytes reach the disk than with the table in the order of its keys.
SCHEMA = (
    "CREATE TABLE sessions (account_id TEXT PRIMARY KEY NOT NULL, record BLOB NOT NULL)",
    "CREATE TABLE leases (account_id TEXT PRIMARY KEY NOT NULL, token TEXT NOT NULL,"
    " ends REAL NOT NULL, ttl REAL NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_TABLES = "SELECT name, type, rootpage FROM sqlite_master WHERE name IN ('sessions', 'leases')"
_RECORD = f"ifnull(substr(CAST(record AS BLOB), 1, {READ_LIMIT}), x'')"  # of an empty blob: NULL
IS_KEY = f"typeof(account_id) = 'text' AND length(account_id) < {READ_LIMIT}"
"""Whether a row can be anybody's: `read` finds no other keys."""


class NotOurDatabaseError(NotRegularError):
    """Something else than a database of ours stands at the path; it is left alone."""


class _ReplacedError(Exception):
    """Something else stands at the path than what is open."""


@dataclass(slots=True)
class _Opened:
    """A connection, and what it is to.

    Attributes:
        log: the path of its `-wal`, whose coming and going matters too.
        still: the database is taken for immutable.
        file: what stood at the path, and at that of the log, when it was opened.
    """

    connection: sqlite3.Connection
    path: str
    log: str
    still: bool
    file: tuple[_File, _File]

    def stands(self) -> bool:
        return self.file == (_file_at(self.path, whole=self.still), _file_at(self.log))


class Database:
    """The two connections to one database. Used on threads.

    Args:
        path: where it is, or will be.
        durable: whether a commit survives a power loss.
    """

    def __init__(self, path: str, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._resolved = os.path.isabs(path)
        self._open: dict[Thread, _Opened] = {}
        self._locks: dict[Thread, threading.Lock] = {}
        self._deadline = 0.0
        self._said: set[str] = set()
        self.abandon()
        _databases.add(self)

    def abandon(self) -> None:
        """Forget connections that cannot be used any more, without closing them.

        In a child they are the parent's, if Python did not see the fork.
        """
        _inherited.extend(opened.connection for opened in self._open.values())
        self._open = {}
        self._locks = {"reader": threading.Lock(), "writer": threading.Lock()}

    def exists(self) -> bool:
        return _file_at(self._where()) is not None

    def run(self, name: Thread, work: Callable[[sqlite3.Connection], _T], missing: _T) -> _T:
        """Return what `work` makes of the connection, or `missing` if there is none to read.

        `work` may be called several times: each time something else stands at the path.
        """
        recovered = name == "writer"
        for _ in range(_TRIES):
            try:
                return self._attempt(name, work, missing)
            except _ReplacedError:
                if (opened := self._open.get(name)) and opened.still:
                    self.close(name)  # somebody writes now, as our own writer may
                else:
                    self._part()
            except sqlite3.DatabaseError as error:
                if _code(error) in _BUSY:
                    raise
                if name == "writer" and _code(error) in DAMAGED:
                    self._set_aside(error)
                    continue
                self.close()  # the next attempt opens it anew, whatever this was
                if recovered or not self._recover(error):
                    raise
                recovered = True
        raise BlockingIOError(errno.EAGAIN, "is replaced again and again", self._path)

    def close(self, only: Thread | None = None) -> None:
        """Close the reader before the writer: only who may write can tidy up as the last."""
        for name, lock in self._locks.items():
            if only in (None, name):
                with lock:
                    self._close(name)

    def _close(self, name: Thread) -> None:
        if opened := self._open.pop(name, None):
            opened.connection.close()
            if not opened.still:
                _let_go(opened.file[0])

    # Opening

    def _attempt(self, name: Thread, work: Callable[[sqlite3.Connection], _T], missing: _T) -> _T:
        with self._locks[name]:
            opened = self._open.get(name) or self._connect(name)
            if opened is None:
                return missing
            if not opened.stands():
                raise _ReplacedError
            self._deadline = time.monotonic() + _LONGEST
            result = work(opened.connection)
            if not opened.stands():  # what was read or written there is worth nothing
                raise _ReplacedError
            return result

    def _connect(self, name: Thread) -> _Opened | None:
        path = self._where()
        real = os.path.realpath(path)
        if name == "writer":
            self._make(real)
        if not self._look(real, path) and name == "reader":
            return None
        log = f"{real}-wal"
        still = name == "reader" and _file_at(log) is None and has_log(real)
        file = _file_at(path, whole=still)
        if not still:
            with _in_use_lock:
                IN_USE[file] += 1
        try:
            mode = "rw" if name == "writer" else "ro&immutable=1" if still else "ro"
            connection = self._opened(real, mode, prepare=name == "writer")
        except BaseException:
            if not still:
                _let_go(file)
            raise
        self._open[name] = _Opened(connection, path, log, still, (file, _file_at(log)))
        self._warn_of_the_place(real)
        return self._open[name]

    def _opened(self, real: str, mode: str, *, prepare: bool) -> sqlite3.Connection:
        shared = not prepare or shares_memory(os.path.dirname(real))
        if not shared:
            text = "%s is on a volume without shared memory: SQLite works in rollback mode, slowly"
            self._warn_once(text, real)
            if has_log(real):
                _leave_log(real)
        connection = _connection(real, mode)
        try:
            connection.set_progress_handler(self._is_overdue, _STEPS)
            self._deadline = time.monotonic() + _LONGEST
            if prepare:
                _prepare(connection, real, shared=shared)
                connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
                connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA cache_size = -8000")
            _check_tables(connection, real)  # which opens the log, too
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_overdue(self) -> bool:
        return time.monotonic() > self._deadline

    def _where(self) -> str:
        if not self._resolved:
            self._path, self._resolved = os.path.abspath(self._path), True
        return self._path

    def _make(self, real: str) -> None:
        """See to it that a file is there that only its owner can read."""
        status = os.stat(real) if os.path.exists(real) else None
        if status is not None:
            if stat.S_ISREG(status.st_mode) and not status.st_size and status.st_mode & 0o077:
                with contextlib.suppress(OSError):  # somebody else's: `open_to_others` tells
                    os.chmod(real, 0o600)
            return
        directory = os.path.dirname(real)
        for missing in missing_directories(directory):
            with contextlib.suppress(FileExistsError):
                os.mkdir(missing, 0o700)
            _try_to_sync(os.path.dirname(missing))
        with contextlib.suppress(FileExistsError):  # another process was faster
            _touch(real)
        _try_to_sync(directory)

    def _look(self, real: str, path: str) -> bool:
        """Return whether a database of ours is there, `False` where one can be made.

        Raises:
            NotOurDatabaseError: something else is there.
        """
        try:
            status = os.stat(real)
        except FileNotFoundError:
            return False
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(real + suffix).st_mode):
                    raise NotOurDatabaseError(f"{path + suffix!r} is no regular file")
        if not status.st_size:
            return False
        if status.st_nlink > 1 and (other := _name_in_use(real, status)):
            text = f"{path!r} is a second name (a hard link) of {other!r}: use that one"
            raise NotOurDatabaseError(text)
        try:
            with contextlib.closing(_connection(real, "ro&immutable=1")) as connection:
                if _number(connection, "application_id") == APPLICATION_ID:
                    version = _number(connection, "user_version")
                    if version > _VERSION:
                        raise NotOurDatabaseError(
                            f"{path!r} is of a later version of this library: {version}"
                        )
                    return True
                is_dump = len(connection.execute(_TABLES).fetchall()) == 2
        except sqlite3.DatabaseError:
            return _head_is_ours(real, status, path)
        raise NotOurDatabaseError(_dumped(path) if is_dump else _foreign(path))

    def _recover(self, error: sqlite3.Error) -> bool:
        """Let a writer undo what somebody died over, so that the rest can be read."""
        needs_a_writer = _code(error) in _NEEDS_A_WRITER or _lacks_shared_memory(error)
        if not needs_a_writer or not os.access(self._path, os.W_OK):
            return False
        self.run("writer", lambda connection: None, None)
        return True

    def _warn_of_the_place(self, real: str) -> None:
        for reason in (*open_to_others(os.path.dirname(real)), *open_to_others(real, above=False)):
            self._warn_once("%s", reason)
        kind = file_system_of(real)
        if kind.startswith(NETWORK):
            text = "%s is on a network file system (%s): only one machine may use it"
            self._warn_once(text, real, kind)

    def _warn_once(self, text: str, *args: object) -> None:
        if text % args not in self._said:
            self._said.add(text % args)
            say(logging.WARNING, text, *args, logger=_log, stacklevel=2)

    # What becomes of a database

    def _part(self) -> None:
        """Close what is no longer at the path; its log must not become that of what is there now.

        SQLite tells a log's database by its name alone. So the log goes into the database it is
        of, wherever that is by now; what cannot is kept under another name.
        """
        for name, lock in self._locks.items():
            with lock, contextlib.suppress(sqlite3.Error):
                if name == "writer" and name in self._open:
                    self._open[name].connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        left = {opened.log: opened for opened in self._open.values() if not opened.still}
        self.close()
        for log, opened in left.items():
            database, file = opened.file
            stays = file is not None and file == _file_at(log)
            if stays and database != _file_at(self._path) and os.path.getsize(log):
                os.rename(log, f"{log}.of-another-{time.time_ns()}")
                text = "%s was replaced while it was in use; its log is kept"
                say(logging.WARNING, text, self._path, logger=_log)

    def _set_aside(self, error: Exception) -> None:
        """Let a new database with all that can still be read take the place of a corrupt one.

        Nobody can write meanwhile, and whoever waits to write finds out afterwards.
        """
        real = os.path.realpath(self._where())
        file = _file_at(real)
        found = [opened.file[0] for opened in self._open.values() if not opened.still]
        if file is None or (found and file not in found) or not self._look(real, real):
            return self.close()  # another process has done so
        aside = f"{real}.corrupt-{time.time_ns()}"
        with contextlib.closing(_connection(real, "rw")) as corrupt:
            try:
                corrupt.execute("BEGIN IMMEDIATE")
            except sqlite3.DatabaseError as refusal:
                if _code(refusal) in _BUSY:
                    raise
            if file != _file_at(real):
                return self.close()
            kept = _put_in_place(corrupt, real, aside)
        self.close()
        text = "the database %s is corrupt (%s); set aside as %s, with %d record(s) carried over"
        say(logging.ERROR, text, real, error, aside, kept, logger=_log)
        return None


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []
_in_use_lock = threading.Lock()
_forking: list[threading.Lock] = []


def _let_go(file: _File) -> None:
    with _in_use_lock:
        IN_USE[file] -= 1
        if not IN_USE[file]:
            del IN_USE[file]


def _before_fork() -> None:
    """Close all connections, and let no thread open one until the fork is over."""
    for database in list(_databases):
        for name, lock in database._locks.items():
            if lock.acquire(timeout=2 * _PATIENCE):  # later it is a disk that hangs
                _forking.append(lock)
                database._close(name)
    _in_use_lock.acquire()
    _forking.append(_in_use_lock)


def _after_fork() -> None:
    while _forking:
        _forking.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


def _connection(real: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{Path(real).as_uri()}?mode={mode}",
        uri=True,
        timeout=_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = _text
    connection.create_function("now", 0, time.monotonic)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _prepare(connection: sqlite3.Connection, real: str, *, shared: bool) -> None:
    """Let the database have its tables and, where memory can be shared, a write-ahead log."""
    # Whatever `durable` says: a torn first page would be nobody's.
    connection.execute("PRAGMA synchronous = FULL")
    if _number(connection, "application_id") != APPLICATION_ID:
        with transaction(connection):
            if _number(connection, "application_id") != APPLICATION_ID:  # nobody else was faster
                for statement in SCHEMA:
                    connection.execute(statement)
    until = time.monotonic() + _PATIENCE
    while shared and not _begin_log(connection):  # SQLite does not wait where two begin it at once
        if time.monotonic() > until:
            raise sqlite3.OperationalError(f"{real!r} is locked")
        time.sleep(0.01)


def _begin_log(connection: sqlite3.Connection) -> bool:
    """Let readers and a writer share a write-ahead log; return whether they do."""
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _leave_log(real: str) -> None:
    """Put what is in a write-ahead log into the database, without any shared memory."""
    with contextlib.closing(_connection(real, "rw")) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()


def _lacks_shared_memory(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR_SHM")


def shares_memory(directory: str) -> bool:
    """Whether processes can share memory through files there, as a write-ahead log needs.

    Tries it with a private file. Volumes of FUSE, of Docker Desktop and of WSL often cannot.
    """
    path = private_names(os.path.join(directory, "")) + "0.tmp"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return True  # whatever that is, SQLite will say
    try:
        os.ftruncate(file, mmap.PAGESIZE)
        mmap.mmap(file, mmap.PAGESIZE).close()
    except OSError:
        return False
    finally:
        os.close(file)
        os.unlink(path)
    return True


def has_log(real: str) -> bool:
    """Whether the database is in WAL mode, without having SQLite make a log."""
    try:
        with contextlib.closing(_connection(real, "ro&nolock=1")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return _code(error) == sqlite3.SQLITE_CANTOPEN  # no log without locks
    except sqlite3.DatabaseError:
        return False
    return False


def _check_tables(connection: sqlite3.Connection, real: str) -> None:
    """Raise `NotOurDatabaseError` where something else has a table's name: a view may never end."""
    kinds = {name: (kind, page) for name, kind, page in connection.execute(_TABLES)}
    for name in ("sessions", "leases"):
        kind, page = kinds.get(name, ("missing", 0))
        if kind != "table" or not page:
            kind = "virtual table" if kind == "table" else kind
            raise NotOurDatabaseError(f"{real!r} is damaged: its table {name!r} is a {kind}")


def _name_in_use(real: str, status: os.stat_result) -> str | None:
    """Return another name of the same file that this process uses, or somebody beside it.

    SQLite would keep a second log: https://www.sqlite.org/howtocorrupt.html (multiple links).
    """
    file = (status.st_dev, status.st_ino)
    for database in list(_databases):
        for opened in list(database._open.values()):
            if (opened.file[0] or ())[:2] == file and os.path.realpath(opened.path) != real:
                return opened.path
    with contextlib.suppress(OSError), os.scandir(os.path.dirname(real)) as entries:
        for entry in entries:
            other = entry.stat(follow_symlinks=False)
            is_same = (other.st_dev, other.st_ino) == file
            logs = (entry.path + "-wal", entry.path + "-journal")
            if is_same and entry.path != real and any(map(os.path.exists, logs)):
                return entry.path
    return None


def _head_is_ours(real: str, status: os.stat_result, path: str) -> bool:
    """Judge by its first bytes what SQLite cannot read; see `Database._look`."""
    with _in_use_lock:
        if IN_USE[status.st_dev, status.st_ino] > 0:
            return True  # so it was ours when it was opened
        file = os.open(real, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            head = os.read(file, 100)
        finally:
            os.close(file)
    if not head.strip(b"\0") and os.path.exists(f"{real}-journal"):
        return False  # what somebody died over and the journal undoes
    if head[:16] == _MAGIC and head[68:72] == APPLICATION_ID.to_bytes(4, "big"):
        return True
    raise NotOurDatabaseError(_foreign(path))


def _foreign(path: str) -> str:
    return f"{path!r} is no database of ours and is left alone"


def _dumped(path: str) -> str:
    return (
        f"{path!r} has our tables but not our application id, as after a restore from a dump; "
        f"to use it: sqlite3 {path!r} 'PRAGMA application_id = {APPLICATION_ID}'"
    )


# What can still be read of a damaged database


def rescue(
    connection: sqlite3.Connection, after: int = -(2**63)
) -> Iterator[tuple[int, str, bytes]]:
    """Yield row number, account id and record of every row that can be read behind `after`.

    Each row is looked for twice: in the table, from one readable page to the next, and by the keys
    in the index of the account ids.
    """
    seen: set[int] = set()
    row = f"SELECT rowid, account_id, {_RECORD} FROM sessions WHERE {IS_KEY} AND rowid"
    step = 1
    while after < 2**63 - step:
        before = after
        with contextlib.suppress(sqlite3.DatabaseError):
            for number, account_id, data in connection.execute(
                f"{row} > ? ORDER BY rowid", (after,)
            ):
                after, step = number, 1
                seen.add(number)
                yield number, account_id, data
            break
        if after == before:
            after, step = max(after, 0) + step, step * 2
    for number in _row_numbers(connection) - seen:
        with contextlib.suppress(sqlite3.DatabaseError):
            yield from connection.execute(f"{row} = ?", (number,))


def _row_numbers(connection: sqlite3.Connection) -> set[int]:
    """Return the numbers of all rows that the index knows, as far as it can be read."""
    found: set[int] = set()
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            for (number,) in connection.execute(
                f"SELECT rowid FROM sessions ORDER BY account_id {order}"
            ):
                found.add(number)
    return found


def _put_in_place(corrupt: sqlite3.Connection, real: str, aside: str) -> int:
    """Make a new database of what can be read, and let it take the path; return how many."""
    new = private_names(os.path.join(os.path.dirname(real), "")) + "0.tmp"
    _touch(new)
    try:
        kept = _carry_over(corrupt, new)
        try:
            os.link(real, aside)
        except OSError:  # no hard links there
            os.rename(real, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(real + suffix, aside + suffix)
        os.replace(new, real)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    _try_to_sync(os.path.dirname(real))
    return kept


def _carry_over(corrupt: sqlite3.Connection, new: str) -> int:
    with contextlib.closing(_connection(new, "rw")) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        with transaction(connection):
            for statement in SCHEMA:
                connection.execute(statement)
            kept = connection.executemany(
                "INSERT OR IGNORE INTO sessions VALUES (?, ?)",
                (row[1:] for row in rescue(corrupt)),
            ).rowcount
            with contextlib.suppress(sqlite3.DatabaseError):
                leases = corrupt.execute("SELECT * FROM leases").fetchall()
                connection.executemany("INSERT INTO leases VALUES (?, ?, ?, ?)", leases)
    return kept


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _text(data: bytes) -> str:
    """Decode an account id, also one that somebody else's tool broke."""
    return data.decode("utf-8", "replace")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _file_at(path: str, *, whole: bool = False) -> _File:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if whole:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return status.st_dev, status.st_ino


def _touch(path: str) -> None:
    """Make an empty file that only its owner can read."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for name in ("O_CLOEXEC", "O_NOFOLLOW"):
        flags |= getattr(os, name, 0)
    os.close(os.open(path, flags, 0o600))


def _try_to_sync(directory: str) -> None:
    with contextlib.suppress(OSError):  # SQLite asks for no more
        sync_directory(directory)
