"""Which sequence number is safe to Resume from while handlers run concurrently.

Rules:

* `received` is the highest number seen, what heartbeats report. `settled` is the low watermark:
  every number received up to it is settled, or was let go. It is itself a number that was
  received, is safe to Resume from, and never falls within a session.
* Gaps are normal: nobody waits for `last + 1`. Events may settle in any order.
* A number is open from `receive` until it is settled or let go. A number that failed stays open, so
  that a Resume delivers it again.
* Only the lowest open number, which holds the mark, is let go for its time: the seconds for which a
  handler had it and for which it then lay unsettled, over all deliveries and restarts. A number
  that waits for its handler is not let go, however many are open.
* A number counts as settled only when that is certain. One that was let go is not settled.
* The mark does not move between a Resume and RESUMED, and so not from `restore` on: whatever the
  order of the replay, the mark passes none of its events that are still to be handled.
* Numbers of another session (another `generation`) have no effect. Generations are unique in the
  process.

The official advice is to record a number after its event was handled (bot-docs, event-emit.md).
With handlers that run concurrently, that takes two cursors. Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import count, islice
from math import ceil, inf
from typing import Any

from ..state import MAX_INTEGER
from ..words import whenever

MAX_RUNS = 4096
"""Runs of settled numbers remembered in memory, at least; the lowest are forgotten first."""

MAX_STORED_RUNS = 256
"""Runs above the mark that `Watermark.above` writes down, less than 9 KiB; the newest win."""

MAX_STORED_HELD = 64
"""Open numbers whose time `Watermark.held` writes down, less than 2 KiB; the lowest win."""

_FOREVER = 1e300  # seconds; less than `inf`, which is the time of a number that was not begun
_RUN = re.compile(r"([0-9]{1,16})(?:-([0-9]{1,16}))?")
_HELD = re.compile(r"([0-9]{1,16}):([0-9]{1,9})")

_NONE: dict[int, Any] = {}  # of nearly every session, and never changed
_generations = count(1)


class Watermark:
    """The cursors of one gateway session.

    Args:
        max_held_seconds: how long an event may hold the mark; seconds, `None` = for ever.
    """

    __slots__ = (
        "_clock",
        "_failed",
        "_first",
        "_limit",
        "_lowest",
        "_now",
        "_open",
        "_queue",
        "_runs",
        "_still",
        "_top",
        "_untold",
        "_used",
        "generation",
        "received",
        "settled",
    )

    def __init__(self, *, max_held_seconds: float | None = 300.0) -> None:
        check_limit("max_held_seconds", max_held_seconds, (int, float), 0.0)
        self._limit = _FOREVER if max_held_seconds is None else max_held_seconds
        self._clock = 0.0  # seconds that have passed, whatever was done to the caller's clock
        self._now: float | None = None
        self.reset()

    @whenever
    def __repr__(self) -> str:
        return f"<Watermark received={self.received} settled={self.settled} open={len(self._open)}>"

    def reset(self) -> None:
        """Forget the cursors: a new session counts from the start, and ignores the old settles."""
        self.generation = next(_generations)
        self.received: int | None = None
        self.settled: int | None = None
        self._top = -1  # highest number received by this process
        self._open: dict[int, float] = {}  # number -> when to let it go; inf: none has begun it
        self._lowest = -1  # open number, or -1
        self._queue: list[int] = []  # ascending: the open numbers, and some that were
        self._first = 0  # index in it; what lies before is no longer open
        self._used: dict[int, float] = _NONE  # seconds held before this delivery, if any
        self._failed: dict[int, None] = _NONE  # open, but in nobody's hands
        self._runs = _Runs()
        self._still = False
        self._untold: tuple[int, ...] = ()

    def restore(self, settled: int | None, above: object = "", held: object = "") -> None:
        """Start from what was stored; the mark then stands still until `resumed`.

        Numbers whose time was used up are let go at once: their handlers may be what ended the
        process each time, before there was a RESUMED.

        Args:
            settled: the stored mark.
            above: what `above` gave; anything else is ignored.
            held: what `held` gave; anything else is ignored.
        """
        self.reset()
        if settled is None:
            return
        self._still = True
        self._used = _parse_held(held, settled) or _NONE
        self.settled = self._top = settled
        if self._used.pop(settled, None) is None:
            self._runs.append(settled, settled)
        for low, high in _parse_runs(above, settled):
            self._runs.append(low, high)
        untold = []
        while self._used and self._used[lowest := next(iter(self._used))] >= self._limit:
            del self._used[lowest]
            self.settled = self._top = lowest
            untold.append(lowest)
        self._untold = tuple(untold)
        self.received = max([self.settled, *self._runs.highs[-1:]])

    def hold_still(self) -> None:
        """Stop moving the mark: a Resume from it was sent."""
        self._still = True

    def resumed(self, seq: int | None) -> None:
        """Note READY or RESUMED with its number: everything that was missed has been received."""
        self._still = False
        if self._used:
            self._used = {seq: held for seq, held in self._used.items() if seq in self._open}
        if seq is not None:
            if self.received is None or seq > self.received:  # it is never open
                self.received = self._top = seq
            else:
                self.receive(seq)
            self.settle(seq, self.generation)
        self._advance()

    def let_go(self, seq: int) -> None:
        """Let a number hold the mark no more; it does not count as settled."""
        self._open.pop(seq, None)
        if seq == self._lowest:
            self._advance()

    def receive(self, seq: int) -> bool:
        """Note a number; return whether its event needs handling.

        `False` means that this very number is settled, or that a handler of this process still
        has it: a Resume delivers again whatever lies above the mark.
        """
        if self.received is None or seq > self.received:  # it has no history
            self.received = self._top = seq
            self._queue.append(seq)  # first: what is open is always in it
            self._open[seq] = inf
            if self._lowest < 0:
                self._lowest = seq
            return True
        self._top = max(self._top, seq)
        if seq in self._open:
            return self._take_again(seq)
        if self.is_settled(seq):
            self._advance()
            return False
        if self.settled is None or seq > self.settled:
            queue = self._queue
            index = bisect_left(queue, seq, self._first)
            if index == len(queue) or queue[index] != seq:  # else it was let go, and is still there
                queue.insert(index, seq)
            self._open[seq] = inf
            self._advance()
        return True  # a number at or below the mark is delivered, but never lowers the mark

    def begin(self, seq: int, generation: int) -> None:
        """Note that a handler has begun: from now on the number's time runs."""
        if generation == self.generation and self._open.get(seq) == inf:
            self._open[seq] = self._clock + self._limit - self._used.get(seq, 0.0)

    def settle(self, seq: int, generation: int) -> None:
        """Note that the event with this number is done; in any order, any number of times.

        Args:
            generation: `Watermark.generation` when the number was received.
        """
        if generation != self.generation or seq > self._top:
            return
        self._open.pop(seq, None)
        if self._used or self._failed:
            self._used.pop(seq, None)
            self._failed.pop(seq, None)
        self._runs.add(seq)
        if seq == self._lowest:
            self._advance()
        elif len(self._queue) > 2 * len(self._open) + MAX_RUNS:
            self._queue, self._first = sorted(self._open), 0

    def fail(self, seq: int, generation: int) -> None:
        """Note that nobody handles this number any more: if it comes again, it is to be handled."""
        if generation == self.generation and seq in self._open:
            self.begin(seq, generation)  # if it was not: it is held from now on
            self._failed = self._failed or {}
            self._failed[seq] = None

    def release(self, now: float) -> tuple[int, ...]:
        """Let go of the numbers that held the mark too long, and return them, lowest first.

        A crash or a Resume may then skip their events. Call it often: the time between two calls
        counts, unless the clock went back.

        Args:
            now: seconds, on any clock.
        """
        if now != self._now:
            if self._now is not None and now > self._now:
                self._clock += now - self._now
            self._now = now
        if self._still:
            untold, self._untold = self._untold, ()
            return untold
        if self._lowest < 0 or self._open[self._lowest] >= self._clock:
            return ()
        released = []
        while self._lowest >= 0 and self._open[self._lowest] < self._clock:
            released.append(self._lowest)
            del self._open[self._lowest]
            self._used.pop(self._lowest, None)
            self._failed.pop(self._lowest, None)
            self.settled = self._lowest  # all below it are settled or let go
            self._advance()
        return tuple(released)

    def wait(self, seconds: float) -> None:
        """Count so many seconds, whatever the clock says at the next `release`.

        For the time between two lines, each of which may have its own clock.
        """
        self._clock += seconds
        self._now = None

    def is_settled(self, seq: int) -> bool:
        """Whether it is certain that this number was settled in this session."""
        return seq in self._runs

    def is_open(self, seq: int) -> bool:
        """Whether this number holds the mark, or will once it is the lowest that does."""
        return seq in self._open

    @property
    def done(self) -> tuple[object, ...]:
        """Changes when a number is settled, also above the mark."""
        highs = self._runs.highs
        return self.settled, highs[-1] if highs else None, self._runs.inserted

    def above(self) -> str:
        """Return the numbers settled above the mark, as text like `12-40,45`, for `restore`."""
        mark, highs = -1 if self.settled is None else self.settled, self._runs.highs
        return self._runs.text(mark + 1) if highs and highs[-1] > mark else ""

    def held(self) -> str:
        """Return how long open numbers were held, as text like `12:40,45:0`, for `restore`.

        Whole seconds, rounded up, so that every life of a process counts. The mark is among them
        if it was let go: it is not settled.
        """
        if self._limit == _FOREVER:
            return ""
        used: list[tuple[int, int]] = []
        if self._open or self._used:
            numbers = self._lowest_numbers()
            used = [(seq, ceil(round(self._used_by(seq), 3))) for seq in numbers]
        while used and not used[-1][1]:
            used.pop()
        if self.settled is not None and not self.is_settled(self.settled):
            used.insert(0, (self.settled, 0))
        return ",".join([f"{seq}:{seconds}" for seq, seconds in used])

    def begun(self) -> list[int]:
        """Return the lowest numbers whose handlers run."""
        if not self._open:
            return []
        running = (
            seq for seq in self._ascending() if self._open[seq] != inf and seq not in self._failed
        )
        return list(islice(running, MAX_STORED_HELD))

    def is_left(self, seq: int) -> bool:
        """Whether a number lies above the mark and was not settled."""
        return (self.settled is None or seq > self.settled) and not self.is_settled(seq)

    def _lowest_numbers(self) -> list[int]:
        """Return the lowest open numbers, and those whose time was restored."""
        numbers = {*islice(self._ascending(), MAX_STORED_HELD), *self._used}
        return sorted(numbers)[:MAX_STORED_HELD]

    def _ascending(self) -> Iterator[int]:
        """Yield the open numbers."""
        return filter(self._open.__contains__, islice(self._queue, self._first, None))

    def _used_by(self, seq: int) -> float:
        until = self._open.get(seq, inf)
        return self._used.get(seq, 0.0) if until == inf else self._clock + self._limit - until

    def _take_again(self, seq: int) -> bool:
        if seq not in self._failed:
            return False
        self._failed.pop(seq, None)
        self._used = self._used or {}
        self._used[seq] = self._used_by(seq)
        self._open[seq] = inf
        return True

    def _advance(self) -> None:
        """Find the lowest open number, and move the mark below it."""
        queue, first, numbers = self._queue, self._first, self._open
        if numbers:
            while queue[first] not in numbers:
                first += 1
            self._lowest, self._first = queue[first], first
            if first >= MAX_RUNS:
                self._first = 0
                del queue[:first]
        else:
            self._lowest, self._first = -1, 0
            queue.clear()
        if self._still:
            return
        best = self._runs.highest_below(self._lowest) if numbers else self._top
        if self.settled is None or best > self.settled:
            self.settled = best if best >= 0 else None


class _Runs:
    """A set of numbers kept as runs, so that a session of consecutive numbers costs one run."""

    __slots__ = (
        "highs",
        "inserted",
        "lows",
    )

    def __init__(self) -> None:
        self.lows: list[int] = []
        self.highs: list[int] = []
        self.inserted = 0  # numbers that came after a higher one

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
        highs = self.highs
        if highs and highs[-1] + 1 == number:
            highs[-1] = number
            return
        if not highs or number > highs[-1]:
            self.lows.append(number)
            highs.append(number)
        else:
            self._insert(number)
        if len(self.lows) > 2 * MAX_RUNS:
            del self.lows[:-MAX_RUNS], self.highs[:-MAX_RUNS]

    def _insert(self, number: int) -> None:
        after = bisect_right(self.lows, number)
        if after > 0 and number <= self.highs[after - 1]:
            return
        self.inserted += 1
        self.lows.insert(after, number)
        self.highs.insert(after, number)
        self._join(after)
        self._join(after - 1)

    def _join(self, index: int) -> None:
        """Join the run at `index` with the next one if they touch."""
        if 0 <= index < len(self.lows) - 1 and self.highs[index] + 1 == self.lows[index + 1]:
            del self.highs[index], self.lows[index + 1]

    def highest_below(self, limit: int) -> int:
        """Return the highest number below `limit`, or -1."""
        highs = self.highs
        if highs and highs[-1] < limit:
            return highs[-1]
        after = bisect_left(self.lows, limit)
        return min(highs[after - 1], limit - 1) if after else -1

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


def _parse_held(text: object, mark: int) -> dict[int, float]:
    """Return the seconds by number, ascending, or none at all if `text` is not what we write."""
    held: dict[int, float] = {}
    last = mark - 1
    for item in text.split(",") if isinstance(text, str) and text else ():
        match = _HELD.fullmatch(item)
        if match is None or len(held) > MAX_STORED_HELD:
            return {}
        if not last < int(match[1]) <= MAX_INTEGER:
            return {}
        last = int(match[1])
        held[last] = float(match[2])
    return held


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
