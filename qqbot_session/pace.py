"""When one more session may be started: `session_start_limit` of `/gateway/bot`, obeyed.

Rules:

* Identifies are paced over all shards of a bot: as many in 5 s as `max_concurrency` says, counted
  from when they go out. A Resume costs nothing, and is not asked about here.
* None is granted when none remains: it waits, and says until when.

Source: bot-docs, openapi/wss/shard_url_get.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .logs import say
from .state import MAX_INTEGER

_ASK_AGAIN = 60.0  # seconds after which what was told is asked again, if need be; our choice
_DAY = 86_400.0  # seconds, after which they are reset at the latest
_PACE = 5.2  # seconds in which `max_concurrency` sessions may be created: 5, and some for the way
_GRANTED = 30.0  # seconds until an Identify that was granted must have been sent
_LOOK = 0.1  # seconds after which it is looked again what became of those
_NAP = 600.0  # seconds after which a bot without session starts looks again
_pause = asyncio.sleep


class Pace:
    """The Identifies of all shards of one bot.

    Args:
        ask: asks `/gateway/bot`, has its answer learnt, and returns whether there was one; it may
            raise, which `before_identify` does then.
    """

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        self._ask = ask
        self._queue = asyncio.Lock()  # of those that want to Identify; it is fair
        self._remaining: int | None = None  # `None` = not told: no limit
        self._resets_at = 0.0  # the loop's clock, as all here
        self._concurrency = 1
        self.asked_at = float("-inf")  # with success
        self._granted: dict[tuple[int, int], float] = {}
        self._sent: deque[float] = deque()

    @property
    def is_old(self) -> bool:
        """Whether what was told may be asked again."""
        return _now() >= self.asked_at + _ASK_AGAIN

    def learn(self, limit: object) -> None:
        """Take what QQ told; what it leaves out is no limit.

        Args:
            limit: `session_start_limit`, as received.
        """
        fields: Mapping[str, Any] = limit if isinstance(limit, Mapping) else {}
        self.asked_at = _now()
        self._remaining = count(fields.get("remaining"))
        resets_in = (count(fields.get("reset_after")) or 0) / 1000
        self._resets_at = self.asked_at + (min(resets_in, _DAY) if resets_in > 0 else _ASK_AGAIN)
        self._concurrency = max(1, count(fields.get("max_concurrency")) or 1)

    async def before_identify(self, shard: tuple[int, int]) -> None:
        """Wait until one more Identify may be sent.

        Raises:
            ConnectionError: QQ has not said yet how many may be.
        """
        self.withdraw(shard)
        async with self._queue:
            await self._until_one_remains()
            while (pause := self._until_it_fits()) > 0:
                await _pause(pause)
            self._granted[shard] = _now()

    def handshake_goes_out(self, shard: tuple[int, int]) -> None:
        """Note that Hello came, which is answered at once; only what was granted Identifies."""
        if self.withdraw(shard):
            self._sent.append(_now())
            if self._remaining is not None:
                self._remaining -= 1

    def withdraw(self, shard: tuple[int, int]) -> bool:
        """Take back what was granted to a shard; return whether something was."""
        return self._granted.pop(shard, None) is not None

    def _until_it_fits(self) -> float:
        """Return the seconds until another Identify fits into the pace; 0 = now."""
        now = _now()
        while self._sent and self._sent[0] <= now - _PACE:
            self._sent.popleft()
        if len(self._sent) + self._promised(now) < self._concurrency:
            return 0.0
        ends = self._sent[0] + _PACE - now if self._sent else _PACE
        return ends if not self._granted else min(ends, _LOOK)

    def _promised(self, now: float) -> int:
        """Return how many were granted and may still be sent."""
        for shard, at in list(self._granted.items()):
            if at <= now - _GRANTED:
                del self._granted[shard]
        return len(self._granted)

    async def _until_one_remains(self) -> None:
        told = 0.0
        while True:
            if self.is_old and not await self._ask() and self.asked_at == float("-inf"):
                raise ConnectionError("how many sessions may be started, QQ has not said yet")
            now = _now()
            left = self._remaining
            if left is None or left > self._promised(now) or now >= self._resets_at:
                return
            if left > 0:  # until it is known whether those that were promised are spent
                await _pause(_LOOK)
                continue
            if told != self._resets_at:
                told = self._resets_at
                say(
                    logging.WARNING,
                    "no session start remains today: waiting until %s",
                    _local_time(self._resets_at - now),
                    extra={"qqbot_reason": "session_starts", "qqbot_wait": self._resets_at - now},
                )
            await _pause(min(self._resets_at - now, _NAP))


def count(value: object) -> int | None:
    """Return an integer that was received, `None` for anything else, and for one beyond 2**53."""
    known = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER
    return value if known else None  # type: ignore[return-value]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _local_time(in_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time.time() + in_seconds))
