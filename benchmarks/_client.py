"""Bots in a process of their own: the library's, or the barest loops that keep a line.

    python -m benchmarks._client KIND LINES URL [STORAGE] [REMEMBERED] [frozen]

KIND is `bare` or `ours`, and what they run on: `bare-aiohttp`, `ours-websockets`. STORAGE is what
`AsyncSessionStore` takes, or `memory`. `frozen` calls `gc.freeze` once all lines are up. Printed,
as a line of JSON each:

* when all lines have resumed, `cpu` in seconds since the first was opened, `kb` a line by which the
  process has grown, and `stored`, the same seconds once the sessions are on storage;
* when END was handled on every line, the `events` since the first GO and their `cpu`;
* with the kind `quiet`, for each message, whose handler takes 0.1 s: its `line`, its number `seq`,
  `answered` or not yet, and the `writes` so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from ._gateway import END, GO

INTENTS = 1 << 25
FROZEN = "frozen"
_NOBODY = "nobody"
_RESUME = json.dumps({"op": 6, "d": {"token": "QQBot token", "session_id": "s", "seq": 5}})
_BEAT = '{"op":1,"d":6}'


def app_id(number: int) -> str:
    return str(102_000_000 + number)


class Meter:
    """Counts what comes, and prints what it cost."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self.up = asyncio.Event()
        self._left, self._ends, self._events = lines, 0, 0
        self._size, self._began, self._since = _resident(), time.process_time(), 0.0

    def resumed(self) -> None:
        self._left -= 1
        if not self._left:
            self.up.set()

    async def come_back(self, flush: Callable[[], Awaitable[object]] | None = None) -> None:
        """Print what it cost that all lines have resumed, and then their record."""
        await self.up.wait()
        cpu, size = time.process_time() - self._began, _resident() - self._size
        if flush is not None:
            await flush()
        stored = time.process_time() - self._began
        _print(cpu=cpu, kb=size / 1024 / self._lines, stored=stored)
        if sys.argv[-1] == FROZEN:
            gc.collect()
            gc.freeze()

    def handled(self, kind: str) -> None:
        self._events += 1
        if kind == GO and not self._since:
            self._events, self._ends, self._since = 0, 0, time.process_time()
        elif kind == END:
            self._ends += 1
            if self._ends == self._lines:
                _print(events=self._events, cpu=time.process_time() - self._since)
                self._since = 0.0


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


async def _together(one: Callable[[int], Awaitable[None]], lines: int, *also: Any) -> None:
    await asyncio.gather(*also, *(one(number) for number in range(lines)))


def _http() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


# The barest loops: they read, beat once, and start a task for each event


async def bare_aiohttp(url: str, lines: int) -> None:
    async with _http() as http:
        meter, tasks = Meter(lines), set[Any]()

        async def handle(event: dict[str, Any]) -> None:
            meter.handled(event["t"])

        async def one(number: int) -> None:
            ws = await http.ws_connect(url)
            await ws.receive()
            await ws.send_str(_RESUME)
            await ws.receive()
            await ws.send_str(_BEAT)
            meter.resumed()
            async for message in ws:
                event = json.loads(message.data)
                if event["op"] == 0:
                    task = asyncio.create_task(handle(event))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

        await _together(one, lines, meter.come_back())


async def bare_websockets(url: str, lines: int) -> None:
    from websockets.asyncio.client import connect

    meter, tasks = Meter(lines), set[Any]()

    async def handle(event: dict[str, Any]) -> None:
        meter.handled(event["t"])

    async def one(number: int) -> None:
        async with connect(url, ping_interval=None, compression=None, open_timeout=60) as ws:
            await ws.recv()
            await ws.send(_RESUME)
            await ws.recv()
            await ws.send(_BEAT)
            meter.resumed()
            async for message in ws:
                event = json.loads(message)
                if event["op"] == 0:
                    task = asyncio.create_task(handle(event))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    await _together(one, lines, meter.come_back())


# The library's


async def ours(on: str, url: str, lines: int, storage: Any, remembered: int) -> None:
    from qqbot_session import AsyncSessionStore
    from qqbot_session.gateway import Dispatch, Event, Ready, Resumed
    from qqbot_session.shard import ShardRunner, open_gateway

    async with AsyncSessionStore(storage) as store, _connecting(on, url) as connect:
        await store.load(_NOBODY)  # the storage's threads and connections are no line's
        await store.clear(_NOBODY)
        meter = Meter(lines)

        def observe(event: Event) -> None:
            if type(event) is Ready or type(event) is Resumed:
                meter.resumed()

        async def handle(event: Dispatch) -> None:
            meter.handled(event.type)

        async def one(number: int) -> None:
            gateway = await open_gateway(
                store, app_id(number), intents=INTENTS, remember_events=remembered
            )
            await ShardRunner(
                store, gateway, connect=connect, token=_token, handle=handle, observe=observe
            ).run()

        await _together(one, lines, meter.come_back(store.flush))


async def quiet(on: str, url: str, lines: int, storage: Any, remembered: int) -> None:
    """Say of every message when it came and when it was answered."""
    from qqbot_session import AsyncSessionStore, WriteDetails
    from qqbot_session.gateway import Dispatch
    from qqbot_session.shard import ShardRunner, open_gateway

    writes = 0

    def on_write(details: WriteDetails) -> None:
        nonlocal writes
        writes += len(details.account_ids)

    async with (
        AsyncSessionStore(storage, on_write=on_write) as store,
        _connecting(on, url) as connect,
    ):

        async def one(number: int) -> None:
            async def handle(event: Dispatch) -> None:
                seen = {"line": number, "seq": event.seq}
                _print(**seen, answered=False, writes=writes)
                await asyncio.sleep(0.1)
                _print(**seen, answered=True, writes=writes)

            gateway = await open_gateway(
                store, app_id(number), intents=INTENTS, remember_events=remembered
            )
            await ShardRunner(store, gateway, connect=connect, token=_token, handle=handle).run()

        await _together(one, lines)


async def _token(fresh: bool) -> str:
    return "token"


@contextlib.asynccontextmanager
async def _connecting(on: str, url: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Give what opens a socket."""
    if on == "aiohttp":
        from qqbot_session.integrations.aiohttp import connect

        async with _http() as http:
            yield lambda: connect(http, url)
    else:
        from qqbot_session.integrations.websockets import connect as open_socket

        yield lambda: open_socket(url)


def main() -> None:
    kind, lines, url, *more = sys.argv[1:]
    who, _, on = kind.partition("-")
    if who == "bare":
        bare = bare_aiohttp if on == "aiohttp" else bare_websockets
        asyncio.run(bare(url, int(lines)))
        return
    from qqbot_session import MemoryStorage

    storage = MemoryStorage() if more[0] == "memory" else more[0]
    run = ours if who == "ours" else quiet
    asyncio.run(run(on, url, int(lines), storage, int(more[1])))


if __name__ == "__main__":
    main()
