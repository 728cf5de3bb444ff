"""`SessionState`, what a bot must remember to Resume, and its JSON form.

Rules:

* A state is a value: frozen, checked when it is made, and replaced rather than changed. Subclasses
  of `str`, `int` and `float`, such as an `Enum`, are converted to their plain value.
* Every state fits in `MAX_RECORD_BYTES` once encoded, so we can read back whatever we write.
* No other module knows the names on the wire. They are those of the TypeScript original, which
  writes `sessionId` to `savedAt` and ignores the rest.
* Times are seconds in Python and whole milliseconds on the wire.
"""

from __future__ import annotations

import contextlib
import json
import math
from codecs import BOM_UTF8
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NoReturn, cast

from .errors import InvalidRecordError

MAX_RECORD_BYTES = 64 * 1024
"""Bytes; a longer record is corrupt."""

MAX_EXTRA_BYTES = 32 * 1024
"""Bytes; the limit for `SessionState.extra`, encoded."""

MAX_ACCOUNT_ID = 1024
"""Characters of an account id."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that JavaScript represents exactly, and so the largest sequence number."""

MAX_SECONDS = 4e12
"""Seconds since the epoch; from 2**42 on, a float can no longer distinguish milliseconds."""


def check_account_id(value: object) -> str:
    """Return the account id as an exact `str`.

    Raises:
        TypeError, ValueError: it is not valid; the error names it. The checks below do the same.
    """
    account_id = value if type(value) is str else _text("account_id", value)
    if len(account_id) > MAX_ACCOUNT_ID:
        raise ValueError(
            f"account_id must have at most {MAX_ACCOUNT_ID} characters, not {len(account_id)}: "
            f"{account_id[:64]!r}…"
        )
    return _check_text("account_id", account_id)


def check_last_seq(value: object) -> int:
    """Return the sequence number as an exact `int`."""
    return _check_integer("last_seq", value)


def check_shard(value: object) -> tuple[int, int]:
    """Return `(id, count)` as an exact tuple of exact `int`."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"shard must be a tuple (id, count), not {_shown(value)}")
    index, count = _check_integer("shard", value[0]), _check_integer("shard", value[1])
    if index >= count:
        raise ValueError(f"shard must be (id, count) with id < count, not {(index, count)!r}")
    return index, count


def check_app_id(value: object) -> str:
    """Return the app id as an exact `str`."""
    return _check_text("app_id", value)


def check_intents(value: object) -> int:
    """Return the intents as an exact `int`."""
    return _check_integer("intents", value)


def check_state(value: object) -> SessionState:
    """Return the state; one of a subclass, which may have skipped the checks, is made anew."""
    if type(value) is SessionState:
        return value
    if not isinstance(value, SessionState):
        raise TypeError(f"state must be a SessionState, not {_shown(value)}")
    return SessionState(**{each.name: getattr(value, each.name) for each in fields(SessionState)})


def check_seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Return a duration in seconds as a `float`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds as a float, not {_shown(value)}")
    if not least <= value < math.inf:  # false for NaN too
        raise ValueError(f"{name} must be finite and at least {least:g} s, not {_shown(value)}")
    return float(value)


def shortened(session_id: str | None) -> str:
    """Return the part of a session id that may be shown, quoted: the whole of it is a secret."""
    return repr(session_id if not session_id else f"{session_id[:4]}…")


def _text(name: str, value: object) -> str:
    """Return the plain value of a `str` or of an instance of a subclass, such as an `Enum`."""
    try:
        return str.__str__(value)
    except TypeError:
        raise TypeError(f"{name} must be a str, not {_shown(value, name)}") from None


def _check_text(name: str, value: object) -> str:
    text = value if type(value) is str else _text(name, value)
    if text and text.isascii() and "\0" not in text:
        return text
    shown = shortened(text) if name == "session_id" else repr(text)  # it may end up in a log
    if not text:
        raise ValueError(f"{name} must not be empty: {shown}")
    if "\0" in text:
        raise ValueError(f"{name} must not contain NUL: {shown}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must not contain lone surrogates: {shown}") from None
    return text


def _check_integer(name: str, value: object) -> int:
    number = value
    if type(number) is not int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, not {_shown(value)}")
        number = int.__int__(value)
    if not 0 <= number <= MAX_INTEGER:
        raise ValueError(f"{name} must be from 0 to 2**53 - 1, not {_shown(number)}")
    return number


def _seconds(name: str, value: object) -> float:
    number = value
    if type(number) is not float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be seconds as a float, not {_shown(value)}")
        number = int.__int__(value) if isinstance(value, int) else float.__float__(value)
    if not 0 <= number <= MAX_SECONDS:  # false for NaN too
        raise ValueError(
            f"{name} must be seconds from 0 to {MAX_SECONDS:.0f}, not {_shown(number)}"
        )
    return round(number * 1000) / 1000


def _shown(value: object, name: str = "") -> str:
    """Return a `repr` that fits on a line; only the beginning of a session id."""
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - a value as strange as that is refused all the same
        shown = f"a {type(value).__name__}"
    limit = 8 if name == "session_id" else 100
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


class _FrozenObject(dict[str, Any]):
    """A JSON object that cannot be changed."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("extra is read-only: make a new state with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return _FrozenObject, (dict(self),)


class _PlainObject(_FrozenObject):
    """One with texts that are known to be as JSON has them, so that nobody need escape them."""

    __slots__ = ("plain",)
    plain: Container[str]  # their names


def _freeze(value: object) -> Any:
    """Return a deep, immutable copy of a JSON value; arrays become tuples."""
    match value:
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case str():
            return str.__str__(value)
        case float() if math.isfinite(number := float.__float__(value)):
            return number
        case list() | tuple():
            return tuple([_freeze(item) for item in value])
        case Mapping():
            return _FrozenObject({_name(name): _freeze(item) for name, item in value.items()})
    raise ValueError(f"extra is not JSON: {_shown(value)}")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"extra is not JSON: the name {_shown(name)} is not a str")
    return str.__str__(name)


_NOTHING = _FrozenObject()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SessionState:
    """What an account must remember about its gateway session to Resume it.

    The constructor raises `TypeError` or `ValueError`, naming the value, for anything that could
    not be written and read back unchanged.

    Args:
        account_id: the key of the record. Not empty, at most 1,024 characters, no NUL, no lone
            surrogates. A sharded bot has one account per shard:
            `f"{bot}-{shard_id}-{shard_count}"`.
        session_id: from READY; `None` or empty if there is no session.
        last_seq: the last sequence number handled, 0 to 2**53 - 1.
        last_connected_at: when the connection was made, in seconds since the epoch, exact to the
            millisecond.
        intent_level_index: which of the bot's intent levels worked last, starting from 0.
        saved_at: when the record was encoded, in seconds since the epoch, exact to the millisecond.
            The store sets it when it writes; a value that you pass is not written.
        app_id: the bot's app id.
        intents: the intents the session was identified with.
        shard: `(shard id, shard count)` as sent with Identify.
        established_at: when the session was identified, in seconds since the epoch.
        failed_resumes: Resumes in a row that were not answered with RESUMED.
        extra: further JSON fields of the record, which are kept and written back: a read-only copy,
            with tuples for arrays, of at most 32 KiB encoded.
    """

    account_id: str
    session_id: str | None = None
    last_seq: int | None = None
    last_connected_at: float = 0.0
    intent_level_index: int = 0
    saved_at: float = 0.0
    app_id: str | None = None
    intents: int | None = None
    shard: tuple[int, int] | None = None
    established_at: float | None = None
    failed_resumes: int = 0
    extra: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, hash=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "account_id", check_account_id(self.account_id))
        if self.session_id is not None:
            put(self, "session_id", _check_session_id(self.session_id))
        if self.last_seq is not None:
            put(self, "last_seq", check_last_seq(self.last_seq))
        put(self, "last_connected_at", _seconds("last_connected_at", self.last_connected_at))
        level = _check_integer("intent_level_index", self.intent_level_index)
        put(self, "intent_level_index", level)
        put(self, "saved_at", _seconds("saved_at", self.saved_at))
        if self.app_id is not None:
            put(self, "app_id", check_app_id(self.app_id))
        if self.intents is not None:
            put(self, "intents", check_intents(self.intents))
        if self.shard is not None:
            put(self, "shard", check_shard(self.shard))
        if self.established_at is not None:
            put(self, "established_at", _seconds("established_at", self.established_at))
        put(self, "failed_resumes", _check_integer("failed_resumes", self.failed_resumes))
        if self.extra is not _NOTHING:
            put(self, "extra", _checked_extra(self.extra))
        _check_length(self)

    def __repr__(self) -> str:
        """Show what is set, and only the beginning of the session id."""
        shown = [f"account_id={self.account_id!r}", f"session_id={shortened(self.session_id)}"]
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def resumable(self) -> bool:
        """Whether there is a session to Resume: a session id and a sequence number."""
        return bool(self.session_id) and self.last_seq is not None


def _check_session_id(value: object) -> str:
    session_id = value if type(value) is str else _text("session_id", value)
    return session_id and _check_text("session_id", session_id)


_DEFAULTS = {each.name: each.default for each in fields(SessionState)[2:-1]} | {"extra": _NOTHING}


class _Draft:
    """A state that may still be changed; it becomes one by its class, as it has the same slots."""

    __slots__ = tuple(each.name for each in fields(SessionState))


def known_valid(state: SessionState, /, **changes: Any) -> SessionState:
    """Return the state with some fields replaced, and nothing checked: a tenth of `replace`'s cost.

    For this package alone, and for values it made: exactly as `__post_init__` would leave them,
    and an `extra` that is `read_only` and no longer than `MAX_EXTRA_BYTES` (`extra_length`).
    """
    made: Any = _Draft()
    made.account_id = state.account_id  # one by one: a loop takes four times as long
    made.session_id = state.session_id
    made.last_seq = state.last_seq
    made.last_connected_at = state.last_connected_at
    made.intent_level_index = state.intent_level_index
    made.saved_at = state.saved_at
    made.app_id = state.app_id
    made.intents = state.intents
    made.shard = state.shard
    made.established_at = state.established_at
    made.failed_resumes = state.failed_resumes
    made.extra = state.extra
    for name, value in changes.items():
        setattr(made, name, value)
    made.__class__ = SessionState
    return cast(SessionState, made)


def read_only(extra: Mapping[str, Any], plain: Container[str] = ()) -> Mapping[str, Any]:
    """Return the fields as `known_valid` wants an `extra`.

    Args:
        extra: their values must be immutable JSON.
        plain: names of texts of ASCII in which JSON escapes nothing.
    """
    if not extra:
        return _NOTHING
    made = _PlainObject(extra)
    made.plain = plain
    return made


def _check_length(state: SessionState) -> None:
    if len(state.account_id) + len(state.session_id or "") + len(state.app_id or "") <= 512:
        return
    length = len(encode(state, MAX_INTEGER, MAX_SECONDS))  # at its longest
    if length > MAX_RECORD_BYTES:
        raise ValueError(
            f"session_id and app_id are too long: a record of {length} bytes, at most "
            f"{MAX_RECORD_BYTES}: {state.account_id[:64]!r}"
        )


if TYPE_CHECKING:

    class ResumableState(SessionState):
        """A state with a session to Resume, as type checkers see it."""

        session_id: str
        last_seq: int

else:
    ResumableState = SessionState


def _checked_extra(extra: object) -> Mapping[str, Any]:
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra must be a mapping, not {_shown(extra)}")
    try:
        frozen: Mapping[str, Any] = _freeze(extra)
        if known := _KNOWN.intersection(frozen):
            raise ValueError(f"extra repeats the known field {min(known)!r}")
        length = extra_length(frozen)
    except RecursionError:
        raise ValueError("extra is nested too deeply") from None
    if length > MAX_EXTRA_BYTES:
        raise ValueError(f"extra is longer than {MAX_EXTRA_BYTES} bytes encoded")
    return frozen


def extra_length(extra: Mapping[str, Any]) -> int:
    """Return how many bytes `extra` takes encoded; past `MAX_EXTRA_BYTES`, at least how many."""
    if extra and (pieces := _flat(extra, encode_basestring)) is not None:
        with contextlib.suppress(UnicodeEncodeError):
            return len("".join(pieces).encode()) + 2
    try:
        return _length(extra, ascii_only=False)
    except UnicodeEncodeError:  # lone surrogates: `encode` will escape them
        return _length(extra, ascii_only=True)


def _flat(extra: Mapping[str, Any], quote: Callable[[str], str]) -> list[str] | None:
    """Return the text of an `extra` of texts and numbers, in pieces; `None` for any other."""
    pieces: list[str] = []
    plain: Container[str] = extra.plain if type(extra) is _PlainObject else ()
    for name, value in extra.items():
        if name in plain:
            pieces += (',\n  "', name, '": "', value, '"')
        elif type(value) is str:
            pieces += (f",\n  {quote(name)}: ", quote(value))
        elif type(value) is int:
            pieces.append(f",\n  {quote(name)}: {value}")
        elif value is True or value is False:
            pieces.append(f",\n  {quote(name)}: {'true' if value else 'false'}")
        else:
            return None
    return pieces


def _length(extra: Mapping[str, Any], *, ascii_only: bool) -> int:
    # Indentation makes megabytes of what is deep and wide, so it is not laid out in one piece.
    length = 0
    for piece in json.JSONEncoder(indent=2, ensure_ascii=ascii_only).iterencode(extra):
        length += len(piece.encode())
        if length > MAX_EXTRA_BYTES:
            break
    return length


def encode(
    state: SessionState, last_seq: int | None = None, saved_at: float | None = None
) -> bytes:
    """Return the record: UTF-8 JSON with the original's names and indentation.

    Args:
        last_seq: written in place of the state's own; must be valid, like all that a state holds.
        saved_at: seconds since the epoch; likewise.
    """
    if last_seq is None:
        last_seq = state.last_seq
    if saved_at is None:
        saved_at = state.saved_at
    try:
        return _encode(state, last_seq, saved_at, encode_basestring).encode()
    except UnicodeEncodeError:  # lone surrogates in `extra`: JSON can only escape them
        return _encode(state, last_seq, saved_at, encode_basestring_ascii).encode()


def _encode(
    state: SessionState, last_seq: int | None, saved_at: float, quote: Callable[[str], str]
) -> str:
    # Laid out by hand: five times as fast as `json.dumps(indent=2)`, for the same bytes.
    session_id = state.session_id
    pieces = [
        f'{{\n  "sessionId": {"null" if session_id is None else quote(session_id)},'
        f'\n  "lastSeq": {"null" if last_seq is None else last_seq},'
        f'\n  "lastConnectedAt": {round(state.last_connected_at * 1000)},'
        f'\n  "intentLevelIndex": {state.intent_level_index},'
        f'\n  "accountId": {quote(state.account_id)},'
        f'\n  "savedAt": {round(saved_at * 1000)}'
    ]
    if state.app_id is not None:
        pieces.append(f',\n  "appId": {quote(state.app_id)}')
    if state.intents is not None:
        pieces.append(f',\n  "intents": {state.intents}')
    if state.shard is not None:
        pieces.append(f',\n  "shard": [\n    {state.shard[0]},\n    {state.shard[1]}\n  ]')
    if state.established_at is not None:
        pieces.append(f',\n  "establishedAt": {round(state.established_at * 1000)}')
    if state.failed_resumes:
        pieces.append(f',\n  "failedResumes": {state.failed_resumes}')
    if state.extra:
        flat = _flat(state.extra, quote)
        if flat is None:
            escape = quote is encode_basestring_ascii
            laid_out = json.dumps(state.extra, indent=2, ensure_ascii=escape)
            flat = [",\n  ", laid_out[4:-2]]
        pieces += flat
    pieces.append("\n}")
    return "".join(pieces)


def decode(data: bytes) -> SessionState:
    """Decode a record, ours or the original's.

    A byte order mark at the start, which some editors add, is ignored.

    Raises:
        InvalidRecordError: the bytes are not a record.
    """
    fields = _json_object(data)
    state: Any = _Draft()  # checked as by the constructor, at a third of the cost
    try:
        _fill(state, fields.pop)
        state.extra = _checked_extra(fields) if fields else _NOTHING
        state.__class__ = SessionState
        _check_length(state)
    except (TypeError, ValueError) as error:
        raise InvalidRecordError(str(error)[:200]) from None
    return cast(SessionState, state)


def _fill(to: Any, take: Callable[[str, None], Any]) -> None:
    """Take the known fields out of a record; one by one, as a table costs half as much again."""
    value = take("sessionId", None)
    to.session_id = None if value is None else _check_session_id(value)
    value = take("lastSeq", None)
    to.last_seq = None if value is None else check_last_seq(value)
    value = take("lastConnectedAt", None)
    to.last_connected_at = 0.0 if value is None else _from_milliseconds("last_connected_at", value)
    value = take("intentLevelIndex", None)
    to.intent_level_index = 0 if value is None else _check_integer("intent_level_index", value)
    if (value := take("accountId", None)) is None:
        raise InvalidRecordError("the record has no accountId")
    to.account_id = check_account_id(value)
    value = take("savedAt", None)
    to.saved_at = 0.0 if value is None else _from_milliseconds("saved_at", value)
    value = take("appId", None)
    to.app_id = None if value is None else check_app_id(value)
    value = take("intents", None)
    to.intents = None if value is None else check_intents(value)
    value = take("shard", None)
    to.shard = None if value is None else _from_array(value)
    value = take("establishedAt", None)
    to.established_at = None if value is None else _from_milliseconds("established_at", value)
    value = take("failedResumes", None)
    to.failed_resumes = 0 if value is None else _check_integer("failed_resumes", value)


def account_of(data: bytes) -> str | None:
    """Return the account that a record belongs to, or `None` if it is not a record."""
    try:
        return decode(data).account_id
    except InvalidRecordError:
        return None


def _json_object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidRecordError(f"the record is longer than {MAX_RECORD_BYTES} bytes")
    try:
        value = parse_json(data.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(f"the record is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise InvalidRecordError(f"the record is a {type(value).__name__}, not an object")
    return value


def parse_json(text: str) -> Any:
    """Return the value of standard JSON: without NaN and infinities.

    Raises:
        ValueError, RecursionError: it is no such JSON, or too deep.
    """
    text = text.strip(_SPACE)
    value, end = _json.raw_decode(text)  # `decode` looks for white space, twice
    if end < len(text):
        raise ValueError(f"more follows at character {end}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_SPACE = " \t\n\r"  # as JSON has it
_json = json.JSONDecoder(parse_constant=_refuse_constant)


def _from_milliseconds(name: str, value: object) -> float:
    if type(value) is int and 0 <= value <= MAX_SECONDS * 1000:
        return value / 1000
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = value / 1000
    return _seconds(name, value)


def _from_array(value: object) -> tuple[int, int]:
    return check_shard(tuple(value) if isinstance(value, list) else value)


_KNOWN = frozenset((
    "sessionId", "lastSeq", "lastConnectedAt", "intentLevelIndex", "accountId", "savedAt",
    "appId", "intents", "shard", "establishedAt", "failedResumes",
))  # fmt: skip
