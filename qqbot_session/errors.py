"""The family of errors.

    QQBotSessionError
    ├── InvalidRecordError      (ValueError)    bytes that are not a session record
    ├── GatewayProtocolError    (ValueError)    a payload the gateway would not send
    ├── SessionWriteError       (OSError)       states that are not on storage
    ├── StoreClosedError        (RuntimeError)  a store used after `aclose`
    ├── WrongEventLoopError     (RuntimeError)  a store used from a second event loop
    └── LeaseLostError          (RuntimeError)  an account that another process may write by now

Wrong arguments are plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping


class QQBotSessionError(Exception):
    """Base class of everything this package raises on its own account."""


class InvalidRecordError(QQBotSessionError, ValueError):
    """Bytes on storage that are not a session record."""


class GatewayProtocolError(QQBotSessionError, ValueError):
    """A payload that does not have the shape the gateway's documentation gives it."""


class SessionWriteError(QQBotSessionError, OSError):
    """Some accounts' newest states are not on storage.

    Attributes:
        failures: the error of the latest attempt, per account id.
    """

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        reasons = "; ".join(f"{account!r}: {error!r}" for account, error in self.failures.items())
        super().__init__(f"{len(self.failures)} account(s) not on storage: {reasons}")

    def __reduce__(self) -> tuple[type[SessionWriteError], tuple[dict[str, BaseException]]]:
        return type(self), (self.failures,)


class StoreClosedError(QQBotSessionError, RuntimeError):
    """The store was used after `aclose`."""


class WrongEventLoopError(QQBotSessionError, RuntimeError):
    """The store was used outside an event loop, or from a second one."""


class LeaseLostError(QQBotSessionError, RuntimeError):
    """The account is another process's to write, or may be by now."""
