"""When one more session may be started: `session_start_limit` of `/gateway/bot`, obeyed.

Rules:

* Identifies are paced over all shards of a bot: `max_concurrency` of them in 5 s, counted from the
  moment they go out. A Resume costs nothing and is not asked about here.
* What was granted takes up a place until it goes out or is withdrawn, as when its line ended.
* When none remains, none is granted: the shards wait, and the log says until when.

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

_ASK_AGAIN = 60.0  # seconds for which an answer is good; our choice
_DAY = 86_400.0  # seconds after which the session starts are reset at the latest
_PACE = 5.2  # seconds for `max_concurrency` sessions: 5, and some for the way there
_NAP = 600.0  # seconds after which a bot without session starts asks again
_pause = asyncio.sleep


class Pace:
    """The Identifies of all shards of one bot, for `ShardRunner(pace=...)`.

    Args:
        ask: asks `/gateway/bot`, passes the answer to `learn`, and returns whether there was one.
            `before_identify` raises what it raises.
    """

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        self._ask = ask
        self._queue = asyncio.Lock()  # of the shards that want to Identify; it is fair
        self._changed = asyncio.Event()  # one that was granted went out, or was withdrawn
        self._remaining: int | None = None  # `None` = not told: no limit
        self._resets_at = 0.0  # the loop's clock, as everything here
        self._concurrency = 1
        self.asked_at = float("-inf")  # successfully
        self._granted: set[tuple[int, int]] = set()
        self._sent: deque[float] = deque()

    @property
    def is_old(self) -> bool:
        """Whether QQ may be asked again."""
        return _now() >= self.asked_at + _ASK_AGAIN

    def learn(self, limit: object) -> None:
        """Take note of QQ's answer; what it leaves out is no limit.

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
            ConnectionError: QQ has not said yet how many may be sent.
        """
        self.withdraw(shard)
        async with self._queue:
            await self._until_one_remains()
            while (pause := self._until_it_fits()) > 0:
                await self._wait(pause)
            self._granted.add(shard)

    def identified(self, shard: tuple[int, int]) -> None:
        """Count an Identify that goes out now."""
        self._sent.append(_now())
        if self._remaining is not None:
            self._remaining -= 1
        self.withdraw(shard)

    def withdraw(self, shard: tuple[int, int]) -> bool:
        """Take back what was granted to a shard; return whether anything was."""
        granted = shard in self._granted
        self._granted.discard(shard)
        self._changed.set()
        return granted

    def _until_it_fits(self) -> float:
        """Return the seconds until there is a place for another Identify; 0 = now."""
        now = _now()
        while self._sent and self._sent[0] + _PACE <= now:
            self._sent.popleft()
        if len(self._sent) + len(self._granted) < self._concurrency:
            return 0.0
        return self._sent[0] + _PACE - now if self._sent else _PACE

    async def _until_one_remains(self) -> None:
        told = 0.0
        while True:
            if self.is_old and not await self._ask() and self.asked_at == float("-inf"):
                raise ConnectionError("QQ has not said yet how many sessions may be started")
            now = _now()
            left = self._remaining
            if left is None or left > len(self._granted) or now >= self._resets_at:
                return
            if left <= 0 and told != self._resets_at:
                told = self._resets_at
                say(
                    logging.WARNING,
                    "no session start remains today: waiting until %s",
                    _local_time(self._resets_at - now),
                    extra={"qqbot_reason": "session_starts", "qqbot_wait": self._resets_at - now},
                )
            await self._wait(min(self._resets_at - now, _NAP))

    async def _wait(self, seconds: float) -> None:
        """Wait so many seconds, or until a granted Identify went out or was withdrawn."""
        self._changed.clear()
        ends = [asyncio.ensure_future(end) for end in (_pause(seconds), self._changed.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()


def count(value: object) -> int | None:
    """Return an integer that was received, `None` for anything else, and for one beyond 2**53."""
    known = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER
    return value if known else None  # type: ignore[return-value]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _local_time(in_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time.time() + in_seconds))
