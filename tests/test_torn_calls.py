"""A change that is torn off between any two statements of ours, or by the end of Python's stack."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from types import FrameType
from typing import Any

import pytest
from conftest import WallClock
from faults import FaultyStorage
from test_record import Gateway

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.state import decode

pytestmark = pytest.mark.filterwarnings(  # what is torn off leaves coroutines behind
    "ignore:coroutine .* was never awaited:RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
WINDOW = 1.0
_FRAMES = 150  # more than any call of ours takes


class Torn(BaseException):
    """Whatever a signal handler raises."""


def state(last_seq: int, session_id: str = "s1") -> SessionState:
    return SessionState(account_id="bot", session_id=session_id, last_seq=last_seq)


def run(call: Coroutine[Any, Any, object]) -> None:
    """Run what does not suspend."""
    try:
        call.send(None)
    except StopIteration:
        pass
    finally:
        call.close()


class World:
    """A store with one account that is known, and grown up."""

    def __init__(self, clock: WallClock) -> None:
        self.storage = FaultyStorage()
        self.store = AsyncSessionStore(self.storage, debounce=WINDOW, clock=clock)
        self.gateway = Gateway()
        self.gateway.begin()

    async def begin(self, situation: str) -> None:
        self.store.record_nowait(self.gateway)
        await asyncio.sleep(10 * WINDOW)
        if situation == "a sign of life is due":
            await self.store.touch("bot")
        elif situation != "at rest":
            self.storage.gate.clear()
            self.handle(2)
            await asyncio.sleep(0.01)
            if situation != "in flight":
                self.storage.gate.set()
                await asyncio.sleep(0.01)
            if situation == "due":
                await self.store.update_last_seq("bot", 3)
            if situation == "marked":
                self.handle(3)

    def handle(self, last_seq: int) -> None:
        self.gateway.handle(last_seq)
        self.store.record_nowait(self.gateway)

    def known(self) -> tuple[str | None, int | None] | None:
        account = self.store._ledger.accounts["bot"]
        return None if account.state is None else (account.state.session_id, account.last_seq)

    def kept(self) -> tuple[str | None, int | None] | None:
        data = self.storage.records.get("bot")
        return None if data is None else ((found := decode(data)).session_id, found.last_seq)

    def save(self) -> None:
        self.store.save_nowait(state(9))

    def save_session(self) -> None:
        self.store.save_nowait(state(9, "new"))

    def update(self) -> None:
        run(self.store.update_last_seq("bot", 9))

    def touch(self) -> None:
        run(self.store.touch("bot"))

    def record(self) -> None:
        self.handle(9)

    def record_session(self) -> None:
        self.gateway.begin("new", 9)
        self.store.record_nowait(self.gateway)

    def record_end(self) -> None:
        self.gateway.begin(None)
        self.store.record_nowait(self.gateway)

    async def check(self, place: object, least: int) -> None:
        """Require that all that was accepted is written, and that the account goes on."""
        self.storage.gate.set()
        await asyncio.sleep(10 * WINDOW)
        assert self.store._ledger.unsaved() == [], place
        assert self.kept() == self.known(), place
        kept = self.kept()
        assert kept is None or kept[0] == "new" or (kept[1] or 0) >= least, place
        tasks = [t.get_name() for t in asyncio.all_tasks() if "qqbot" in t.get_name()]
        assert tasks == [], place
        self.store.save_nowait(state(20, "last"))
        await asyncio.sleep(0.01)
        assert self.kept() == ("last", 20), place
        await self.store.aclose()


def accepted(call: Callable[[World], None], situation: str) -> int:
    """Return the number that was accepted before the call, and still is to be had."""
    if situation == "marked" and call in (World.record_session, World.record_end):
        return 2  # the gateway session itself has forgotten the other
    return SITUATIONS[situation]


CALLS: list[Callable[[World], None]] = [
    World.save,
    World.save_session,
    World.update,
    World.touch,
    World.record,
    World.record_session,
    World.record_end,
]
SITUATIONS = {  # and the number that was accepted
    "at rest": 1,
    "in its window": 2,
    "due": 3,
    "marked": 3,
    "a sign of life is due": 1,
    "in flight": 2,
}
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
every_situation = pytest.mark.parametrize("situation", SITUATIONS)


@every_situation
@every_call
async def test_what_was_accepted_is_written_wherever_a_later_call_is_torn_off(
    clock: WallClock, call: Callable[[World], None], situation: str
) -> None:
    # promise 8
    for line in count():
        world = World(clock)
        await world.begin(situation)
        place = torn_at(line, lambda world=world: call(world))  # type: ignore[misc]
        await world.check(place, accepted(call, situation))
        if place is None:
            break
    assert line > 1


@every_situation
@every_call
async def test_what_was_accepted_is_written_whatever_stack_a_later_call_finds(
    clock: WallClock,
    call: Callable[[World], None],
    situation: str,
) -> None:
    # promise 8
    for frames in range(_FRAMES):
        world = World(clock)
        await world.begin(situation)
        succeeded = with_frames_left(frames, lambda world=world: call(world))  # type: ignore[misc]
        await world.check(f"{frames} frames left", accepted(call, situation))
        if succeeded:
            break
    assert 1 < frames < _FRAMES - 1


def torn_at(line: int, call: Callable[[], None]) -> str | None:
    """Make the call, and tear it off before so many lines of the package; return where."""
    lines = 0
    place = None

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines, place
        if "/qqbot_session/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines > line:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise Torn
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Torn:
        pass
    finally:
        sys.settrace(before)
    return place


def with_frames_left(frames: int, call: Callable[[], None]) -> bool:
    """Make the call where so many frames are left of Python's stack; return whether it ended."""

    def dive(levels: int) -> None:
        if levels:
            dive(levels - 1)
        else:
            call()

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(sum(1 for _ in _stack()) + 2 * _FRAMES)
    try:
        dive(2 * _FRAMES - frames)
    except RecursionError:
        return False
    finally:
        sys.setrecursionlimit(before)
    return True


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
