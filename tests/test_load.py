"""What `load` says of what it gives and does not give, and what it makes of reads that fail."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import WallClock
from faults import FaultyStorage

from qqbot_session import (
    AsyncSessionStore,
    LoadDetails,
    LoadReason,
    MemoryStorage,
    SessionState,
    SessionWriteError,
    WrongEventLoopError,
)
from qqbot_session.state import ResumableState, decode, encode
from qqbot_session.storages.base import NotRegularError


def a_state(account_id: str = "bot", last_seq: int | None = 1, **values: Any) -> SessionState:
    return SessionState(
        account_id=account_id, **{"session_id": "s1", "last_seq": last_seq} | values
    )


class Flaky(FaultyStorage):
    """Reads fail so many times. Attributes: moments: when each was made."""

    def __init__(self) -> None:
        super().__init__()
        self.failing_reads = 0
        self.error: Exception = OSError(errno.EMFILE, "Too many open files", "session-bot.json")
        self.moments: list[float] = []

    async def read(self, account_id: str) -> bytes | None:
        self.moments.append(asyncio.get_running_loop().time())
        if self.failing_reads:
            self.failing_reads -= 1
            raise self.error
        return await super().read(account_id)


@pytest.fixture
def storage() -> Flaky:
    return Flaky()


@pytest.fixture
async def store(storage: Flaky, clock: WallClock) -> Any:
    async with AsyncSessionStore(storage, clock=clock) as store:
        yield store


# What is said

CASES: dict[str, tuple[Any, dict[str, Any], LoadReason, float | None, str]] = {
    "nothing": (None, {}, LoadReason.ABSENT, None, "absent: no record"),
    "expired": (
        (a_state(), -401),
        {},
        LoadReason.EXPIRED,
        401.0,
        "expired: saved 401 s ago, max_age 300 s",
    ),
    "from the future": (
        (a_state(), 401),
        {},
        LoadReason.EXPIRED,
        -401.0,
        "expired: saved 401 s in the future, max_age 300 s",
    ),
    "no session": (
        (a_state(session_id=None), -4),
        {},
        LoadReason.NO_SESSION,
        4.0,
        "no session: it has no session id, saved 4 s ago",
    ),
    "app": (
        (a_state(app_id="1"), -4),
        {"app_id": "2"},
        LoadReason.OTHER_APP,
        4.0,
        "another app: asked for '2', found '1', saved 4 s ago",
    ),
    "shard": (
        (a_state(shard=(0, 2)), -4),
        {"shard": (1, 2)},
        LoadReason.OTHER_SHARD,
        4.0,
        "another shard: asked for (1, 2), found (0, 2), saved 4 s ago",
    ),
    "intents": (
        (a_state(intents=1), -4),
        {"intents": 513},
        LoadReason.OTHER_INTENTS,
        4.0,
        "other intents: asked for 513, found 1, saved 4 s ago",
    ),
    "corrupt": (b"{}", {}, LoadReason.CORRUPT, None, "corrupt: the record has no accountId"),
    "foreign": (
        (a_state("other"), -4),
        {},
        LoadReason.FOREIGN,
        None,
        "foreign: the record belongs to other",
    ),
}


@pytest.mark.parametrize(("held", "asked", "reason", "age", "words"), CASES.values(), ids=CASES)
async def test_a_load_that_gives_nothing_says_why_in_one_line_and_to_on_load(
    clock: WallClock,
    caplog: pytest.LogCaptureFixture,
    held: Any,
    asked: dict[str, Any],
    reason: LoadReason,
    age: float | None,
    words: str,
) -> None:
    # promise 10
    caplog.set_level(logging.INFO)
    seen: list[LoadDetails] = []
    storage = MemoryStorage()
    if isinstance(held, tuple):
        held = encode(held[0], saved_at=clock.now + held[1])
    if held is not None:
        storage.records["bot"] = held
    async with AsyncSessionStore(storage, clock=clock, on_load=seen.append) as store:
        assert await store.load("bot", **asked) is None
    (line,) = caplog.records
    assert line.getMessage() == f"Identify bot: {words}"
    alarming = reason in (LoadReason.CORRUPT, LoadReason.FOREIGN)
    assert line.levelno == (logging.WARNING if alarming else logging.INFO)
    fields = line.__dict__
    assert fields["qqbot_account"] == "bot"
    assert fields["qqbot_reason"] == reason.value
    assert fields["qqbot_age"] == age
    (details,) = seen
    assert (details.account_id, details.reason, details.age) == ("bot", reason, age)


async def test_a_load_that_gives_a_session_says_nothing_but_to_on_load(
    clock: WallClock, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 10
    caplog.set_level(logging.DEBUG)
    seen: list[LoadDetails] = []
    storage = MemoryStorage({"bot": encode(a_state(), saved_at=clock.now - 7)})
    async with AsyncSessionStore(storage, clock=clock, on_load=seen.append) as store:
        state = await store.load("bot")
    (details,) = seen
    assert (details.reason, details.age, details.state) == (LoadReason.RESUMABLE, 7.0, state)
    assert caplog.messages == []


async def test_an_on_load_that_fails_is_logged_and_nothing_else(
    clock: WallClock, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(_: LoadDetails) -> None:
        raise asyncio.CancelledError

    storage = MemoryStorage({"bot": encode(a_state(), saved_at=clock.now)})
    async with AsyncSessionStore(storage, clock=clock, on_load=hook) as store:
        assert await store.load("bot") is not None
    assert "on_load failed" in caplog.text


async def test_a_strange_account_id_breaks_no_line(
    store: AsyncSessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 14
    caplog.set_level(logging.INFO)
    await store.load("bot\nINFO all is well\x1b[2J" + "x" * 500)
    (line,) = caplog.messages
    assert line.isprintable()
    assert len(line) < 200


# Reads that fail


async def test_a_read_that_fails_for_a_moment_is_tried_again(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock
) -> None:
    # promise 10
    storage.records["bot"] = encode(a_state(last_seq=5), saved_at=clock())
    storage.failing_reads = 4
    assert (await store.load("bot")).last_seq == 5
    assert storage.moments[-1] - storage.moments[0] < 2


async def test_after_two_seconds_it_is_unreadable_and_that_is_waited_for_once(
    store: AsyncSessionStore, storage: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 10
    loop = asyncio.get_running_loop()
    storage.failing_reads = 10**9
    begin = loop.time()
    assert await store.load("bot") is None
    assert 1 < loop.time() - begin <= 2
    (line,) = caplog.records
    assert "Too many open files: 'session-bot.json'" in line.getMessage()
    assert line.levelno == logging.WARNING
    begin, made = loop.time(), len(storage.moments)
    for number in range(100):
        assert await store.load(f"bot-{number}") is None
    assert loop.time() == begin
    assert len(storage.moments) == made + 100
    storage.failing_reads = 0
    await store.load("bot")
    storage.failing_reads = 10**9
    assert await store.load("new") is None
    assert loop.time() - begin > 1  # reads were well again in between


async def test_what_is_no_regular_file_is_not_asked_for_again(
    store: AsyncSessionStore, storage: Flaky
) -> None:
    # promise 10, 14
    storage.error = NotRegularError(errno.EINVAL, "is not a regular file", "session-bot.json")
    storage.failing_reads = 10**9
    assert await store.load("bot") is None
    assert len(storage.moments) == 1


async def test_an_unreadable_account_is_read_for_an_update_at_most_once_a_second(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock
) -> None:
    """It is neither denied nor known: the first read that succeeds gives it back its session."""
    # promise 10
    storage.records["bot"] = encode(a_state(last_seq=5), saved_at=clock())
    storage.failing_reads = 10**9
    assert await store.load("bot") is None
    made = len(storage.moments)
    for number in range(6, 506):
        assert await store.update_last_seq("bot", number) is False
        await asyncio.sleep(0.01)
    assert len(storage.moments) - made <= 6
    storage.failing_reads = 0
    await asyncio.sleep(1)
    assert await store.update_last_seq("bot", 600) is True
    await store.flush()
    assert (await store.load("bot")).last_seq == 600


@pytest.mark.parametrize("how", ["save", "update_last_seq"])
async def test_what_this_store_wrote_is_never_denied_by_a_read_that_fails(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock, how: str
) -> None:
    # promise 10
    if how == "save":
        await store.save(a_state(last_seq=7))
    else:
        storage.records["bot"] = encode(a_state(last_seq=5), saved_at=clock())
        assert await store.update_last_seq("bot", 7)
    await store.flush()
    storage.failing_reads = 10**9
    storage.unreadable = True
    assert await store.load("bot") == a_state(last_seq=7, saved_at=clock())
    assert [state.last_seq for state in await store.load_all()] == [7]
    assert await store.update_last_seq("bot", 8)
    await store.clear("bot")
    await asyncio.sleep(10)
    assert await store.load("bot") is None
    assert await store.load_all() == []


async def test_a_listing_that_fails_for_a_moment_is_tried_again(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock
) -> None:
    # promise 10
    storage.records["bot"] = encode(a_state(), saved_at=clock())
    storage.unreadable = True
    asyncio.get_running_loop().call_later(0.5, setattr, storage, "unreadable", False)
    assert [state.account_id for state in await store.load_all()] == ["bot"]


async def held_listing(
    store: AsyncSessionStore, storage: FaultyStorage
) -> tuple[asyncio.Task[list[ResumableState]], asyncio.Event]:
    """Begin a listing that has looked, and does not return before its gate is set."""
    gate, others = asyncio.Event(), storage.read_gate
    storage.read_gate = gate
    listing = asyncio.create_task(store.load_all())
    await asyncio.sleep(0.1)
    storage.read_gate = others
    return listing, gate


async def test_of_two_listings_at_once_the_later_tells_what_it_found(clock: WallClock) -> None:
    # promise 3
    storage = FaultyStorage({"bot": encode(a_state(last_seq=1), saved_at=clock())})
    storage.records["gone"] = encode(a_state("gone"), saved_at=clock())
    async with AsyncSessionStore(storage, clock=clock) as store:
        earlier, earlier_gate = await held_listing(store, storage)
        storage.records["bot"] = encode(a_state(last_seq=2), saved_at=clock())  # another process
        del storage.records["gone"]
        later, later_gate = await held_listing(store, storage)
        earlier_gate.set()
        assert len(await earlier) == 2
        later_gate.set()
        assert [state.last_seq for state in await later] == [2]
        assert await store.touch("bot")
    assert decode(storage.records["bot"]).last_seq == 2


async def test_what_a_listing_cannot_read_again_is_listed_as_it_is_known(clock: WallClock) -> None:
    # promise 10
    storage = FaultyStorage({"bot": encode(a_state(last_seq=1), saved_at=clock())})
    async with AsyncSessionStore(storage, clock=clock) as store:
        listing, gate = await held_listing(store, storage)
        storage.records["bot"] = encode(a_state(last_seq=2), saved_at=clock())  # another process
        assert await store.load("bot") is not None
        storage.unreadable = True
        gate.set()
        assert [state.last_seq for state in await listing] == [2]


async def test_a_listing_brings_nothing_back_that_was_removed_and_forgotten(
    clock: WallClock,
) -> None:
    """More records expired meanwhile than absent accounts are remembered."""
    # promises 3, 13
    ids = [f"bot-{number}" for number in range(1100)]
    expired = {name: encode(a_state(name), saved_at=clock() - 1000) for name in ids}
    storage = FaultyStorage(expired)
    async with AsyncSessionStore(storage, clock=clock) as store:
        listing, gate = await held_listing(store, storage)
        for name in ids:
            assert await store.load(name) is None
        gate.set()
        assert await listing == []
        assert [name for name in ids if await store.touch(name)] == []
    assert storage.records == {}


async def test_many_accounts_without_a_record_are_read_once_each(clock: WallClock) -> None:
    """More than are remembered: one that is forgotten makes nobody read again."""
    # promise 3
    storage = FaultyStorage()
    async with AsyncSessionStore(storage, clock=clock) as store:
        loads = [store.load(f"bot-{number}") for number in range(3000)]
        assert set(await asyncio.gather(*loads)) == {None}
    assert len(storage.reads) == 3000


async def test_a_listing_that_failed_halfway_reads_no_record_one_by_one(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 10
    for number in range(5):
        storage.records[f"bot-{number}"] = encode(a_state(f"bot-{number}"), saved_at=clock())
    whole, tries = storage.scan, 0

    async def scan() -> AsyncIterator[tuple[str, bytes]]:
        nonlocal tries
        tries += 1
        async for item in whole():
            if tries == 1 and item[0] == "bot-3":
                raise OSError(errno.EIO, "for a moment")
            yield item

    monkeypatch.setattr(storage, "scan", scan)
    assert len(await store.load_all()) == 5
    assert storage.reads == []


async def test_a_copy_under_another_id_is_nobodys_record(
    store: AsyncSessionStore, storage: Flaky, clock: WallClock
) -> None:
    # promise 3
    storage.records["bot-backup"] = encode(a_state(), saved_at=clock.now - 1000)
    assert await store.load("bot") is None
    assert await store.load_all(include_expired=True) == []
    assert await store.cleanup() == 0
    assert await store.update_last_seq("bot", 9) is False
    assert set(storage.records) == {"bot-backup"}


@pytest.mark.parametrize("reader", ["load", "load_all", "cleanup"])
async def test_what_outlives_its_store_changes_nothing(clock: WallClock, reader: str) -> None:
    # promise 5
    storage = FaultyStorage({"bot": encode(a_state(), saved_at=1.0)})
    store = AsyncSessionStore(storage, clock=clock)
    storage.read_gate.clear()
    reading = asyncio.create_task(
        store.load("bot") if reader == "load" else getattr(store, reader)()
    )
    await asyncio.sleep(0.1)
    await store.aclose()
    storage.read_gate.set()
    assert not await reading
    assert set(storage.records) == {"bot"}
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Whose loop it is


async def test_a_call_from_another_thread_is_an_error_under_debug_also_when_warm() -> None:
    # promise 1
    asyncio.get_running_loop().set_debug(True)
    async with AsyncSessionStore(MemoryStorage(), debounce=3600, max_age=None) as store:
        await store.save(a_state())
        errors: list[BaseException] = []

        def call() -> None:
            for do in (
                lambda: store.save_nowait(a_state(last_seq=2)),
                lambda: store.update_last_seq("bot", 9).send(None),
            ):
                try:
                    do()
                except WrongEventLoopError as error:
                    errors.append(error)

        await asyncio.to_thread(call)
        assert len(errors) == 2
        assert (await store.load("bot")).last_seq == 1


@pytest.mark.parametrize("call", ["load", "load_all", "flush", "cleanup", "clear", "aclose"])
def test_a_second_loop_is_an_error_whatever_it_asks_for(call: str) -> None:
    # promise 1
    store = AsyncSessionStore(MemoryStorage())
    asyncio.run(store.save(a_state()))
    arguments = ("bot",) if call in ("load", "clear") else ()
    with pytest.raises(WrongEventLoopError):
        asyncio.run(getattr(store, call)(*arguments))


# What the operator sees


async def test_an_account_that_fails_for_ever_hides_nobody(
    storage: Flaky, clock: WallClock, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 8
    store = AsyncSessionStore(storage, clock=clock)
    storage.failing = {"bad"}
    await store.save(a_state("bad"))
    await asyncio.sleep(100)
    storage.failing = True
    for number in range(500):
        await store.save(a_state(f"bot-{number}"))
    await asyncio.sleep(100)
    with pytest.raises(SessionWriteError) as caught:
        await store.aclose()
    assert caplog.messages == [
        "cannot write bad: [Errno 28] full; retrying",
        "cannot write 500 accounts (bot-0, bot-1, bot-2, …): [Errno 28] full; retrying",
    ]
    assert len(caught.value.failures) == 501
    assert len(str(caught.value)) < 300


async def test_an_error_of_the_system_shows_its_path_and_no_class_of_ours(
    storage: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 8, 10
    class _PrivateError(OSError):
        pass

    async def commit(changes: Any) -> Any:
        raise _PrivateError(errno.EACCES, "Permission denied", "/srv/sessions")

    storage.commit = commit  # type: ignore[method-assign]
    store = AsyncSessionStore(storage)
    await store.save(a_state())
    with pytest.raises(SessionWriteError) as caught:
        await store.aclose()
    for text in (caplog.text, str(caught.value)):
        assert "'/srv/sessions'" in text
        assert "_PrivateError" not in text


def test_a_window_longer_than_the_age_limit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    # promise 2
    AsyncSessionStore(MemoryStorage(), debounce=301)
    (line,) = caplog.messages
    assert "debounce 301 s is longer than max_age 300 s" in line
    AsyncSessionStore(MemoryStorage(), debounce=301, max_age=None)
    AsyncSessionStore(MemoryStorage(), debounce=300)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("accounts", [1, 8, 1000])
@pytest.mark.parametrize("later", [1.0, 1.99])
async def test_any_number_of_accounts_wait_for_a_storage_that_comes_up_late(
    storage: Flaky, clock: WallClock, accounts: int, later: float
) -> None:
    """As shards do that are started together with their Redis."""
    # promise 10
    for number in range(accounts):
        storage.records[f"bot-{number}"] = encode(a_state(f"bot-{number}"), saved_at=clock.now)
    storage.unreadable = True
    asyncio.get_running_loop().call_later(later, setattr, storage, "unreadable", False)
    async with AsyncSessionStore(storage, clock=clock) as store:
        found = await asyncio.gather(*(store.load(f"bot-{n}") for n in range(accounts)))
    assert None not in found


async def test_thousands_of_loads_at_once_are_read_a_hundred_at_a_time(clock: WallClock) -> None:
    # promise 27
    class Counting(MemoryStorage):
        under_way = most = 0

        async def read(self, account_id: str) -> bytes | None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0.01)
            self.under_way -= 1
            return await super().read(account_id)

    storage = Counting({f"bot-{n}": encode(a_state(f"bot-{n}")) for n in range(2000)})
    async with AsyncSessionStore(storage, max_age=None, clock=clock) as store:
        found = await asyncio.gather(*(store.load(f"bot-{n}") for n in range(2000)))
    assert None not in found
    assert storage.most <= 128
