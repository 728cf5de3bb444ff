"""QQ bot gateway sessions that survive a restart."""

from .commit import WriteDetails
from .errors import (
    GatewayProtocolError,
    InvalidRecordError,
    QQBotSessionError,
    SessionWriteError,
    StoreClosedError,
    WrongEventLoopError,
)
from .files import FileStorage
from .state import SessionState
from .storage import MemoryStorage, Storage
from .store import AsyncSessionStore

__all__ = [
    "AsyncSessionStore",
    "FileStorage",
    "GatewayProtocolError",
    "InvalidRecordError",
    "MemoryStorage",
    "QQBotSessionError",
    "SessionState",
    "SessionWriteError",
    "Storage",
    "StoreClosedError",
    "WriteDetails",
    "WrongEventLoopError",
]
__version__ = "0.1.0"
