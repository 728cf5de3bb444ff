"""How a command ends: the exit codes, and the errors that lead to them."""

from __future__ import annotations

DONE = 0
NEGATIVE = 1
"""Not there, not resumable, or `doctor` found a problem: the answer to the question is no."""
USAGE = 2
UNREACHABLE = 3
"""The storage is not there, or does not answer."""
PARTLY = 4
"""Some accounts failed."""
UNWRITTEN = 5
"""The answer could not be printed."""
FAULT = 70
"""A bug of ours (`EX_SOFTWARE` of sysexits.h)."""
INTERRUPTED = 130


class UsageError(Exception):
    """A command that cannot be carried out as it was given."""


class UnreachableError(Exception):
    """A storage that is not there, or does not answer."""


class OutputError(Exception):
    """Standard output does not take the answer: a full disk, for example."""


def code_of(error: Exception) -> int:
    """Return the exit code for an error that nobody handled."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, OutputError):
        return UNWRITTEN
    if isinstance(error, UnreachableError | OSError) or _is_of_a_storage(error):
        return UNREACHABLE
    return FAULT


def _is_of_a_storage(error: Exception) -> bool:
    """Whether a database's or a server's client raised it; none of them is imported for this."""
    clients = {"sqlite3", "redis", "valkey", "coredis"}
    return any(kind.__module__.partition(".")[0] in clients for kind in type(error).__mro__)
