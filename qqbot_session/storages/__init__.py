"""Where records lie: one `Storage` contract, and one module per kind of storage."""

import os

from .base import MemoryStorage, Storage
from .files import FileStorage

__all__ = ["FileStorage", "MemoryStorage", "Storage", "storage_of"]


def storage_of(storage: object) -> Storage:
    """Return the storage that this names, or is.

    Args:
        storage: a directory; a `Storage`, returned as it is; `None` is the TypeScript original's
            directory, `~/.openclaw/qqbot/sessions`.
    """
    if storage is None:
        home = os.environ.get("HOME") or "/tmp"  # as the original
        return FileStorage(os.path.join(home, ".openclaw", "qqbot", "sessions"))  # noqa: PTH118
    if isinstance(storage, str) and ("://" in storage or storage.startswith("sqlite:")):
        raise ValueError(f"no storage claims {storage!r}; a directory is a plain path")
    if isinstance(storage, str | os.PathLike):
        return FileStorage(storage)
    if isinstance(storage, Storage):
        return storage
    raise TypeError(f"storage must be a directory or a Storage, not {storage!r}")
