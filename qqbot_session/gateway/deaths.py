"""Which events killed the process that handled them.

Rules:

* An event that was begun in `MAX_DEATHS` processes, each of which died before it had ended, is let
  go: it would kill the next one, too, and take the events behind it along.
* A process that stops in order accuses none, even if a supervisor kills it before it has stopped.
* The record names the events that are begun. Those that it still names at the next start were begun
  when the process died, or were killed with it.
* No write precedes the handler of a new event, so one that kills at once is not named the first
  time. What is replayed after a process that did not end in order counts as begun in it.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..state import MAX_INTEGER

MAX_DEATHS = 3
"""Processes that an event may kill; our choice."""

_NONE: dict[int, Any] = {}  # nearly always, and never changed
_MAX_STORED = 64  # events, less than 1.5 KiB
_ITEM = re.compile(r"([0-9]{1,16}):([0-9]{1,3})")


class Deaths:
    """How many processes died while they handled an event, by its number.

    Attributes:
        known: what the record says.
        in_doubt: whether what is replayed may have been begun by a process that died. With neither
            there is nothing to ask `received` for.
    """

    __slots__ = (
        "_replayed",
        "in_doubt",
        "known",
    )

    def __init__(self) -> None:
        self.known: dict[int, int] = _NONE  # from the record
        self._replayed: dict[int, None] = _NONE  # after a process that did not end in order
        self.in_doubt = False

    def restore(self, text: object, *, in_order: bool) -> None:
        """Start from what `text` gave; anything else is ignored.

        Args:
            in_order: whether the last process ended in order.
        """
        self.known = _parse(text) or _NONE
        self.in_doubt = not in_order

    def received(self, seq: int, *, replayed: bool) -> int:
        """Note an event that is to be handled; return how many processes the record says it killed.

        `MAX_DEATHS` or more: let it go.
        """
        if replayed and self.in_doubt and seq not in self.known:
            self._replayed = self._replayed or {}
            self._replayed[seq] = None
        return self.known.get(seq, 0)

    def resumed(self) -> None:
        """Note RESUMED: what comes from now on is new, or its number is known."""
        self.in_doubt = False

    def text(self, begun: Sequence[int], is_left: Callable[[int], bool]) -> str:
        """Return the counts, as text like `12:2,13:1`, for `restore`.

        Args:
            begun: the numbers whose handlers run.
            is_left: whether a number lies above the mark and was not settled.
        """
        if not (begun or self.known or self._replayed):
            return ""
        if self.known:
            self.known = {seq: n for seq, n in self.known.items() if is_left(seq)}
        if self._replayed:
            self._replayed = dict.fromkeys(filter(is_left, self._replayed))
        counts = dict(self.known)
        for seq in begun:
            counts[seq] = self.known.get(seq, seq in self._replayed) + 1
        return ",".join(f"{seq}:{min(n, 999)}" for seq, n in sorted(counts.items())[:_MAX_STORED])


def _parse(text: object) -> dict[int, int]:
    """Return the counts by number, or none at all if `text` is not what we write."""
    counts: dict[int, int] = {}
    for item in text.split(",") if isinstance(text, str) and text else ():
        match = _ITEM.fullmatch(item)
        if match is None or int(match[1]) > MAX_INTEGER or len(counts) == _MAX_STORED:
            return {}
        counts[int(match[1])] = int(match[2])
    return counts
