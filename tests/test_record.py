"""`record`: a mark, and the gateway session is asked when its account is written or loaded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from conftest import WallClock
from faults import FaultyStorage

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.gateway import GatewaySession
from qqbot_session.state import decode, encode

WINDOW = 1.0
_generations = count(1)


class Gateway:
    """What the store asks of a gateway session. Attributes: asked: how often it was asked."""

    def __init__(self, account_id: str = "bot", shard: tuple[int, int] = (0, 1)) -> None:
        self.account_id = account_id
        self.shard = shard
        self.generation = next(_generations)
        self.turn = self.handled = 0
        self.asked = 0
        self.newest: SessionState | None = None

    @property
    def state(self) -> SessionState | None:
        self.asked += 1
        return self.newest

    def begin(self, session_id: str | None = "s1", last_seq: int = 1) -> None:
        self.turn += 1
        self.newest = None
        if session_id is not None:
            self.newest = SessionState(
                account_id=self.account_id, session_id=session_id, last_seq=last_seq
            )

    def handle(self, last_seq: int) -> None:
        assert self.newest is not None
        self.newest = replace(self.newest, last_seq=last_seq)
        self.handled += 1


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage()


@pytest.fixture
async def store(storage: FaultyStorage, clock: WallClock) -> Any:
    async with AsyncSessionStore(storage, debounce=WINDOW, clock=clock) as store:
        yield store


@pytest.fixture
def gateway() -> Gateway:
    gateway = Gateway()
    gateway.begin()
    return gateway


def on_storage(storage: FaultyStorage) -> SessionState | None:
    data = storage.records.get("bot")
    return None if data is None else decode(data)


async def grown_up(store: AsyncSessionStore, gateway: Gateway) -> None:
    await store.record(gateway)
    await asyncio.sleep(10 * WINDOW)
    gateway.asked = 0


async def test_the_state_is_asked_for_once_per_write(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 2
    await grown_up(store, gateway)
    writes = len(storage.commits)
    for number in range(2, 502):
        gateway.handle(number)
        await store.record(gateway)
        store.record_nowait(gateway)
        await asyncio.sleep(0.01)
    assert gateway.asked == len(storage.commits) - writes == 5
    await store.flush()
    assert on_storage(storage).last_seq == 501


async def test_an_event_of_a_quiet_bot_is_one_write_at_the_end_of_its_handler(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    """Its receipt was recorded too, and heartbeats are."""
    # promise 2
    await grown_up(store, gateway)
    writes = len(storage.commits)
    for number in range(2, 102):
        await store.record(gateway)
        store.record_nowait(gateway)
        await asyncio.sleep(0.6)
        gateway.handle(number)
        await store.record(gateway)
        await asyncio.sleep(0.01)
        assert on_storage(storage).last_seq == number
        await asyncio.sleep(5)
    assert len(storage.commits) - writes == 100
    await store.record(gateway)
    await asyncio.sleep(1.01)
    assert len(storage.commits) - writes == 101
    gateway.handle(102)
    await store.record(gateway)
    await asyncio.sleep(0.01)
    assert on_storage(storage).last_seq == 102  # the heartbeat's write took nothing from it


async def test_what_was_handled_is_written_at_once_also_if_something_else_asked_first(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 2
    await grown_up(store, gateway)
    await store.record(gateway)
    gateway.handle(2)
    assert (await store.load("bot")).last_seq == 2
    await store.record(gateway)
    await asyncio.sleep(0.01)
    assert on_storage(storage).last_seq == 2
    gateway.handle(3)
    await store.record(gateway)
    await asyncio.sleep(0.9)
    assert on_storage(storage).last_seq == 2  # and what was written at once takes its window


@pytest.mark.parametrize("asks", ["load", "load_all", "flush", "update_last_seq", "touch"])
async def test_whoever_wants_the_newest_gets_it(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway, asks: str
) -> None:
    # promise 3
    await store.record(gateway)
    await asyncio.sleep(0.01)
    await store.record(gateway)
    gateway.handle(9)
    if asks == "load":
        assert (await store.load("bot")).last_seq == 9
    elif asks == "load_all":
        assert [state.last_seq for state in await store.load_all()] == [9]
    elif asks == "update_last_seq":
        assert await store.update_last_seq("bot", 5)
    elif asks == "touch":
        assert await store.touch("bot")
    await store.flush()
    assert on_storage(storage).last_seq == 9


async def test_a_turn_does_not_wait_for_the_window(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 2
    await grown_up(store, gateway)
    await store.record(gateway)
    gateway.begin("s2", 1)
    await store.record(gateway)
    await asyncio.sleep(0.01)
    assert on_storage(storage).session_id == "s2"
    gateway.turn += 1
    gateway.newest = replace(gateway.newest, failed_resumes=1)
    await store.record(gateway)
    await asyncio.sleep(0.01)
    assert on_storage(storage).failed_resumes == 1
    gateway.begin(None)
    await store.record(gateway)
    await asyncio.sleep(0.01)
    assert on_storage(storage) is None


async def test_a_session_that_was_not_recorded_yet_is_not_written(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    await store.record(gateway)
    gateway.begin("s2", 1)
    await store.flush()
    assert on_storage(storage).session_id == "s1"


async def test_what_is_saved_after_a_record_counts(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 4
    await store.record(gateway)
    await store.save(SessionState(account_id="bot", session_id="mine", last_seq=3))
    await store.flush()
    assert on_storage(storage).session_id == "mine"
    await store.record(gateway)
    await store.clear("bot")
    assert storage.records == {}


@pytest.mark.parametrize("came_by", ["save", "load", "load_all"])
async def test_a_record_after_another_session_is_the_gateway_s(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway, came_by: str
) -> None:
    """The session changed since the last record, and not at the gateway: the later call wins."""
    # promise 4
    await grown_up(store, gateway)
    other = SessionState(account_id="bot", session_id="another", last_seq=3)
    if came_by == "save":
        await store.save(other)
        await store.flush()
    else:  # another process wrote it
        storage.records["bot"] = encode(other, 3, 1_700_000_000.0)
        await (store.load("bot") if came_by == "load" else store.load_all())
    gateway.handle(2)
    await store.record(gateway)
    await store.flush()
    assert (on_storage(storage).session_id, on_storage(storage).last_seq) == ("s1", 2)


async def test_a_state_of_the_same_session_that_is_saved_after_a_record_counts(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 4
    await grown_up(store, gateway)
    assert await store.update_last_seq("bot", 5)
    gateway.handle(2)
    await store.record(gateway)
    assert gateway.newest is not None
    await store.save(replace(gateway.newest, last_seq=9))
    await store.flush()
    assert on_storage(storage).last_seq == 9


async def test_an_older_gateway_session_writes_nothing_and_is_named_once(
    store: AsyncSessionStore,
    storage: FaultyStorage,
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 18
    newer = Gateway()
    newer.begin("new", 5)
    await store.record(gateway)
    await store.record(newer)
    for number in range(10, 20):
        gateway.handle(number)
        await store.record(gateway)
    gateway.begin(None)
    await store.record(gateway)
    await store.flush()
    assert (on_storage(storage).session_id, on_storage(storage).last_seq) == ("new", 5)
    assert caplog.messages == ["ignoring an older gateway session of bot"]


async def test_two_shards_under_one_account_id_are_an_error(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 18
    await store.record(gateway)
    other = Gateway(shard=(1, 2))
    other.begin("other", 9)
    with pytest.raises(ValueError, match=r"'bot' is shard \(0, 1\)'s, not \(1, 2\)'s"):
        await store.record(other)
    await store.flush()
    assert on_storage(storage).session_id == "s1"


@pytest.mark.parametrize("refused", ["another app", "unreadable", "corrupt"])
async def test_a_record_that_load_refused_is_left_alone_until_there_is_a_session(
    store: AsyncSessionStore, storage: FaultyStorage, clock: WallClock, refused: str
) -> None:
    # promise 10, 13
    state = SessionState(account_id="bot", session_id="old", last_seq=5, app_id="1")
    storage.records["bot"] = b"{" if refused == "corrupt" else encode(state, saved_at=clock())
    storage.unreadable = refused == "unreadable"
    before = dict(storage.records)
    assert await store.load("bot", app_id="2") is None
    gateway = Gateway()
    for _ in range(3):
        await store.record(gateway)
        await asyncio.sleep(2 * WINDOW)
    assert storage.records == before
    gateway.begin("new", 1)
    await store.record(gateway)
    await store.flush()
    assert on_storage(storage).session_id == "new"


async def test_a_state_that_cannot_be_made_fails_alone_and_heals(
    store: AsyncSessionStore, storage: FaultyStorage, gateway: Gateway
) -> None:
    # promise 8
    class Broken(Gateway):
        @property
        def state(self) -> SessionState | None:
            if self.asked > 0:
                raise LookupError("a bug")
            return super().state

    broken = Broken("broken")
    broken.begin()
    await store.record(broken)
    await store.record(gateway)
    await asyncio.sleep(0.1)
    assert set(storage.records) == {"bot"}
    broken.asked = -10
    await asyncio.sleep(5)
    assert set(storage.records) == {"bot", "broken"}


async def test_a_batch_of_gateway_sessions_lets_the_loop_in(
    store: AsyncSessionStore, storage: FaultyStorage
) -> None:
    """To make a state takes a gateway session as long as several encodings."""
    # promise 1
    most = 0
    asked: list[int] = []

    class Counting(Gateway):
        @property
        def state(self) -> SessionState | None:
            asked.append(1)
            return self.newest

    async def watch() -> None:
        nonlocal most
        while True:
            asked.clear()
            await asyncio.sleep(0)
            most = max(most, len(asked))

    gateways = [Counting(f"bot-{number}") for number in range(128)]
    for gateway in gateways:
        gateway.begin()
        await store.record(gateway)
    watching = asyncio.create_task(watch())
    await store.flush()
    watching.cancel()
    assert [len(commit) for commit in storage.commits] == [128]
    assert 0 < most <= 32


@pytest.mark.parametrize("wrong", [None, "bot", object()])
async def test_what_is_no_gateway_session_is_named(store: AsyncSessionStore, wrong: Any) -> None:
    # promise 10
    with pytest.raises(TypeError, match="must be a GatewaySession"):
        await store.record(wrong)
    with pytest.raises(TypeError, match="must be a GatewaySession"):
        store.record_nowait(wrong)


@pytest.mark.parametrize("remember_events", [0, 256])
@pytest.mark.parametrize("order", [[2, 3, 4], [4, 3, 2], [3, 2, 4]])
async def test_what_a_gateway_session_handled_is_told_from_what_it_received(
    store: AsyncSessionStore, order: list[int], remember_events: int
) -> None:
    # promise 2
    gateway = GatewaySession("bot", app_id="1", intents=1, remember_events=remember_events)
    line = gateway.connect()
    line.opened("token", 0.0)
    line.receive({"op": 10, "d": {"heartbeat_interval": 45_000}}, 0.0)
    user = {"session_id": "S", "user": {"id": "me"}}
    line.receive({"op": 0, "s": 1, "t": "READY", "d": user}, 0.0)
    events = {}
    for seq in (2, 3, 4):
        before = gateway.handled
        frame = {
            "op": 0,
            "s": seq,
            "t": "C2C_MESSAGE_CREATE",
            "id": f"e{seq}",
            "d": {"id": f"{seq}"},
        }
        events[seq] = line.receive(frame, 1.0)
        gateway.begin(events[seq])
        assert gateway.handled == before
    for seq in order:
        before = gateway.handled
        gateway.settle(events[seq])
        assert gateway.handled != before
