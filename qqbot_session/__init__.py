"""QQ bot gateway sessions that survive a restart."""

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
