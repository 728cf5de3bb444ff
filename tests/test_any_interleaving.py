"""Any interleaving: a store, its storage, clocks, faults and other processes against a model.

The model knows for each account what the store must remember, and for each record what may be on
storage. It is told by the storage what was handed over and what was acknowledged, so it is exact:
what `load` answers, what a commit carries, which number `flush` fails with. Time is virtual.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import VirtualTimeLoop
from faults import FaultyStorage
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qqbot_session import (
    AsyncSessionStore,
    FileStorage,
    InvalidRecordError,
    MemoryStorage,
    SessionState,
    SessionWriteError,
    Storage,
    StoreClosedError,
    reading,
)
from qqbot_session.judging import is_stranger
from qqbot_session.state import decode, encode
from qqbot_session.storages.names import file_name, original_name

ACCOUNTS = ("a.b", "bot", "a:b")  # the original has one name for the last two
EPOCH = 1_700_000_000.0
MAX_AGE = 300.0625  # no step of a clock here lands on it
QUIET = 100.0  # virtual seconds: longer than any window or back-off
DECADE = 315_360_000.0


def try_decode(data: bytes | None) -> SessionState | None:
    try:
        return None if data is None else decode(data)
    except InvalidRecordError:
        return None


# The storages


class MemoryPlace:
    """What a `MemoryStorage` holds, seen from outside."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}

    def storage(self) -> Storage:
        return MemoryStorage(self.records)

    def layers(self, account_id: str) -> tuple[bytes | None, bytes | None]:
        """Return the account's record, and the original's that would be read in its absence."""
        return self.records.get(account_id), None

    def items(self) -> list[bytes]:
        return list(self.records.values())

    def put_original(self, account_id: str, data: bytes) -> bool:
        return False

    def close(self) -> None:
        pass


class FilePlace:
    """What a `FileStorage` holds, seen from outside."""

    def __init__(self, directory: Path | None = None) -> None:
        self.root = None if directory else tempfile.mkdtemp(prefix="qqbot-session-")
        self.directory = directory or Path(self.root or "", "sessions")

    def storage(self) -> Storage:
        return FileStorage(self.directory, durable=False)

    def layers(self, account_id: str) -> tuple[bytes | None, bytes | None]:
        own = original = None
        with contextlib.suppress(FileNotFoundError):
            own = (self.directory / file_name(account_id)).read_bytes()
        with contextlib.suppress(FileNotFoundError):
            original = (self.directory / original_name(account_id)).read_bytes()
        state = try_decode(original)
        owned = state is not None and state.account_id == account_id
        return own, original if owned and file_name(account_id) != original_name(
            account_id
        ) else None

    def items(self) -> list[bytes]:
        found = []
        for path in self.directory.glob("session-*.json"):
            with contextlib.suppress(FileNotFoundError):  # a deletion is under way
                found.append(path.read_bytes())
        return found

    def put_original(self, account_id: str, data: bytes) -> bool:
        self.directory.mkdir(exist_ok=True)
        (self.directory / original_name(account_id)).write_bytes(data)
        return True

    def close(self) -> None:
        if self.root is not None:
            shutil.rmtree(self.root)


class Watched:
    """Any storage, with faults in front of it, and the model told of what goes in.

    Attributes:
        failing: accounts whose writes fail.
        broken: make `commit` raise.
        unreadable: make `read` and `scan` raise.
        gate: while it is not set, commits wait, before they take effect or after.
    """

    def __init__(self, inner: Storage, model: Model) -> None:
        self.inner = inner
        self.model = model
        self.failing: set[str] = set()
        self.broken = False
        self.unreadable = False
        self.waits_after = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, account_id: str) -> bytes | None:
        if self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        return await self.inner.read(account_id)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        if self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        async for item in self.inner.scan():
            yield item

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        versions = self.model.handed(changes)
        if not self.waits_after:
            await self.gate.wait()
        if self.broken:
            self.model.answered(changes, versions, failed=set(changes))
            raise ConnectionError("server lost")
        failed = self.failing & changes.keys()
        good = {key: data for key, data in changes.items() if key not in failed}
        failures = {**await self.inner.commit(good)}
        if self.waits_after:
            await self.gate.wait()
        failures |= {key: OSError(errno.ENOSPC, "full") for key in failed}
        self.model.answered(changes, versions, failed=set(failures))
        return failures

    async def discard(self, key: str, expected: bytes) -> bool:
        return await self.inner.discard(key, expected)

    async def sweep(self, older_than: float) -> int:
        return await self.inner.sweep(older_than)

    async def aclose(self) -> None:
        raise AssertionError("a storage that was handed in is never closed")


# The model


@dataclass
class Known:
    """What a store must know of an account.

    Attributes:
        version: counts its changes.
        dirty: whether the newest is not on storage.
        denied: whether `load` gave nothing since it was saved.
        ours: whether the store changed it, so that it need not be read to be known.
        saved_at: of what is on storage.
        born: when it was first written.
        stamp: `saved_at` of what was handed over last and not acknowledged, and its version.
        quick: how many writes may come before a window is over.
        ended: when the last write was answered.
        moves: counts the changes that are more than a sign of life.
        written: how many of those were handed over.
        closed: whether the last write had one of those, or failed: the next waits for its window.
        changes: the latest ones, as `(version, state, moves)`: what is handed over was taken a turn
            ago.
    """

    state: SessionState | None = None
    denied: bool = False
    ours: bool = False
    version: int = 0
    dirty: bool = False
    saved_at: float = 0.0
    born: float | None = None
    stamp: tuple[int, float] | None = None
    quick: int = 1
    ended: float = -QUIET
    moves: int = 0
    written: int = 0
    closed: bool = False
    changes: deque[tuple[int, SessionState | None, int]] = field(
        default_factory=lambda: deque(maxlen=5)
    )

    @property
    def has_session(self) -> bool:
        return self.state is not None and self.state.resumable and not self.denied

    def change(
        self, state: SessionState | None, *, quick: bool = False, moves: bool = True
    ) -> None:
        self.state = state
        self.denied = False
        self.version += 1
        self.moves += moves
        self.changes.append((self.version, state, self.moves))
        self.dirty = self.ours = True
        if quick:
            self.quick = max(self.quick, 2)


class Model:
    """What is known of the store and of the storage."""

    def __init__(self, loop: VirtualTimeLoop, debounce: float) -> None:
        self.loop = loop
        self.debounce = debounce
        self.offset = 0.0
        self.known: dict[str, Known] = {}
        self.failed_reads: dict[str, float] = {}  # since when
        self.possible: dict[str, set[bytes | None]] = {account: {None} for account in ACCOUNTS}
        self.flying: set[str] = set()
        self.outside: dict[str, set[bytes | None]] = {}  # written outside during a flight
        self.problems: list[str] = []
        self.commits = 0
        self.before = EPOCH  # the time that the last step of the wall clock took back
        self.is_changed: Callable[[str], bool] = lambda account_id: False

    def clock(self) -> float:
        return round(EPOCH + self.offset + self.loop.time(), 3)

    def dirty(self) -> set[str]:
        return {account_id for account_id, known in self.known.items() if known.dirty}

    def require(self, condition: bool, *problem: object) -> None:
        """Note a problem: an exception here would be a failed write to the store."""
        if not condition:
            self.problems.append(" ".join(map(str, problem)))

    def handed(self, changes: Mapping[str, bytes | None]) -> dict[str, int]:
        self.commits += 1
        versions = {}
        for account_id, data in changes.items():
            known = self.known[account_id]
            versions[account_id] = self.taken(account_id, known, data)
            self.require(versions[account_id] > 0, account_id, "is written as", data)
            wait = min(self.window(known), 1.0)
            early = self.loop.time() < known.ended + wait - 1e-6
            moves = max(
                [n for version, _, n in known.changes if version == versions[account_id]], default=0
            )
            if early and (known.closed or moves == known.written):
                self.require(known.quick > 0, account_id, "is written too early")
                known.quick = max(0, known.quick - 1)
            known.closed, known.written = moves > known.written, moves
            self.flying.add(account_id)
            self.possible[account_id].add(data)
        return versions

    def taken(self, account_id: str, known: Known, data: bytes | None) -> int:
        """Return the version that was encoded, 0 if it is none of the latest."""
        is_newer = self.is_changed(account_id)  # after it was encoded: another looks the same
        for version, state, _ in reversed(known.changes):
            if is_newer and version == known.version:
                continue
            retry = known.stamp is not None and known.stamp[0] == version
            stamps = {known.stamp[1]} if retry and known.stamp else {self.clock(), self.before}
            for stamp in stamps:
                if data == (None if state is None else encode(state, saved_at=stamp)):
                    known.stamp = (version, stamp)
                    return version
        return 0

    def window(self, known: Known) -> float:
        """Return the shortest time from the last write to the next: little for what is young."""
        age = 0.0 if known.born is None else known.ended - known.born
        return self.debounce if age >= 4.0 else min(self.debounce, max(0.05, age / 4))

    def answered(
        self, changes: Mapping[str, bytes | None], versions: Mapping[str, int], failed: set[str]
    ) -> None:
        for account_id, data in changes.items():
            known = self.known[account_id]
            known.ended = self.loop.time()
            known.born = known.ended if known.born is None else known.born
            known.closed |= account_id in failed
            if account_id not in failed:
                known.saved_at = known.stamp[1] if known.stamp else 0.0
                self.possible[account_id] = {data} | self.outside.get(account_id, set())
                known.stamp = None
                known.dirty = known.version != versions[account_id]
            self.outside.pop(account_id, None)
            self.flying.discard(account_id)

    def written_outside(self, account_id: str, data: bytes | None) -> None:
        if account_id in self.dirty():
            self.possible[account_id].add(data)
            self.outside.setdefault(account_id, set()).add(data)
        else:
            self.possible[account_id] = {data}

    def is_expired(self, state: SessionState) -> bool:
        return abs(self.clock() - state.saved_at) > MAX_AGE

    def pending(self, known: Known) -> SessionState | None:
        if known.state is None:
            return None
        retry = known.stamp is not None and known.stamp[0] == known.version
        stamp = known.stamp[1] if retry and known.stamp else self.clock()
        return replace(known.state, saved_at=stamp)

    def remember(self, account_id: str, state: SessionState | None) -> Known:
        known = self.known.setdefault(account_id, Known())
        known.state = state
        known.saved_at = 0.0 if state is None else state.saved_at
        self.failed_reads.pop(account_id, None)
        return known

    def as_written(self, known: Known) -> SessionState | None:
        return known.state and replace(known.state, saved_at=known.saved_at)


# The machine


def on_loop(method: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a rule of a coroutine: the model and the store change in one turn of the loop."""

    @functools.wraps(method)
    def run(self: Machine, **arguments: Any) -> None:
        self.run(method(self, **arguments))

    return run


def in_a_task_of_its_own(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Be the task factory of a tracer, which puts every coroutine into one of its own."""

    async def traced() -> Any:
        return await work

    return asyncio.Task(traced(), loop=loop, **options)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what must not suspend."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("suspended")


accounts = st.sampled_from([ACCOUNTS[0], *ACCOUNTS])
numbers = st.integers(0, 60)
states = st.builds(
    SessionState,
    account_id=accounts,
    session_id=st.sampled_from(["s1", "s1", "s2", "s2", None]),
    last_seq=st.sampled_from([1, 1, 5, 20, None]),
    app_id=st.sampled_from([None, None, None, "1", "2"]),
    shard=st.sampled_from([None, (0, 2)]),
    intents=st.sampled_from([None, 513]),
    saved_at=st.sampled_from([0.0, EPOCH]),
)
asked = st.fixed_dictionaries(
    {},
    optional={
        "app_id": st.sampled_from(["1", "2"]),
        "shard": st.just((0, 2)),
        "intents": st.sampled_from([513, 1]),
    },
)


class Machine(RuleBasedStateMachine):
    """One process with a store, on a storage that others use too."""

    place_type: type[MemoryPlace | FilePlace]

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.loop.set_task_factory(in_a_task_of_its_own)
        self.place = self.place_type()
        self.waiters: list[tuple[str, asyncio.Task[None], dict[str, int]]] = []
        self.cancelled_waiters = False

    @initialize(debounce=st.sampled_from([0.0, 1.0]))
    def begin(self, debounce: float) -> None:
        self.model = Model(self.loop, debounce)
        self.watched = Watched(self.place.storage(), self.model)
        self.open()

    def open(self) -> None:
        self.model.known = {}
        self.model.failed_reads = {}
        self.model.flying = set()
        self.model.outside = {}
        for account_id in ACCOUNTS:
            self.model.possible[account_id] = {self.place.layers(account_id)[0]}
        self.store = AsyncSessionStore(
            self.watched, debounce=self.model.debounce, max_age=MAX_AGE, clock=self.model.clock
        )
        accounts = self.store._ledger.accounts
        self.model.is_changed = lambda account_id: accounts[account_id].changed

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it, and then what is on a thread; a deadlock is a `TimeoutError`."""

        async def guarded() -> Any:
            try:
                async with asyncio.timeout(10 * QUIET):
                    return await work
            finally:
                while self.loop.clock.threads:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0)

        try:
            return self.loop.run_until_complete(guarded())
        finally:
            while self.unheard:
                self.loop.run_until_complete(asyncio.sleep(0))

    @property
    def unheard(self) -> bool:
        """Whether the storage has answered, as the model knows, and the store did not hear yet."""
        call = self.store._commit._call
        return call is not None and call.done()

    @property
    def gate_open(self) -> bool:
        return self.watched.gate.is_set()

    @property
    def healthy(self) -> bool:
        return self.gate_open and not self.watched.failing and not self.watched.broken

    def tasks(self, prefix: str = "qqbot_session") -> list[asyncio.Task[Any]]:
        found = [t for t in asyncio.all_tasks(self.loop) if t.get_name().startswith(prefix)]
        return sorted(found, key=lambda task: task.get_name())

    def read(self, account_id: str) -> SessionState | None:
        """What a read finds."""
        if self.watched.unreadable:
            return None
        own, original = self.place.layers(account_id)
        state = try_decode(own) or try_decode(original)
        return state if state is not None and state.account_id == account_id else None

    # What a bot does

    @rule(state=states, nowait=st.booleans())
    @on_loop
    async def save(self, state: SessionState, nowait: bool) -> None:
        self.save_one(state, nowait)

    def save_one(self, state: SessionState, nowait: bool) -> None:
        known = self.model.known.setdefault(state.account_id, Known())
        before = known.state
        known.change(state, quick=before is None or state.session_id != before.session_id)

        async def without_waiting() -> None:
            self.store.save_nowait(state)

        assert at_once(without_waiting() if nowait else self.store.save(state)) is None

    async def renew(self, account_id: str, last_seq: int, call: Coroutine[Any, Any, bool]) -> None:
        known = self.model.known.get(account_id)
        was_known = known is not None
        if known is None:
            failed = self.model.failed_reads.get(account_id, -QUIET)
            if self.loop.time() < failed + 1.0:  # not asked again so soon
                assert at_once(call) is False
                return
            if self.watched.unreadable:
                self.model.failed_reads[account_id] = self.loop.time()
                assert await call is False
                return
            known = self.model.remember(account_id, self.read(account_id))
        has_session = known.has_session
        if has_session:
            assert known.state is not None
            assert known.state.last_seq is not None
            newest = max(known.state.last_seq, last_seq)
            moves = newest > known.state.last_seq
            known.change(replace(known.state, last_seq=newest), moves=moves)
        assert (at_once(call) if was_known else await call) is has_session

    @rule(account_id=accounts, last_seq=numbers)
    @on_loop
    async def update_last_seq(self, account_id: str, last_seq: int) -> None:
        await self.renew(account_id, last_seq, self.store.update_last_seq(account_id, last_seq))

    @rule(
        state=states.filter(lambda state: state.resumable),
        steps=st.lists(
            st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.0, 0.25, 1.0])), max_size=8
        ),
    )
    @on_loop
    async def talk(self, state: SessionState, steps: list[tuple[int, float]]) -> None:
        """Be a bot: a session, and its events."""
        self.save_one(state, nowait=False)
        for step, seconds in steps:
            newest = self.model.known[state.account_id].state
            last_seq = newest.last_seq if newest is not None and newest.last_seq else 1
            update = self.store.update_last_seq(state.account_id, last_seq + step)
            await self.renew(state.account_id, last_seq + step, update)
            await asyncio.sleep(seconds)
            while self.unheard:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)
            self.nothing_went_wrong()
            self.what_is_unsaved_is_known()

    @rule(account_id=accounts)
    @on_loop
    async def touch(self, account_id: str) -> None:
        await self.renew(account_id, 0, self.store.touch(account_id))

    @precondition(lambda self: self.gate_open)
    @rule(account_id=accounts)
    @on_loop
    async def clear(self, account_id: str) -> None:
        self.model.known.setdefault(account_id, Known()).change(None, quick=True)
        assert await self.store.clear(account_id) is None
        assert not self.healthy or self.place.layers(account_id) == (None, None)

    @rule(account_id=accounts, asked=asked)
    @on_loop
    async def load(self, account_id: str, asked: dict[str, Any]) -> None:
        known = self.model.known.get(account_id)
        dirty = known is not None and known.dirty
        if known is not None and known.dirty:
            state = self.model.pending(known)
        elif self.watched.unreadable:
            self.model.failed_reads[account_id] = self.loop.time()
            if known is None or not known.ours:
                self.model.known.pop(account_id, None)
                assert await self.store.load(account_id, **asked) is None
                return
            state = self.model.as_written(known)
        else:
            state = self.read(account_id)
            known = self.model.remember(account_id, state)
        expected = state if state is not None and state.resumable else None
        if state is not None and any(
            getattr(state, name) not in (None, value) for name, value in asked.items()
        ):
            expected = None
        elif state is not None and self.model.is_expired(state):
            expected = None
            if dirty:
                known.change(None)
            elif not self.watched.unreadable:
                known.state = None
                own, original = self.place.layers(account_id)
                if try_decode(own) is not None:  # else it was the original's
                    self.model.possible[account_id] = {None, own} if own == original else {None}
        known.denied = expected is None
        assert await self.store.load(account_id, **asked) == expected

    @rule(include_expired=st.booleans())
    @on_loop
    async def load_all(self, include_expired: bool) -> None:
        found = {}
        if not self.watched.unreadable:
            on_storage = {
                state.account_id for data in self.place.items() if (state := try_decode(data))
            }
            for account_id in sorted(on_storage):
                known = self.model.known.get(account_id)
                if known is None or not known.dirty:
                    found[account_id] = self.read(account_id)
                    self.model.remember(account_id, found[account_id])
        for account_id, known in self.model.known.items():
            if known.dirty:
                found[account_id] = self.model.pending(known)
            elif self.watched.unreadable and known.ours:
                found[account_id] = self.model.as_written(known)
        expected = [
            state
            for _, state in sorted(found.items())
            if state is not None
            and state.resumable
            and (include_expired or not self.model.is_expired(state))
        ]
        assert await self.store.load_all(include_expired=include_expired) == expected

    @rule()
    @on_loop
    async def cleanup(self) -> None:
        surely = perhaps = 0
        if not self.watched.unreadable:
            dirty = self.model.dirty()
            for data in self.place.items():
                state = try_decode(data)
                if self.is_left(data):
                    continue
                if state is None:
                    surely += not dirty
                    perhaps += bool(dirty)  # a write on its way may replace it first
                elif state.account_id not in dirty and self.model.is_expired(state):
                    surely += 1
            for account_id in ACCOUNTS:
                state = try_decode(own := self.place.layers(account_id)[0])
                if own is not None and state is None and account_id in dirty:
                    self.model.written_outside(account_id, None)
                elif (
                    own is not None
                    and not self.is_left(own)
                    and (
                        state is None or (account_id not in dirty and self.model.is_expired(state))
                    )
                ):
                    self.model.possible[account_id] = {None}
        assert surely <= await self.store.cleanup() <= surely + perhaps

    def is_left(self, data: bytes) -> bool:
        """Whether `cleanup` takes a file for another program's."""
        return isinstance(self.place, FilePlace) and (
            try_decode(data) is None and is_stranger("\0", data)
        )

    @precondition(lambda self: self.gate_open)
    @rule(account_id=accounts | st.none())
    @on_loop
    async def flush(self, account_id: str | None) -> None:
        asked = self.model.dirty() if account_id is None else self.model.dirty() & {account_id}
        self.may_write_early()
        try:
            await self.store.flush(account_id)
            failures = set()
        except SessionWriteError as error:
            failures = set(error.failures)
        assert failures == asked & self.model.dirty()
        assert not self.healthy or not failures

    # Waiters, and who cancels them

    @precondition(lambda self: len(self.waiters) < 3)
    @rule()
    @on_loop
    async def begin_flush(self) -> None:
        versions: dict[str, int] = {}

        async def flush() -> None:
            self.may_write_early()
            versions.update({key: self.model.known[key].version for key in self.model.dirty()})
            await self.store.flush()

        self.waiters.append(("flush", asyncio.create_task(flush()), versions))
        await asyncio.sleep(0)

    @precondition(lambda self: len(self.waiters) < 3)
    @rule(account_id=accounts)
    @on_loop
    async def begin_clear(self, account_id: str) -> None:
        async def clear() -> None:
            self.model.known.setdefault(account_id, Known()).change(None, quick=True)
            await self.store.clear(account_id)

        self.waiters.append(("clear", asyncio.create_task(clear()), {}))
        await asyncio.sleep(0)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    @on_loop
    async def cancel_waiter(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiters) - 1))
        _, task, _ = self.waiters.pop(index)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            assert isinstance(error, SessionWriteError)

    @precondition(lambda self: self.waiters and self.gate_open)
    @rule()
    @on_loop
    async def await_waiters(self) -> None:
        healthy = self.healthy
        for name, task, versions in self.waiters:
            await asyncio.wait([task])
            if task.cancelled():
                assert self.cancelled_waiters
            elif error := task.exception():
                assert name == "flush"
                assert isinstance(error, SessionWriteError)
            elif healthy and name == "flush":
                for account_id, version in versions.items():
                    known = self.model.known[account_id]
                    assert not known.dirty or known.version > version
        self.waiters = []

    def may_write_early(self) -> None:
        """Expect early writes: a task that was cancelled, or a flush, does not wait."""
        for known in self.model.known.values():
            known.quick = max(known.quick, 5)

    @rule(
        prefix=st.sampled_from(["qqbot_session:commit", "qqbot_session", ""])
        | accounts.map("qqbot_session:{}".format),
        turns=st.integers(0, 3),
    )
    @on_loop
    async def cancel_tasks(self, prefix: str, turns: int) -> None:
        self.may_write_early()

        async def cancel() -> None:
            for task in self.tasks(prefix):
                if task is not asyncio.current_task():
                    task.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)

        self.cancelled_waiters |= prefix == ""
        await cancel()

    # Faults, clocks, other processes

    @rule(
        failing=st.sampled_from([(), ("bot",), ACCOUNTS]),
        broken=st.booleans(),
        unreadable=st.booleans(),
    )
    @on_loop
    async def fail(self, failing: tuple[str, ...], broken: bool, unreadable: bool) -> None:
        self.watched.failing = set(failing)
        self.watched.broken = broken
        self.watched.unreadable = unreadable

    @rule()
    @on_loop
    async def heal(self) -> None:
        self.watched.failing = set()
        self.watched.broken = self.watched.unreadable = False

    @rule(after=st.booleans())
    @on_loop
    async def shut_gate(self, after: bool) -> None:
        if self.gate_open:
            self.watched.gate.clear()
            self.watched.waits_after = after

    @rule()
    @on_loop
    async def open_gate(self) -> None:
        self.watched.gate.set()

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 7.0]))
    @on_loop
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @rule()
    @on_loop
    async def wait_long(self) -> None:
        await asyncio.sleep(QUIET)
        assert not self.healthy or not self.model.dirty(), "healthy, and never written"
        assert not self.healthy or self.tasks() == [], "quiet, and a task is left"

    @rule(seconds=st.sampled_from([-DECADE, -400, -10, 10, 400, DECADE]))
    @on_loop
    async def step_wall_clock(self, seconds: float) -> None:
        self.model.before = self.model.clock()
        self.model.offset = max(-DECADE, min(self.model.offset + seconds, DECADE))

    @rule(state=states.filter(lambda state: state.resumable), age=st.sampled_from([0, 10, 400]))
    @on_loop
    async def another_process_saves(self, state: SessionState, age: float) -> None:
        state = replace(state, saved_at=max(0.0, self.model.clock() - age))
        data = encode(state)
        await self.outside_commit(state.account_id, data)

    @rule(account_id=accounts)
    @on_loop
    async def another_process_clears(self, account_id: str) -> None:
        await self.outside_commit(account_id, None)

    @rule(account_id=accounts, data=st.sampled_from([b"", b"{", b'{"accountId": 1}', b"\xff"]))
    @on_loop
    async def a_record_is_torn(self, account_id: str, data: bytes) -> None:
        await self.outside_commit(account_id, data)

    async def outside_commit(self, account_id: str, data: bytes | None) -> None:
        self.model.written_outside(account_id, data)

        async def commit() -> None:
            other = self.place.storage()
            assert await other.commit({account_id: data}) == {}
            await other.aclose()

        await commit()

    @rule(state=states, age=st.sampled_from([0, 400]))
    @on_loop
    async def the_original_saves(self, state: SessionState, age: float) -> None:
        if file_name(state.account_id) != original_name(state.account_id):
            state = replace(state, saved_at=max(0.0, self.model.clock() - age))
            self.place.put_original(state.account_id, encode(state))

    # The end, and another beginning

    @precondition(lambda self: self.gate_open)
    @rule(callers=st.integers(1, 3), cancelled=st.booleans(), reads=st.integers(0, 2))
    @on_loop
    async def close_and_reopen(self, callers: int, cancelled: bool, reads: int) -> None:
        """Close, with several callers, one of whom is cancelled, and with loads under way."""
        self.may_write_early()
        loads = [asyncio.create_task(self.store.load("stranger")) for _ in range(reads)]
        await asyncio.sleep(0)
        closing = [asyncio.create_task(self.store.aclose()) for _ in range(callers + cancelled)]
        await asyncio.sleep(0)
        if cancelled:
            closing[0].cancel()
        ended = await asyncio.gather(*closing, *loads, return_exceptions=True)
        failed = [error for error in ended if isinstance(error, SessionWriteError)]
        for error in failed:
            assert set(error.failures) == self.model.dirty()
        others = callers if self.model.dirty() else 0
        assert others <= len(failed) <= others + cancelled
        for error in ended[len(closing) :]:
            assert error is None or isinstance(error, StoreClosedError)
        await self.check_closed()
        self.open()

    @precondition(lambda self: not self.gate_open)
    @rule(turns=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    @on_loop
    async def cancel_closing_and_reopen(self, turns: list[int]) -> None:
        self.may_write_early()

        async def close() -> None:
            task = asyncio.create_task(self.store.aclose())
            await asyncio.sleep(0)
            for count in turns:
                task.cancel()
                for _ in range(count):
                    await asyncio.sleep(0)
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None

        await close()
        await self.check_closed()
        self.open()

    async def check_closed(self) -> None:
        await asyncio.sleep(1.0)
        assert self.tasks() == []
        for _, task, _ in self.waiters:
            assert task.done(), "closed, and somebody waits for ever"
            if not task.cancelled():
                assert isinstance(task.exception(), SessionWriteError | None)
        self.waiters = []
        with contextlib.suppress(SessionWriteError):  # what the first one raised
            await self.store.aclose()
        with pytest.raises(StoreClosedError):
            await self.store.load("bot")

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.model.problems == []

    @invariant()
    def what_is_unsaved_is_known(self) -> None:
        assert repr(self.store).endswith(f" unsaved={len(self.model.dirty())}>")

    @invariant()
    def storage_holds_what_it_may(self) -> None:
        for account_id in ACCOUNTS:
            own, _ = self.place.layers(account_id)
            assert own in self.model.possible[account_id], (account_id, own)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.heal()
            self.open_gate()
            self.may_write_early()
            self.run(self.store.aclose())
            self.nothing_went_wrong()
            assert not self.model.dirty()
            self.storage_holds_what_it_may()
            self.run(self.check_closed())
            self.run(self.watched.inner.aclose())
        self.place.close()
        self.loop.close()


class MemoryMachine(Machine):
    place_type = MemoryPlace


class FileMachine(Machine):
    place_type = FilePlace


every_storage = pytest.mark.parametrize("machine", [MemoryMachine, FileMachine])
COMMON: dict[str, Any] = {
    "database": None,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(autouse=True)
def quiet_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr(reading, "_PATIENCE", 0.0)  # for failed reads: no time passes in a `load`
    yield
    logging.disable(logging.NOTSET)


@every_storage
def test_a_store_is_its_model_whatever_happens(machine: type[Machine]) -> None:
    # promises 1-11, 13
    quick = settings(
        max_examples=40,
        stateful_step_count=30,
        derandomize=True,
        phases=[Phase.generate],  # to shrink a finding takes minutes: see the slow one
        **COMMON,
    )
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@every_storage
def test_a_store_is_its_model_for_long(machine: type[Machine]) -> None:
    # promises 1-11, 13
    slow = settings(max_examples=1500, stateful_step_count=60, **COMMON)
    run_state_machine_as_test(machine, settings=slow)


# What the machine found, one by one


async def test_flush_does_not_name_an_account_that_is_on_storage_already() -> None:
    # promise 8
    class Storage(FaultyStorage):
        async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
            if "other" in changes:
                raise ConnectionError("server lost")
            return await super().commit(changes)

    storage = Storage()
    store = AsyncSessionStore(storage)
    storage.gate.clear()
    await store.save(SessionState(account_id="bot"))
    await asyncio.sleep(0.1)  # on its way
    await store.save(SessionState(account_id="other"))
    flush = asyncio.create_task(store.flush())
    await asyncio.sleep(0.1)
    storage.gate.set()
    with pytest.raises(SessionWriteError) as caught:
        await flush
    with contextlib.suppress(SessionWriteError):
        await store.aclose()
    assert list(caught.value.failures) == ["other"]


async def test_a_load_that_outlives_its_store_leaves_no_task() -> None:
    # promise 5
    now = EPOCH
    storage = FaultyStorage()
    store = AsyncSessionStore(storage, clock=lambda: now)
    storage.read_gate.clear()
    load = asyncio.create_task(store.load("bot"))
    await asyncio.sleep(0.1)
    storage.failing = True
    await store.save(SessionState(account_id="bot", session_id="s1", last_seq=1))
    with pytest.raises(SessionWriteError):
        await store.aclose()
    now += 1000
    storage.read_gate.set()
    assert await load is None
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    assert left == set()


async def test_closing_that_is_cancelled_twice_leaves_nobody_waiting() -> None:
    # promise 5
    storage = FaultyStorage()
    store = AsyncSessionStore(storage)
    storage.gate.clear()
    await store.save(SessionState(account_id="bot"))
    flush = asyncio.create_task(store.flush())
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0.1)
    closing.cancel()
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    done, waiting = await asyncio.wait([flush], timeout=QUIET)
    for task in waiting:
        task.cancel()
    assert done
    assert isinstance(flush.exception(), SessionWriteError)


async def test_where_our_record_is_corrupt_the_originals_is_found_by_both_readers(
    directory: Path,
) -> None:
    # promise 12
    place = FilePlace(directory)
    state = SessionState(account_id="a:b", session_id="s1", last_seq=1, saved_at=EPOCH)
    place.put_original("a:b", encode(state))
    (place.directory / file_name("a:b")).write_bytes(b"{")
    async with AsyncSessionStore(place.storage(), clock=lambda: EPOCH) as store:
        assert await store.load("a:b") == state
        assert await store.load_all() == [state]
