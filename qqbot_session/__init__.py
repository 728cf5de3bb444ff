"""QQ bot gateway sessions that survive a restart.

What is named here is imported when it is first asked for: an operator's probe, and a test runner
that finds us installed, do not pay for what they do not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # pragma: no cover
    from .commit import WriteDetails
    from .errors import (
        GatewayProtocolError,
        GatewayRefusedError,
        InvalidRecordError,
        LeaseLostError,
        QQBotSessionError,
        SessionWriteError,
        StoreClosedError,
        WrongEventLoopError,
    )
    from .judging import LoadReason
    from .state import ResumableState, SessionState
    from .storages.base import LeasingStorage, MemoryStorage, Storage
    from .storages.files import FileStorage
    from .store import AsyncSessionStore, LoadDetails

__all__ = [
    "AsyncSessionStore",
    "FileStorage",
    "GatewayProtocolError",
    "GatewayRefusedError",
    "InvalidRecordError",
    "LeaseLostError",
    "LeasingStorage",
    "LoadDetails",
    "LoadReason",
    "MemoryStorage",
    "QQBotSessionError",
    "ResumableState",
    "SessionState",
    "SessionWriteError",
    "Storage",
    "StoreClosedError",
    "WriteDetails",
    "WrongEventLoopError",
]
__version__ = "0.1.0"

_ROOMS = {
    "AsyncSessionStore": ".store",
    "FileStorage": ".storages.files",
    "GatewayProtocolError": ".errors",
    "GatewayRefusedError": ".errors",
    "InvalidRecordError": ".errors",
    "LeaseLostError": ".errors",
    "LeasingStorage": ".storages.base",
    "LoadDetails": ".store",
    "LoadReason": ".judging",
    "MemoryStorage": ".storages.base",
    "QQBotSessionError": ".errors",
    "ResumableState": ".state",
    "SessionState": ".state",
    "SessionWriteError": ".errors",
    "Storage": ".storages.base",
    "StoreClosedError": ".errors",
    "WriteDetails": ".commit",
    "WrongEventLoopError": ".errors",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        globals()[name] = value = getattr(import_module(_ROOMS[name], __name__), name)
        return value
    return _module(name)  # pragma: no cover


def _module(name: str) -> Any:  # pragma: no cover
    """Return a module of ours that nobody has imported yet, as `qqbot_session.storages`."""
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:  # pragma: no cover
    return sorted({*globals(), *__all__})
