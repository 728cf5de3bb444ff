"""`RedisStorage` and a real server that is killed, stopped, emptied, full, locked and slow.

What it shares with every storage is in `test_storage_contract`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from ports import free_port
from redis_server import (
    RedisServer,
    a_busy_server_is_not_a_dead_one,
    redis_cluster,
    redis_sentinel,
)
from reporters import shown_by_a_reporter

from qqbot_session import AsyncSessionStore, LeaseLostError, SessionState
from qqbot_session.storages import RedisStorage, storage_of
from qqbot_session.storages.redis_client import namelessly
from qqbot_session.storages.redis_doctor import COMMANDS
from qqbot_session.testing.storage_contract import CHECKS, LEASING_CHECKS, Check

__all__ = ["a_busy_server_is_not_a_dead_one"]
redis_asyncio = pytest.importorskip("redis.asyncio")
pytestmark = pytest.mark.real_time

QUIET = namelessly()  # else redis-py reads a file on the loop for each connection
SHORT = 0.3  # seconds: a time-out that a test waits for


@contextlib.contextmanager
def standing_still(
    server: RedisServer, storage: RedisStorage, timeout: float = SHORT
) -> Iterator[None]:
    """Stop the server for a while, in which the storage's time-out is short: else it is long."""
    patience, storage._timeout = storage._timeout, timeout
    server.stop()
    try:
        yield
    finally:
        server.go_on()
        storage._timeout = patience


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """A server that its tests leave as they found it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def storage(shared: RedisServer) -> AsyncIterator[RedisStorage]:
    async with closing(RedisStorage(shared.url, prefix=secrets.token_hex(4))) as storage:
        yield storage


def closing(storage: RedisStorage) -> contextlib.aclosing[RedisStorage]:
    return contextlib.aclosing(storage)


async def records(storage: RedisStorage) -> dict[str, bytes]:
    return {key: data async for key, data in storage.scan()}


# What a client may be


async def test_the_store_makes_one_from_a_url_and_closes_it(shared: RedisServer) -> None:
    connections = shared.ask("CLIENT", "LIST").count(b"\n")
    async with AsyncSessionStore(shared.url) as store:
        await store.save(SessionState(account_id="from-url", session_id="s", last_seq=7))
    assert shared.ask("CLIENT", "LIST").count(b"\n") <= connections
    assert b"from-url" in shared.ask("GET", "qqbot_session:{from-url}")
    async with AsyncSessionStore(shared.url) as store:
        state = await store.load("from-url")
        await store.clear("from-url")
    assert state is not None
    assert state.last_seq == 7


async def test_no_password_is_shown(caplog: pytest.LogCaptureFixture) -> None:  # promise 15
    port = free_port()
    url = f"redis://bot:secret-word@127.0.0.1:{port}/3?password=secret-word"
    storage = RedisStorage(url)
    assert (
        repr(storage) == f"<RedisStorage url='redis://127.0.0.1:{port}/3' prefix='qqbot_session'>"
    )
    assert "secret" not in repr(AsyncSessionStore(storage))
    with pytest.raises(OSError, match=str(port)) as caught:
        await storage.commit({"a": b"a"})
    assert "secret" not in str(caught.value)
    for bad in ("redis://bot:secret/word@127.0.0.1:1", "http://bot:secret@127.0.0.1/"):
        with pytest.raises(ValueError, match="Redis") as refused:
            RedisStorage(bad)
        assert "secret" not in str(refused.value)
    await storage.aclose()


def test_wrong_arguments_are_named() -> None:
    import redis

    for wrong in (redis.Redis(), object(), None, 7):
        with pytest.raises(TypeError, match="client"):
            RedisStorage(wrong)
    for name, values in {"expiry": (0, -1.0, float("nan")), "timeout": (0, float("inf"))}.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                RedisStorage("redis://127.0.0.1", **{name: value})
    with pytest.raises(TypeError, match="timeout"):
        RedisStorage("redis://127.0.0.1", timeout=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix"):
        RedisStorage("redis://127.0.0.1", prefix="")
    assert isinstance(storage_of("rediss://127.0.0.1"), RedisStorage)


def test_without_redis_py_a_sentence_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['redis'] = sys.modules['valkey'] = None\n"
        "from qqbot_session.storages import storage_of\n"
        "try: storage_of('redis://127.0.0.1')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "qqbot_session[redis]" in result.stdout


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("package", ["redis", "valkey"])
async def test_a_client_handed_in_works_as_it_is_and_stays_open(
    shared: RedisServer, package: str, decode: bool
) -> None:
    pytest.importorskip(package)
    module = __import__(f"{package}.asyncio").asyncio
    options = QUIET if package == "redis" else {"lib_name": None, "lib_version": None}
    async with module.from_url(shared.url, decode_responses=decode, **options) as client:
        storage = RedisStorage(client, prefix="机器人*")
        await storage.commit({"a": b"\xff\0", "中": b"1"})
        assert await storage.read("a") == b"\xff\0"
        assert await records(storage) == {"a": b"\xff\0", "中": b"1"}
        assert await storage.discard("中", b"1") is True
        assert await storage.commit({"a": None}) == {}
        await storage.aclose()
        assert await client.ping()


async def test_records_expire_a_while_after_their_last_write(shared: RedisServer) -> None:
    client = redis_asyncio.from_url(shared.url, **QUIET)
    for expiry, least, most in ((None, -1, -1), (100.0, 99_000, 100_000)):
        storage = RedisStorage(client, prefix="expiry", expiry=expiry)
        await storage.commit({"a": b"a"})
        assert least <= await client.pttl("expiry:{a}") <= most
    await storage.commit({"a": None})
    await client.aclose()


async def test_what_is_no_record_is_neither_listed_nor_taken_for_absent(
    shared: RedisServer, storage: RedisStorage
) -> None:
    await storage.commit({"a": b"a"})
    shared.ask("RPUSH", f"{storage.prefix}:{{list}}", "x")
    shared.ask("SET", f"{storage.prefix}x:{{other}}", "x")
    assert await records(storage) == {"a": b"a"}
    with pytest.raises(OSError, match="WRONGTYPE"):
        await storage.read("list")


async def test_a_fleet_that_starts_is_read_in_few_calls(
    shared: RedisServer, storage: RedisStorage
) -> None:
    """Whatever the client's limit of connections: redis-py's is 100, and then it raises."""
    batch: dict[str, bytes | None] = {f"{number}": b"%d" % number for number in range(1000)}
    await storage.commit(batch)
    shared.ask("CONFIG", "RESETSTAT")
    found = await asyncio.gather(*[storage.read(account_id) for account_id in batch])
    assert found == list(batch.values())
    calls = re.findall(rb"cmdstat_eval(?:sha)?:calls=(\d+)", shared.ask("INFO", "commandstats"))
    assert 8 <= sum(map(int, calls)) <= 10  # the first ones learn whether the server knows flags
    await storage.commit({"0": b"newer"})
    assert await storage.read("0") == b"newer"


async def test_a_read_that_is_cancelled_takes_no_other_with_it(storage: RedisStorage) -> None:
    await storage.commit({"a": b"a", "b": b"b"})
    one, other = (asyncio.ensure_future(storage.read(name)) for name in "ab")
    await asyncio.sleep(0)
    one.cancel()
    assert await other == b"b"
    other = asyncio.ensure_future(storage.read("b"))
    await asyncio.sleep(0)
    storage._here().lines["read"]._latest.task.cancel()  # type: ignore[union-attr]  # "cancel all tasks" does
    with pytest.raises(OSError, match="cancelled"):
        await other


async def test_a_client_with_few_connections_makes_calls_wait_in_line(shared: RedisServer) -> None:
    """redis-py raises where others wait."""  # promise 27
    client = redis_asyncio.from_url(shared.url, max_connections=1, **QUIET)
    storage = RedisStorage(client, prefix=secrets.token_hex(4))
    batch = {f"{number}": b"%d" % number for number in range(50)}
    calls = [storage.commit({id_: data}) for id_, data in batch.items()]
    leases = [storage.acquire(id_, "token", 60.0) for id_ in batch]
    assert all([*await asyncio.gather(*leases)])
    assert await asyncio.gather(*calls) == [{}] * 50
    found = asyncio.gather(*[storage.read(id_) for id_ in batch])
    assert await records(storage) == batch
    assert await found == list(batch.values())
    await client.aclose()


def test_a_loop_may_leave_open_what_the_next_one_uses(shared: RedisServer) -> None:
    # promise 25
    mine = RedisStorage(shared.url, prefix=secrets.token_hex(4))
    client = redis_asyncio.from_url(shared.url, **QUIET)
    given = RedisStorage(client, prefix=secrets.token_hex(4))

    async def use(storage: RedisStorage, number: int) -> None:
        assert await storage.read("a") == (b"%d" % (number - 1) if number else None)
        assert await storage.commit({"a": b"%d" % number}) == {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for storage in (mine, given):
            for number in range(3):
                asyncio.run(use(storage, number))
        asyncio.run(mine.aclose())
        del mine, given, client, storage
        gc.collect()


async def test_a_client_that_serves_another_loop_says_so(shared: RedisServer) -> None:
    async with redis_asyncio.from_url(shared.url, **QUIET) as client:
        storage = RedisStorage(client, prefix=secrets.token_hex(4))
        await storage.commit({"a": b"a"})
        with pytest.raises(ConnectionError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, storage.read("a"))
        assert await storage.read("a") == b"a"


def test_a_user_that_may_do_what_the_page_says_can_do_all_there_is(server: RedisServer) -> None:
    """And one that lacks any of it can not."""
    for page in ("storages.md", "storages.zh.md"):
        text = (Path(__file__).parent.parent / "docs" / page).read_text("utf-8")
        (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER")]
        words = line.split()
        assert {word[1:] for word in words if word.startswith("+")} == set(COMMANDS)
    words = ["ACL", "SETUSER", "bots", "on", ">right", "~contract*"]
    assert server.ask(*words, *[f"+{name}" for name in COMMANDS]) == b"+OK\r\n"
    url = server.url.replace("//", "//bots:right@")
    for number, check in enumerate([*CHECKS, *LEASING_CHECKS]):
        asyncio.run(check(lambda number=number: RedisStorage(url, prefix=f"contract-{number}")))


async def test_a_refusal_is_none_of_the_servers_health(server: RedisServer) -> None:
    server.ask("ACL", "SETUSER", "bots", "on", ">right", "~*", "+@read", "+@write", "+@scripting")
    async with closing(RedisStorage(server.url.replace("//", "//bots:right@"))) as storage:
        (said,) = [said async for said in storage.examine()]
    assert said[:2] == ("problem", "server")
    assert said[2].startswith("refuses: ")
    assert "+time" in said[3]


async def test_a_lease_that_was_given_up_is_not_held(storage: RedisStorage) -> None:
    assert await storage.acquire("held", "token", 60.0)
    assert await storage.acquire("given up", "token", 60.0)
    await storage.release("given up", "token")
    assert [each async for each in storage.held()] == [("held", "token")]
    (said,) = [text async for _, subject, text, _ in storage.examine() if subject == "leases"]
    assert said.startswith("1 held: held")


# What happens to servers


async def test_a_connection_that_was_cut_while_idle_fails_nothing(
    shared: RedisServer, storage: RedisStorage
) -> None:
    """As after a restart of the server, or a firewall that forgets: one more attempt, at once."""
    await storage.commit({"a": b"1"})
    shared.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await storage.commit({"a": b"2"}) == {}
    shared.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await storage.read("a") == b"2"


async def test_a_server_that_died_is_a_failure_until_it_is_back(server: RedisServer) -> None:
    """Back without a record or a script: the next write is whole."""  # promise 8
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({"a": b"1", "b": b"1"})
        server.kill()
        for _ in range(2):
            with pytest.raises(ConnectionError, match="onnect"):
                await storage.commit({"a": b"2"})
            with pytest.raises(ConnectionError):
                await storage.read("a")
            with pytest.raises(ConnectionError):
                await records(storage)
        server.start()
        assert await storage.read("a") is None
        assert await storage.commit({"a": b"3"}) == {}
        assert await records(storage) == {"a": b"3"}


async def test_a_write_that_failed_in_a_stopped_server_has_no_effect_later(
    server: RedisServer,
) -> None:
    """Neither a write nor a deletion, and no lease that nobody renews."""  # promises 3, 4, 8
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({"a": b"before", "b": b"before"})
        for changes in ({"a": b"late"}, {"b": None}):
            with standing_still(server, storage):
                with pytest.raises(TimeoutError, match=r"0\.3 s"):
                    await storage.commit(changes)
                with pytest.raises(TimeoutError):
                    await storage.read("a")
            assert await storage.read("a") == b"before"
            assert await storage.read("b") == b"before"
        assert await storage.commit({"a": b"after"}) == {}


async def test_reads_that_failed_together_are_forgotten_when_the_server_is_back(
    server: RedisServer,
) -> None:
    """Also for those that waited behind them."""  # promise 10
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({"0": b"0", "1": b"1"})
        for _ in range(2):
            with standing_still(server, storage):
                reads = []
                for number in range(6):
                    reads.append(asyncio.ensure_future(storage.read(f"{number % 2}")))
                    await asyncio.sleep(SHORT / 4)
                failed = await asyncio.gather(*reads, return_exceptions=True)
            assert all(isinstance(error, TimeoutError) for error in failed[:4])
            for _ in range(3):
                assert await asyncio.gather(storage.read("0"), storage.read("1")) == [b"0", b"1"]


async def test_records_are_read_while_writes_are_paused(server: RedisServer) -> None:
    """As during a failover or an upgrade; the first call of a process included."""
    async with closing(RedisStorage(server.url, timeout=5.0)) as storage:
        await storage.commit({"a": b"a"})
    (version,) = re.findall(rb"\nredis_version:(\d+)", server.ask("INFO", "server"))
    if int(version) < 7:
        pytest.skip("this server pauses what may write, and knows no script that only reads")
    server.ask("CLIENT", "PAUSE", "60000", "WRITE")
    async with closing(RedisStorage(server.url, timeout=5.0)) as storage:
        assert await storage.read("a") == b"a"
        assert await records(storage) == {"a": b"a"}
    server.ask("CLIENT", "UNPAUSE")


async def test_an_old_master_that_says_so_within_another_text_is_left() -> None:
    """As Redis 6 does of what a script was refused."""

    class Client:
        dropped = 0

        @property
        def connection_pool(self) -> Self:
            return self

        async def execute_command(self, *words: object, **options: object) -> object:
            raise RuntimeError("Error running script: @user_script:5: -READONLY You can't write")

        async def disconnect(self, inuse_connections: bool = True) -> None:
            Client.dropped += 1

        async def aclose(self) -> None:
            pass

    with pytest.raises(ConnectionError, match="READONLY"):
        await RedisStorage(Client()).commit({"a": b"a"})
    assert Client.dropped


async def test_a_hung_server_costs_one_time_out_per_call(server: RedisServer) -> None:
    """Whatever the time-outs and retries of the client that was handed in."""  # promise 8
    async with redis_asyncio.Redis(host="127.0.0.1", port=server.port, **QUIET) as client:
        storage = RedisStorage(client)
        await storage.commit({"a": b"a"})
        with standing_still(server, storage):
            async with asyncio.timeout(100 * SHORT):  # redis-py alone takes a minute
                with pytest.raises(TimeoutError):
                    await storage.commit({"a": b"b"})
                answers = await asyncio.gather(
                    *[storage.read(f"{number}") for number in range(5000)], return_exceptions=True
                )
                assert all(isinstance(answer, TimeoutError) for answer in answers)
        assert await storage.commit({"a": b"c"}) == {}


async def test_a_full_memory_is_a_failure_that_heals(server: RedisServer) -> None:
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({"a": b"1", "b": b"1"})
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(ConnectionError, match=r"OOM|maxmemory"):
            await storage.commit({"a": b"2", "c": b"2"})
        assert await storage.commit({"b": None}) == {}
        assert await records(storage) == {"a": b"1"}
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await storage.commit({"a": b"3"}) == {}


async def test_a_server_that_wants_a_password_says_so(caplog: pytest.LogCaptureFixture) -> None:
    # promise 10
    with RedisServer(requirepass="right") as server:
        store = AsyncSessionStore(server.url)
        with caplog.at_level(logging.WARNING):
            assert await store.load("a") is None
        assert "uthenti" in caplog.text
        with pytest.raises(ConnectionError, match="uthenti"):
            await storage_of(server.url).commit({"a": b"a"})
        await store.aclose()
        url = server.url.replace("//", "//:right@")
        async with closing(RedisStorage(url)) as storage:
            assert await storage.commit({"a": b"a"}) == {}


async def test_no_frame_of_a_clients_error_shows_the_password() -> None:
    """Neither a variable of ours nor, as in redis-py's handshake, one of the client's."""
    with RedisServer(requirepass="right") as server:
        for url in (
            server.url.replace("//", "//:hunter2@"),
            server.url.replace("//", "//bot:hunter2@") + "?protocol=3",
            "redis://:hunter2@127.0.0.1:1",
            server.url + "?password=hunter2&nonsense=1",
        ):
            async with closing(RedisStorage(url)) as storage:
                for call in (storage.read("a"), storage.commit({"a": b"a"})):
                    with pytest.raises(OSError, match=r"\w") as caught:
                        await call
                    assert "hunter2" not in shown_by_a_reporter(caught.value)


async def test_a_server_that_is_still_loading_is_waited_for(server: RedisServer) -> None:
    """What it holds is neither absent nor overwritten meanwhile."""
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({f"{number}": b"x" * 1000 for number in range(300)})
        server.ask("SAVE")
        server.kill()
        server.start(wait=False, key_load_delay=2_000, loading_process_events_interval_bytes=1024)
        refused = 0
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await storage.read("7") == b"x" * 1000
                    break
                except OSError as error:
                    refused += "oading" in str(error)
        assert refused
        assert await storage.commit({"7": b"7"}) == {}


async def test_a_replica_refuses_until_it_is_the_master(server: RedisServer) -> None:
    async with closing(RedisStorage(server.url)) as storage:
        await storage.commit({"a": b"1"})
        server.ask("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(ConnectionError, match=r"read.?only|READONLY"):
            await storage.commit({"a": b"2", "b": b"2"})
        assert await storage.read("a") == b"1"
        server.ask("REPLICAOF", "NO", "ONE")
        assert await storage.commit({"a": b"3"}) == {}
        assert await records(storage) == {"a": b"3"}


async def test_a_step_of_the_servers_clock_fails_no_write(
    shared: RedisServer, storage: RedisStorage
) -> None:  # promise 11
    await storage.commit({"a": b"1"})
    clocks = storage._here().clocks
    for step in (3600.0, -3600.0):
        ((node, (offset, asked)),) = clocks.items()
        clocks[node] = (offset - step, asked)  # as if the server's had gone ahead, or back
        assert await storage.commit({"a": b"%d" % step}) == {}
        assert await storage.read("a") == b"%d" % step


# What lies between


class Proxy:
    """Passes everything on, except that it holds back writes when told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.holding = 0  # how many writes to hold back
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()
        self.passed = asyncio.Event()
        self.cut_when_held = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.close()
        waits = [*self._tasks, *[writer.wait_closed() for writer in self._writers]]
        await asyncio.gather(*waits, return_exceptions=True)

    async def _serve(self, reader: Any, writer: Any) -> None:
        server = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += (writer, server[1])
        there = asyncio.create_task(self._to_server(reader, server[1], writer))
        back = asyncio.create_task(self._to_client(server[0], writer))
        self._tasks |= {there, back}

    async def _to_client(self, reader: Any, writer: Any) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _to_server(self, reader: Any, writer: Any, client: Any) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                if self.holding and b":order:" in data:
                    self.holding -= 1
                    self.held.set()
                    if self.cut_when_held:
                        client.close()
                    await self.let_go.wait()
                    writer.write(data)
                    await writer.drain()
                    self.passed.set()
                    continue
                writer.write(data)
                await writer.drain()
        if not self.held.is_set():
            writer.close()


@pytest.mark.parametrize("newest", [b"newest", None], ids=["save", "clear"])
@pytest.mark.parametrize("how", ["timed out", "cancelled", "cut and sent again", "cut twice"])
async def test_a_write_held_back_on_its_way_undoes_nothing_that_came_later(
    shared: RedisServer, newest: bytes | None, how: str
) -> None:
    """However its client came to give it up; a plain pipeline brings the old record back."""
    # promises 3, 4, 6
    prefix = secrets.token_hex(4)
    timeout = 2.0 if how == "timed out" else 20.0  # the only one to wait for it
    async with (
        Proxy(shared.port) as proxy,
        closing(RedisStorage(proxy.url, prefix=prefix, timeout=timeout)) as storage,
    ):
        await storage.commit({"a": b"oldest"})
        proxy.holding = 2 if how == "cut twice" else 1
        proxy.cut_when_held = how.startswith("cut")
        write = asyncio.ensure_future(storage.commit({"a": b"held back"}))
        await proxy.held.wait()
        if how == "cancelled":
            write.cancel()
            storage._here().latest.cancel()  # type: ignore[union-attr]  # "cancel all tasks" does
        (outcome,) = await asyncio.gather(write, return_exceptions=True)
        assert isinstance(outcome, BaseException) is (how != "cut and sent again")
        assert await storage.commit({"a": newest}) == {}
        proxy.let_go.set()
        await proxy.passed.wait()
        for _ in range(3):  # one connection after the other has been answered
            assert await storage.read("a") == newest


# Leases


async def test_a_server_that_forgot_a_lease_gives_it_back_to_its_holder(
    server: RedisServer,
) -> None:
    """A candidate that saw it held waits it out; nobody can have had it since."""  # promise 23
    async with closing(RedisStorage(server.url)) as one, closing(RedisStorage(server.url)) as other:
        assert await one.acquire("a", "one", 60.0)
        assert await other.acquire("a", "other", 60.0) is False
        server.kill()
        server.start()
        assert await other.acquire("a", "other", 60.0) is False
        assert isinstance((await one.commit({"a": b"not yet"}))["a"], LeaseLostError)
        assert await one.renew({"a": "one"}, 60.0) == {}
        assert await one.commit({"a": b"mine"}) == {}
        await one.release("a", "one")
        assert await other.acquire("a", "other", 60.0) is True


async def test_a_renewal_that_was_stopped_past_its_time_takes_nothing(server: RedisServer) -> None:
    """The server went on only when another may have had the lease: it is not set again."""
    async with closing(RedisStorage(server.url)) as storage:
        assert await storage.acquire("a", "one", 2 * SHORT)
        server.ask("DEL", "qqbot_session:{a}:lease")
        await asyncio.sleep(2 * SHORT)
        assert set(await storage.renew({"a": "one"}, 60.0)) == {"a"}
        assert server.ask("EXISTS", "qqbot_session:{a}:lease") == b":0\r\n"


async def test_a_lease_of_which_the_server_knows_nothing_is_waited_for(
    server: RedisServer,
) -> None:
    """Whatever emptied the server: no body begins while another may run."""  # promise 28
    spans: dict[str, list[float]] = {}

    async def hold(who: str, *, stay: float = 0.0, ttl: float = 2.0) -> None:
        async with AsyncSessionStore(server.url) as store, store.lease("bot", ttl=ttl):
            spans[who] = [time.monotonic()]
            await asyncio.sleep(stay)
            spans[who].append(time.monotonic())

    began = time.monotonic()
    first = asyncio.create_task(hold("first", stay=3.0))
    while "first" not in spans:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert spans["first"][0] - began > 1.9  # that it is the very first nobody can know
    server.ask("FLUSHALL")
    second = asyncio.create_task(hold("second"))
    await asyncio.gather(first, second)
    assert spans["second"][0] > spans["first"][1]
    began = time.monotonic()
    await hold("third", ttl=30.0)
    assert spans["third"][0] - began < 29.0  # the one before gave it up


async def test_a_step_of_the_servers_clock_ends_no_lease(
    server: RedisServer, storage: RedisStorage
) -> None:
    # promises 11, 28
    async with closing(RedisStorage(server.url)) as storage:
        assert await storage.acquire("a", "one", 60.0)
        assert await storage.renew({"a": "one"}, 60.0) == {}
        clocks = storage._here().clocks
        for step in (3600.0, -3600.0):
            for forgotten in (False, True):
                ((node, (offset, asked)),) = clocks.items()
                clocks[node] = (offset - step, asked)
                if forgotten:
                    server.ask("DEL", "qqbot_session:{a}:lease")
                assert await storage.renew({"a": "one"}, 60.0) == {}


async def test_a_lease_of_another_type_fails_its_account_alone(
    shared: RedisServer, storage: RedisStorage
) -> None:
    # promise 27
    for key in ("bad", "worse"):
        shared.ask("RPUSH", f"{storage.prefix}:{{{key}}}:lease", "x")
    failures = await storage.commit({"bad": b"1", "good": b"1", "worse": b"1"})
    assert set(failures) == {"bad", "worse"}
    assert all("WRONGTYPE" in str(error) for error in failures.values())
    assert set(await storage.commit({"bad": b"1"})) == {"bad"}
    assert await storage.read("good") == b"1"
    tried = [storage.acquire(name, "token", 60.0) for name in ("bad", "good")]
    bad, good = await asyncio.gather(*tried, return_exceptions=True)
    assert isinstance(bad, OSError)
    assert good is True
    assert set(await storage.renew({"bad": "token", "good": "token"}, 60.0)) == {"bad"}


# Clusters


@pytest.fixture
def cluster() -> Iterator[list[RedisServer]]:
    with redis_cluster() as masters:
        yield masters


async def test_a_clusters_client_may_be_cold_and_have_few_connections(
    cluster: list[RedisServer],
) -> None:
    # promises 25, 27
    batch: dict[str, bytes | None] = {f"account-{number}": b"1" for number in range(300)}
    for _ in range(2):
        async with redis_asyncio.RedisCluster(
            host="127.0.0.1", port=cluster[0].port, max_connections=3, **QUIET
        ) as client:
            storage = RedisStorage(client)
            seen = await records(storage)
            assert seen in ({}, batch)
            found = await asyncio.gather(*[storage.read(account_id) for account_id in batch])
            assert found == [seen.get(account_id) for account_id in batch]
            assert await storage.commit(batch) == {}
    other = RedisStorage(redis_asyncio.from_url(cluster[0].url, **QUIET))
    for call in (lambda: other.commit(batch), lambda: records(other)):
        with pytest.raises(ConnectionError, match="one of a cluster"):
            await call()
    await other.client.aclose()


async def test_a_node_that_hangs_fails_its_accounts_alone(cluster: list[RedisServer]) -> None:
    # promise 27
    async with closing(RedisStorage(cluster[0].url)) as storage:
        batch: dict[str, bytes | None] = {f"account-{number}": b"1" for number in range(60)}
        assert await storage.commit(batch) == {}
        here = storage._here()
        at = {id_: here.node(storage._key(id_)).rpartition(":")[2] for id_ in batch}
        lost = {id_ for id_, port in at.items() if port == str(cluster[2].port)}
        assert 0 < len(lost) < len(batch)
        with standing_still(cluster[2], storage, timeout=3.0):
            assert set(await storage.commit(dict.fromkeys(batch, b"2"))) == lost
            for account_id in batch.keys() - lost:
                assert await storage.read(account_id) == b"2"
            answers = await asyncio.gather(
                *[storage.read(account_id) for account_id in batch], return_exceptions=True
            )
            failed = {id_ for id_, each in zip(batch, answers, strict=True) if each != b"2"}
            assert failed == lost
        assert await storage.commit(dict.fromkeys(batch, b"3")) == {}


@pytest.mark.slow
async def test_a_cluster_that_lost_a_master_fails_its_accounts_alone(
    cluster: list[RedisServer],
) -> None:
    async with redis_asyncio.RedisCluster(
        host="127.0.0.1", port=cluster[0].port, **QUIET
    ) as client:
        storage = RedisStorage(client)
        batch: dict[str, bytes | None] = {f"account-{number}": b"1" for number in range(60)}
        assert await storage.commit(batch) == {}
        assert await records(storage) == batch
        assert await storage.acquire("account-0", "one", 60.0)
        assert await storage.renew({"account-0": "one"}, 60.0) == {}
        assert set(await storage.commit(batch)) == set()
        cluster[2].kill()
        failures = await storage.commit(dict.fromkeys(batch, b"2"))
        lost = {
            account_id
            for account_id in batch
            if client.keyslot(f"qqbot_session:{{{account_id}}}") >= 10923
        }
        assert 0 < len(lost) < len(batch)
        assert set(failures) == lost
        assert all(isinstance(error, OSError) for error in failures.values())
        for account_id in batch.keys() - lost:
            assert await storage.read(account_id) == b"2"


@pytest.fixture(scope="module")
def sentinel(shared: RedisServer) -> Iterator[int]:
    """The port of a sentinel that watches the server."""
    with redis_sentinel(shared) as port:
        yield port


ON_ONE_LOOP = [
    check
    for check in [*CHECKS, *LEASING_CHECKS]
    if not {"loop", "forked"} & set(check.__name__.split("_"))  # a client belongs to one of each
]


@pytest.mark.parametrize("check", ON_ONE_LOOP, ids=lambda check: check.__name__)
async def test_sentinels_client_keeps_the_contract(check: Check, sentinel: int) -> None:
    sentinels = redis_asyncio.Sentinel([("127.0.0.1", sentinel)], sentinel_kwargs=QUIET)
    async with sentinels.master_for("bots", **QUIET) as client, asyncio.timeout(30):
        while True:
            with contextlib.suppress(redis_asyncio.sentinel.MasterNotFoundError):
                await sentinels.discover_master("bots")
                break
            await asyncio.sleep(0.05)
        prefix = secrets.token_hex(4)
        await check(lambda: RedisStorage(client, prefix=prefix))
    for each in sentinels.sentinels:
        await each.aclose()


@pytest.mark.slow
async def test_a_planned_failover_is_noticed_as_soon_as_sentinel_tells() -> None:
    """The old master goes on answering OK for ten seconds more."""  # promise 28

    async def until(met: Callable[[], bool]) -> None:
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    with RedisServer() as old, RedisServer() as new, redis_sentinel(old) as port:
        new.ask("REPLICAOF", "127.0.0.1", str(old.port))
        sentinel = RedisServer.at(port)
        where = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "bots")
        sentinels = redis_asyncio.Sentinel([("127.0.0.1", port)], sentinel_kwargs=QUIET)
        async with sentinels.master_for("bots", **QUIET) as client, asyncio.timeout(60):
            await until(lambda: str(old.port).encode() in sentinel.ask(*where))
            storage = RedisStorage(client)
            assert await storage.acquire("a", "token", 60.0)
            await until(lambda: b"OK" in sentinel.ask("SENTINEL", "FAILOVER", "bots"))
            await until(lambda: str(new.port).encode() in sentinel.ask(*where))
            await asyncio.sleep(1.1)  # what Sentinel is asked for at most once in
            assert await storage.renew({"a": "token"}, 60.0) == {}
            assert await storage.commit({"a": b"after"}) == {}
            assert b"after" in new.ask("GET", "qqbot_session:{a}")
            assert b"token" in new.ask("GET", "qqbot_session:{a}:lease")
        for each in sentinels.sentinels:
            await each.aclose()
