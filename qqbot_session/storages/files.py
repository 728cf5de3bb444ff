"""`FileStorage`: a directory with one atomic file per account.

Rules:

* Nothing here runs on the event loop's thread: every public method is one executor hop through
  aiofiles. Whatever changes the directory runs on one thread, in the order it was called; that
  thread may have others sync for it, and waits for them. Reads have a thread of their own.
* A record appears under its name complete or not at all: it is written to a temporary file in
  the same directory and renamed. With `durable=True` the data is on the disk before the
  rename, and the rename before the commit returns. The batch pays for that once: all files are
  written, then all synced, then all renamed, then the directory is synced.
* Nothing is imported on the way to the disk: an import that fails for want of a descriptor leaves
  half a module behind, and every later write would fail with it.
* Opening never follows a link and never blocks; only regular files are read, removed or counted.
  A directory or a device in a record's place is an error to be reported, and is left alone.
* File names: an id made of `[A-Za-z0-9_-]` has the TypeScript original's name. Any other, and one
  too long for a file name, has the original's replaced name, shortened, and a hash; a record the
  original left under its own name is then read too, and removed by the next commit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import aiofiles.os

from ..state import account_of
from .base import READ_LIMIT, NotRegularError

if sys.platform == "darwin":
    import fcntl

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_LONGEST_NAME = 255  # bytes, on every file system in use
_SCAN_BATCH = 128  # records per hop: about a millisecond of decoding on the loop
_MANY = 32  # files that keep a thread busy for a good part of a millisecond
_SYNC_APART = 16  # files from which on threads are worth their start
_SYNCERS = 4  # threads

_RECORD_NAME = re.compile(r"session-.*\.json", re.DOTALL)
_LEFT_OVER = re.compile(r"\.qqbot-session-[0-9a-f]{16}-[0-9]+\.tmp")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,242}")  # both programs use its name, at most 255 bytes
_SCAN_KEY = "\0"  # opens the keys of `scan`, and no account id holds it

_READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_WRITE_FLAGS = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def original_name(account_id: str) -> str:
    """Return the original's file name, which replaces UTF-16 units: an astral one is two."""
    replaced = re.sub(
        r"[^A-Za-z0-9_-]", lambda match: "__" if match[0] > "\uffff" else "_", account_id
    )
    return f"session-{replaced}.json"


def file_name(account_id: str) -> str:
    """Return our file name: no two ids share one on a disk that knows upper and lower case."""
    if _PLAIN_ID.fullmatch(account_id):
        return f"session-{account_id}.json"
    original = original_name(account_id)
    digest = hashlib.sha256(account_id.encode()).hexdigest()[:32]
    return f"{original.removesuffix('.json')[:128]}.{digest}.json"


_Written = tuple[str, str, int]  # account id, temporary path, descriptor


def _files_at_once() -> int:
    """Return how many files a batch may have open: the bot needs descriptors for its own."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else -1
    return 128 if limit < 0 else max(1, min(128, limit // 8))


_FILES_AT_ONCE = _files_at_once()


class FileStorage:
    """Records as files in a directory, which is made when first written to.

    Args:
        directory: where the files are; made with mode 0700, files with 0600. A relative path is
            resolved by the system at each access.
        durable: whether a commit survives a power loss too: `fdatasync` on Linux, `F_FULLFSYNC`
            on macOS, as far as `os.fsync` goes on Windows. `False` still is atomic, and survives
            the end of the process at any moment.

    A commit has many files open at once, at most 128 and an eighth of what the process may have.

    Raises:
        TypeError, ValueError: `directory` cannot be a path.
    """

    def __init__(self, directory: str | os.PathLike[str], *, durable: bool = True) -> None:
        path = os.fspath(directory)
        if not isinstance(path, str):
            raise TypeError(f"directory must be a str or os.PathLike[str], not {directory!r}")
        if not path or "\0" in path:
            raise ValueError(f"directory must be a path, not {directory!r}")
        if not isinstance(durable, bool):
            raise TypeError(f"durable must be a bool, not {durable!r}")
        self.directory = path
        self._prefix = os.path.join(path, "")  # made once: it costs as much as a system call
        self.durable = durable
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._retired: dict[str, ThreadPoolExecutor] = {}
        self._process = 0
        # Directories that may have a new entry which is not on the disk yet.
        self._parents = {os.path.dirname(path.rstrip(os.sep)) or os.curdir}

    def __repr__(self) -> str:
        return f"<FileStorage directory={self.directory!r} durable={self.durable}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            OSError: it cannot be read, or is not a regular file.
        """
        return await self._hop("reader", self._read, account_id)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records; return the failures per account id."""
        return await self._hop("writer", self._commit, changes)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every readable record with a key for `discard`; warn of what cannot be read."""
        names = await self._hop("reader", self._record_names)
        for start in range(0, len(names), _SCAN_BATCH):
            batch = names[start : start + _SCAN_BATCH]
            for item in await self._hop("reader", self._read_all, batch):
                yield item

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it is still `expected`.

        The file is renamed to a private name, compared there, and put back with a hard link,
        which never overwrites a newer one. What remains: a record that was renewed within that
        moment is not found by whoever reads it then, and a process that dies between the two leaves
        it as a left-over. Where the file system
        knows no hard links it is put back by a rename, unless a newer one is seen.
        """
        return await self._hop("writer", self._discard, key, expected)

    async def sweep(self, older_than: float) -> int:
        """Remove temporary files last written more than so many seconds ago."""
        return await self._hop("writer", self._sweep, older_than)

    async def aclose(self) -> None:
        """Let the threads end after their last job; the next call would start new ones."""
        for thread in self._threads.values():
            thread.shutdown(wait=False)
        self._retired |= self._threads
        self._threads = {}

    async def _hop(
        self, thread: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        if self._process != os.getpid():  # after a fork the parent's threads are not here
            self._process = os.getpid()
            self._threads = {}
            self._retired = {}
        executor = self._threads.get(thread)
        if executor is None:
            executor = ThreadPoolExecutor(1, f"qqbot_session-{thread}")
            self._threads[thread] = executor
            if thread in self._retired:  # what it has still to do comes first
                executor.submit(self._retired.pop(thread).shutdown)
        result: _T = await aiofiles.os.wrap(function)(*args, executor=executor, **kwargs)
        return result

    # From here on: on a thread.

    def _path(self, name: str) -> str:
        return self._prefix + name

    def _original_path(self, account_id: str) -> str | None:
        """Return where the original keeps this account's record, if not where we do."""
        if _PLAIN_ID.fullmatch(account_id):
            return None
        name = original_name(account_id)
        return self._path(name) if len(name) <= _LONGEST_NAME else None

    def _owned_original(self, account_id: str) -> tuple[str, bytes] | None:
        """Return the path and data of the original's record, if it is this account's."""
        path = self._original_path(account_id)
        if path is None:
            return None
        try:
            data = _read_file(path)
        except NotRegularError:  # nobody's record
            return None
        return (path, data) if data is not None and account_of(data) == account_id else None

    def _read(self, account_id: str) -> bytes | None:
        data = _read_file(self._path(file_name(account_id)))
        if self._original_path(account_id) is None or (data and account_of(data) is not None):
            return data
        if original := self._owned_original(account_id):
            return original[1]
        # Another process may have moved it between the two looks.
        return _read_file(self._path(file_name(account_id)))

    def _record_names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.directory) if _RECORD_NAME.fullmatch(name)]
        return []

    def _read_all(self, names: Iterable[str]) -> list[tuple[str, bytes]]:
        found = []
        for name in names:
            try:
                data = _read_file(self._path(name))
            except OSError as error:
                _log.warning("cannot read %s: %s", name, error)
            else:
                if data is not None:
                    found.append((_SCAN_KEY + name, data))
        return found

    def _commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        failures: dict[str, Exception] = {}
        written = [(account_id, data) for account_id, data in changes.items() if data is not None]
        if written:
            self._make_directory()
        elif not self._has_directory():
            return failures  # nothing there to delete
        while written:
            written = written[self._replace(written[:_FILES_AT_ONCE], failures) :]
        try:
            self._remove_originals(changes, failures)
            for account_id, data in changes.items():
                if data is None and account_id not in failures:
                    with _collect(failures, account_id):
                        self._delete(account_id)
            self._sync_directory()
        except OSError as error:
            return dict.fromkeys(changes, error) | failures
        return failures

    def _remove_originals(
        self, changes: Mapping[str, bytes | None], failures: dict[str, Exception]
    ) -> None:
        """Remove what the original keeps of these accounts.

        Ours is on the disk before the original's goes, and the original's has gone before ours is
        deleted: no crash brings an older record back, whatever order the disk keeps.
        """
        owned: dict[str, str] = {}
        for account_id in changes:
            if self._original_path(account_id) and account_id not in failures:
                with _collect(failures, account_id):
                    if original := self._owned_original(account_id):
                        owned[account_id] = original[0]
        if any(changes[account_id] is not None for account_id in owned):
            self._sync_directory()
        for account_id, path in owned.items():
            with _collect(failures, account_id):
                _unlink(path)
        if any(changes[account_id] is None for account_id in owned):
            self._sync_directory()

    def _delete(self, account_id: str) -> None:
        """Remove what is in our record's place, unless it is another account's record."""
        path = self._path(file_name(account_id))
        with contextlib.suppress(OSError):  # not even readable
            data = _read_file(path)
            if data is not None and account_of(data) not in (None, account_id):
                return  # the original's: `a_b` and `a.b` share a name there
        _unlink(path)

    def _sync_directory(self) -> None:
        if self.durable:
            _sync_directory(self.directory)

    def _has_directory(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.stat(self.directory)
            return True
        return False

    def _make_directory(self) -> None:
        missing: list[str] = []
        path = os.path.abspath(self.directory)
        while not os.path.isdir(path) and path != os.path.dirname(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            self._parents.add(os.path.dirname(path))
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        for path in sorted(self._parents) if self.durable else ():
            with contextlib.suppress(PermissionError):  # may be used, but not opened
                _sync_directory(path)
            self._parents.discard(path)

    def _replace(self, records: Sequence[tuple[str, bytes]], failures: dict[str, Exception]) -> int:
        """Write the records in phases; what fails is left out of the next phase.

        What is done for every file has a plain `try`: with `_collect` it takes a twelfth longer.

        Returns:
            How many were attempted: fewer than all where there are no descriptors for them.
        """
        files: list[_Written] = []
        try:
            attempted = self._write(records, files, failures)
            if self.durable:
                _sync_files(files, failures)
        finally:
            _close_files(files, failures)
        if len(files) > _MANY:
            _let_the_loop_in()
        for account_id, path, _ in files:
            if account_id not in failures:
                try:
                    os.replace(path, self._path(file_name(account_id)))
                except OSError as error:
                    failures[account_id] = error
            if account_id in failures:
                _try_to_unlink(path)
        return attempted

    def _write(
        self,
        records: Sequence[tuple[str, bytes]],
        files: list[_Written],
        failures: dict[str, Exception],
    ) -> int:
        """Write as many temporary files as there are descriptors for, but at least one."""
        prefix = self._path(f".qqbot-session-{_token()}-")
        for number, (account_id, data) in enumerate(records):
            path = f"{prefix}{number}.tmp"
            try:
                files.append((account_id, path, _write_file(path, data)))
            except OSError as error:
                if files and error.errno in (errno.EMFILE, errno.ENFILE):
                    return number  # closing these gives theirs back
                failures[account_id] = error
                _try_to_unlink(path)
        return len(records)

    def _discard(self, key: str, expected: bytes) -> bool:
        if key.startswith(_SCAN_KEY):
            path = self._path(key.removeprefix(_SCAN_KEY))
        else:
            path = self._path(file_name(key))
            original = self._owned_original(key)
            if original and original[1] == expected:
                path = original[0]
        if _read_file(path) != expected:
            return False
        private = self._path(f".qqbot-session-{_token()}-0.tmp")
        try:
            os.rename(path, private)
        except FileNotFoundError:
            return False
        try:
            is_expected = _read_file(private) == expected
        except OSError:
            is_expected = False
        if not is_expected:
            self._put_back(private, path)
            return False
        os.unlink(private)
        return True

    def _put_back(self, private: str, path: str) -> None:
        """Return a file to its name unless a newer one has taken it."""
        try:
            os.link(private, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links here
            if not os.path.lexists(path):
                os.replace(private, path)
                self._sync_directory()
                return
        self._sync_directory()
        os.unlink(private)

    def _sweep(self, older_than: float) -> int:
        swept = 0
        with contextlib.suppress(FileNotFoundError):
            for name in filter(_LEFT_OVER.fullmatch, os.listdir(self.directory)):
                path = self._path(name)
                with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - older_than:
                        os.unlink(path)
                        swept += 1
        return swept


def _let_the_loop_in() -> None:
    """Rest for a moment.

    A thread that makes many short system calls wins the interpreter lock back each time before the
    loop's thread has woken up, and so can hold the loop up for a whole switch interval, 5 ms.
    """
    time.sleep(1e-5)


def _token() -> str:
    """Return what makes a private name unique: 16 random hexadecimal digits."""
    return os.urandom(8).hex()


def _read_file(path: str) -> bytes | None:
    """Return at most `READ_LIMIT` bytes of a regular file, or `None` where nothing is."""
    try:
        file = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise NotRegularError(error.errno, "is not a regular file", path) from None
        raise
    try:
        status = os.fstat(file)
        _require_regular(status, path)
        data = os.read(file, READ_LIMIT)
        if len(data) == status.st_size:  # one look at the end is saved
            return data
        while 0 < len(data) < READ_LIMIT and (more := os.read(file, READ_LIMIT - len(data))):
            data += more
        return data
    finally:
        os.close(file)


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "is not a regular file", path)


def _write_file(path: str, data: bytes) -> int:
    """Make the file, which must be new, write all data and return it open."""
    file = os.open(path, _WRITE_FLAGS, 0o600)
    try:
        written = os.write(file, data)
        while written < len(data):
            written += os.write(file, data[written:])
    except BaseException:
        os.close(file)
        raise
    return file


def _start_writing_back(file: int) -> None:
    """Let the disk begin with this file while the next is handed over; a hint, no promise."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_files(files: Sequence[_Written], failures: dict[str, Exception]) -> None:
    """Start writing back all files, then sync them, many of them on several threads.

    Each sync ends with the disk emptying its cache, but one emptying serves all that wait for it.
    """
    for _, _, file in files:
        _start_writing_back(file)

    def sync(some: Sequence[_Written]) -> None:
        for account_id, _, file in some:
            with _collect(failures, account_id):
                _sync_file(file)

    if len(files) < _SYNC_APART:
        return sync(files)
    try:
        with ThreadPoolExecutor(_SYNCERS, "qqbot_session-syncer") as syncers:
            list(syncers.map(sync, [files[first::_SYNCERS] for first in range(_SYNCERS)]))
    except RuntimeError:  # no thread to be had, as when the interpreter ends
        sync(files)


def _close_files(files: Sequence[_Written], failures: dict[str, Exception]) -> None:
    for account_id, _, file in files:
        try:
            os.close(file)
        except OSError as error:
            failures.setdefault(account_id, error)


def _sync_file(file: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
    elif hasattr(os, "fdatasync"):
        os.fdatasync(file)
    else:
        os.fsync(file)


def _sync_directory(path: str) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _try_to_unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class _collect:  # a function but for its cost: a generator takes four times as long
    """Note an `OSError` as this account's failure, its first one."""

    __slots__ = ("_account_id", "_failures")

    def __init__(self, failures: dict[str, Exception], account_id: str) -> None:
        self._failures = failures
        self._account_id = account_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, OSError):
            self._failures.setdefault(self._account_id, error)
            return True
        return False
