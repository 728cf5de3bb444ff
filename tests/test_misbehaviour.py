"""Storages, hooks, clocks and logs that misbehave: never a hang, a spin, or a neighbour held back.

Everything here is somebody else's fault, and ends as a failed write of what was asked for: it is
reported by `flush`, tried again with back-off, and written as soon as it can be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from conftest import WallClock
from crash import a_state
from faults import FaultyStorage

from qqbot_session import (
    AsyncSessionStore,
    MemoryStorage,
    SessionState,
    SessionWriteError,
    WriteDetails,
)
from qqbot_session.state import decode

NEWEST = 7
A_WHILE = 100.0  # virtual seconds: several back-offs
ENDS = 60.0  # what takes longer hangs


def our_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


class Answers(MemoryStorage):
    """Does `misbehave` in place of each call named in `calls`, until it is healed."""

    def __init__(self, misbehave: Callable[[], Any], *calls: str) -> None:
        super().__init__()
        self.calls = calls or ("commit",)
        self.count = 0
        self._misbehave = misbehave

    def heal(self) -> None:
        self.calls = ()

    async def _instead(self, call: str, *arguments: Any) -> Any:
        if call in self.calls:
            self.count += 1
            await asyncio.sleep(0)
            answer = self._misbehave()
            return await answer if isinstance(answer, Awaitable) else answer
        return await getattr(super(), call)(*arguments)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        return await self._instead("commit", changes)  # type: ignore[no-any-return]

    async def read(self, account_id: str) -> bytes | None:
        return await self._instead("read", account_id)  # type: ignore[no-any-return]

    async def discard(self, key: str, expected: bytes) -> bool:
        return await self._instead("discard", key, expected)  # type: ignore[no-any-return]

    async def sweep(self, older_than: float) -> int:
        return await self._instead("sweep", older_than)  # type: ignore[no-any-return]


class Mute(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Abort(BaseException):
    """As some frameworks have one that `except Exception` is not to catch."""


class NoMapping(dict[str, Exception]):
    """Fails on whatever is asked of it."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("connection lost while the answer was read")

    get = items = keys = values = __iter__ = __getitem__ = __contains__ = __len__ = _fail


def raising(error: BaseException | type[BaseException]) -> Callable[[], Any]:
    def misbehave() -> Any:
        raise error

    return misbehave


def returning(answer: Any) -> Callable[[], Any]:
    return lambda: answer


async def hanging() -> Any:
    await asyncio.sleep(20)
    raise TimeoutError("no answer")


async def cancelling_whoever_asks() -> Any:
    """As an `asyncio.timeout` that leaks does."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


RAISES = {
    "an error": raising(ValueError("server lost")),
    "an error without words": raising(Mute()),
    "its own cancellation": raising(asyncio.CancelledError),
    "a cancellation of the asking task": cancelling_whoever_asks,
    "StopIteration": raising(StopIteration),
    "StopAsyncIteration": raising(StopAsyncIteration),
    "a group": raising(ExceptionGroup("two", [OSError(), ValueError()])),
    "no Exception": raising(Abort),
    "RecursionError": raising(RecursionError),
    "MemoryError": raising(MemoryError),
    "a time-out": hanging,
}
NONSENSE: dict[str, Callable[[], Any]] = {
    "None": returning(None),
    "a list": returning([OSError()]),
    "a number": returning(5),
    "True": returning(True),
    "text": returning("OK"),
    "a mapping that fails": NoMapping,
}
STRANGE: dict[str, Callable[[], Any]] = {
    "failures that are no exceptions": returning({"bot": "full"}),
    "None for a failure": returning({"bot": None}),
    "a class for a failure": returning({"bot": OSError}),
    "somebody else's failure": returning({"nobody": OSError()}),
    "keys that are no text": returning({5: OSError(), None: OSError()}),
}


def each(kinds: Mapping[str, Any]) -> Any:
    return pytest.mark.parametrize("kind", kinds.values(), ids=list(kinds))


async def note(store: AsyncSessionStore, number: int, account_id: str = "bot") -> None:
    await store.save(a_state(account_id, number))


async def ends(work: Awaitable[None]) -> bool:
    """Return whether it succeeded: whatever fails is named, in time."""
    failures: Mapping[str, object] = {}
    try:
        async with asyncio.timeout(ENDS):
            await work
    except SessionWriteError as error:
        failures = error.failures
    assert all(isinstance(failure, BaseException) for failure in failures.values())
    return not failures


def last_seq(storage: MemoryStorage, account_id: str = "bot") -> int | None:
    data = storage.records.get(account_id)
    return None if data is None else decode(data).last_seq


async def lives_through(storage: Answers, store: AsyncSessionStore) -> bool:
    """Live with a storage that misbehaves, and then heals; return whether it was told so."""
    await note(store, 1)
    flushed = await ends(store.flush())
    assert storage.count < 4
    await store.update_last_seq("bot", 2)
    await asyncio.sleep(A_WHILE)
    assert storage.count < 30, "it spins"
    await note(store, 5, "other")
    await store.update_last_seq("bot", NEWEST)
    storage.heal()
    await asyncio.sleep(A_WHILE)
    assert (last_seq(storage), last_seq(storage, "other")) == (NEWEST, 5)
    await store.update_last_seq("bot", NEWEST + 1)
    assert await ends(store.aclose())
    assert last_seq(storage) == NEWEST + 1
    assert our_tasks() == []
    return flushed


@each(RAISES | NONSENSE)
async def test_whatever_commit_does_is_a_failed_write_that_is_tried_again(kind: Any) -> None:
    # promise 8
    storage = Answers(kind)
    assert not await lives_through(storage, AsyncSessionStore(storage))


async def cancelling_all_that_write() -> Any:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("qqbot_session"):
            task.cancel()
    await asyncio.sleep(0)


async def test_a_storage_that_cancels_whoever_writes_is_not_asked_without_end() -> None:
    """It is tried again at once for long enough to live through an end of the process."""
    # promise 8
    storage = Answers(cancelling_all_that_write)
    store = AsyncSessionStore(storage)
    await note(store, 1)
    assert not await ends(store.flush())
    assert 3 < storage.count < 100
    storage.heal()
    await asyncio.sleep(A_WHILE)
    assert last_seq(storage) == 1
    assert await ends(store.aclose())
    assert our_tasks() == []


@pytest.mark.parametrize("times", [29, 30, 31])
async def test_cancelling_all_that_writes_again_and_again_fails_nobody_who_comes_after(
    times: int,
) -> None:
    # promises 5, 9
    storage = FaultyStorage()
    storage.gate.clear()
    store = AsyncSessionStore(storage)
    await note(store, 1)
    for turn in range(times):
        await asyncio.sleep(0.001)
        if turn == 20:
            await note(store, 1, "other")
        with contextlib.suppress(asyncio.CancelledError):
            await cancelling_all_that_write()
    storage.gate.set()
    assert await ends(store.aclose())
    assert (last_seq(storage), last_seq(storage, "other")) == (1, 1)


@each(STRANGE)
async def test_strange_answers_of_commit_hang_nobody(kind: Any) -> None:
    """What they mean is not clear; nothing is lost once the storage answers as it should."""
    # promise 8
    storage = Answers(kind)
    store = AsyncSessionStore(storage)
    await note(store, 1)
    await ends(store.flush())
    await asyncio.sleep(A_WHILE)
    assert storage.count < 30
    storage.heal()
    await store.update_last_seq("bot", NEWEST)
    assert await ends(store.aclose())
    assert last_seq(storage) == NEWEST
    assert our_tasks() == []


class Synchronous(MemoryStorage):
    def commit(self, changes: Mapping[str, bytes | None]) -> Any:  # type: ignore[override]
        self.records.update({key: data for key, data in changes.items() if data is not None})
        return {}


class Generating(MemoryStorage):
    async def commit(self, changes: Mapping[str, bytes | None]) -> Any:
        yield {}


class Emptying(MemoryStorage):
    async def commit(self, changes: Any) -> Mapping[str, Exception]:
        await super().commit(dict(changes))
        changes.clear()
        return {}


@pytest.mark.parametrize("kind", [Synchronous, Generating, Emptying])
async def test_a_storage_that_is_written_wrongly_ends_all_the_same(kind: Any) -> None:
    # promise 8
    store = AsyncSessionStore(kind())
    await note(store, 1)
    await ends(store.flush())
    await asyncio.sleep(A_WHILE)
    await store.update_last_seq("bot", 2)
    await ends(store.aclose())
    assert our_tasks() == []


async def test_a_hung_server_costs_one_time_out_whatever_is_queued() -> None:
    # promise 8
    details: list[WriteDetails] = []
    storage = Answers(hanging)
    store = AsyncSessionStore(storage, on_write=details.append)
    for number in range(1000):
        store.save_nowait(a_state(f"bot-{number}", 1))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(SessionWriteError) as caught:
        await store.flush()
    assert len(caught.value.failures) == 1000
    assert loop.time() - began <= 2 * 20  # the one under way, and its own
    storage.heal()
    await asyncio.sleep(A_WHILE)
    assert len(storage.records) == 1000
    named = {account_id for each in details for account_id in each.failures}
    assert len(named) == 1000, "on_write was skipped"
    await store.aclose()


@each({name: kind for name, kind in RAISES.items() if name != "a time-out"})
async def test_one_storage_that_fails_holds_back_no_other_account(kind: Any) -> None:
    """Only the batches that "bad" is in fail: the others are written in their own."""
    # promise 8

    class Partly(Answers):
        async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
            if "bad" in changes:
                return await super().commit(changes)
            return await MemoryStorage.commit(self, changes)

    storage = Partly(kind)
    store = AsyncSessionStore(storage)
    await note(store, 1, "bad")
    await asyncio.sleep(A_WHILE)
    for number in range(1, 20):
        await note(store, number)
        await asyncio.sleep(5.03)
    assert last_seq(storage) is not None
    assert (last_seq(storage) or 0) >= 18
    assert not await ends(store.aclose())


async def test_a_state_that_cannot_be_encoded_fails_alone() -> None:
    # promise 8
    storage = MemoryStorage()
    store = AsyncSessionStore(storage)
    broken = a_state("bad", 1)
    object.__setattr__(broken, "extra", {"token": object()})
    await note(store, 1)
    try:
        await store.save(broken)
    except (TypeError, ValueError):  # known at once: better still
        accepted = False
    else:
        accepted = True
    await note(store, 2, "other")
    assert await ends(store.flush()) is not accepted
    assert (last_seq(storage), last_seq(storage, "other")) == (1, 2)
    await note(store, 3, "bad")
    assert await ends(store.flush())
    assert last_seq(storage, "bad") == 3
    await store.aclose()


# Hooks


async def an_async_hook(_: object) -> None:
    raise AssertionError("nobody is to run it")


def fails(_: object) -> None:
    raise LookupError("no metrics")


def cancels(_: object) -> None:
    raise asyncio.CancelledError


def aborts(_: object) -> None:
    raise Abort


def answers(_: object) -> Any:
    return object()


HOOKS = {"async": an_async_hook, "failing": fails, "cancelling": cancels, "aborting": aborts}
HOOKS["answering"] = answers


@each(HOOKS)
async def test_a_hook_that_misbehaves_stops_no_write(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 8
    storage = MemoryStorage()
    store = AsyncSessionStore(storage, on_write=kind)
    for number in range(1, NEWEST + 1):
        await note(store, number)
        assert await ends(store.flush())
        await asyncio.sleep(1.5)
    assert last_seq(storage) == NEWEST
    assert await ends(store.aclose())
    assert our_tasks() == []
    assert ("on_write" in caplog.text) is (kind is not answers)


async def test_a_hook_may_use_the_store() -> None:
    # promise 8
    storage = MemoryStorage()

    def on_write(details: WriteDetails) -> None:
        if "again" not in details.account_ids:
            store.save_nowait(a_state("again", NEWEST))
        if "bot" in details.account_ids and len(flushes) < 3:
            flushes.append(asyncio.get_running_loop().create_task(store.flush()))

    flushes: list[asyncio.Task[None]] = []
    store = AsyncSessionStore(storage, on_write=on_write)
    await note(store, 1)
    await store.flush()
    await asyncio.sleep(A_WHILE)
    assert last_seq(storage, "again") == NEWEST
    assert all(task.done() for task in flushes)
    await store.aclose()
    assert our_tasks() == []


# Clocks


class BrokenClock(WallClock):
    """Answers with `wrong` instead of the time, or raises it, while it is set."""

    wrong: Any = None

    def __call__(self) -> Any:
        if isinstance(self.wrong, BaseException):
            raise self.wrong
        return self.now if self.wrong is None else self.wrong


WRONG_TIMES: dict[str, Any] = {
    "raises": OSError("no clock"),
    "text": "now",
    "not a number": math.nan,
    "infinite": math.inf,
    "before 1970": -0.001,
    "much too late": 4.1e12,
    "complex": 1j,
}


@each(WRONG_TIMES)
async def test_a_clock_that_is_wrong_fails_the_write_and_heals(kind: Any) -> None:
    # promise 8, 10
    clock, storage = BrokenClock(), MemoryStorage()
    await MemoryStorage(storage.records).commit({})
    store = AsyncSessionStore(storage, clock=clock)
    await note(store, 1, "known")
    await store.flush()
    clock.wrong = kind
    await note(store, 1)
    assert not await ends(store.flush())
    assert await ends(store.flush("known")), "somebody else's"
    await store.load("bot")
    await store.load("known")
    await store.load_all()
    await store.cleanup()
    await store.update_last_seq("bot", NEWEST)
    await asyncio.sleep(A_WHILE)
    assert last_seq(storage) is None
    clock.wrong = None
    await asyncio.sleep(A_WHILE)
    assert last_seq(storage) == NEWEST
    assert await ends(store.aclose())


# Logs


def refuses(record: logging.LogRecord) -> bool:
    raise LookupError("no request in this context")


class Refuses(logging.Handler):
    error: type[BaseException] = LookupError

    def handle(self, record: logging.LogRecord) -> bool:
        raise self.error("no request in this context")


class Aborts(Refuses):
    error = asyncio.CancelledError


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.getLogger("qqbot_session")
    yield log
    log.filters.clear()
    log.handlers.clear()
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("addition", [refuses, Refuses(), Aborts()], ids=["filter", "handler", "x"])
@each({"None": returning(None), "an error": raising(OSError("full"))})
async def test_no_filter_or_handler_of_the_log_changes_what_is_written(
    kind: Any, addition: Any, log: logging.Logger
) -> None:
    """Every line there is: failing, healed, the hook's, a load's, the end's."""
    # promise 1, 8
    log.setLevel(logging.DEBUG)
    if isinstance(addition, logging.Handler):
        log.addHandler(addition)
    else:
        log.addFilter(addition)
    storage = Answers(kind)
    store = AsyncSessionStore(storage, on_write=fails)
    storage.records["torn"] = b"{"
    storage.records["old"] = b'{"accountId": "old", "sessionId": "s", "lastSeq": 1, "savedAt": 1}'
    for account_id in ("torn", "old", "nobody"):
        assert await store.load(account_id) is None
    await store.load_all()
    await store.cleanup()
    assert not await lives_through(storage, store)
    broken = Answers(kind)
    store = AsyncSessionStore(broken)
    await note(store, 1)
    assert not await ends(store.aclose())
    assert our_tasks() == []


async def test_a_log_handler_may_use_the_store(log: logging.Logger) -> None:
    """As one that keeps the errors of a bot beside its session would."""
    # promise 8
    storage = Answers(raising(OSError("full")))
    store = AsyncSessionStore(storage)

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            store.save_nowait(a_state("log", NEWEST))

    log.addHandler(Keeps())
    await note(store, 1)
    assert not await ends(store.flush())
    storage.heal()
    await asyncio.sleep(A_WHILE)
    assert last_seq(storage, "log") == NEWEST
    log.handlers.clear()
    assert await ends(store.aclose())


# Reads

READS = {**RAISES, "text": returning("{}"), "a number": returning(5), "a list": returning([])}


@each(READS)
async def test_whatever_read_does_load_answers_and_the_account_lives(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 10
    storage = Answers(kind, "read")
    await MemoryStorage(storage.records).commit({})
    store = AsyncSessionStore(storage, max_age=None)
    async with asyncio.timeout(A_WHILE):
        assert await store.load("bot") is None
        assert await store.update_last_seq("bot", 5) is False
        assert await store.touch("bot") is False
    assert "bot" in caplog.text
    assert storage.count < 30, "it spins"  # seven tries in two seconds, some made three times
    await note(store, NEWEST)
    assert await ends(store.flush())
    assert await store.update_last_seq("bot", NEWEST + 1)
    storage.heal()
    assert await ends(store.aclose())
    assert last_seq(storage) == NEWEST + 1
    assert our_tasks() == []


async def test_a_load_on_a_hung_storage_can_be_cancelled_and_others_are_not() -> None:
    # promise 5: nobody gets a cancellation that is not its own
    storage = Answers(hanging, "read")
    store = AsyncSessionStore(storage)
    loads = [asyncio.create_task(store.load("bot")) for _ in range(3)]
    await asyncio.sleep(1)
    loads[0].cancel()
    done, _ = await asyncio.wait(loads, timeout=1)
    assert done == {loads[0]}
    assert loads[0].cancelled()
    storage.heal()
    await asyncio.wait(loads, timeout=A_WHILE)
    assert loads[1].result() is None
    assert loads[2].result() is None
    await store.aclose()


class ScansOnce(MemoryStorage):
    """Attributes: answers: what `scan` returns."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    def scan(self) -> Any:
        return self.answer()


async def no_generator() -> Any:
    return [("bot", b"{}")]


async def scan_that_fails() -> AsyncIterator[Any]:
    yield "bot", b"{}"
    raise OSError("server lost")


async def scan_that_is_cancelled() -> AsyncIterator[Any]:
    yield "bot", b"{}"
    raise asyncio.CancelledError


async def scan_of_nonsense() -> AsyncIterator[Any]:
    yield 5
    yield "bot", "text"
    yield None, b"{}"
    yield "bot", b"{}", 3


def plain_generator() -> Iterator[Any]:
    yield "bot", b"{}"


SCANS: dict[str, Any] = {
    "no generator": no_generator,
    "a plain generator": plain_generator,
    "fails": scan_that_fails,
    "cancels": scan_that_is_cancelled,
    "nonsense": scan_of_nonsense,
    "None": returning(None),
    "raises": raising(OSError("server lost")),
}


@each(SCANS)
@pytest.mark.filterwarnings("ignore:coroutine 'no_generator' was never awaited")
async def test_whatever_scan_does_what_is_unsaved_is_listed(kind: Any) -> None:
    # promise 10
    store = AsyncSessionStore(ScansOnce(kind))
    await note(store, 1)
    async with asyncio.timeout(ENDS):
        assert [state.account_id for state in await store.load_all()] == ["bot"]
        assert await store.cleanup() == 0
    assert await ends(store.aclose())


@pytest.mark.parametrize("call", ["discard", "sweep"])
@each(READS)
async def test_whatever_removing_does_reaches_nobody(kind: Any, call: str) -> None:
    # promise 10, 13
    storage = Answers(kind, call)
    old = SessionState(account_id="old", session_id="s", last_seq=1, saved_at=1)
    writer = AsyncSessionStore(storage, clock=lambda: 1.0)
    await writer.save(old)
    await writer.aclose()
    store = AsyncSessionStore(storage)
    async with asyncio.timeout(A_WHILE):
        assert isinstance(await store.cleanup(), int)
        assert await store.load("old") is None
    await note(store, 1)
    assert await ends(store.aclose())
    assert last_seq(storage) == 1
