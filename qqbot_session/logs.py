"""`say`: every log line of this package goes through here.

Rules:

* Values in a line or its `extra` are made safe by `shown`: escaped and cut. Numbers stay numbers,
  so that they can be counted and compared.
* A traceback cannot forge a line or move a terminal's cursor either.
* The record names the place that logged, not this module.
* What the process's filters and handlers raise is ignored: no log line is worth a session.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from itertools import islice

from .words import shown, shown_lines

LOG = logging.getLogger("qqbot_session")

EXITS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Never taken for a failure, and never suppressed."""

_LIMIT = 1000  # characters of a value; our choice
_DEPTH = 100  # errors in a chain, or values in an `extra`, that are looked at


def say(
    level: int,
    message: str,
    *args: object,
    exc_info: BaseException | bool | None = None,
    extra: Mapping[str, object] | None = None,
    stacklevel: int = 1,
    logger: logging.Logger = LOG,
) -> None:
    """Log a line.

    Args:
        level: as `logging` has it.
        message: a literal in %-style.
        args: its values.
        exc_info: an error whose traceback to show; `True` = the one being handled.
        extra: further attributes of the record.
        stacklevel: whom the record names: 1 = the caller, 2 = its caller, and so on.
        logger: the logger to use.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        path, line, function, _ = logger.findCaller(stacklevel=stacklevel + 1)
        error = sys.exception() if exc_info is True else exc_info or None
        info = None if error is None else (type(error), error, error.__traceback__)
        fields = {name: _field(value) for name, value in (extra or {}).items()}
        values = tuple(map(_value, args))
        record = logger.makeRecord(
            logger.name, level, path, line, message, values, info, function, fields
        )
        if error is not None:
            record.exc_text = _traceback(error)
        logger.handle(record)
    except EXITS:
        raise
    except BaseException:  # noqa: BLE001 - of a filter, a handler, or a value
        pass


class _Shown:
    """An object that is safe to show with `%s` and `%r`."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return shown(self._value, _LIMIT)

    def __repr__(self) -> str:
        return shown(repr(self._value), _LIMIT)


def _value(value: object) -> object:
    """Return a safe value for the message."""
    if value is None or isinstance(value, int | float):
        return value
    return shown(value, _LIMIT) if type(value) is str else _Shown(value)


def _field(value: object) -> object:
    """Return a safe value for the record; the same object if it is safe already."""
    if isinstance(value, str):
        return value if value == (safe := shown(value, _LIMIT)) else safe
    if isinstance(value, Mapping):
        return {_field(key): _field(value[key]) for key in islice(value, _DEPTH)}
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_field, islice(value, _DEPTH)))
    return value


def _traceback(error: BaseException) -> str:
    """Return the traceback as `logging` shows it, with the errors' messages made safe."""
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    for words in {words for each in _chain(error) for words in _words(each)}:
        if not words.isprintable():  # indented, so that no line looks like a log line
            text = text.replace(words, words.replace("\n", "\n    | "))
    return shown_lines(text, _LIMIT)


def _words(error: BaseException) -> Iterator[str]:
    for part in (error, *getattr(error, "__notes__", ())):
        with contextlib.suppress(Exception):  # somebody else's `__str__`
            yield str(part)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors that its traceback shows with it."""
    left, seen = [error], set[int]()
    while left and len(seen) < _DEPTH:
        if id(error := left.pop()) in seen:
            continue
        seen.add(id(error))
        yield error
        others = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
        left += [other for other in others if isinstance(other, BaseException)]
