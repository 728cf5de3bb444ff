"""Where records lie: one `Storage` contract, and one module per kind of storage."""

import contextlib
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..words import Secret, address

if TYPE_CHECKING:
    from .base import LeasingStorage, MemoryStorage, Storage
    from .copying import Copied, copy
    from .files import FileStorage
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


_ROOMS = {
    "Copied": ".copying",
    "FileStorage": ".files",
    "LeasingStorage": ".base",
    "MemoryStorage": ".base",
    "RedisStorage": ".redis",
    "SqliteStorage": ".sqlite",
    "Storage": ".base",
    "copy": ".copying",
}


def __getattr__(name: str) -> Any:
    """Import each only for those who ask for it."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_ROOMS[name], __name__), name)
    return value


def storage_of(storage: object) -> "Storage":
    """Return the storage that this names, or is.

    Args:
        storage: a directory; `sqlite:PATH`, a database; `redis://…`, `rediss://…`, `valkey://…` or
            `valkeys://…`, a server; `unix://PATH`, its socket; a `Storage`, returned as it is;
            `None` is the TypeScript original's directory, `~/.openclaw/qqbot/sessions`.

    Raises:
        TypeError, ValueError: it is none of these; the sentence says what was probably meant. It
            shows no password.
    """
    from .base import Storage
    from .files import FileStorage

    storage = address(storage)
    if storage is None:
        return FileStorage(os.path.join(_home(), ".openclaw", "qqbot", "sessions"))
    if isinstance(storage, str | os.PathLike):
        return _named(storage)
    if isinstance(storage, Storage) and not isinstance(storage, type):
        return storage
    raise TypeError(f"storage must be a directory or a Storage, {_not_one(storage)}")


def _home() -> str:
    """Return the home directory: that of the environment, else the user's, else `/tmp`.

    The original takes `/tmp` at once, which everybody can write.
    """
    if home := os.environ.get("HOME"):
        return home
    with contextlib.suppress(ImportError, KeyError):  # Windows; a user that is not listed
        import pwd

        if os.path.isdir(home := pwd.getpwuid(os.getuid()).pw_dir):
            return home
    return "/tmp"


def _named(name: str | os.PathLike[str]) -> "Storage":
    from .files import FileStorage

    text = address(os.fspath(name))
    if not isinstance(text, str):  # bytes
        return FileStorage(name)
    scheme, colon, rest = map(Secret, text.partition(":"))
    scheme = Secret(scheme.strip().lower())
    if scheme == "sqlite" and colon:
        return _sqlite(text)
    if scheme in SCHEMES and rest.startswith("//"):
        from .redis import RedisStorage

        return RedisStorage(text)
    if complaint := _complaint(text, scheme if colon else "", rest):
        raise ValueError(complaint)
    return FileStorage(name)


def _sqlite(text: str) -> "Storage":
    from .sqlite import SqliteStorage

    path = address(text.partition(":")[2])
    if path.startswith("//"):  # elsewhere it is relative with three slashes and absolute with four
        raise ValueError(f"a database is sqlite:PATH, without slashes before it, not {text!r}")
    if re.match("[a-z][a-z0-9+.-]+://", path.lower()):
        raise ValueError(f"a database is sqlite:PATH, and a server has its own URL, not {text!r}")
    return SqliteStorage(path)


SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
"""What a server's URL begins with."""

_OTHERS = {"file", "http", "https", "memory", "mongodb", "mysql", "postgres", "postgresql", "unix"}
_DATABASES = (".db", ".db3", ".sqlite", ".sqlite3", ".sqlitedb")


def _complaint(text: str, scheme: str, rest: str) -> str | None:
    """Return what is wrong with the name of a directory that is probably none.

    What follows a scheme is never shown: it may hold a password.
    """
    if text.lower().endswith(_DATABASES) and not scheme:
        return (
            f"{text!r} looks like a database, which is sqlite:{text}; for a directory of that name"
            f" write {text + os.sep!r}"
        )
    if text == ":memory:":
        return "what need not be kept is MemoryStorage(); a directory is a plain path"
    if re.fullmatch(r"(localhost|[\d.]+):\d+(/\d*)?", text):
        return f"a server is redis://{text}; a directory is a plain path"
    if re.match(r"(redis|valkey)s?[^\w:]*//|[^/\\]*@[\w.-]+:\d+(/|$)", text.lower()):
        return "a server is redis://HOST:PORT/DATABASE, with a colon; a directory is a plain path"
    if not re.fullmatch("[a-z][a-z0-9+.-]+", scheme):  # a drive has one letter
        return None
    from difflib import get_close_matches

    known = get_close_matches(scheme, ["sqlite", *SCHEMES[:-1]], 1, 0.7)
    if "sentinel" in scheme or "cluster" in scheme:
        return (
            f"no storage claims {scheme}:…; hand in RedisStorage(client) with a client of"
            " Sentinel's or a cluster's"
        )
    if known and known[0] in SCHEMES:
        return f"a server is {known[0]}://HOST:PORT/DATABASE, not {scheme}:…"
    if known:
        return f"no storage claims {scheme}:…; did you mean {known[0]}:PATH?"
    if scheme in _OTHERS or rest.startswith("//"):
        return (
            f"no storage claims {scheme}:…; there are sqlite:PATH and redis://HOST/DATABASE, and a"
            " directory is a plain path"
        )
    return None


def _not_one(storage: object) -> str:
    """Return what an object is that is no storage; its `repr` may hold a password."""
    kind = storage if isinstance(storage, type) else type(storage)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}".removeprefix("builtins.")
    if isinstance(storage, type):
        return f"not the class {name}: make one, as in {kind.__qualname__}(...)"
    if hasattr(storage, "execute_command"):
        return f"not a {name}: RedisStorage(client) takes an asyncio client"
    return f"not a {name}"
