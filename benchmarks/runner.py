"""What a whole `ShardRunner` costs per event, against decoding, and against a loop without it.

The socket is in memory and hands out text frames, eight to a turn of the asyncio loop, as a burst
comes from a real one. *The barest loop* decodes them and starts a task for each: what every bot
whose handlers run concurrently pays to asyncio. What the runner adds to that is the library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.gateway import Dispatch
from qqbot_session.shard import ShardRunner, open_gateway

from ._measure import Row, Settings, main, no_collection, ratios, take_turns
from .event import _EVENT, _TEXT

_EVENTS = 500  # per turn
_BURST = 8  # frames that are there at once
_GROUP = 5  # turns whose median is one repeat


class MemorySocket:
    """Hands out what it is given, and tells when the last was handled."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.done = asyncio.Event()
        self.seq = 1
        self.handled = 0
        hello = {"op": 10, "d": {"heartbeat_interval": 45_000_000}}
        ready = {"op": 0, "s": 1, "t": "READY", "d": {"session_id": "S"}}
        self.frames = [json.dumps(ready), json.dumps(hello)]  # newest first

    async def send(self, frame: str, /) -> None:
        pass

    async def receive(self) -> str:
        while not self.frames:
            self.more.clear()
            await self.more.wait()
        if len(self.frames) % _BURST == 0:
            await asyncio.sleep(0)
        return self.frames.pop()

    async def close(self, code: int, /) -> int:
        return code

    async def handle(self, event: object) -> None:
        self.handled += 1
        if self.handled == _EVENTS:
            self.done.set()

    async def turn(self) -> float:
        """Return the seconds that so many events took."""
        self.handled = 0
        self.done.clear()
        frames = []
        for _ in range(_EVENTS):
            self.seq += 1
            data = {**_EVENT["d"], "id": f"ROBOT1.0_{self.seq:032}"}
            frames.append(json.dumps({**_EVENT, "s": self.seq, "d": data}))
        self.frames = frames[::-1]
        started = time.thread_time()
        self.more.set()
        await self.done.wait()
        return time.thread_time() - started


async def _barest_loop(socket: MemorySocket) -> None:
    tasks = set()
    while True:
        event = json.loads(await socket.receive())
        task = asyncio.create_task(socket.handle(event))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _decode() -> float:
    text, loads = _TEXT, json.loads
    started = time.thread_time()
    for _ in range(_EVENTS):
        loads(text)
    return time.thread_time() - started


def runner(settings: Settings) -> list[Row]:
    """What does a whole runner cost per event?"""
    return asyncio.run(_runner(settings))


async def _runner(settings: Settings) -> list[Row]:
    async with AsyncSessionStore(MemoryStorage()) as store:
        sockets = {"runner": MemorySocket(), "bare": MemorySocket()}
        gateway = await open_gateway(store, "102000000", intents=1)

        async def handle(event: Dispatch) -> None:
            await sockets["runner"].handle(event)

        async def connect() -> MemorySocket:
            return sockets["runner"]

        async def token(fresh: bool) -> str:
            return "token"

        kept = ShardRunner(store, gateway, connect=connect, token=token, handle=handle)
        tasks = [
            asyncio.create_task(kept.run()),
            asyncio.create_task(_barest_loop(sockets["bare"])),
        ]
        await asyncio.sleep(0.01)  # Hello and READY
        sides: dict[str, Callable[[], Awaitable[float]]] = {
            "base": _decode,
            **{name: partial(MemorySocket.turn, socket) for name, socket in sockets.items()},
        }
        with no_collection():
            seen = await take_turns(sides, _GROUP * settings.repeats(10))
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    json_loads = "`json.loads` of the same event"
    added = [a - b for a, b in zip(seen["runner"], seen["bare"], strict=True)]
    return [
        Row(
            question=question,
            against=against,
            values=ratios(values, base, _GROUP),
        )
        for question, against, values, base in (
            ("the whole runner", json_loads, seen["runner"], seen["base"]),
            ("the barest loop: a task per event", json_loads, seen["bare"], seen["base"]),
            ("what the runner adds to it", json_loads, added, seen["base"]),
            ("the whole runner", "the barest loop", seen["runner"], seen["bare"]),
        )
    ]


if __name__ == "__main__":
    main(runner)
