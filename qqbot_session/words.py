"""Make text from outside safe to show in a log line, an error, a `repr` or on a terminal.

Rules:

* Anything that someone else wrote (an id, an event type, a close reason, an HTTP body, a record) is
  shown on one line: unprintable characters are escaped, and long text is cut.
* A secret becomes a `Secret` as soon as it arrives. Its `repr` is masked, because error reporters
  (Sentry, loguru, rich) show the `repr` of every local variable in a traceback.
* Text that may repeat a secret goes through `without` before it is shown.

Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

MASK = "***"
"""Shown in place of a secret."""
_SHORTEST = 4  # characters; anything shorter occurs in any text


def shown(value: object, limit: int = 200) -> str:
    r"""Return a value's text on one line, safe for a log or a terminal.

    Control characters, line breaks, direction marks and everything else that is not printable are
    escaped as in Python: `\n`, `\x1b`, `\u202e`.

    Args:
        value: anything; its `str` is shown, or the name of its type if that raises.
        limit: characters; longer text is cut and ends in `…`.
    """
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        text = type(value).__name__
    if text.isprintable() and len(text) <= limit:
        return text
    escaped = "".join(map(_escaped, text[: limit + 1]))
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}…"


def shown_lines(text: str, limit: int = 500) -> str:
    """Return text of several lines, such as a traceback, with each line made safe by `shown`."""
    return "\n".join(shown(line.replace("\t", "    "), limit) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


class Secret(str):
    """A secret that can be used like any string but has a masked `repr`.

    `str(secret)` and the methods return plain text; `+` and slices return another `Secret`, since
    some programs show the `repr` of a slice.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"

    def __add__(self, other: str) -> Secret:
        return Secret(str.__add__(self, other))

    def __radd__(self, other: str) -> Secret:
        return Secret(other + str(self))

    def __getitem__(self, key: Any) -> Secret:
        return Secret(str.__getitem__(self, key))


_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix", "sqlite", "http", "https", "file")


class Address(str):
    """An address that may hold a password, such as a URL; its `repr` does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(hidden(self))


def address(value: Any) -> Any:
    """Return a string or a path as an `Address`, so that no traceback shows what is in it.

    Anything else is returned as it is.
    """
    if hasattr(value, "__fspath__"):
        value = os.fspath(value)
    return Address(value) if isinstance(value, str) else value


def hidden(text: str) -> str:
    """Return an address without whatever may be a password, however it is mistyped.

    That is everything before the last `@`, what stands where the number of a port should, all that
    follows a scheme we do not know, and an option whose name says so.
    """
    import re  # a bot's first import does without

    text = re.sub(r"(?i)(pass\w*=)[^&\s]*", rf"\1{MASK}", text)
    scheme = re.match(r"([a-zA-Z][\w+.-]+:)?/*", text)[0]  # type: ignore[index]
    _, at, host = text[len(scheme) :].rpartition("@")
    if at:
        return f"{scheme}{MASK}@{host}"
    kind = scheme.partition(":")[0].lower()
    if "//" in scheme and kind.strip("/") and kind not in _SCHEMES:
        return f"{scheme}{MASK}"
    is_server = "//" in scheme or kind.startswith(("redis", "valkey"))
    if is_server and re.search(r":(?!\d+(/|\?|$))", host.rpartition("]")[2].partition("/")[0]):
        return f"{scheme}{MASK}"
    return text


def whenever(represent: Callable[[Any], str]) -> Callable[[Any], str]:
    """Let a `__repr__` answer before its object is whole: a traceback of its constructor shows it.

    Python's own `traceback` fails on a `repr` that raises, up to 3.12.
    """

    @wraps(represent)
    def answer(self: object) -> str:
        try:
            return represent(self)
        except AttributeError:
            return f"<{type(self).__name__} that is not whole>"

    return answer


def without(text: str, secrets: Iterable[str]) -> str:
    """Return the text with each secret masked, also where JSON or a URL has encoded it."""
    from urllib.parse import quote  # costs a probe of ours a tenth of its time

    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) < _SHORTEST:
            continue
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            text = text.replace(form, MASK)
    return text
