"""Leases: one holder, its end in time, and nothing written by anybody else.

Here in virtual time on leases in memory, which several stores share as processes do, and then with
real processes. That storages refuse the writes of others is in `test_storage_contract`.
"""

# ruff: noqa: PT012  what raises is the end of the body
from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer

from qqbot_session import (
    AsyncSessionStore,
    FileStorage,
    LeaseLostError,
    MemoryStorage,
    SessionState,
    SessionWriteError,
    StoreClosedError,
)
from qqbot_session.state import decode
from qqbot_session.storages import LeasingStorage, storage_of

TTL = 15.0  # seconds


class Server:
    """What all `SharedStorage`s of a test have in common, in the loop's time."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.renewals = 0

    def holder(self, account_id: str) -> str | None:
        token, ends = self.leases.get(account_id, ("", 0.0))
        return token if ends > asyncio.get_running_loop().time() else None


class SharedStorage(MemoryStorage):
    """One process's way to the server; it may be cut, or hang."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.records)
        self.server = server
        self.cut = self.hangs = False
        self.tokens: dict[str, str] = {}

    async def _reach(self) -> None:
        if self.hangs:
            await asyncio.sleep(1e9)
        if self.cut:
            raise ConnectionError("cut off")

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        await self._reach()
        refused: dict[str, Exception] = {}
        for account_id in changes:
            holder = self.server.holder(account_id)
            if holder != self.tokens.get(account_id):
                refused[account_id] = LeaseLostError("not yours")
        await super().commit({k: v for k, v in changes.items() if k not in refused})
        return refused

    async def acquire(self, account_id: str, token: str, ttl: float) -> bool:
        await self._reach()
        if self.server.holder(account_id) not in (None, token):
            return False
        self.server.leases[account_id] = (token, asyncio.get_running_loop().time() + ttl)
        self.tokens[account_id] = token
        return True

    async def renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        self.server.renewals += 1
        await self._reach()
        return {
            account_id: LeaseLostError("not yours")
            for account_id, token in held.items()
            if not await self.acquire(account_id, token, ttl)
        }

    async def release(self, account_id: str, token: str) -> None:
        self.tokens.pop(account_id, None)
        await self._reach()
        if self.server.holder(account_id) == token:
            del self.server.leases[account_id]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def storage(server: Server) -> SharedStorage:
    return SharedStorage(server)


@pytest.fixture
async def store(storage: SharedStorage) -> AsyncIterator[AsyncSessionStore]:
    async with AsyncSessionStore(storage, max_age=None) as store:
        yield store


@pytest.fixture
async def other(server: Server) -> AsyncIterator[AsyncSessionStore]:
    async with AsyncSessionStore(SharedStorage(server), max_age=None) as store:
        yield store


def state(last_seq: int, account_id: str = "bot") -> SessionState:
    return SessionState(account_id=account_id, session_id="s", last_seq=last_seq)


def now() -> float:
    return asyncio.get_running_loop().time()


def seq_of(server: Server, account_id: str = "bot") -> int | None:
    return decode(server.records[account_id]).last_seq


async def run_until_lost(store: AsyncSessionStore, account_id: str = "bot") -> float:
    """Hold the lease, write all the time, and return when the body was ended."""
    ended = 0.0
    with pytest.raises(LeaseLostError, match="bot"):
        async with store.lease(account_id, ttl=TTL):
            await store.save(state(0, account_id))
            try:
                for number in range(10_000):
                    await asyncio.sleep(1.0)
                    await store.update_last_seq(account_id, number)
            finally:
                ended = now()
    return ended


# What a lease is


async def test_the_next_holder_begins_where_the_last_one_left(
    store: AsyncSessionStore, other: AsyncSessionStore
) -> None:
    """With the very last number, as soon as the lease is given up."""
    # promises 5, 23
    order = []

    async def next_one() -> None:
        async with other.lease("bot", ttl=TTL) as lease:
            order.append("other")
            assert lease.lost is None
            found = await other.load("bot")
            assert found is not None
            assert found.last_seq == 7

    async with store.lease("bot", ttl=TTL):
        candidate = asyncio.create_task(next_one())
        await asyncio.sleep(100.0)
        await store.save(state(1))
        await asyncio.sleep(1.0)
        await store.update_last_seq("bot", 7)
        order.append("first")
    left = now()
    await candidate
    assert order == ["first", "other"]
    assert now() <= left + TTL / 5


async def test_a_lease_is_renewed_as_long_as_its_body_runs(
    store: AsyncSessionStore, other: AsyncSessionStore, server: Server
) -> None:
    async def wait() -> None:
        async with other.lease("bot", ttl=TTL):
            pytest.fail("it was free")

    async with store.lease("bot", ttl=TTL) as lease:
        candidate = asyncio.create_task(wait())
        await asyncio.sleep(3600.0)
        assert lease.lost is None
        assert "held" in repr(lease)
        candidate.cancel()
        await asyncio.wait([candidate])
    assert server.renewals == 3600 // (TTL / 3)


async def test_many_leases_are_renewed_in_one_call(
    store: AsyncSessionStore, server: Server
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1000):
            await stack.enter_async_context(store.lease(f"{number}", ttl=TTL))
        await asyncio.sleep(60.0)
        assert server.renewals <= 60 // (TTL / 3)
        tasks = [task for task in asyncio.all_tasks() if "lease" in task.get_name()]
        assert len(tasks) <= 1


async def test_wrong_uses_are_named(store: AsyncSessionStore, tmp_path: Path) -> None:
    async with AsyncSessionStore(FileStorage(tmp_path)) as on_files:
        with pytest.raises(TypeError, match=r"SQLite or Redis.*FileStorage"):
            on_files.lease("bot")
    for ttl in (0.5, 0, float("inf"), float("nan"), -1):
        with pytest.raises(ValueError, match="ttl"):
            store.lease("bot", ttl=ttl)
    with pytest.raises(TypeError, match="ttl"):
        store.lease("bot", ttl="15")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="account_id"):
        store.lease("")
    async with store.lease("bot"):
        with pytest.raises(RuntimeError, match="'bot'"):
            async with store.lease("bot"):
                pass
        async with store.lease("another"):
            pass
    async with store.lease("bot"):
        pass


# How it ends


async def test_a_holder_that_is_cut_off_ends_a_third_before_anybody_may_begin(
    store: AsyncSessionStore, storage: SharedStorage, other: AsyncSessionStore, server: Server
) -> None:
    # promise 23
    holder = asyncio.create_task(run_until_lost(store))
    await asyncio.sleep(100.5)
    storage.cut = True
    cut = now()

    async def begin() -> float:
        async with other.lease("bot", ttl=TTL):
            return now()

    begun = await begin()
    ended = await holder
    assert cut + TTL / 3 <= ended <= cut + TTL * 2 / 3
    assert begun >= ended + TTL / 3
    assert begun <= cut + TTL * 1.2


async def test_a_storage_that_hangs_ends_the_body_in_time(
    store: AsyncSessionStore, storage: SharedStorage
) -> None:
    """Also of an account whose lease lasts longer: each counts for itself."""
    holder = asyncio.create_task(run_until_lost(store))
    async with store.lease("patient", ttl=10 * TTL) as patient:
        await asyncio.sleep(1.0)
        storage.hangs = True
        asked = now()
        assert await holder <= asked + TTL * 2 / 3
        assert patient.lost is None
        storage.hangs = False
        await asyncio.sleep(100 * TTL)
        assert patient.lost is None


async def test_a_short_outage_ends_nothing(
    store: AsyncSessionStore, storage: SharedStorage, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.lease("bot", ttl=TTL) as lease:
        for _ in range(20):
            storage.cut = True
            await asyncio.sleep(TTL / 4)
            storage.cut = False
            await asyncio.sleep(TTL)
        assert lease.lost is None
    assert "cannot renew the lease of bot: " in caplog.text


async def test_an_outage_and_the_end_of_a_store_are_no_line_for_each_lease(
    store: AsyncSessionStore, storage: SharedStorage, caplog: pytest.LogCaptureFixture
) -> None:
    def holders() -> list[asyncio.Task[float]]:
        return [asyncio.create_task(run_until_lost(store, f"bot-{n}")) for n in range(100)]

    lost = holders()
    await asyncio.sleep(1)
    storage.cut = True
    await asyncio.wait(lost)
    storage.cut = False
    await asyncio.sleep(TTL)
    given_up = holders()
    await asyncio.sleep(1.5)
    await store.aclose()
    await asyncio.wait(given_up)
    lines = [line for line in caplog.messages if "lease" in line]
    renewals = [line for line in lines if "cannot renew" in line]
    assert len(renewals) == 4  # a third of ttl, and each twelfth after that
    ends = [line.partition(" (bot-")[0] for line in lines if line not in renewals]
    assert ends == ["the lease of 100 accounts"] * 2


async def test_what_was_taken_over_is_forgotten_and_never_written(
    store: AsyncSessionStore, server: Server
) -> None:
    """No retry of the former holder's comes back, and closing the store is no error."""
    # promise 23
    holder = asyncio.create_task(run_until_lost(store))
    await asyncio.sleep(10.5)
    server.leases["bot"] = ("another's", now() + 1000.0)
    server.records["bot"] = b"the successor's"
    await holder
    await store.flush()
    assert store._ledger.unsaved() == []
    server.leases.clear()
    await asyncio.sleep(1000.0)
    assert server.records["bot"] == b"the successor's"


async def test_what_a_body_writes_while_it_is_being_ended_goes_nowhere(
    store: AsyncSessionStore, server: Server
) -> None:
    with pytest.raises(LeaseLostError):
        async with store.lease("bot", ttl=TTL):
            try:
                await store.save(state(1))
                await asyncio.sleep(1.0)
                server.leases["bot"] = ("another's", now() + 10.0)
                await asyncio.sleep(1e6)
            finally:
                await store.save(state(99))  # as a runner's last record
    await asyncio.sleep(1000.0)
    assert seq_of(server) == 1


async def test_a_log_filter_that_raises_keeps_no_lost_body_alive(
    store: AsyncSessionStore, server: Server
) -> None:
    # promises 1 and 23
    def broken(record: logging.LogRecord) -> bool:
        raise KeyError(record.msg)

    log = logging.getLogger("qqbot_session")
    log.addFilter(broken)
    try:
        server.leases["bot"] = ("another's", now() + 20.0)  # waiting for it is said, too
        with pytest.raises(LeaseLostError):
            async with store.lease("bot", ttl=TTL):
                began = now()
                server.leases["bot"] = ("another's", now() + 1000.0)
                await asyncio.sleep(1e6)
    finally:
        log.removeFilter(broken)
    assert now() <= began + TTL


async def test_the_loss_of_a_lease_is_no_cancellation(
    store: AsyncSessionStore, server: Server
) -> None:
    """The task goes on as if nothing had been; a caller's own cancellation is kept."""
    for is_cancelled in (False, True):
        task = asyncio.current_task()
        assert task is not None
        caught: BaseException | None = None
        try:
            async with store.lease("bot", ttl=TTL):
                server.leases["bot"] = ("another's", now() + TTL)
                try:
                    await asyncio.sleep(1e6)
                finally:
                    if is_cancelled:
                        task.cancel()
                        await asyncio.sleep(0)
        except (LeaseLostError, asyncio.CancelledError) as error:
            caught = error
        assert isinstance(caught, asyncio.CancelledError if is_cancelled else LeaseLostError)
        assert task.cancelling() == is_cancelled
        if is_cancelled:
            task.uncancel()
        await asyncio.sleep(2 * TTL)


async def test_a_body_that_ends_in_an_error_of_its_own_is_saved_and_released(
    store: AsyncSessionStore, server: Server, storage: SharedStorage
) -> None:
    """Its error comes first, even if the last write fails."""
    for cut in (False, True):
        with pytest.raises(KeyError, match="mine"):
            async with store.lease("bot", ttl=TTL):
                await store.save(state(5 + cut))
                storage.cut = cut
                raise KeyError("mine")
        assert seq_of(server) == 5
        storage.cut = False
        assert (server.holder("bot") is None) is (not cut)


async def test_a_cancelled_body_is_saved_and_released(
    store: AsyncSessionStore, server: Server
) -> None:
    async def body() -> None:
        async with store.lease("bot", ttl=TTL):
            await store.save(state(1))
            await asyncio.sleep(5.0)
            await store.update_last_seq("bot", 2)
            await asyncio.sleep(0)
            await store.update_last_seq("bot", 3)
            await asyncio.sleep(1e6)

    task = asyncio.create_task(body())
    await asyncio.sleep(5.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seq_of(server) == 3
    assert server.holder("bot") is None


async def test_a_last_write_that_fails_is_an_error_and_the_lease_is_given_up(
    store: AsyncSessionStore, server: Server, storage: SharedStorage, monkeypatch: Any
) -> None:
    async def refuse(changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        raise OSError("full")

    with pytest.raises(SessionWriteError, match="full"):
        async with store.lease("bot", ttl=TTL):
            await store.save(state(1))
            monkeypatch.setattr(storage, "commit", refuse)
    assert server.holder("bot") is None


async def test_closing_the_store_gives_up_what_it_holds(server: Server) -> None:
    store = AsyncSessionStore(SharedStorage(server))
    async with store.lease("bot", ttl=TTL):
        await store.save(state(3))
        await store.aclose()
        assert server.holder("bot") is None
    assert seq_of(server) == 3
    assert [task for task in asyncio.all_tasks() if "qqbot" in task.get_name()] == []


@pytest.mark.parametrize("cancels", [2, 3])
async def test_a_body_that_is_cancelled_again_and_again_is_saved_and_released(
    store: AsyncSessionStore,
    server: Server,
    storage: SharedStorage,
    monkeypatch: Any,
    cancels: int,
) -> None:
    """SIGTERM, and SIGTERM again, while the last write waits its turn."""
    # promise 9
    commit = storage.commit

    async def slowly(changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        await asyncio.sleep(0.8)
        return await commit(changes)

    async def body() -> None:
        async with store.lease("bot", ttl=TTL):
            monkeypatch.setattr(storage, "commit", slowly)
            await store.save(state(1))
            await asyncio.sleep(0.1)
            await store.save(state(2))
            await asyncio.sleep(1e6)

    task = asyncio.create_task(body())
    await asyncio.sleep(0.5)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0.01)
    await asyncio.wait([task])
    assert task.cancelled()
    assert seq_of(server) == 2
    assert server.holder("bot") is None


async def test_a_hung_storage_holds_a_twice_cancelled_body_for_two_seconds(
    store: AsyncSessionStore, storage: SharedStorage, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 5
    async def body() -> None:
        async with store.lease("bot", ttl=TTL):
            storage.hangs = True
            await store.save(state(1))
            await asyncio.sleep(1e6)

    task = asyncio.create_task(body())
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.sleep(0.5)
    task.cancel()
    began = now()
    await asyncio.wait([task])
    assert now() - began <= 2.1
    assert "leaving the lease of bot: " in caplog.text
    storage.hangs = False


async def test_closing_the_store_ends_every_body_before_its_lease_is_given_up(
    server: Server,
) -> None:
    # promise 28
    store, third = (
        AsyncSessionStore(SharedStorage(server)),
        AsyncSessionStore(SharedStorage(server)),
    )
    ended = 0.0

    async def body() -> None:
        nonlocal ended
        async with store.lease("bot", ttl=TTL):
            await store.save(state(1))
            try:
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(3.0)  # handlers have their grace
                ended = now()

    async def candidate() -> None:
        async with third.lease("bot", ttl=TTL):
            assert 0.0 < ended <= now() < ended + TTL / 3

    task, other = asyncio.create_task(body()), asyncio.create_task(candidate())
    await asyncio.sleep(1.0)
    await store.aclose()
    assert 0.0 < ended <= now()
    assert server.holder("bot") is None
    with pytest.raises(LeaseLostError, match="closed"):
        await task
    await other
    assert seq_of(server) == 1
    await third.aclose()


async def test_a_body_that_outlives_its_store_keeps_the_lease_until_it_lapses(
    server: Server,
) -> None:
    # promise 28
    store, third = (
        AsyncSessionStore(SharedStorage(server)),
        AsyncSessionStore(SharedStorage(server)),
    )
    release = asyncio.Event()

    async def stubborn() -> None:
        async with store.lease("bot", ttl=TTL):
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(1.0)
    await store.aclose()
    assert now() >= 1.0 + TTL * 2 / 3
    async with third.lease("bot", ttl=TTL):
        assert now() >= TTL
    release.set()
    await asyncio.wait([task])
    assert isinstance(task.exception(), LeaseLostError)
    await third.aclose()


@pytest.mark.parametrize("slow", [0.0, 1.0])
async def test_a_candidate_does_not_outlive_its_store(
    server: Server, other: AsyncSessionStore, slow: float
) -> None:
    """Not even if its request is granted while the store is closed."""
    # promise 28
    storage = SharedStorage(server)
    grant = storage.acquire

    async def slowly(account_id: str, token: str, ttl: float) -> bool:
        granted = await grant(account_id, token, ttl)
        await asyncio.sleep(slow)
        return granted

    storage.acquire = slowly  # type: ignore[method-assign]
    store = AsyncSessionStore(storage)

    async def wait() -> None:
        async with store.lease("bot", ttl=TTL):
            pytest.fail("the store is closed")

    if slow:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.5)
        await store.aclose()
    else:
        async with other.lease("bot", ttl=TTL):
            task = asyncio.create_task(wait())
            await asyncio.sleep(0.5)
            began = now()
            await store.aclose()
            assert now() == began
    with pytest.raises(StoreClosedError):
        await task
    assert server.holder("bot") is None
    with pytest.raises(StoreClosedError):
        async with store.lease("bot", ttl=TTL):
            pass


async def test_taking_and_leaving_many_leases_looks_at_each_a_few_times(server: Server) -> None:
    class Held(dict[str, Any]):
        looked_at = 0

        def values(self) -> Any:
            Held.looked_at += len(self)
            return super().values()

    count = 200
    async with (
        AsyncSessionStore(SharedStorage(server)) as store,
        contextlib.AsyncExitStack() as all,
    ):
        leases = [store.lease(f"bot-{number}", ttl=TTL) for number in range(count)]
        assert store._leases is not None
        store._leases._held = Held()
        for lease in leases:
            await all.enter_async_context(lease)
        await asyncio.sleep(TTL + 0.1)  # three renewals
        assert server.renewals == 3
        assert Held.looked_at <= 10 * count


# Who waits


async def test_a_candidate_waits_for_a_storage_that_is_out_of_reach(
    store: AsyncSessionStore, storage: SharedStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.cut = True
    asyncio.get_running_loop().call_later(50.0, setattr, storage, "cut", False)
    async with store.lease("bot", ttl=TTL):
        assert 50.0 <= now() <= 50.0 + TTL / 5
    (line,) = [record for record in caplog.records if "waiting" in record.getMessage()]
    assert (line.__dict__["qqbot_account"], line.__dict__["qqbot_reason"]) == ("bot", "lease")


async def test_all_that_wait_are_one_log_line(
    store: AsyncSessionStore, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the process that stands by for another one's thousand bots."""
    server.leases |= {f"bot-{number}": ("another's", 50.0) for number in range(100)}

    async def hold(number: int) -> None:
        await asyncio.sleep(number / 200)
        async with store.lease(f"bot-{number}", ttl=TTL):
            assert now() >= 50.0

    await asyncio.gather(*map(hold, range(100)))
    (line,) = caplog.messages
    assert line == (
        "waiting for the lease of 100 accounts (bot-0, bot-1, bot-2, …): another process holds it"
    )


async def test_a_candidate_that_gives_up_leaves_no_lease(
    store: AsyncSessionStore, storage: SharedStorage, server: Server
) -> None:
    """Not even if its request was granted as it was cancelled."""
    grant = storage.acquire

    async def slowly(account_id: str, token: str, ttl: float) -> bool:
        granted = await grant(account_id, token, ttl)
        await asyncio.sleep(1.0)
        return granted

    storage.acquire = slowly  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), store.lease("bot", ttl=TTL):
            pytest.fail("too early")
    assert server.holder("bot") is None
    async with store.lease("bot", ttl=TTL):
        pass


async def test_what_a_candidate_saved_does_not_undo_what_the_holder_wrote(
    store: AsyncSessionStore, other: AsyncSessionStore, server: Server
) -> None:
    """It was refused, and is older than what is there when the lease is free."""
    # promise 23
    async with store.lease("bot", ttl=TTL):
        await store.save(state(10))
        await other.save(state(1))
        await asyncio.sleep(60.0)

        async def take_over() -> None:
            async with other.lease("bot", ttl=TTL):
                found = await other.load("bot")
                assert found is not None
                assert found.last_seq == 20
                await asyncio.sleep(60.0)

        candidate = asyncio.create_task(take_over())
        await asyncio.sleep(60.0)
        await store.update_last_seq("bot", 20)
    await candidate
    assert seq_of(server) == 20


async def test_of_two_candidates_each_has_its_turn(server: Server) -> None:
    running = 0

    async def one() -> None:
        nonlocal running
        async with AsyncSessionStore(SharedStorage(server)) as store:
            for _ in range(5):
                async with store.lease("bot", ttl=TTL):
                    running += 1
                    assert running == 1
                    await asyncio.sleep(20.0)
                    running -= 1
                await asyncio.sleep(TTL)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(one())


# Real processes, on a database and on a server

PROGRAM = """
import asyncio, logging, signal, sys
from dataclasses import replace
from qqbot_session import AsyncSessionStore, LeaseLostError, SessionState

def tell(record):
    if "another process holds it" in record.getMessage():
        print("refused", flush=True)
    return True

logging.getLogger("qqbot_session").addFilter(tell)

async def main(where, ttl, name):
    async with AsyncSessionStore(where, debounce=0.05) as store:
        task = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        print("waiting", flush=True)
        try:
            async with store.lease("bot", ttl=float(ttl)):
                state = await store.load("bot")
                seq = state.last_seq if state else 0
                print("held", seq, flush=True)
                state = state or SessionState(account_id="bot", session_id="s", last_seq=0)
                await store.save(replace(state, intent_level_index=int(name)))
                while True:
                    await asyncio.sleep(0.02)
                    seq += 1
                    await store.update_last_seq("bot", seq)
                    print("seq", seq, flush=True)
        except LeaseLostError:
            print("lost", flush=True)

try:
    asyncio.run(main(*sys.argv[1:]))
except asyncio.CancelledError:
    print("stopped", flush=True)
"""
SECONDS = 3.0  # of a lease between processes


class Process:
    """A bot in a process of its own, and what it has said so far."""

    def __init__(self, where: str, name: int, ttl: float = SECONDS) -> None:
        self.command = [sys.executable, "-c", PROGRAM, where, f"{ttl}", f"{name}"]
        self.seq = 0

    async def __aenter__(self) -> Process:
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        assert self.process.stdout is not None
        await self.process.stdout.read()
        await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def until(self, word: str, number: int = 0) -> int:
        """Read on until it says the word, with the number at least."""
        assert self.process.stdout is not None
        async with asyncio.timeout(40.0):
            while line := (await self.process.stdout.readline()).decode().split():
                value = int(line[1]) if len(line) == 2 else 0  # else it is a line of the log
                if line[0] == "seq":
                    self.seq = value
                if line[0] == word and value >= number:
                    return value
        raise AssertionError(f"it never said {word}")


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'sessions.db'}"
        return
    pytest.importorskip("redis")
    with RedisServer() as server:
        yield server.url


on_redis_slowly = pytest.mark.parametrize(
    "where", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)], indirect=True
)


async def stop_between_two_writes(process: Process, where: str) -> None:
    """Stop it; one that stands still in the middle of a write keeps a database locked."""
    while True:
        process.signal(signal.SIGSTOP)
        if not where.startswith("sqlite:"):
            return
        database = sqlite3.connect(where.removeprefix("sqlite:"), timeout=0.3)
        with closing(database), contextlib.suppress(sqlite3.OperationalError):
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
            return
        process.signal(signal.SIGCONT)
        await process.until("seq", process.seq + 2)


async def on_storage(where: str) -> SessionState:
    storage = storage_of(where)
    data = await storage.read("bot")
    await storage.aclose()
    assert data is not None
    return decode(data)


@pytest.mark.real_time
@on_redis_slowly
async def test_a_holder_that_is_killed_is_succeeded_within_its_time(where: str) -> None:
    """The successor resumes what was on storage: a window's numbers are lost at most."""
    # promises 9, 23
    async with Process(where, 1) as one, Process(where, 2) as two:
        first, second = (one, two) if await _who_holds(one, two) is one else (two, one)
        await first.until("seq", 20)
        first.signal(signal.SIGKILL)
        took_over = asyncio.get_running_loop().time()
        begun = await second.until("held")
        assert begun >= 10
        assert asyncio.get_running_loop().time() - took_over < 10 * SECONDS
        await second.until("seq", begun + 5)


@pytest.mark.real_time
@on_redis_slowly
async def test_a_holder_that_is_terminated_hands_over_its_very_last_number(where: str) -> None:
    # promises 9, 23
    async with Process(where, 1) as one:
        await one.until("seq", 5)
        async with Process(where, 2) as two:
            await two.until("waiting")
            await one.until("seq", 20)
            one.signal(signal.SIGTERM)
            await one.until("stopped")
            assert await two.until("held") == one.seq


@pytest.mark.real_time
async def test_a_holder_that_was_stopped_ends_when_it_goes_on(where: str) -> None:
    """And writes nothing over its successor's record."""
    # promise 23
    async with Process(where, 1) as one:
        await one.until("seq", 5)
        async with Process(where, 2) as two:
            await two.until("waiting")
            await stop_between_two_writes(one, where)
            begun = await two.until("held")
            await two.until("seq", begun + 5)
            one.signal(signal.SIGCONT)
            await one.until("lost")
            await two.until("seq", two.seq + 10)
            found = await on_storage(where)
            assert found.intent_level_index == 2
            assert found.last_seq is not None
            assert found.last_seq > begun


LATE = """
import asyncio, sys
from qqbot_session.storages import storage_of

async def main(where):
    storage = storage_of(where)
    assert await storage.acquire("bot", "one", 0.5)
    await storage.commit({"bot": b"first"})
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(sorted((await storage.commit({"bot": b"late", "other": b"other"})).items()), flush=True)
    await storage.aclose()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.real_time
async def test_a_late_write_is_refused_by_the_storage_itself(where: str) -> None:
    """Of a process that has no loop, no timer and no sense of time, only a connection."""
    # promise 23
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LATE, where), stdin=pipe, stdout=pipe
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGSTOP)
    storage = storage_of(where)
    assert isinstance(storage, LeasingStorage)
    async with asyncio.timeout(40.0):
        while not await storage.acquire("bot", "two", 60.0):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await storage.commit({"bot": b"second"}) == {}
    process.send_signal(signal.SIGCONT)
    out, _ = await process.communicate(b"go\n")
    assert b"LeaseLostError" in out
    assert await storage.read("bot") == b"second"
    assert await storage.read("other") == b"other"
    await storage.aclose()


@pytest.mark.real_time
async def test_a_server_that_restarts_empty_ends_no_bot(caplog: pytest.LogCaptureFixture) -> None:
    """The holder sets its lease again before the candidate, which saw it held, would."""
    # promise 23
    pytest.importorskip("redis")
    ttl = 6.0  # longer than the server is away, however busy the machine
    with RedisServer() as server:
        async with AsyncSessionStore(server.url) as store, store.lease("bot", ttl=1.0):
            pass  # from now on the server knows that nobody holds it, and nobody waits
        async with Process(server.url, 1, ttl) as one:
            await one.until("seq", 5)
            async with Process(server.url, 2, ttl) as two:
                await two.until("waiting")
                await two.until("waiting")  # now the log says so: it has looked
                server.kill()
                server.start()
                storage = storage_of(server.url)
                async with asyncio.timeout(40.0):
                    while (data := await storage.read("bot")) is None:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                await storage.aclose()
                found = decode(data)
                assert found.intent_level_index == 1
                assert found.last_seq is not None
                await one.until("seq", found.last_seq + 20)  # it goes on


async def _who_holds(*processes: Process) -> Process:
    """Return the one that says so first; the other has only said that it waits."""
    waits = {asyncio.create_task(process.until("held")): process for process in processes}
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)
    return waits[done.pop()]
