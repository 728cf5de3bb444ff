"""What the library adds to an event, against decoding the event's JSON, which every bot must.

Receive, handling and two records (one when it comes, one when its handler has ended), as a loop
around the pure connection does; the frame is decoded outside of what is timed. *Stuck* is one
handler that never ends, *gaps* are numbers that other shards or intents took, *remembered* is
`remember_events`, *in flight* is how many handlers run while the next event comes. The last rows
say what the parts cost, and what a batch of the store asks of a session.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.gateway import Connection, Dispatch, GatewaySession
from qqbot_session.shard import ShardRunner

from ._measure import Row, Settings, main, no_collection, ratios, take_turns

_EVENTS = 500  # per turn
_MANY = 16_000
_GROUP = 10  # turns whose median is one repeat
_NOW = 1_800_000_000.0
_AGAINST = "`json.loads` of the same event"

_EVENT: dict[str, Any] = {
    "op": 0,
    "s": 12345,
    "t": "C2C_MESSAGE_CREATE",
    "id": "C2C_MESSAGE_CREATE:abcdefgh",
    "d": {
        "id": "ROBOT1.0_" + "x" * 32,
        "content": "hello, how are you? " * 3,
        "timestamp": "2026-01-01T00:00:00+08:00",
        "author": {"user_openid": "U0"},
    },
}
_TEXT = json.dumps(_EVENT)


@dataclass(kw_only=True)
class Case:
    """A line with a history, and what else goes on while it receives."""

    name: str
    remember: int = 0
    stuck: bool = False
    gaps: bool = False
    in_flight: int = 0
    target: str = "<= 1.5"
    seq: int = 1
    now: float = _NOW
    running: deque[AbstractContextManager[None]] = field(default_factory=deque)
    frames: deque[object] = field(default_factory=lambda: deque(maxlen=4 * _EVENTS))  # freed later

    def __post_init__(self) -> None:
        self.gateway = GatewaySession(
            self.name, app_id="102000000", intents=1 << 25, remember_events=self.remember
        )
        self.line: Connection = self.gateway.connect()
        ready = {"session_id": "0f3b9a52-7c1e-4d6a-9d7e-3f0c1a2b4c5d"}
        self.line.receive({"op": 0, "s": 1, "t": "READY", "d": ready}, _NOW)
        if self.stuck:
            self.begin(self.frame())
        for _ in range(self.in_flight):
            self.running.append(self.begin(self.frame()))

    def frame(self) -> dict[str, Any]:
        self.seq += 2 if self.gaps else 1
        data = {**_EVENT["d"], "id": f"ROBOT1.0_{self.seq:032}"}
        frame = {**_EVENT, "s": self.seq, "id": f"C2C_MESSAGE_CREATE:{self.seq:08}", "d": data}
        self.frames.append(frame)
        return frame

    def begin(self, frame: dict[str, Any]) -> AbstractContextManager[None]:
        event = self.line.receive(frame, _NOW)
        assert isinstance(event, Dispatch)
        handling = self.gateway.handling(event)
        handling.__enter__()
        return handling

    async def turn(self, store: AsyncSessionStore) -> float:
        """Return the seconds that so many events took."""
        frames = [self.frame() for _ in range(_EVENTS)]
        line, gateway, running = self.line, self.gateway, self.running
        started = time.thread_time()
        if running:
            for frame in frames:
                self.now = now = self.now + 0.001
                event = line.receive(frame, now)
                await store.record(gateway)
                handling = gateway.handling(event)  # type: ignore[arg-type]
                handling.__enter__()
                running.append(handling)
                running.popleft().__exit__(None, None, None)
                await store.record(gateway)
        else:
            for frame in frames:
                self.now = now = self.now + 0.001
                event = line.receive(frame, now)
                await store.record(gateway)
                with gateway.handling(event):  # type: ignore[arg-type]
                    pass
                await store.record(gateway)
        return time.thread_time() - started

    async def turn_without_store(self) -> float:
        frames = [self.frame() for _ in range(_EVENTS)]
        line, gateway = self.line, self.gateway
        started = time.thread_time()
        for frame in frames:
            with gateway.handling(line.receive(frame, _NOW)):  # type: ignore[arg-type]
                pass
        return time.thread_time() - started


def cases() -> list[Case]:
    more = "<= 1.75"
    return [
        Case(name="healthy"),
        Case(name="one handler stuck", stuck=True),
        Case(name="1,000 in flight", in_flight=1000),
        Case(name="gaps", gaps=True),
        Case(name="512 remembered", remember=512, target=more),
        Case(name="256 remembered (the default)", remember=256, target=more),
        Case(
            name="all together",
            remember=512,
            stuck=True,
            gaps=True,
            in_flight=1000,
            target=more,
        ),
    ]


def event(settings: Settings) -> list[Row]:
    """What does the library add to an event?"""
    return asyncio.run(_events(settings))


async def _events(settings: Settings) -> list[Row]:
    every = cases()
    parts = [Case(name="receive and handling alone"), Case(name="the same", remember=512)]
    asked = [Case(name="`gateway.state`, 256 new messages remembered", remember=256)]
    asked.append(Case(name="`gateway.state`, nothing remembered"))
    async with AsyncSessionStore(MemoryStorage()) as store:
        sides: dict[str, Callable[[], Awaitable[float]]] = {"base": _decode}
        for case in every:
            sides[case.name] = partial(case.turn, store)
        for case in parts:
            sides[case.name] = case.turn_without_store
        sides["runner"] = partial(_turn_of_runner, store)
        sides["asyncio"] = _turn_of_asyncio
        sides["text"] = partial(_turn_of_text, Case(name="text"))
        with no_collection():
            seen = await take_turns(sides, _GROUP * settings.repeats(10))
            many = {"base": _decode, "many": partial(_any_order, Case(name="many", gaps=True))}
            seen_many = await take_turns(many, settings.repeats(10))
    base = seen["base"]
    rows = [_row(case.name, seen[case.name], base, case.target) for case in every]
    rows.append(_row("receive and handling alone, healthy", seen[parts[0].name], base))
    rows.append(_row("the same, 512 remembered", seen[parts[1].name], base))
    rows.append(_row("the same of the frame's text: decoding included", seen["text"], base))
    rows.append(_row("a whole `ShardRunner`, on a line in memory", seen["runner"], base))
    rows.append(_row("of it asyncio: a turn of the loop and a task", seen["asyncio"], base))
    values = ratios(seen_many["many"], seen_many["base"])
    name = "16,000 open, come and ended in any order, gaps; shuffling included"
    rows.append(Row(question=name, against=_AGAINST, values=values))
    return rows + [_state_row(case, settings) for case in asked]


def _row(name: str, values: list[float], base: list[float], target: str = "") -> Row:
    return Row(question=name, against=_AGAINST, values=ratios(values, base, _GROUP), target=target)


async def _turn_of_text(case: Case) -> float:
    texts = [json.dumps(case.frame()) for _ in range(_EVENTS)]
    line, gateway = case.line, case.gateway
    started = time.thread_time()
    for text in texts:
        with gateway.handling(line.receive(text, _NOW)):  # type: ignore[arg-type]
            pass
    return time.thread_time() - started


async def _decode() -> float:
    text, loads = _TEXT, json.loads
    started = time.thread_time()
    for _ in range(_EVENTS):
        loads(text)
    return time.thread_time() - started


class _Socket:
    """A line in memory; like a real one, it lets the loop turn for each frame."""

    def __init__(self, frames: list[str]) -> None:
        self.frames = iter(frames)
        self.started = 0.0

    async def send(self, frame: str, /) -> object:
        return None

    async def receive(self) -> str:
        await asyncio.sleep(0)
        frame = next(self.frames, None)
        if frame is None:
            await asyncio.Event().wait()
        self.started = self.started or time.thread_time()
        return frame or ""

    async def close(self, code: int, /) -> int | None:
        return code


async def _turn_of_runner(store: AsyncSessionStore) -> float:
    """Let a `ShardRunner` take as many events, all of it: decoding, a task for each, the record."""
    case = Case(name="runner")
    hello = {"op": 10, "d": {"heartbeat_interval": 45000}}
    resumed = {"op": 0, "s": 2, "t": "RESUMED", "d": ""}
    case.seq = 2
    frames = [hello, resumed, *(case.frame() for _ in range(_EVENTS))]
    socket = _Socket([json.dumps(frame) for frame in frames])
    ended = asyncio.Event()
    left = _EVENTS

    async def handle(event: Dispatch) -> None:
        nonlocal left
        left -= 1
        if not left:
            ended.set()

    async def connect() -> _Socket:
        return socket

    async def token(fresh: bool) -> str:
        return "token"

    gateway = GatewaySession(
        "runner", app_id="102000000", intents=1 << 25, resume=case.gateway.state
    )
    assert gateway.resumable
    runner = ShardRunner(store, gateway, connect=connect, token=token, handle=handle)
    running = asyncio.create_task(runner.run())
    await ended.wait()
    await asyncio.sleep(0)
    seconds = time.thread_time() - socket.started
    running.cancel()
    await asyncio.wait([running])
    await store.clear("runner")
    return seconds


async def _turn_of_asyncio() -> float:
    """Do what asyncio must do for as many events: a turn of the loop and a task for each."""
    ended = asyncio.Event()
    left = _EVENTS

    async def handle() -> None:
        nonlocal left
        left -= 1
        if not left:
            ended.set()

    started = time.thread_time()
    tasks = set()
    for _ in range(_EVENTS):
        await asyncio.sleep(0)
        task = asyncio.create_task(handle())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await ended.wait()
    await asyncio.sleep(0)
    return time.thread_time() - started


async def _any_order(case: Case) -> float:
    """Let 16,000 events come out of order, and end in another; return the seconds of so many."""
    frames = [case.frame() for _ in range(_MANY)]
    random.shuffle(frames)
    started = time.thread_time()
    handlings = [case.begin(frame) for frame in frames]
    random.shuffle(handlings)
    for handling in handlings:
        handling.__exit__(None, None, None)
    return (time.thread_time() - started) * _EVENTS / _MANY


def _state_row(case: Case, settings: Settings) -> Row:
    """Ask for the state as a batch does, after as many events as are remembered, or one."""
    seconds = []
    for _ in range(settings.repeats(50)):
        for _ in range(case.remember or 1):
            with case.gateway.handling(case.line.receive(case.frame(), _NOW)):  # type: ignore[arg-type]
                pass
        started = time.thread_time()
        assert case.gateway.state is not None
        seconds.append((time.thread_time() - started) * 1e6)
    return Row(question=case.name, values=seconds, unit="µs")


if __name__ == "__main__":
    main(event)
