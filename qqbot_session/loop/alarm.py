"""`Alarm`: interrupt a task at a time, as `asyncio.timeout_at` does, for one wait after the other.

Rules:

* It rings by cancelling the task. Until that is heeded, it counts as a request to cancel it.
* It is set for nearly everything that a line does, and nearly never rings. So to set it to a later
  time costs no timer: one that comes too early is begun anew.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import cast


class Alarm:
    """Interrupts the task that makes it.

    Attributes:
        task: what it interrupts.
        due: when it rings, or rang last: seconds on the loop's clock.
        rings: whether it has rung, and nobody has heeded that.
    """

    __slots__ = ("_timer", "_timer_due", "due", "rings", "task")

    def __init__(self) -> None:
        self.task = cast("asyncio.Task[object]", asyncio.current_task())
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf  # not all loops' handles know, as uvloop's of what is due at once
        self.due = inf
        self.rings = False

    def set(self, due: float) -> None:
        """Let it ring then, and not when it would have."""
        self.due = due
        if self._timer is None or self._timer_due > due:
            self._begin()

    def heed(self) -> bool:
        """Return whether it has rung; what it cancelled counts as cancelled no more."""
        rang, self.rings = self.rings, False
        if rang:
            self.task.uncancel()
        return rang

    def stop(self) -> None:
        """Let it ring no more, and heed it."""
        self.heed()
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = self.due
        self._timer = asyncio.get_running_loop().call_at(self.due, self._ring)

    def _ring(self) -> None:
        if self._timer_due < self.due:
            self._begin()
            return
        self._timer = None
        self.rings = True
        self.task.cancel()
