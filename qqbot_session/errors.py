"""The family of errors.

    QQBotSessionError
    ├── InvalidRecordError      (ValueError)    bytes that are not a session record
    ├── GatewayProtocolError    (ValueError)    a payload the gateway would not send
    ├── SessionWriteError       (OSError)       states that are not on storage
    ├── StoreClosedError        (RuntimeError)  a store used after `aclose`
    ├── WrongEventLoopError     (RuntimeError)  a store used from a second event loop
    ├── LeaseLostError          (RuntimeError)  an account that another process may write by now
    ├── GatewayRefusedError     (RuntimeError)  another try is no use
    └── ApiError                                QQ's HTTP API answered with an error

Wrong arguments are plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

from .words import shown

_Error = TypeVar("_Error", bound=BaseException)

_NAMED = 3  # accounts in one line
_NOT_ALLOWED_HERE = (  # botpy#189, AstrBot#631
    "This machine's address is not in the bot's IP allow-list (IP 白名单): add it in QQ's console"
)


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
        named = islice(self.failures.items(), _NAMED)
        reasons = "; ".join(f"{account_id!r}: {describe(error)}" for account_id, error in named)
        more = "; …" if len(self.failures) > _NAMED else ""
        super().__init__(f"{len(self.failures)} account(s) not on storage: {reasons}{more}")

    def __reduce__(self) -> tuple[type[SessionWriteError], tuple[dict[str, BaseException]]]:
        return type(self), (self.failures,)


class StoreClosedError(QQBotSessionError, RuntimeError):
    """The store was used after `aclose`."""


class WrongEventLoopError(QQBotSessionError, RuntimeError):
    """The store was used outside an event loop, or from a second one."""


class LeaseLostError(QQBotSessionError, RuntimeError):
    """The account is another process's to write, or may be by now."""


class GatewayRefusedError(QQBotSessionError, RuntimeError):
    """QQ refused the bot, and another try is no use until somebody mends the cause.

    No `OSError`: programs that never heard of us take those for the network's, and try again.

    Attributes:
        account_id: whose line it was.
        code: the close code, or the error code of QQ's API; `None` when there was none.
        reason: why, as a sentence.
    """

    def __init__(self, account_id: str, code: int | None, reason: str) -> None:
        self.account_id = account_id
        self.code = code
        self.reason = reason
        super().__init__(f"{account_id}: {reason}" + ("" if code is None else f" (code {code})"))

    def __reduce__(self) -> tuple[type[GatewayRefusedError], tuple[str, int | None, str]]:
        return type(self), (self.account_id, self.code, self.reason)


class ApiError(QQBotSessionError):
    """QQ's HTTP API answered with an error.

    Attributes:
        status: of the HTTP response.
        code: QQ's own error code, `None` when the answer had none.
        message: what the answer says, shortened.
        trace_id: what QQ's support asks for; `None` when the answer had none.
    """

    def __init__(
        self, status: int, code: int | None, message: str, trace_id: str | None = None
    ) -> None:
        self.status, self.code, self.message, self.trace_id = status, code, message, trace_id
        text = f"HTTP {status}" + ("" if code is None else f", code {code}") + f": {message}"
        if self.is_not_allowed_here:
            text += f". {_NOT_ALLOWED_HERE}"
        super().__init__(text if trace_id is None else f"{text} (trace id {trace_id})")

    @property
    def is_not_allowed_here(self) -> bool:
        """Whether this machine's address is missing in the bot's IP allow-list."""
        words = self.message.lower()
        named = "白名单" in words or "whitelist" in words or "allowlist" in words
        return self.code == 11298 or (self.status in (401, 403) and named)

    def __reduce__(self) -> tuple[type[ApiError], tuple[int, int | None, str, str | None]]:
        return type(self), (self.status, self.code, self.message, self.trace_id)


def bare(error: _Error) -> _Error:
    """Return the error without its frames and causes, which hold what is not for a log."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def describe(error: BaseException) -> str:
    """Return a line about the error: an `OSError`'s own words name the path that its repr hides."""
    public = next(kind for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
    try:
        words = f"{error}"
    except Exception:  # noqa: BLE001 - somebody else's error, and it may be as broken as that
        words = ""
    line = words if isinstance(error, OSError) and words else f"{public.__name__}: {words}"
    return shown(" ".join(line.split()), 300) if words else public.__name__


def name_one(account_id: str) -> str:
    """Return the account id as a log may show it: in quotes if it has spaces, on one line, cut."""
    plain = account_id.isprintable() and " " not in account_id
    return shown(account_id if plain else ascii(account_id[:100]), 100)


def name_some(account_ids: Iterable[str]) -> str:
    """Return who they are if they are few, else how many, and the first three."""
    names = list(account_ids)
    some = ", ".join(map(name_one, names[:_NAMED]))
    return some if len(names) <= _NAMED else f"{len(names)} accounts ({some}, …)"
