"""Where records lie: one `Storage` contract, and one module per kind of storage."""

import os
from typing import TYPE_CHECKING, Any

from .base import LeasingStorage, MemoryStorage, Storage
from .copying import Copied, copy
from .files import FileStorage

if TYPE_CHECKING:
    from .redis import RedisStorage
    from .sqlite import SqliteStorage

__all__ = [
    "Copied",
    "FileStorage",
    "LeasingStorage",
    "MemoryStorage",
    "RedisStorage",
    "SqliteStorage",
    "Storage",
    "copy",
    "storage_of",
]


def __getattr__(name: str) -> Any:
    """Import what most do not use only for those who ask for it."""
    if name == "SqliteStorage":
        from .sqlite import SqliteStorage

        return SqliteStorage
    if name == "RedisStorage":
        from .redis import RedisStorage

        return RedisStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def storage_of(storage: object) -> Storage:
    """Return the storage that this names, or is.

    Args:
        storage: a directory; `sqlite:PATH`, a database; `redis://…` or `rediss://…`, a server; a
            `Storage`, returned as it is; `None` is the TypeScript original's directory,
            `~/.openclaw/qqbot/sessions`.
    """
    if storage is None:
        home = os.environ.get("HOME") or "/tmp"  # as the original
        return FileStorage(os.path.join(home, ".openclaw", "qqbot", "sessions"))
    if isinstance(storage, str) and storage.startswith("sqlite:"):
        return _sqlite(storage)
    if isinstance(storage, str) and storage.startswith(("redis://", "rediss://")):
        from .redis import RedisStorage

        return RedisStorage(storage)
    if isinstance(storage, str) and "://" in storage:
        raise ValueError(f"no storage claims {storage!r}; a directory is a plain path")
    if isinstance(storage, str | os.PathLike):
        return FileStorage(storage)
    if isinstance(storage, Storage):
        return storage
    raise TypeError(f"storage must be a directory or a Storage, not {storage!r}")


def _sqlite(storage: str) -> Storage:
    from .sqlite import SqliteStorage

    path = storage.removeprefix("sqlite:")
    if path.startswith("//"):  # elsewhere it is relative with three slashes and absolute with four
        raise ValueError(f"a database is sqlite:PATH, without slashes before it, not {storage!r}")
    return SqliteStorage(path)
