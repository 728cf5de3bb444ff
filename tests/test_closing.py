"""`aclose`, however often, by however many, and however often cancelled.

It ends when the attempt for everything unsaved has ended, on a healthy storage after everything is
written, and on one that hangs at most two seconds after its caller was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from crash import a_state, age, until
from faults import FaultyStorage

from qqbot_session import (
    AsyncSessionStore,
    FileStorage,
    SessionState,
    SessionWriteError,
    StoreClosedError,
)
from qqbot_session.state import decode, encode

NEWEST = 7
GRACE = 2.0  # seconds: promise 5

pytestmark = pytest.mark.filterwarnings("error")


async def unsaved_store(storage: Any) -> AsyncSessionStore:
    """Return a store in the middle of a window, with two accounts unsaved."""
    store = AsyncSessionStore(storage, debounce=3600)
    for account_id in ("bot", "other"):
        await store.save(a_state(account_id, 1))
    await store.flush()
    for account_id in ("bot", "other"):
        await store.update_last_seq(account_id, NEWEST)
    return store


def last_seq(storage: FaultyStorage, account_id: str = "bot") -> int | None:
    data = storage.records.get(account_id)
    return None if data is None else decode(data).last_seq


def everything_is_on(storage: FaultyStorage) -> bool:
    return last_seq(storage) == last_seq(storage, "other") == NEWEST


def left() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def shut_for(storage: FaultyStorage, seconds: float) -> None:
    storage.gate.clear()
    asyncio.get_running_loop().call_later(seconds, storage.gate.set)


@pytest.mark.parametrize("apart", range(6))
async def test_every_caller_returns_when_the_attempt_has_ended(apart: int) -> None:
    # promise 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    shut_for(storage, 30)
    calls = []
    for _ in range(4):
        calls.append(asyncio.create_task(store.aclose()))
        await turns(apart)
    await asyncio.sleep(29)
    assert not any(call.done() for call in calls)
    assert await asyncio.gather(*calls) == [None] * 4
    assert everything_is_on(storage)
    await store.aclose()
    assert left() == set()


async def test_every_caller_gets_the_same_outcome_and_so_do_later_ones() -> None:
    # promise 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    storage.failing = {"bot"}
    outcomes = await asyncio.gather(*(store.aclose() for _ in range(3)), return_exceptions=True)
    with pytest.raises(SessionWriteError) as later:
        await store.aclose()
    for outcome in [*outcomes, later.value]:
        assert isinstance(outcome, SessionWriteError)
        assert list(outcome.failures) == ["bot"]
    assert last_seq(storage, "other") == NEWEST
    assert left() == set()


@pytest.mark.parametrize("cancellations", [1, 2, 5])
@pytest.mark.parametrize("when", range(9))
@pytest.mark.parametrize("seconds", [0, 0.5])
async def test_cancelled_at_any_await_it_writes_all_the_same(
    when: int, cancellations: int, seconds: float
) -> None:
    # promise 5, 9
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    if seconds:
        shut_for(storage, seconds)
    closing = asyncio.create_task(store.aclose())
    await turns(when)
    for _ in range(cancellations):
        closing.cancel()
        await turns(1)
    await asyncio.wait([closing])
    if when:  # else it never began, and nobody has closed the store
        assert everything_is_on(storage)
        assert closing.cancelled() or (when > 3 and not seconds)
        with pytest.raises(StoreClosedError):
            await store.save(a_state("bot", 8))
    await store.aclose()
    assert everything_is_on(storage)
    assert left() == set()


async def test_cancelled_at_every_turn_of_the_loop_it_writes_all_the_same() -> None:
    """As a cancelled scope of anyio does, which never tires."""
    # promise 5, 9
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    shut_for(storage, 1.5)
    closing = asyncio.create_task(store.aclose())
    while not closing.done():
        await asyncio.sleep(0.001)
        closing.cancel()
    assert closing.cancelled()
    assert everything_is_on(storage)
    assert left() == set()


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_on_a_hung_storage_a_cancelled_one_waits_two_seconds_and_says_what_is_lost(
    cancellations: int, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    storage.gate.clear()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(10)
    caplog.clear()
    for _ in range(cancellations):
        closing.cancel()
        await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert GRACE - 0.5 < loop.time() - began <= GRACE
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "bot" in lines[0].getMessage()
    await asyncio.sleep(1)
    assert left() == set()


class Deaf(FaultyStorage):
    """Hears neither a cancellation of its commit nor one of its end, until it may `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    async def _hang(self) -> None:
        while not self.may_go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.may_go_on.wait()

    async def commit(self, changes: Any) -> Any:
        await self._hang()
        return await super().commit(changes)

    async def aclose(self) -> None:
        await self._hang()


async def test_the_two_seconds_are_for_all_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    # promise 5
    storage = Deaf()
    store = AsyncSessionStore(storage)
    monkeypatch.setattr(store, "_owns_storage", True)
    await store.save(a_state("bot", NEWEST))
    closing = asyncio.create_task(store.aclose())
    await turns(3)
    began = asyncio.get_running_loop().time()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert asyncio.get_running_loop().time() - began == pytest.approx(GRACE)
    storage.may_go_on.set()
    await asyncio.sleep(1)
    assert left() == set()


async def test_a_cancelled_caller_cancels_no_other() -> None:
    # promise 5: nobody gets a cancellation that is not its own
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    storage.gate.clear()
    flush = asyncio.create_task(store.flush())
    first = asyncio.create_task(store.aclose())
    await turns(2)
    second = asyncio.create_task(store.aclose())
    await turns(2)
    first.cancel()
    await asyncio.sleep(GRACE + 1)
    storage.gate.set()
    await asyncio.wait([first, second, flush], timeout=60)
    assert first.cancelled()
    for other in (second, flush):
        assert other.done()
        assert not other.cancelled()
        assert isinstance(other.exception(), SessionWriteError | None)


async def test_a_cancelled_second_caller_does_not_shorten_the_firsts_attempt() -> None:
    # promise 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    first = asyncio.create_task(store.aclose())
    shut_for(storage, 30)
    await turns(2)
    second = asyncio.create_task(store.aclose())
    await turns(2)
    second.cancel()
    await asyncio.wait([first, second])
    assert second.cancelled()
    assert first.exception() is None
    assert everything_is_on(storage)


# Scopes


async def in_a_cancelled_scope(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await close()


async def in_a_scope_cancelled_later(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(0.25):
        await close()


async def in_nested_scopes(close: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(0.3), anyio.move_on_after(0.1), anyio.move_on_after(0):
        await close()


async def in_a_failing_task_group(close: Callable[[], Awaitable[None]]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise LookupError("another part of the bot")

    async def together() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await close()

    with pytest.raises(BaseExceptionGroup):
        await together()


async def in_asyncios_task_group(close: Callable[[], Awaitable[None]]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise LookupError("another part of the bot")

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await close()

    with pytest.raises(BaseExceptionGroup):
        await together()


async def in_a_timeout(close: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await close()


async def in_a_past_timeout(close: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(-1):
            await close()


async def in_wait_for(close: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(close(), 0.1)


OF_ANYIO = [
    *(in_a_cancelled_scope, in_a_scope_cancelled_later, in_nested_scopes, in_a_failing_task_group)
]
OF_ASYNCIO = [in_asyncios_task_group, in_a_timeout, in_a_past_timeout, in_wait_for]
of_anyio = pytest.mark.parametrize("scope", OF_ANYIO)
of_asyncio = pytest.mark.parametrize("scope", OF_ASYNCIO)


async def close_in(scope: Any, *, hung: bool = False) -> None:
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    if hung:
        storage.gate.clear()
    else:
        shut_for(storage, 0.5)
    async with asyncio.timeout(30):
        await scope(store.aclose)
    assert hung or everything_is_on(storage)
    assert left() == set()


async def end_a_with_in(scope: Any) -> None:
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    shut_for(storage, 0.5)

    async def body() -> None:
        async with store:
            await asyncio.Event().wait()

    await scope(body)
    assert everything_is_on(storage)
    assert left() == set()


@of_asyncio
async def test_a_scope_of_asyncio_that_is_cancelled_loses_nothing(scope: Any) -> None:
    # promise 5, 9
    await close_in(scope)


# A cancelled scope of anyio keeps the loop busy, and there is no virtual time on a busy one.
@pytest.mark.real_time
@of_anyio
async def test_a_scope_of_anyio_that_is_cancelled_loses_nothing(scope: Any) -> None:
    # promise 5, 9
    await close_in(scope)


@of_asyncio
async def test_a_with_in_a_scope_of_asyncio_loses_nothing(scope: Any) -> None:
    """The body waits for ever; the scope's cancellation ends it, and closes the store."""
    # promise 5, 9
    await end_a_with_in(scope)


@pytest.mark.real_time
@of_anyio
async def test_a_with_in_a_scope_of_anyio_loses_nothing(scope: Any) -> None:
    # promise 5, 9
    await end_a_with_in(scope)


@of_asyncio
async def test_a_scope_of_asyncio_on_a_hung_storage_ends(scope: Any) -> None:
    # promise 5
    await close_in(scope, hung=True)


@pytest.mark.real_time
async def test_a_scope_of_anyio_on_a_hung_storage_ends() -> None:
    # promise 5
    await close_in(in_a_cancelled_scope, hung=True)


# What goes on meanwhile


def lay_out(directory: Path, state: SessionState) -> None:
    """Make the directory with a record, and with what an interrupted write left over."""
    directory.mkdir()
    (directory / "session-bot.json").write_bytes(encode(state))
    left_over = directory / ".qqbot-session-0123456789abcdef-0.tmp"
    left_over.touch()
    age(left_over)


async def test_a_failing_storage_is_tried_once_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    storage.broken = True
    written = len(storage.commits)
    with pytest.raises(SessionWriteError) as caught:
        await store.aclose()
    assert set(caught.value.failures) == {"bot", "other"}
    assert len(storage.commits) == written + 1
    assert left() == set()


@pytest.mark.parametrize("moment", range(4))
async def test_a_load_that_outlives_aclose_changes_nothing(directory: Path, moment: int) -> None:
    # promise 5
    lay_out(directory, SessionState(account_id="bot", session_id="s", last_seq=1, saved_at=1))
    before = set(threading.enumerate())
    store = AsyncSessionStore(directory)
    load = asyncio.create_task(store.load("bot"))
    await turns(moment)
    await store.aclose()
    there = (directory / "session-bot.json").exists()
    result = await asyncio.gather(load, return_exceptions=True)
    assert result[0] is None or isinstance(result[0], StoreClosedError)
    assert (directory / "session-bot.json").exists() == there
    assert left() == set()
    until(lambda: not set(threading.enumerate()) - before, "its threads end")


@pytest.mark.parametrize("call", ["load", "load_all", "cleanup", "update_last_seq", "touch"])
@pytest.mark.parametrize("moment", range(4))
async def test_whatever_reads_while_the_store_is_closed_ends(
    directory: Path, call: str, moment: int
) -> None:
    # promise 5
    lay_out(directory, a_state("bot", 1))
    before = set(threading.enumerate())
    store = AsyncSessionStore(directory, max_age=None)
    arguments = {"load": ("bot",), "touch": ("bot",), "update_last_seq": ("bot", 5)}.get(call, ())
    task = asyncio.create_task(getattr(store, call)(*arguments))
    await turns(moment)
    await store.save(a_state("other", NEWEST))
    await store.aclose()
    await asyncio.gather(task, return_exceptions=True)
    if task.exception() is not None:
        assert isinstance(task.exception(), StoreClosedError)
    assert left() == set()
    until(lambda: not set(threading.enumerate()) - before, "its threads end")
    storage = FileStorage(directory)
    data = await storage.read("other")
    await storage.aclose()
    assert data is not None
    assert decode(data).last_seq == NEWEST


async def test_a_clear_that_waits_while_the_store_is_closed_ends() -> None:
    # promise 4, 5
    storage = FaultyStorage()
    store = await unsaved_store(storage)
    shut_for(storage, 1)
    clear = asyncio.create_task(store.clear("bot"))
    await turns(1)
    await store.aclose()
    await clear
    assert last_seq(storage) is None
    assert last_seq(storage, "other") == NEWEST
