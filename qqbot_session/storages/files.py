"""`FileStorage`: a directory with one atomic file per account.

Rules:

* Nothing here runs on the event loop's thread: every public method is one executor hop through
  aiofiles. Everything that changes the directory runs on one thread, in the order of the calls;
  that thread may let others sync for it, and waits for them. Reads have a thread of their own.
* A record appears under its name complete or not at all: it is written to a temporary file in
  the same directory and renamed. With `durable=True` the data is on the disk before the
  rename, and the rename before the commit returns. The batch pays for that once: all files are
  written, then all synced, then all renamed, then the directory is synced.
* Nothing is imported while writing: an import that fails for lack of a file descriptor leaves a
  half-initialised module behind, and every later write would fail too.
* Opening never follows a link and never blocks; only regular files are read, removed or counted.
  A directory or a device where a record should be is reported as an error and left alone.
* Where a system or a volume lacks something, the next best is done: see `_open_regular` (no
  `O_NOFOLLOW`), `_sync_file` (`F_FULLFSYNC` refused), `FileStorage._sync` (a directory that cannot
  be synced), `_patiently` (a file that another program holds open).
* A file is a record if its name is one that its own account id yields (`names`). Reading, listing
  and removing agree on this. A corrupt file counts if its name has the form of such a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ..errors import bare
from ..logs import say
from ..state import account_of
from ..words import whenever
from .base import READ_LIMIT, NotRegularError, RecordChangedError, is_of
from .names import file_name, is_record_name, other_names
from .places import (
    LEFT_OVER,
    expanded,
    file_system_of,
    is_in_use,
    missing_directories,
    open_to_others,
    private_names,
    sync_directory,
)
from .threads import Threads
from .together import Together

try:
    import fcntl
except ImportError:  # Windows
    _FULL_SYNC = None
else:
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SCAN_BATCH = 128  # records per hop: about a millisecond of decoding on the loop
_MANY = 32  # files that keep a thread busy for a good part of a millisecond
_SYNC_APART = 16  # files from which on threads are worth their start
_SYNCERS = 4  # threads
_LOOKS = 5  # at a file that others replace meanwhile
_BETWEEN = 0.001  # seconds between two looks for what seems to be absent

_SCAN_KEY = "\0"  # opens the keys of `scan`, and no account id holds it

_PATIENCE = 0.2  # seconds that a hop may wait for others to let go of files


def _codes(*names: str) -> tuple[int, ...]:
    """Return these error numbers, as far as the system has them."""
    return tuple(getattr(errno, name) for name in names if hasattr(errno, name))


_HELD = _codes("EACCES", "EBUSY", "ETXTBSY")  # from `replace`, once a new file could be made
_SHARING = (5, 32, 33)  # Windows: access denied, sharing violation, lock violation
_FULL = _codes("ENOSPC", "EDQUOT")
_NOT_OFFERED = _codes("EINVAL", "ENOTSUP", "EOPNOTSUPP", "EBADF", "ENOSYS", "ENOTTY")
_FORBIDDEN = _codes("EACCES", "EPERM", "EROFS")


def _flags(*names: str) -> int:
    """Return these flags together, as far as the system has them."""
    return sum(getattr(os, name, 0) for name in names)


_READ_FLAGS = _flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
_WRITE_FLAGS = _flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
_OPENS_SAFELY = hasattr(os, "O_NOFOLLOW") and hasattr(os, "O_NONBLOCK")

_Written = tuple[str, str, int]  # account id, temporary path, descriptor


def _files_at_once() -> int:
    """Return how many files a batch may have open: the bot needs descriptors for its own."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else -1
    return 128 if limit < 0 else max(1, min(128, limit // 8))


_FILES_AT_ONCE = _files_at_once()


class FileStorage:
    """Records as files in a directory, which is created by the first write.

    Args:
        directory: where the files are; created with mode 0700, files with 0600. A leading `~` is
            the home directory, as in a shell. A relative path is resolved once, when the storage
            is first used.
        durable: whether a commit survives a power loss too: `fdatasync` on Linux, `F_FULLFSYNC`
            on macOS, `os.fsync` on Windows. With `False` writes are still atomic and survive the
            death of the process at any moment.

    A commit opens many files at once: at most 128, and at most an eighth of the process's limit.
    It raises if no file can be created in the directory, or if the directory cannot be synced. If
    the volume does not support syncing directories, the log says so once and the commit succeeds.

    Raises:
        TypeError, ValueError: `directory` cannot be a path, or names an unknown user's home.
    """

    def __init__(self, directory: str | os.PathLike[str], *, durable: bool = True) -> None:
        path = os.fspath(directory)
        if not isinstance(path, str):
            raise TypeError(f"directory must be a str or os.PathLike[str], not {directory!r}")
        path = str.__str__(path)
        if not path or "\0" in path:
            raise ValueError(f"directory must be a path, not {directory!r}")
        if not isinstance(durable, bool):
            raise TypeError(f"durable must be a bool, not {durable!r}")
        self.directory = expanded("directory", path)
        self.durable = durable
        self._resolved: dict[str, str] = {}
        self._prefix = ""  # made once: it costs as much as a system call
        self._threads = Threads("qqbot_session")
        self._reads = Together(lambda ids: self._hop("reader", self._read_many, ids))
        # Directories that may have a new entry which is not on the disk yet.
        self._parents: set[str] = set()
        self._syncs_directories = True  # until one cannot be
        self._is_fuse: bool | None = None

    @whenever
    def __repr__(self) -> str:
        return f"<FileStorage directory={self.directory!r} durable={self.durable}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            OSError: it cannot be read, or is not a regular file.
        """
        account_id.encode()  # what can be no record's name fails alone
        return await self._ask(account_id)

    _own_read = read

    def _ask(self, account_id: str) -> asyncio.Future[bytes | None]:
        return self._reads.ask(account_id)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records; return the failures per account id.

        A record of the account under its other name is removed: after ours is written, and before
        ours is deleted. If we may not even read it, both succeed all the same.

        Raises:
            OSError: the directory is at fault, not the file of a single account.
        """
        return await self._hop("writer", self._commit, changes)

    async def exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        """Write each record whose place still holds what was read there; `None` is nothing.

        What is there is taken away as by `discard`, and what is written is put there with a hard
        link, which never overwrites what somebody else wrote meanwhile. Where the file system
        knows no hard links it is put there by a rename, unless something else is seen.

        Returns:
            The failures per account id: a `RecordChangedError` where something else is by now.
        """
        return await self._hop("writer", self._exchange, changes)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every readable record with a key for `discard`; log what cannot be read."""
        names = await self._hop("reader", self._names_there)
        unreadable: list[OSError] = []
        for start in range(0, len(names), _SCAN_BATCH):
            batch = names[start : start + _SCAN_BATCH]
            for item in await self._hop("reader", self._read_all, batch, unreadable):
                yield item
        if unreadable:
            reasons = "; ".join(map(str, unreadable[:3]))
            say(
                logging.WARNING,
                "cannot read %d record(s): %s",
                len(unreadable),
                reasons,
                logger=_log,
            )

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it is still `expected`.

        The file is renamed to a private name, compared there, and put back with a hard link,
        which never overwrites a newer one. Two gaps remain: whoever reads at that very moment does
        not find a record that was renewed just before, and a process that dies between the two
        steps leaves it behind as a left-over. Where the file system has no hard links, it is put
        back with a rename, unless a newer record is there.
        """
        return await self._hop("writer", self._discard, key, expected)

    async def sweep(self, older_than: float) -> int:
        """Remove temporary files last written more than so many seconds ago."""
        return await self._hop("writer", self._sweep, older_than)

    async def aclose(self) -> None:
        """Let the threads end after their last job; the next call would start new ones."""
        await self._threads.aclose()

    async def _hop(self, thread: str, function: Callable[..., _T], *args: object) -> _T:
        return await self._threads.run(thread, self._begin, function, *args)

    # From here on: on a thread.

    def _begin(self, function: Callable[..., _T], *args: object) -> _T:
        """Do the work of a hop; every error that leaves it names a path."""
        _hop.patience = _PATIENCE
        try:
            if not self._prefix:
                self._resolve()
            return function(*args)
        except OSError as error:
            raise self._fit_for_the_loop(error)  # noqa: B904 - it is the same error

    def _fit_for_the_loop(self, error: OSError) -> OSError:
        """Let an error name a path, whatever asyncio does to it."""
        _show(error, self.directory)
        if isinstance(error, TimeoutError):  # asyncio makes it anew, of its arguments alone
            error.args = (error.errno, f"{error.strerror}: {error.filename!r}")
        return error

    def _resolve(self) -> None:
        """Fix where the directory is, wherever the process changes to later."""
        path = self.directory
        if not os.path.isabs(path):
            path = os.path.join(os.getcwd(), path)
        self.directory = self._resolved.setdefault("directory", path)  # of two threads, the first
        self._parents.add(os.path.dirname(self.directory.rstrip(os.sep)) or os.sep)
        self._prefix = os.path.join(self.directory, "")
        for reason in open_to_others(self.directory):
            say(logging.WARNING, "%s", reason, logger=_log)

    def _path(self, name: str) -> str:
        return self._prefix + name

    def _owned(self, account_id: str, name: str) -> bytes | None:
        """Return the record under the account's other name, if it is this account's."""
        try:
            data = _read_file(self._path(name))
        except NotRegularError:  # nobody's record
            return None
        return data if data is not None and account_of(data) == account_id else None

    def _read_many(self, account_ids: Iterable[str]) -> list[bytes | Exception | None]:
        found: dict[str, bytes | Exception | None] = dict.fromkeys(account_ids)
        for _ in self._looks():
            missing = [account_id for account_id, data in found.items() if data is None]
            for account_id in missing:
                try:
                    found[account_id] = self._read(account_id)
                except OSError as error:
                    found[account_id] = self._fit_for_the_loop(error)
            if not missing:
                break
        return [found[account_id] for account_id in account_ids]

    def _read(self, account_id: str) -> bytes | None:
        path = self._path(file_name(account_id))
        data = _read_file(path)
        others = other_names(account_id)
        if not others or (data and account_of(data) is not None):
            return data
        for name in others:
            if (other := self._owned(account_id, name)) is not None:
                return other
        return _read_file(path)  # another process may have moved it between the looks

    def _looks(self) -> Iterator[None]:
        """Come again as often as one has to look for what seems to be absent.

        On a FUSE volume a file that another process is replacing is not found for a moment (seen
        with bindfs, gocryptfs and unionfs-fuse).
        """
        yield
        if self._is_fuse is None and os.path.isdir(self.directory):
            self._is_fuse = file_system_of(self.directory).startswith("fuse")
        for _ in range(_LOOKS if self._is_fuse else 1):
            yield
            if self._is_fuse:
                time.sleep(_BETWEEN)

    def _names_there(self) -> list[str]:
        names: dict[str, None] = {}
        with contextlib.suppress(FileNotFoundError):
            for _ in self._looks():
                names |= dict.fromkeys(os.listdir(self.directory))
        return list(names)

    def _read_all(self, names: Iterable[str], unreadable: list[OSError]) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        left = list(filter(is_record_name, names))  # here: all at once would hold the loop
        for _ in self._looks() if left else ():
            missing = []
            for name in left:
                path = self._path(name)
                try:
                    data = _read_file(path)
                except OSError as error:
                    _show(error, path)
                    unreadable.append(error)
                else:
                    if data is None:
                        missing.append(name)
                    elif _is_record(name, data):
                        found.append((_SCAN_KEY + name, data))
            left = missing
            if not left:
                break
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
        self._remove_others(changes, failures)
        for account_id, data in changes.items():
            if data is None and account_id not in failures:
                with _collect(failures, account_id):
                    self._delete(account_id)
        self._sync_directory()
        for account_id, error in failures.items():  # whose frames hold the records of the batch
            _show(bare(error), self._path(file_name(account_id)))
        return failures

    def _remove_others(
        self, changes: Mapping[str, bytes | None], failures: dict[str, Exception]
    ) -> None:
        """Remove the records under the other names of these accounts.

        Our file is on the disk before the other one is removed, and the other one is removed
        before ours is deleted. So no crash brings an older record back, in whatever order the disk
        writes. Once ours is written it is the one that counts, and the other may stay for now.
        """
        owned = self._find_others(changes, failures)
        if any(changes[account_id] is not None for account_id, _ in owned):
            self._sync_directory()
        for account_id, path in owned:
            if changes[account_id] is not None:
                _try_to_unlink(path)
                continue
            with _collect(failures, account_id):
                _unlink(path)
        if any(changes[account_id] is None for account_id, _ in owned):
            self._sync_directory()

    def _find_others(
        self, changes: Mapping[str, bytes | None], failures: dict[str, Exception]
    ) -> list[tuple[str, str]]:
        """Return account id and path of each.

        A record that should be removed and cannot be read is a failure, unless we lack permission:
        then it is another user's, and `read` will not return it either.
        """
        owned = []
        for account_id, data in changes.items():
            for name in other_names(account_id) if account_id not in failures else ():
                path = self._path(name)
                try:
                    if self._owned(account_id, name) is not None:
                        owned.append((account_id, path))
                except OSError as error:
                    if data is None and _may_read(path):
                        failures[account_id] = error
        return owned

    def _delete(self, account_id: str) -> None:
        """Remove the account's file, unless it holds another account's record."""
        path = self._path(file_name(account_id))
        with contextlib.suppress(OSError):  # not even readable
            data = _read_file(path)
            if data is not None and account_of(data) not in (None, account_id):
                return  # the original's: `a_b` and `a.b` share a name there
        _unlink(path)

    def _sync_directory(self) -> None:
        if self.durable:
            self._sync(self.directory)

    def _sync(self, directory: str) -> None:
        """Sync a directory; log once if the volume cannot do that."""
        try:
            sync_directory(directory)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                _show(error, directory)
                raise
            if self._syncs_directories:
                self._syncs_directories = False
                text = (
                    "the directory %s cannot be synced on this volume (%s): a power loss may undo"
                    " the latest writes"
                )
                say(logging.WARNING, text, directory, error.strerror, logger=_log)

    def _has_directory(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(self.directory).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "is not a directory", self.directory)
            return True
        return False

    def _make_directory(self) -> None:
        for path in missing_directories(self.directory):
            self._parents.add(os.path.dirname(path))
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        for path in sorted(self._parents) if self.durable else ():
            try:
                self._sync(path)
            except OSError as error:  # it may be used, but not opened
                if error.errno not in _FORBIDDEN:
                    raise
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
                    _replace_file(path, self._path(file_name(account_id)))
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
        """Write as many temporary files as there are descriptors for, but at least one.

        Raises:
            OSError: not even one can be made, for whatever account; a disk that is full is not
                that kind of error, as there deletions help.
        """
        prefix = private_names(self._prefix)
        for number, (account_id, data) in enumerate(records):
            path = f"{prefix}{number}.tmp"
            try:
                file = _patiently(os.open, path, _WRITE_FLAGS, 0o600)
            except OSError as error:
                if files and error.errno in (errno.EMFILE, errno.ENFILE):
                    return number  # closing these gives theirs back
                if not files and error.errno not in _FULL:
                    raise
                failures[account_id] = error
                continue
            try:
                _write_all(file, data)
            except OSError as error:
                failures[account_id] = error
                _try_to_close(file)
                _try_to_unlink(path)
            else:
                files.append((account_id, path, file))
        return len(records)

    def _exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        failures: dict[str, Exception] = {}
        self._make_directory()
        for account_id, (expected, data) in changes.items():
            files: list[_Written] = []
            self._write([(account_id, data)], files, failures)
            if self.durable:
                _sync_files(files, failures)
            _close_files(files, failures)
            for _, private, _ in files:
                with _collect(failures, account_id):
                    if not self._exchange_file(account_id, expected, private):
                        failures[account_id] = RecordChangedError(account_id)
                _try_to_unlink(private)
        self._sync_directory()
        return failures

    def _exchange_file(self, account_id: str, expected: bytes | None, private: str) -> bool:
        """Put a file in the record's place if that holds what is expected; tell whether it did."""
        if expected is None:
            if self._read(account_id) is not None:
                return False
        elif not self._discard(account_id, expected):
            return False
        path = self._path(file_name(account_id))
        try:
            os.link(private, path, follow_symlinks=False)
        except FileExistsError:
            return False
        except (AttributeError, NotImplementedError, OSError):  # no hard links here
            if os.path.lexists(path):
                return False
            _replace_file(private, path)
        return True

    def _discard(self, key: str, expected: bytes) -> bool:
        if key.startswith(_SCAN_KEY):
            return self._discard_file(self._path(key.removeprefix(_SCAN_KEY)), expected)
        for name in other_names(key):
            with contextlib.suppress(OSError):  # then it was not what was judged
                if self._owned(key, name) == expected:
                    return self._discard_file(self._path(name), expected)
        return self._discard_file(self._path(file_name(key)), expected)

    def _discard_file(self, path: str, expected: bytes) -> bool:
        if _read_file(path) != expected:
            return False
        private = f"{private_names(self._prefix)}0.tmp"
        try:
            _patiently(os.rename, path, private)
        except FileNotFoundError:
            return False
        try:
            is_expected = _read_file(private) == expected
        except OSError:
            is_expected = False
        if not is_expected:
            self._put_back(private, path)
            return False
        _try_to_unlink(private)  # if it cannot be, it is a left-over
        return True

    def _put_back(self, private: str, path: str) -> None:
        """Give a file its name back, unless a newer file has it."""
        try:
            os.link(private, path, follow_symlinks=False)  # Python 3.14 would follow a link
        except FileExistsError:
            pass
        except (AttributeError, NotImplementedError, OSError):  # no hard links here
            if not os.path.lexists(path):
                _replace_file(private, path)
                self._sync_directory()
                return
        self._sync_directory()
        _unlink(private)

    def _sweep(self, older_than: float) -> int:
        swept = 0
        with contextlib.suppress(FileNotFoundError):
            for name in filter(LEFT_OVER.fullmatch, os.listdir(self.directory)):
                path = self._path(name)
                with contextlib.suppress(OSError):  # one that stays keeps no other from going
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - older_than:
                        os.unlink(path)
                        swept += 1
        return swept


class _Hop(threading.local):
    """What a hop on this thread has left."""

    patience = 0.0  # seconds


_hop = _Hop()


def _is_record(name: str, data: bytes) -> bool:
    """Return whether `read` would return this for some account id."""
    stem = name.removeprefix("session-").removesuffix(".json")
    if "." not in stem and is_of(stem, data):
        return True
    account_id = account_of(data)
    return account_id is None or name == file_name(account_id) or name in other_names(account_id)


def is_misplaced(path: str) -> bool:
    """Return whether a file holds a record that belongs under another name."""
    try:
        data = _read_file(path)
    except OSError:
        return False
    return data is not None and not _is_record(os.path.basename(path), data)


def _show(error: Exception, path: str) -> None:
    """Make an error of a call on a descriptor name its file."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = path


def _let_the_loop_in() -> None:
    """Pause for a moment.

    A thread that makes many short system calls gets the interpreter lock back each time before the
    loop's thread has woken up, and so can delay the loop for a whole switch interval, 5 ms.
    """
    time.sleep(1e-5)


def _read_file(path: str) -> bytes | None:
    """Return at most `READ_LIMIT` bytes of a regular file, or `None` where nothing is."""
    if is_in_use(path):
        raise NotRegularError(errno.EINVAL, "is another name of a database that is in use", path)
    try:
        file = _open_regular(path) if _OPENS_SAFELY else _open_compared(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so nothing can have this name
            return None
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


def _open_regular(path: str) -> int:
    """Open a file for reading without following a link or waiting for a FIFO's writer."""
    try:
        return _patiently(os.open, path, _READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:  # each system has its own for a link, a socket or a directory
        if _stands_there(path):
            raise
        raise NotRegularError(error.errno, "is not a regular file", path) from None


def _may_read(path: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.R_OK, effective_ids=effective)


def _stands_there(path: str) -> bool:
    """Return whether a regular file is there, as far as can be told."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return True


def _open_compared(path: str) -> int:
    """Do what `_open_regular` does where opening would follow a link: look before and after."""
    for _ in range(_LOOKS):
        before = os.lstat(path)
        _require_regular(before, path)
        file = _patiently(os.open, path, _READ_FLAGS)
        if os.fstat(file).st_ino == before.st_ino:
            return file
        os.close(file)  # a link has taken its place, or a newer record
    raise BlockingIOError(errno.EAGAIN, "is replaced again and again", path)


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "is not a regular file", path)


def _write_all(file: int, data: bytes) -> None:
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, data[written:])


def _start_writing_back(file: int) -> None:
    """Let the disk start writing this file while the next one is prepared; only a hint."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_files(files: Sequence[_Written], failures: dict[str, Exception]) -> None:
    """Start writing back all files, then sync them; if there are many, on several threads.

    Each sync ends with a flush of the disk's cache, and one flush serves all that wait for it.
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
    if _FULL_SYNC is not None:  # fsync there stops at the drive's cache
        try:
            fcntl.fcntl(file, _FULL_SYNC)
            return
        except OSError as error:  # a volume of another system's
            if error.errno not in _NOT_OFFERED:
                raise
    if hasattr(os, "fdatasync"):
        os.fdatasync(file)
    else:
        os.fsync(file)


def _patiently(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call again while another program holds the file: on Windows, whoever reads it does."""
    while True:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            if getattr(error, "winerror", None) not in _SHARING or not _wait_a_moment():
                raise


def _replace_file(source: str, target: str) -> None:
    """Rename; where a share shows Windows' files to other systems, with patience as well."""
    while True:
        try:
            return os.replace(source, target)
        except OSError as error:
            if error.errno not in _HELD or not _wait_a_moment():
                raise


def _wait_a_moment() -> bool:
    """Wait as long as in this hop before, but a millisecond; tell whether that was possible."""
    pause = min(max(0.001, _PATIENCE - _hop.patience), _hop.patience)
    if pause <= 0:
        return False
    _hop.patience -= pause
    time.sleep(pause)
    return True


def _unlink(path: str) -> None:
    try:
        _patiently(os.unlink, path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # so nothing has this name
            raise


def _try_to_unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        _patiently(os.unlink, path)


def _try_to_close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)


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
