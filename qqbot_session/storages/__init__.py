"""Where records lie: one `Storage` contract, and one module per kind of storage."""

from .base import MemoryStorage, Storage
from .files import FileStorage

__all__ = ["FileStorage", "MemoryStorage", "Storage"]
