"""What commands print, and how it looks.

Rules:

* Answers go to standard output, everything else to standard error.
* Nothing that a record, a row or an error holds reaches a terminal as a command: every line is
  escaped and cut (`words.shown`) at this door. `--json` is not cut; JSON escapes it.
* A stream that is not UTF-8 gets what it can show, and escapes for the rest. One that is closed
  gets nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from ..words import shown
from .codes import OutputError

_GAP = 2  # columns
_LINE = 2000  # characters of a line
_CELL = 200  # characters of a table's cell
_DAY = 86_400  # seconds


def prepare() -> None:
    """Let the standard streams show what they can."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # closed, or not a real stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def out(text: str, *, colour: str | None = None, limit: int = _LINE) -> None:
    """Print a line of the answer."""
    _print(_coloured(shown(text, limit), colour))


def say(text: str, *, end: str = "\n") -> None:
    """Print a line that is not part of the answer."""
    with contextlib.suppress(OSError):
        _write(sys.stderr, shown(text, _LINE), end)


def out_json(value: object) -> None:
    """Print the answer for programs; no character of it is one that a terminal obeys."""
    import json

    ascii_only = not _is_unicode(sys.stdout)
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only)
    _print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def flush() -> None:
    """Let the answer out, so that a full disk shows here and not while Python ends."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot print the answer: {error.strerror}") from error


def discard_output() -> None:
    """Send what is still buffered nowhere, if it cannot be written: nobody reads it any more."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return


def _print(text: str) -> None:
    try:
        _write(sys.stdout, text, "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot print the answer: {error.strerror}") from error


def _write(stream: TextIO | None, text: str, end: str) -> None:
    if stream is None:  # closed by whoever started us
        return
    if not _is_unicode(stream):
        text = text.replace("…", "...")
    print(text, file=stream, end=end, flush=stream is sys.stderr)


def _is_unicode(stream: TextIO | None) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").startswith(("utf8", "utf16", "utf32"))


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _coloured(text: str, colour: str | None) -> str:
    if colour is None or not _is_terminal(sys.stdout) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def mark(text: str, colour: str) -> str:
    """Return a word of ours in colour, for `out_marked`."""
    return _coloured(text, colour)


def out_marked(mark: str, text: str) -> None:
    """Print a line that begins with a mark of ours."""
    _print(f"{mark}  {shown(text, _LINE)}")


# Tables


def out_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: frozenset[int] = frozenset(),
    colours: Sequence[str | None] = (),
) -> None:
    """Print rows in columns; on a narrow terminal the first and the last column give way.

    Args:
        right: the columns whose cells stand at the right.
        colours: of each row's last cell.
    """
    cells = [[shown(cell, _CELL) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells, strict=True)]
    room = _columns() - sum(widths[1:-1]) - (len(header) - 1) * _GAP
    last = max(_width(row[-1].partition(":")[0]) for row in [header, *cells])
    widths[0] = max(12, min(widths[0], room - last))
    widths[-1] = max(room - widths[0], last)
    for number, row in enumerate([header, *cells]):
        *head, tail = (
            _fitted(cell, widths[column], at_right=column in right)
            for column, cell in enumerate(row)
        )
        colour = colours[number - 1] if number and colours else None
        _print("  ".join([*head, _coloured(tail.rstrip(), colour)]).rstrip())


def _columns() -> int:
    if not _is_terminal(sys.stdout):
        return 10_000
    import shutil

    return shutil.get_terminal_size((120, 24)).columns


def _width(text: str) -> int:
    """Return the columns that a text takes: wide characters, such as Chinese ones, take two."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fitted(text: str, width: int, *, at_right: bool) -> str:
    """Return the text cut or padded to so many columns."""
    if _width(text) > width:
        while text and _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    padding = " " * (width - _width(text))
    return padding + text if at_right else text + padding


# Words


def short(session_id: str, *, full: bool) -> str:
    """Return what may be shown of a session id: whoever has all of it can Resume."""
    return session_id if full else f"{session_id[:4]}…"


def age(seconds: float) -> str:
    """Return a length of time in one word, such as `5 min`."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (2 * _DAY, 3600, "h")):
        if seconds < limit:
            return f"{sign}{seconds / unit:.0f} {name}"
    return f"{sign}{seconds / _DAY:.0f} d"


def duration(seconds: float) -> str:
    """Return a setting, such as `max_age`, exactly."""
    return f"{seconds / 60:g} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g} s"


def moment(seconds: float | None) -> str | None:
    """Return a time of the epoch as the clock on this machine's wall shows it."""
    if not seconds:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


class Progress:
    """A line on a terminal that says how far long work has come; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = _is_terminal(sys.stderr)
        self._began = self._last = time.monotonic()
        self._drawn = False

    def __call__(self, done: Any) -> None:
        """Show how much is done; at most five times a second, and not for short work."""
        now = time.monotonic()
        if self._shown and now - self._began > 0.5 and now - self._last > 0.2:
            self._last, self._drawn = now, True
            _write(sys.stderr, f"\r{_BAR[int(now * 5) % len(_BAR)]} {self._what} {done:,}", "")

    def end(self) -> None:
        """Remove the line."""
        if self._drawn:
            _write(sys.stderr, "\r\x1b[K", "")


_BAR = ("[=   ]", "[ =  ]", "[  = ]", "[   =]", "[  = ]", "[ =  ]")
