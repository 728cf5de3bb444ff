"""The checks of `qqbot-session doctor`: what could make a storage lose sessions.

Each check yields a `Finding` of its own, with advice, and never stops the others. All of them only
look, except one: to find out whether files can be written, it writes one. That file is named like
an interrupted write, so that `cleanup` removes it if the command is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..judging import LoadReason, account_of_key, inspect, is_stranger, judge, shown_key
from ..storages import FileStorage, Storage, foreign
from ..storages.files import is_misplaced
from ..storages.holders import held_in_words
from ..storages.places import LEFT_OVER, open_to_others

Level = Literal["ok", "note", "problem"]

_LEFT_OVER_AGE = 3600.0  # seconds; younger ones may be a write under way
_SLOW = 1.0  # seconds for one durable write
_LITTLE = 16 * 1024 * 1024  # bytes
_SKEW = 5.0  # seconds
_SHOWN = 3  # names in one line


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `problem` if sessions may be lost, `note` if it is worth a look, else `ok`.
        subject: what was checked.
        text: what was found.
        advice: what to do about it; empty if there is nothing to do.
    """

    level: Level
    subject: str
    text: str
    advice: str = ""

    def fields(self) -> dict[str, str | None]:
        """Return what `--json` prints of it."""
        return {
            "level": self.level,
            "subject": self.subject,
            "text": self.text,
            "advice": self.advice or None,
        }


async def examine(storage: Storage, *, max_age: float | None) -> AsyncIterator[Finding]:
    """Yield the findings about the storage and its records.

    Args:
        max_age: seconds after which a record counts as expired, `None` = never.
    """
    path = path_of(storage)
    if isinstance(storage, FileStorage):
        for finding in _examine_directory(storage):
            yield finding
    elif path is not None:  # an `SqliteStorage`, which is imported only where it is used
        async for finding in _examine_database(storage, path):
            yield finding
    elif hasattr(storage, "examine"):  # a `RedisStorage`
        async for said in storage.examine():
            yield Finding(*said)
    async for finding in _examine_records(storage, max_age):
        yield finding


def path_of(storage: Storage) -> str | None:
    """Return the storage's path on this machine, `None` if it has none."""
    path = getattr(storage, "directory", None) or getattr(storage, "path", None)
    return path if isinstance(path, str) else None


def irregular(directory: str) -> list[str]:
    """Return, sorted, the names of records under which there is no regular file."""
    return sorted(
        entry.name
        for entry in _entries(directory)
        if _RECORD.fullmatch(entry.name)
        and (there := _status(entry)) is not None
        and not stat.S_ISREG(there.st_mode)
    )


_RECORD = re.compile(r"session-.*\.json", re.DOTALL)


# Records, wherever they lie


async def _examine_records(storage: Storage, max_age: float | None) -> AsyncIterator[Finding]:
    now = time.time()
    kinds: Counter[str] = Counter()
    corrupt, foreign, future = list[str](), list[str](), list[str]()
    listed = set[str]()
    try:
        async for key, data in storage.scan():
            listed.add(shown_key(key))
            verdict = judge(inspect(account_of_key(key), data), now=now, max_age=max_age)
            if verdict.reason is LoadReason.CORRUPT:
                (foreign if is_stranger(key, data) else corrupt).append(shown_key(key))
                continue
            kinds[verdict.reason.value] += 1
            if verdict.age is not None and verdict.age < -_SKEW:
                future.append(shown_key(key) if verdict.state is None else verdict.state.account_id)
    except Exception as error:  # noqa: BLE001 - whatever a storage raises is the finding
        yield Finding("problem", "records", f"cannot be listed: {error}", "Bots will Identify.")
        return
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "none"
    yield Finding("ok", "records", counts)
    if corrupt:
        text = f"{len(corrupt)} corrupt: {_some(corrupt)}"
        yield Finding("problem", "records", text, "`cleanup` removes them. Then check the disk.")
    if foreign:
        text = f"{len(foreign)} named like a record, with no session in it: {_some(foreign)}"
        advice = "They belong to another program. `cleanup --yes` would remove them."
        yield Finding("note", "strangers", text, advice)
    if misplaced := _misplaced(storage, listed) if isinstance(storage, FileStorage) else []:
        text = f"{len(misplaced)} under a name that is not their account's: {_some(misplaced)}"
        yield Finding("note", "records", text, "Copied or renamed files: no bot reads them.")
    if future:
        text = f"{len(future)} saved in the future: {_some(future)}"
        yield Finding("problem", "clock", text, "Machines that share sessions need NTP.")
    else:
        yield Finding("ok", "clock", "no record comes from the future")


def _misplaced(storage: FileStorage, listed: set[str]) -> list[str]:
    """Return the names that a listing passes over; each is read, as bots write meanwhile."""
    left = (entry for entry in _entries(storage.directory) if entry.name not in listed)
    return sorted(each.name for each in left if _is_record(each) and is_misplaced(each.path))


def _is_unreadable(entry: os.DirEntry[str]) -> bool:
    """Whether one file was there all the time and could not be read: bots replace them."""
    before, readable, after = _status(entry), os.access(entry.path, os.R_OK), _status(entry)
    if before is None or after is None or readable:
        return False
    return (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(ascii(name)[1:-1] for name in names[:_SHOWN]) + more


# Files


def _examine_directory(storage: FileStorage) -> Iterator[Finding]:
    directory = storage.directory
    try:
        status = Path(directory).stat()
    except OSError as error:
        yield Finding("problem", "directory", str(error), "Is the path right, the volume mounted?")
        return
    if not stat.S_ISDIR(status.st_mode):
        text = f"{directory} is not a directory"
        yield Finding("problem", "directory", text, "Nothing can be stored here.")
        return
    yield Finding("ok", "directory", directory)
    yield from _examine_modes(directory, status)
    yield from _examine_owners(directory)
    yield from _examine_names(directory)
    yield from _try_to_write(directory)
    yield from _examine_space(directory)


def _examine_modes(directory: str, status: os.stat_result) -> Iterator[Finding]:
    if os.name == "nt":
        return
    open_to = [] if stat.S_IMODE(status.st_mode) & 0o077 == 0 else [directory]
    others = []
    for entry in _entries(directory):
        if _is_record(entry):
            there = _status(entry)
            if there is None:
                continue
            if stat.S_IMODE(there.st_mode) & 0o077:
                open_to.append(entry.name)
            if there.st_uid != status.st_uid:
                others.append(entry.name)
    if open_to:
        text = f"others may read {_some(open_to)}"
        yield Finding("note", "modes", text, f"chmod -R go= {directory}")
    else:
        yield Finding("ok", "modes", "only their owner may read the records")
    if others:
        text = f"{len(others)} record(s) of another owner: {_some(others)}"
        yield Finding("problem", "modes", text, "Run the bots as one user, or chown the directory.")


def _examine_owners(path: str, *, above: bool = True) -> Iterator[Finding]:
    for reason in open_to_others(path, above=above):
        yield Finding("problem", "owner", reason, "Whoever can write there decides what bots do.")


def _examine_names(directory: str) -> Iterator[Finding]:
    if found := foreign.in_directory(directory):
        places = sorted({f"{Path(each.place).name} ({each.program})" for each in found})
        text = f"{len(found)} of other programs: {_some(places)}"
        advice = f"`qqbot-session copy {directory} NEW` brings them along."
        yield Finding("note", "sessions", text, advice)
    if strangers := irregular(directory):
        text = f"{len(strangers)} named like a record: {_some(strangers)}"
        yield Finding("problem", "not files", text, "Move them away; nothing here touches them.")
    unreadable = []
    left_over = 0
    for entry in _entries(directory):
        if LEFT_OVER.fullmatch(entry.name):
            there = _status(entry)
            left_over += there is not None and time.time() - there.st_mtime > _LEFT_OVER_AGE
        elif _is_record(entry) and _is_unreadable(entry):
            unreadable.append(entry.name)
    if unreadable:
        text = f"{len(unreadable)} that this user may not read: {_some(unreadable)}"
        yield Finding("problem", "unreadable", text, "Run as the user who runs the bots.")
    if left_over:
        text = f"{left_over} of interrupted writes"
        yield Finding("note", "left-overs", text, "`cleanup` removes them.")
    else:
        yield Finding("ok", "left-overs", "none")


def _is_record(entry: os.DirEntry[str]) -> bool:
    return bool(_RECORD.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the entry's status now; `None` if a running bot has removed or renamed it."""
    try:
        return Path(entry.path).lstat()
    except OSError:
        return None


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # `records` tells
        return []


def _try_to_write(directory: str) -> Iterator[Finding]:
    token = os.urandom(8).hex()
    first, second = (Path(directory, f".qqbot-session-{token}-{n}.tmp") for n in (0, 1))
    began = time.perf_counter()
    try:
        file = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, b"{}")
            os.fsync(file)
        finally:
            os.close(file)
        first.replace(second)
        seconds = time.perf_counter() - began
        stamp = second.stat().st_mtime
    except OSError as error:
        text = f"a file cannot be written, synced and renamed: {error}"
        yield Finding("problem", "writing", text, "Every session ends with its process.")
        return
    finally:
        for path in (first, second):
            path.unlink(missing_ok=True)
    text = f"written, synced and renamed in {seconds * 1000:.1f} ms"
    if seconds > _SLOW:
        yield Finding(
            "note", "writing", text, "The disk is slow: after a crash, more events are repeated."
        )
    else:
        yield Finding("ok", "writing", text)
    if abs(stamp - time.time()) > _SKEW:
        text = f"the volume's clock differs by {stamp - time.time():.0f} s"
        yield Finding("note", "clock", text, "Use NTP on both machines.")


def _examine_space(directory: str) -> Iterator[Finding]:
    free = shutil.disk_usage(directory).free
    text = f"{free / 2**20:,.0f} MiB free"
    if free < _LITTLE:
        yield Finding(
            "problem", "space", text, "With a full disk, the newest states are only in memory."
        )
    else:
        yield Finding("ok", "space", text)
    if hasattr(os, "statvfs"):
        there = os.statvfs(directory)
        if there.f_files and there.f_favail < 100:
            text = f"{there.f_favail} inodes free"
            yield Finding("problem", "space", text, "No new file can be made there.")


# SQLite


async def _examine_database(storage: Any, path: str) -> AsyncIterator[Finding]:
    place = list(_examine_place(path))
    for finding in place:
        yield finding
    if place[0].level == "ok":
        async for finding in _ask_database(storage):
            yield finding
        directory = _directory_of(path)
        for finding in (*_try_to_write(directory), *_examine_space(directory)):
            yield finding


def _directory_of(path: str) -> str:
    return str(Path(path).resolve().parent)


def _examine_place(path: str) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(Path(path).stat().st_mode)
    except OSError as error:
        yield Finding("problem", "database", str(error), "Is the path right, the volume mounted?")
        return
    yield Finding("ok", "database", path)
    if mode & 0o077 and os.name != "nt":
        yield Finding("note", "modes", f"others may read {path}", f"chmod go= {path}*")
    yield from _examine_owners(_directory_of(path))
    yield from _examine_owners(path, above=False)


async def _ask_database(storage: Any) -> AsyncIterator[Finding]:
    try:
        found = await storage.examine()
    except Exception as error:  # noqa: BLE001 - of SQLite, or what is there is no database
        text = f"cannot be examined: {error}"
        yield Finding("problem", "database", text, "Stop the bots and check the disk.")
        return
    if found is None:
        yield Finding("ok", "database", "empty: the first write makes it")
        return
    if found.damage:
        text = f"corrupt: {found.damage}"
        advice = "The next write moves it aside and keeps what can be read. Check the disk."
        yield Finding("problem", "integrity", text, advice)
    else:
        yield Finding("ok", "integrity", f"intact, journal {found.journal}")
    if not found.shares_memory:
        text = "the volume has no shared memory maps, which SQLite's write-ahead log needs"
        advice = "Writes are slow here, and wait for reads: use a local disk, or a directory."
        yield Finding("problem", "volume", text, advice)
    yield Finding("ok", "leases", held_in_words(found.held))
