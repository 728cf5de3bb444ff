"""Which sequence number is safe to Resume from while handlers run concurrently.

Rules:

* `received` is the highest number seen, what heartbeats report. `settled` is the low watermark:
  every number received up to it is settled. It is itself a number that was received, is safe
  to Resume from, and never falls within a session.
* Gaps are normal: nobody waits for `last + 1`. Events may settle in any order.
* A number is open from `receive` until it is settled, or let go because it was held too long or
  too many are open. What fails stays open, so that a Resume delivers it again.
* A number counts as settled only when that is certain. What was let go is not settled.
* After `restore` the mark follows what is received anew: an unsettled event of the old process
  is not passed over before the gateway has had its chance to deliver it again.
* A settle that belongs to an earlier session (an earlier `generation`) changes nothing.

Official advice is to record a number after its event is handled (bot-docs, event-emit.md); the
two cursors are what follows from it for handlers that run concurrently. Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from .state import MAX_INTEGER

MAX_RUNS = 4096
"""Runs of settled numbers remembered in memory; the lowest are forgotten first."""

MAX_STORED_RUNS = 256
"""Runs above the mark that `Watermark.above` writes down, less than 9 KiB; the newest win."""

_RUN = re.compile(r"([0-9]{1,16})(?:-([0-9]{1,16}))?")


class Watermark:
    """The cursors of one gateway session.

    Args:
        max_held_seconds: an event open for longer is let go; seconds, `None` = never.
        max_held: of more open events than this the lowest are let go; `None` = no limit.
    """

    def __init__(
        self, *, max_held_seconds: float | None = 300.0, max_held: int | None = 1000
    ) -> None:
        check_limit("max_held_seconds", max_held_seconds, (int, float), 0.0)
        check_limit("max_held", max_held, (int,), 1)
        self.max_held_seconds = max_held_seconds
        self.max_held = max_held
        self.generation = 0
        self.reset()

    def __repr__(self) -> str:
        return f"<Watermark received={self.received} settled={self.settled} open={len(self._open)}>"

    def reset(self) -> None:
        """Forget the cursors: a new session counts anew, and settles of the old one are ignored."""
        self.generation += 1
        self.received: int | None = None
        self.settled: int | None = None
        self._top = -1  # highest number received by this process
        self._open: dict[int, float] = {}  # number -> when it was received; numbers ascend
        self._failed: set[int] = set()  # open, but in nobody's hands
        self._runs = _Runs()

    def restore(self, settled: int | None, above: object = "") -> None:
        """Start from what was stored.

        Args:
            settled: the stored mark.
            above: what `above` gave; anything else is ignored.
        """
        self.reset()
        if settled is None:
            return
        self.settled = self._top = settled
        self._runs.append(settled, settled)
        for low, high in _parse_runs(above, settled):
            self._runs.append(low, high)
        self.received = self._runs.highs[-1]

    def receive(self, seq: int, now: float) -> bool:
        """Note a number; return whether its event needs handling.

        `False` means that this very number is settled, or that a handler of this process still
        has it: a Resume delivers again whatever lies above the mark.

        Args:
            now: seconds, on the same clock as for `release`.
        """
        self.received = seq if self.received is None else max(self.received, seq)
        self._top = max(self._top, seq)
        if seq in self._open:
            needed = seq in self._failed
            self._failed.discard(seq)
            return needed
        if self.is_settled(seq):
            self._advance()
            return False
        if self.settled is None or seq > self.settled:
            self._hold(seq, now)
        return True  # a number at or below the mark is delivered, but never lowers the mark

    def settle(self, seq: int, generation: int) -> None:
        """Note that the event with this number needs nothing more; any order, any number of times.

        Args:
            generation: `Watermark.generation` when the number was received.
        """
        if generation != self.generation or seq > self._top:
            return
        self._open.pop(seq, None)
        self._failed.discard(seq)
        self._runs.add(seq)
        self._advance()

    def fail(self, seq: int, generation: int) -> None:
        """Note that nobody handles this number any more: if it comes again, it needs handling."""
        if generation == self.generation and seq in self._open:
            self._failed.add(seq)

    def release(self, now: float) -> list[int]:
        """Let go what is held too long or is too much; return those numbers, lowest first.

        Their events no longer hold the mark, so that a crash or a Resume may pass them over. They
        are not settled. Only the lowest open number holds the mark, so only it is looked at.

        Args:
            now: seconds, on the same clock as for `receive`. A step of that clock lets go too
                early or too late; `max_held` holds all the same.
        """
        released = []
        while self._open and self._is_too_much(now):
            seq = next(iter(self._open))
            del self._open[seq]
            self._failed.discard(seq)
            self.settled = seq  # it was the lowest: all below it are settled or let go
            self._advance()
            released.append(seq)
        return released

    def is_settled(self, seq: int) -> bool:
        """Whether it is certain that this number was settled in this session."""
        return seq in self._runs

    def above(self) -> str:
        """Return the numbers settled above the mark, as text like `12-40,45`, for `restore`."""
        mark = -1 if self.settled is None else self.settled
        return self._runs.text(mark + 1)

    def _hold(self, seq: int, now: float) -> None:
        late = bool(self._open) and seq < next(reversed(self._open))
        self._open[seq] = now
        if late:
            self._open = dict(sorted(self._open.items()))

    def _is_too_much(self, now: float) -> bool:
        if self.max_held is not None and len(self._open) > self.max_held:
            return True
        held = now - next(iter(self._open.values()))
        return self.max_held_seconds is not None and held > self.max_held_seconds

    def _advance(self) -> None:
        best = self._runs.highest_below(next(iter(self._open))) if self._open else self._top
        if self.settled is None or best > self.settled:
            self.settled = best if best >= 0 else None


class _Runs:
    """A set of numbers kept as runs, so that a session of consecutive numbers costs one run."""

    def __init__(self) -> None:
        self.lows: list[int] = []
        self.highs: list[int] = []

    def __contains__(self, number: int) -> bool:
        after = bisect_right(self.lows, number)
        return after > 0 and number <= self.highs[after - 1]

    def append(self, low: int, high: int) -> None:
        """Add a run above all others; one that touches the last lengthens it."""
        if self.highs and self.highs[-1] + 1 == low:
            self.highs[-1] = high
        else:
            self.lows.append(low)
            self.highs.append(high)

    def add(self, number: int) -> None:
        after = bisect_right(self.lows, number)
        if after > 0 and number <= self.highs[after - 1]:
            return
        self.lows.insert(after, number)
        self.highs.insert(after, number)
        self._join(after)
        self._join(after - 1)
        del self.lows[:-MAX_RUNS], self.highs[:-MAX_RUNS]

    def _join(self, index: int) -> None:
        """Join the run at `index` with the next one if they touch."""
        if 0 <= index < len(self.lows) - 1 and self.highs[index] + 1 == self.lows[index + 1]:
            del self.highs[index], self.lows[index + 1]

    def highest_below(self, limit: int) -> int:
        """Return the highest number below `limit`, or -1."""
        after = bisect_left(self.lows, limit)
        return min(self.highs[after - 1], limit - 1) if after else -1

    def text(self, start: int) -> str:
        first = max(bisect_left(self.highs, start), len(self.highs) - MAX_STORED_RUNS)
        runs = zip(self.lows[first:], self.highs[first:], strict=True)
        return ",".join(_run_text(max(low, start), high) for low, high in runs)


def _run_text(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _parse_runs(text: object, mark: int) -> list[tuple[int, int]]:
    """Return the runs in ascending order, or none at all if `text` is not what we write."""
    runs: list[tuple[int, int]] = []
    last = mark
    for item in text.split(",") if isinstance(text, str) and text else ():
        match = _RUN.fullmatch(item)
        if match is None or len(runs) == MAX_STORED_RUNS:
            return []
        low, high = int(match[1]), int(match[2] or match[1])
        if not last < low <= high <= MAX_INTEGER:
            return []
        runs.append((low, high))
        last = high
    return runs


def check_limit(
    name: str, value: object, kinds: tuple[type, ...], least: float, most: float = 2**53 - 1
) -> None:
    """Raise `TypeError` or `ValueError`, naming the value, unless it is a limit or `None`."""
    if value is None:
        return
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be {kinds[-1].__name__} or None, not {value!r}")
    if not least <= value <= most:  # type: ignore[operator]  # false for NaN too
        raise ValueError(f"{name} must be from {least} to {most}, not {value!r}")
