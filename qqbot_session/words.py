"""Text from outside, made safe to show: in a log line, an error, a `repr`, on a terminal.

Rules:

* Whatever somebody else wrote (an id, an event's type, a close reason, an HTTP body, a record) is
  one line when it is shown: what does not print is escaped, and what is long is cut.
* A secret is a `Secret` from the moment it arrives. Its `repr` is masked, because error reporters
  (Sentry, loguru, rich) show the `repr` of every local variable of a traceback.
* Text that may repeat a secret goes through `without` before it is shown.

Pure: no I/O, no clock, no log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MASK = "***"
"""What is shown in place of a secret."""
_SHORTEST = 4  # characters; what is shorter stands in any text, and is no secret


def shown(value: object, limit: int = 200) -> str:
    r"""Return the text of a value on one line, as a log or a terminal may show it.

    Control characters, line ends, marks that turn the direction of writing, and whatever else does
    not print are escaped as Python escapes them: `\n`, `\x1b`, `\u202e`.

    Args:
        value: anything; its `str` is shown, or the name of its type if that raises.
        limit: characters; a longer text is cut, and ends in `…`.
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
    """Return a text of many lines, such as a traceback, each of them as `shown` shows it."""
    return "\n".join(shown(line.replace("\t", "    "), limit) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


class Secret(str):
    """A secret: its text for whoever uses it, a mask for whoever looks at it.

    `str(secret)` and every method return plain text, but for `+` and slices, which make another
    `Secret`. Programs that show variables take their `repr`, some of them of a slice.
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


def without(text: str, secrets: Iterable[str]) -> str:
    """Return the text with each secret in it masked, also as JSON or a URL would write it."""
    from urllib.parse import quote  # costs a probe of ours a tenth of its time

    for secret in secrets:
        if len(secret) < _SHORTEST:
            continue
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            text = text.replace(form, MASK)
    return text
