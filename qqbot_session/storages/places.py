"""Places on a disk: what storages that keep files have in common.

Rules:

* What a file is called that is private to one write, and so may be swept once it is old.
* Who else may change what lies in a place is worth a warning; nothing here changes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections import Counter

LEFT_OVER = re.compile(r"\.qqbot-session-[0-9a-f]{16}-[0-9]+\.tmp")
"""The names that `private_names` gives."""

NETWORK = (
    *("nfs", "cifs", "smb", "ceph", "afs", "glusterfs", "lustre", "9p", "beegfs", "gpfs"),
    *(
        f"fuse.{kind}"
        for kind in ("sshfs", "glusterfs", "juicefs", "rclone", "mfs", "s3fs", "gcsfuse", "goofys")
    ),
)
"""How the kinds of file system begin that other machines may share."""

IN_USE: Counter[tuple[int, ...] | None] = Counter()
"""How many connections of this process to each database there are, by device and inode.

Whoever opened and closed such a file would drop all the locks that SQLite holds on it.
"""

_DIRECTORY_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC"))


def private_names(directory: str) -> str:
    """Return what the paths of the private files of one write begin with; a number follows.

    Args:
        directory: with the separator at its end.
    """
    return f"{directory}.qqbot-session-{os.urandom(8).hex()}-"


def expanded(name: str, path: str) -> str:
    """Return the path with the home directory in the place of a `~` or `~user` at its start.

    Args:
        name: of the argument, for the error.

    Raises:
        ValueError: there is no such home.
    """
    found = os.path.expanduser(path)
    if path.startswith("~") and found == path:
        raise ValueError(f"{name} {path!r}: there is no such home (a name with ~ is ./~…)")
    return found


def is_in_use(path: str) -> bool:
    """Whether the file, under any of its names, is a database that this process has open."""
    if not IN_USE:
        return False
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return IN_USE[status.st_dev, status.st_ino] > 0
    return False


def sync_directory(path: str) -> None:
    """Put the names in a directory on the disk.

    Raises:
        OSError: it cannot be synced.
    """
    if os.name == "nt":  # directories cannot be opened there
        return
    directory = os.open(path, _DIRECTORY_FLAGS)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def missing_directories(path: str) -> list[str]:
    """Return the directories that have to be made for this one to be there, in order."""
    missing: list[str] = []
    while not os.path.isdir(path) and path != os.path.dirname(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing[::-1]


def file_system_of(path: str) -> str:
    """Return the kind of file system, '' where the system does not say."""
    if sys.platform != "linux":
        return ""
    with contextlib.suppress(OSError):
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:  # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
                before, _, after = line.partition(" - ")
                if before.split()[2] == number:
                    return after.split()[0]
    return ""


def open_to_others(path: str, *, above: bool = True) -> list[str]:
    """Return why others than this user may change what is there; a sentence for each reason.

    Members of a group that bears its user's number do not count as others: that group is the
    user's own.

    Args:
        above: whether to look at the directory it is in, too, unless that is sticky.
    """
    if not hasattr(os, "geteuid"):
        return []
    found = []
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if status.st_uid not in (os.geteuid(), 0):
            found.append(f"{path} belongs to somebody else (user {status.st_uid})")
        if _others_may_write(status):
            mode = stat.S_IMODE(status.st_mode)
            found.append(f"{path} can be written by others (mode {mode:o})")
        parent = os.path.dirname(os.path.abspath(path))
        mode = os.stat(parent).st_mode
        if above and mode & 0o002 and not mode & stat.S_ISVTX:
            found.append(f"everybody can write {parent}, and so replace {path}")
    return found


def _others_may_write(status: os.stat_result) -> bool:
    own_group = status.st_gid == status.st_uid != 0
    return bool(status.st_mode & (0o002 if own_group else 0o022))
