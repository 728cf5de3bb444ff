"""Every interleaving of every small program: no schedule that a busy machine could find is left.

A program is two or three operations on one account, started in order. The storage is driven by
hand: each of its calls begins, takes effect and returns, and each of these steps is a choice, as
is the moment the next operation is started, and whether the tasks of the store get a turn before
it. All choices are enumerated by running the program again with each possible sequence of them;
of the longer programs, some in order and some at random: `QQBOT_SESSION_SCHEDULES=0` is all.

Each run must be linearizable: there is an order of the operations, one that contradicts neither
who was called after whom had returned nor the order of saves and clears, in which a plain
sequential store (`Plain`) gives the same answers, leaves the same record, and knows the same
afterwards (a `touch` and another flush show what the store remembers).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from conftest import VirtualSelector, VirtualTimeLoop
from faults import FaultyStorage

from qqbot_session import AsyncSessionStore, MemoryStorage, SessionState
from qqbot_session.state import decode, encode

# Of a program of three operations: so many schedules in order, and as many at random. With 0 it is
# all of them, ten thousand and more each, which takes a day.
MOST = int(os.environ.get("QQBOT_SESSION_SCHEDULES", "40"))
NOW = 1_700_000_000.0
FRESH, EXPIRED = NOW - 1, NOW - 1000
HORIZON = 40.0  # seconds: longer than any window


def a_state(session_id: str, last_seq: int, saved_at: float = NOW) -> SessionState:
    return SessionState(
        account_id="bot", session_id=session_id, last_seq=last_seq, saved_at=saved_at
    )


OLD = a_state("s0", 5, FRESH)
STALE = a_state("s0", 5, EXPIRED)
A = a_state("s1", 10)
B = a_state("s1", 20)
NEW = a_state("s2", 1)
FOREIGN = a_state("s9", 90)

Record = tuple[str | None, int | None] | None  # session id and number; what tells records apart


def brief(state: SessionState | None) -> Record:
    return None if state is None else (state.session_id, state.last_seq)


# The storage that is driven by hand


class Step:
    """One step of a call to the storage that has not been taken yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class DrivenStorage(MemoryStorage):
    """Every call waits to take effect and waits again to return, until `steps` are taken.

    A cancelled commit takes effect all the same if `stubborn`, before any later one, as one that
    is on a thread already.
    """

    def __init__(self, record: SessionState | None, *, stubborn: bool = False) -> None:
        super().__init__({} if record is None else {"bot": encode(record)})
        self.stubborn = stubborn
        self.steps: list[Step] = []
        self.by_hand = True
        self.effects: list[tuple[str, Record]] = []

    async def _step(self, name: str) -> None:
        if self.by_hand:
            step = Step(name)
            self.steps.append(step)
            try:
                await step.taken
            finally:
                if step in self.steps:
                    self.steps.remove(step)

    def choices(self) -> list[int]:
        """Return what may be taken now: reads take effect in order, as on one thread or line."""
        reads = [i for i, step in enumerate(self.steps) if step.name == "read takes effect"]
        return [i for i in range(len(self.steps)) if i not in reads[1:]]

    def take(self, index: int) -> None:
        self.steps.pop(index).taken.set_result(None)

    def let_go(self) -> None:
        self.by_hand = False
        while self.steps:
            self.take(0)

    @property
    def record(self) -> Record:
        data = self.records.get("bot")
        return None if data is None else brief(decode(data))

    async def read(self, account_id: str) -> bytes | None:
        await self._step("read takes effect")
        data = await super().read(account_id)
        await self._step("read returns")
        return data

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        await self._step("scan takes effect")
        items = [item async for item in super().scan()]
        await self._step("scan returns")
        for item in items:
            yield item

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        try:
            await self._step("commit takes effect")
        except asyncio.CancelledError:
            if self.stubborn:
                await super().commit(changes)
            raise
        await super().commit(changes)
        self.effects.append(("commit", self.record))
        await self._step("commit returns")
        return {}

    async def discard(self, key: str, expected: bytes) -> bool:
        await self._step("discard takes effect")
        discarded = await super().discard(key, expected)
        await self._step("discard returns")
        return discarded


# The operations, and what they do to a store that does one thing at a time


@dataclass
class Plain:
    """A store that does one thing at a time.

    Attributes:
        record: the account's newest record, and whether it has expired.
        known: what `update_last_seq` and `touch` build on; `...` if the account was never seen.
    """

    record: Record
    expired: bool = False
    known: Any = ...

    def save(self, state: SessionState) -> None:
        self.record = self.known = brief(state)
        self.expired = False

    def clear(self) -> None:
        self.record = self.known = None
        self.expired = False

    def look(self) -> None:
        if self.known is ...:
            self.known = self.record

    def judge(self) -> None:
        if self.expired:
            self.known = None

    def update(self, last_seq: int) -> bool:
        self.look()
        if self.known is None:
            return False
        session_id, known_seq = self.known
        self.record = self.known = (session_id, max(known_seq, last_seq))
        self.expired = False
        return True

    def load(self) -> Record:
        if self.expired:
            self.clear()
        self.known = self.record
        return self.record

    def load_all(self) -> list[Record]:
        # An account denied a session stays so until `load` gives one, and what is not in the list
        # is not forgotten: it may be unreadable.
        if self.known is not None and self.record is not None:
            self.known = self.record
        return [] if self.record is None or self.expired else [self.record]

    def cleanup(self) -> int:
        removed = int(self.expired)
        if self.expired:
            self.record, self.expired = None, False
        return removed

    def nothing(self) -> None:
        return None


@dataclass(frozen=True)
class Operation:
    name: str
    call: Callable[[AsyncSessionStore], Any]
    plainly: Callable[[Plain], Any]
    orders: bool = False  # takes effect when called: `save` and `clear`
    look: Callable[[Plain], None] | None = None  # before it changes anything

    def __repr__(self) -> str:
        return self.name


async def brief_load(store: AsyncSessionStore) -> Record:
    return brief(await store.load("bot"))


async def brief_load_all(store: AsyncSessionStore) -> list[Record]:
    return [brief(state) for state in await store.load_all()]


def save(name: str, state: SessionState) -> Operation:
    return Operation(name, lambda store: store.save(state), lambda p: p.save(state), True)


SAVE_A = save("save A", A)
SAVE_B = save("save B", B)
SAVE_NEW = save("save new", NEW)


def update(name: str, call: Callable[[AsyncSessionStore], Any], last_seq: int) -> Operation:
    return Operation(name, call, lambda p: p.update(last_seq), look=Plain.look)


UPDATE = update("update", lambda store: store.update_last_seq("bot", 30), 30)
TOUCH = update("touch", lambda store: store.touch("bot"), 0)
CLEAR = Operation("clear", lambda s: s.clear("bot"), lambda p: p.clear(), True)
LOAD = Operation("load", brief_load, lambda p: p.load(), look=Plain.judge)
LOAD_ALL = Operation("load_all", brief_load_all, lambda p: p.load_all())
CLEANUP = Operation("cleanup", lambda s: s.cleanup(), lambda p: p.cleanup())
FLUSH = Operation("flush", lambda s: s.flush(), lambda p: p.nothing())

OPERATIONS = (
    *(SAVE_A, SAVE_B, SAVE_NEW, UPDATE, TOUCH),
    *(CLEAR, LOAD, LOAD_ALL, CLEANUP, FLUSH),
)


READS = (UPDATE, TOUCH, LOAD, LOAD_ALL)


async def cancel_tasks(store: AsyncSessionStore, name: str) -> None:
    """Cancel the store's tasks whose name begins so, in an order that is always the same."""
    assert isinstance(store._storage, DrivenStorage)
    waited: list[Any] = [step.taken for step in store._storage.steps]

    def place(task: Any) -> tuple[str, int]:
        waits_for = task._fut_waiter
        return task.get_name(), waited.index(waits_for) if waits_for in waited else -1

    for task in sorted(asyncio.all_tasks(), key=place):
        if task.get_name().startswith(f"qqbot_session:{name}"):
            task.cancel()


def cancel(what: str, name: str) -> Operation:
    return Operation(f"cancel {what}", lambda store: cancel_tasks(store, name), Plain.nothing)


CANCELLATIONS = (
    *(cancel("the writer", "commit"), cancel("the account", "bot")),
    *(cancel("the storage", "storage"), cancel("all", "")),
)


# One run of a program


@dataclass(eq=False)
class Call:
    operation: Operation
    began: int
    ended: float = float("inf")
    task: asyncio.Task[Any] | None = None

    @property
    def result(self) -> Any:
        assert self.task is not None
        return self.task.result()


@dataclass
class Choices:
    """A sequence of choices: those of `prefix`, then the first each time."""

    prefix: Sequence[int] = ()
    made: list[tuple[int, int]] = field(default_factory=list)  # (choice, of how many)

    def choose(self, count: int) -> int:
        position = len(self.made)
        choice = self.prefix[position] if position < len(self.prefix) else 0
        self.made.append((choice, count))
        return choice

    def following(self) -> list[int] | None:
        """Return the prefix of the next sequence, or `None` after the last."""
        made = list(self.made)
        while made:
            choice, count = made.pop()
            if choice + 1 < count:
                return [*(earlier for earlier, _ in made), choice + 1]
        return None


class Chance(Choices):
    """Choices at random."""

    def __init__(self, random_: random.Random) -> None:
        super().__init__()
        self._random = random_

    def choose(self, count: int) -> int:
        return self._random.randrange(count)


class NoSelector(VirtualSelector):
    """Nothing here is on a thread or a socket, so the system need not be asked."""

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return []


class DrivenLoop(VirtualTimeLoop):
    """A `VirtualTimeLoop` that makes no system call per turn."""

    def __init__(self) -> None:
        super().__init__()
        self.clock.__class__ = NoSelector


async def settle(loop: DrivenLoop) -> None:
    """Let everything run that can, without letting time pass."""
    while True:
        await asyncio.sleep(0)
        if not loop._ready:
            return


@dataclass(frozen=True)
class Setting:
    """How a program finds the world.

    Attributes:
        record: what is on storage.
        warm: whether the store has seen it.
        turns: whether the next operation may be called before the store's tasks get a turn.
        windows: how often the end of a window is one of the choices.
        stubborn: whether a cancelled commit takes effect all the same.
    """

    record: SessionState | None = None
    warm: bool = False
    debounce: float = 1.0
    turns: bool = False
    windows: int = 0
    stubborn: bool = False

    def plain(self) -> Plain:
        expired = self.record is not None and self.record.saved_at == EXPIRED
        known = brief(self.record) if self.warm else ...
        return Plain(brief(self.record), expired, known)


@dataclass
class Outcome:
    calls: list[Call]
    record: Record
    touched: bool
    record_after_touch: Record
    storage: DrivenStorage

    def __str__(self) -> str:
        calls = ", ".join(
            f"{call.operation}[{call.began}-{call.ended}]={call.result}" for call in self.calls
        )
        return f"{calls}; {self.record}; touch={self.touched}; {self.record_after_touch}"


async def run(program: Sequence[Operation], setting: Setting, choices: Choices) -> Outcome:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, DrivenLoop)
    storage = DrivenStorage(setting.record, stubborn=setting.stubborn)
    store = AsyncSessionStore(storage, debounce=setting.debounce, clock=lambda: NOW)
    if setting.warm:
        storage.by_hand = False
        if setting.record is not None and setting.record.saved_at == EXPIRED:
            await store.load_all(include_expired=True)  # known, and not judged
        else:
            await store.load("bot")
        storage.by_hand = True
    calls: list[Call] = []
    left = list(program)
    windows = setting.windows
    moment = itertools.count()

    def note_ends() -> None:
        for call in calls:
            if call.task is not None and call.task.done() and call.ended == float("inf"):
                call.ended = next(moment)

    while left or storage.steps:
        moves: list[tuple[str, Any]] = [("step", index) for index in storage.choices()]
        if left:
            moves.append(("call", True))
            if setting.turns and len(left) > 1:
                moves.append(("call", False))
        if windows and calls:
            moves.append(("window", None))
        kind, detail = moves[choices.choose(len(moves))]
        if kind == "step":
            storage.take(detail)
            await settle(loop)
        elif kind == "window":
            windows -= 1
            await asyncio.sleep(setting.debounce)
            await settle(loop)
        else:
            call = Call(left.pop(0), next(moment))
            call.task = asyncio.create_task(call.operation.call(store))
            calls.append(call)
            if detail:
                await settle(loop)
            else:
                await asyncio.sleep(0)  # its own first step and no more
        note_ends()
    storage.let_go()
    await asyncio.sleep(HORIZON)
    note_ends()
    record = storage.record
    touched = await store.touch("bot")
    await store.flush()
    after = storage.record
    await store.aclose()
    return Outcome(calls, record, touched, after, storage)


def schedules(
    loop: asyncio.AbstractEventLoop, program: Sequence[Operation], setting: Setting
) -> Iterator[Outcome]:
    """Yield the outcome of every schedule; of a program of three, of the first and of others."""
    most = MOST if len(program) > 2 else 0
    prefix: list[int] | None = []
    for number in itertools.count(1):
        choices = Choices(prefix)
        yield loop.run_until_complete(run(program, setting, choices))
        prefix = choices.following()
        if prefix is None:
            return
        if number == most:
            break
    random_ = random.Random(f"{program} {setting}")
    for _ in range(most):
        yield loop.run_until_complete(run(program, setting, Chance(random_)))


Event = tuple[Call, bool]  # a call, and whether this is the moment it only looks


def orders(calls: Sequence[Call]) -> Iterator[tuple[Event, ...]]:
    """Yield every order that a bot could not tell from what it saw.

    On an account never seen, `update_last_seq` and `touch` look at the record and then change
    it, and `load` judges an expired record and then removes it: others may come between.
    """
    events = [(call, looks) for call in calls for looks in (True, False)]
    for order in itertools.permutations(event for event in events if not event[1]):
        if all(may_precede(*pair) for pair in itertools.combinations(order, 2)):
            yield order
    events = [event for event in events if not event[1] or event[0].operation.look]
    if len(events) > len(calls):
        for order in itertools.permutations(events):
            if all(may_precede(*pair) for pair in itertools.combinations(order, 2)):
                yield order


def may_precede(earlier: Event, later: Event) -> bool:
    (one, _), (other, looks) = earlier, later
    if one is other:
        return not looks
    if one.operation.orders and other.operation.orders:
        return one.began < other.began
    return one.began < other.ended


def overtaken(call: Call, order: Sequence[Event]) -> bool:
    """Whether a session was saved while the call looked: its number is not that session's."""
    return (call, True) in order and any(
        other.operation.orders and call.began < other.began < call.ended for other, _ in order
    )


def uncounted(call: Call, outcome: Outcome) -> bool:
    """Whether the answer that a record was removed was lost: its task was cancelled by then."""
    cancelled = [other for other in outcome.calls if other.operation in CANCELLATIONS]
    return (
        call.operation is CLEANUP
        and call.result == 0
        and any(call.began < other.began < call.ended for other in cancelled)
    )


def was_unsure(call: Call, outcome: Outcome) -> bool:
    """Whether a listing had to look the account up by itself: another read ended meanwhile."""
    return call.operation is LOAD_ALL and any(
        other.operation in READS and other.began < call.ended and call.began < other.ended
        for other in outcome.calls
        if other is not call
    )


def explains(order: Sequence[Event], outcome: Outcome, setting: Setting) -> bool:
    return any(explains_if(sure, order, outcome, setting) for sure in (True, False))


def explains_if(sure: bool, order: Sequence[Event], outcome: Outcome, setting: Setting) -> bool:
    plain = setting.plain()
    for call, looks in order:
        if not sure and was_unsure(call, outcome) and plain.record is None:
            plain.known = None
        if looks and call.operation.look is not None:
            if plain.known is not None and all(call.began < other.ended for other in outcome.calls):
                plain.known = ...  # nothing was known when it was called: it may look once more
            call.operation.look(plain)
        elif overtaken(call, order) and call.result == (plain.known is not None):
            continue
        elif call.operation.plainly(plain) != call.result and not uncounted(call, outcome):
            return False
    record = plain.record
    touched = plain.update(0)
    seen = (outcome.record, outcome.touched, outcome.record_after_touch)
    return (record, touched, plain.record) == seen


def exhaust(programs: Iterable[Sequence[Operation]], setting: Setting) -> int:
    """Run every schedule of the programs; return how many there were."""
    loop = DrivenLoop()
    count = 0
    try:
        for program in programs:
            for outcome in schedules(loop, program, setting):
                count += 1
                assert all(call.ended < float("inf") for call in outcome.calls), outcome
                if not any(explains(order, outcome, setting) for order in orders(outcome.calls)):
                    pytest.fail(f"no order explains {outcome} in {setting}")
    finally:
        loop.close()
    return count


SETTINGS = {
    "nothing on storage": Setting(),
    "a record, not seen yet": Setting(OLD),
    "a record, known": Setting(OLD, warm=True),
    "an expired record, not seen yet": Setting(STALE),
    "an expired record, known": Setting(STALE, warm=True),
}
in_every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
starting_with_each = pytest.mark.parametrize("first", OPERATIONS, ids=str)


@pytest.fixture
def interleavings(record_testsuite_property: Callable[[str, object], None], request: Any) -> Any:
    """Note how many there were, for `--junitxml`."""
    return lambda count: record_testsuite_property(request.node.name, count)


@in_every_setting
def test_every_schedule_of_two_operations_is_as_if_one_came_after_the_other(
    setting: Setting, interleavings: Callable[[int], None]
) -> None:
    # promises 3, 4, 5, 6, 13
    count = exhaust(itertools.product(OPERATIONS, repeat=2), setting)
    interleavings(count)
    assert count > 450


@pytest.mark.slow
@pytest.mark.timeout(900)
@in_every_setting
@starting_with_each
def test_every_schedule_of_three_operations_is_as_if_they_came_one_after_the_other(
    setting: Setting, first: Operation, interleavings: Callable[[int], None]
) -> None:
    # promises 3, 4, 5, 6, 13
    programs = ((first, *rest) for rest in itertools.product(OPERATIONS, repeat=2))
    interleavings(exhaust(programs, setting))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("debounce", [0.0, 1.0])
@in_every_setting
def test_neither_the_turn_of_the_loop_nor_the_end_of_a_window_makes_a_difference(
    setting: Setting, debounce: float, interleavings: Callable[[int], None]
) -> None:
    # promises 2, 3, 4, 5, 6
    setting = replace(setting, debounce=debounce, turns=True, windows=1)
    programs = itertools.product(OPERATIONS, repeat=2)
    interleavings(exhaust(programs, setting))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stubborn", [False, True], ids=["torn", "on a thread"])
@in_every_setting
def test_cancelling_the_stores_tasks_at_any_step_loses_nothing(
    setting: Setting, stubborn: bool, interleavings: Callable[[int], None]
) -> None:
    # promise 9
    programs = [
        program
        for one, other in itertools.product(OPERATIONS, repeat=2)
        for cancel in CANCELLATIONS
        for program in ((one, cancel, other), (one, other, cancel))
    ]
    interleavings(exhaust(programs, replace(setting, stubborn=stubborn)))


async def test_a_number_given_before_a_new_session_was_saved_is_not_the_new_sessions() -> None:
    # promise 6
    storage = FaultyStorage({"bot": encode(OLD)})
    async with AsyncSessionStore(storage, clock=lambda: NOW) as store:
        storage.read_gate.clear()
        update = asyncio.create_task(store.update_last_seq("bot", 500))
        await asyncio.sleep(0.1)
        await store.save(NEW)
        storage.read_gate.set()
        await update
    assert brief(decode(storage.records["bot"])) == ("s2", 1)


async def test_a_list_read_before_a_removal_does_not_bring_the_record_back() -> None:
    # promises 3, 13
    storage = DrivenStorage(STALE)
    async with AsyncSessionStore(storage, clock=lambda: NOW) as store:
        update = asyncio.create_task(store.update_last_seq("bot", 30))
        await asyncio.sleep(0)
        listing = asyncio.create_task(store.load_all())
        await asyncio.sleep(0.01)
        storage.take(1)  # the list is read, and not there yet
        await asyncio.sleep(0.01)
        assert storage.records.pop("bot")
        for _ in range(2):
            storage.take([step.name[:4] for step in storage.steps].index("read"))
            await asyncio.sleep(0.01)
        assert not await update
        storage.let_go()
        assert await listing == []
        assert not await store.touch("bot")
    assert storage.record is None


async def test_a_list_that_is_read_while_a_save_ends_does_not_bring_the_old_record_back() -> None:
    # promise 3
    storage = FaultyStorage({"bot": encode(OLD)})
    async with AsyncSessionStore(storage, clock=lambda: NOW) as store:
        await store.save(NEW)  # unsaved when the list is begun
        storage.read_gate.clear()
        listing = asyncio.create_task(store.load_all())
        await asyncio.sleep(0.1)  # and on storage when it is read
        storage.read_gate.set()
        assert [brief(state) for state in await listing] == [("s2", 1)]
        assert await store.touch("bot")
    assert brief(decode(storage.records["bot"])) == ("s2", 1)


# Another process writes the record: no order of one store's own operations explains it all


async def write_outside(store: AsyncSessionStore) -> None:
    storage = store._storage
    assert isinstance(storage, DrivenStorage)
    storage.records["bot"] = encode(FOREIGN)
    storage.effects.append(("outside", brief(FOREIGN)))


OUTSIDE = Operation("another process writes", write_outside, Plain.nothing)


def check_with_another_process(outcome: Outcome, setting: Setting) -> None:
    """Whoever came last wins, and what the store answers and knows is what is there."""
    own = {brief(A), brief(B), brief(NEW), brief(OLD), brief(FOREIGN), None}
    own |= {(record[0], 30) for record in own if record is not None and record[1] < 30}
    for call in outcome.calls:
        if call.operation is LOAD:
            assert call.result in own, outcome
        if call.operation is LOAD_ALL:
            assert all(record in own for record in call.result), outcome
    saved = [call for call in outcome.calls if call.operation.orders]
    commits = [record for kind, record in outcome.storage.effects if kind == "commit"]
    if saved and not any(call.operation in (UPDATE, TOUCH) for call in outcome.calls):
        newest = Plain(None)
        saved[-1].operation.plainly(newest)
        assert newest.record in commits, outcome
        assert outcome.record in (newest.record, brief(FOREIGN)), outcome
    if outcome.touched and outcome.calls[-1].operation is LOAD:
        knows = outcome.calls[-1].result
        assert outcome.record_after_touch in (knows, brief(FOREIGN)) or knows is None, outcome


@pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@in_every_setting
def test_with_another_process_on_the_storage_the_last_writer_wins(
    setting: Setting, count: int, interleavings: Callable[[int], None]
) -> None:
    # promises 3, 4
    loop = DrivenLoop()
    schedules_tried = 0
    for program in itertools.product((OUTSIDE, *OPERATIONS), repeat=count):
        if program.count(OUTSIDE) == 1:
            for outcome in schedules(loop, program, setting):
                schedules_tried += 1
                check_with_another_process(outcome, setting)
    loop.close()
    interleavings(schedules_tried)
