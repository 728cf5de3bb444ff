"""Any interleaving, as in `test_any_interleaving`, on a database and on a server.

A call of Redis counts as a thread's: virtual time stands still while it is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import VirtualTimeLoop
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from redis_server import RedisServer
from test_any_interleaving import COMMON, Machine, MemoryPlace, quiet_log

from qqbot_session import Storage
from qqbot_session.storages import RedisStorage, SqliteStorage

__all__ = ["quiet_log"]


class SqlitePlace(MemoryPlace):
    """What a `SqliteStorage` holds, seen by a connection that is not ours."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="qqbot-session-"))
        self.path = self.root / "sessions.db"
        self.looking: sqlite3.Connection | None = None

    def storage(self) -> Storage:
        return SqliteStorage(self.path, durable=False)

    def look(self, query: str, *values: str) -> list[tuple[bytes]]:
        if self.looking is None:
            if not self.path.exists():
                return []
            self.looking = sqlite3.connect(self.path, isolation_level=None, timeout=10.0)
        with contextlib.suppress(sqlite3.OperationalError):  # it is just being made
            return self.looking.execute(query, values).fetchall()
        return []

    def layers(self, account_id: str) -> tuple[bytes | None, bytes | None]:
        found = self.look("SELECT record FROM sessions WHERE account_id = ?", account_id)
        return (found[0][0] if found else None), None

    def items(self) -> list[bytes]:
        return [data for (data,) in self.look("SELECT record FROM sessions")]

    def close(self) -> None:
        if self.looking is not None:
            self.looking.close()
        shutil.rmtree(self.root)


class CountedStorage(RedisStorage):
    """One whose calls keep virtual time from going on, also after their callers were cancelled."""

    async def read(self, account_id: str) -> bytes | None:
        with _counted(self._asked):
            return await super().read(account_id)

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        with _counted(lambda: self._here().latest):
            return await super().commit(changes)

    async def aclose(self) -> None:
        with _counted():
            await super().aclose()

    def _asked(self) -> asyncio.Future[Any] | None:
        """Return the call that a cancelled read leaves behind."""
        lines = self._here().lines.values()
        calls = [line._latest.task for line in lines if line._latest is not None]
        return next((call for call in calls if call is not None and not call.done()), None)

    @contextlib.asynccontextmanager
    async def _in_time(self, here: Any) -> AsyncIterator[None]:
        with _counted():
            async with super()._in_time(here):
                yield


@contextlib.contextmanager
def _counted(work: Callable[[], asyncio.Future[Any] | None] = lambda: None) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.clock.threads += 1
    try:
        yield
    finally:
        task = work()
        if task is None or task.done():
            loop.clock.threads -= 1
        else:
            task.add_done_callback(loop._thread_ended)


@functools.cache
def _server() -> RedisServer:
    import atexit

    server = RedisServer()
    atexit.register(server.__exit__, None, None, None)
    return server


class RedisPlace(MemoryPlace):
    """What a `RedisStorage` holds, seen through a socket of our own."""

    def __init__(self) -> None:
        self.server = _server()
        self.prefix = secrets.token_hex(8)

    def storage(self) -> Storage:
        return CountedStorage(self.server.url, prefix=self.prefix)

    def layers(self, account_id: str) -> tuple[bytes | None, bytes | None]:
        key = RedisStorage._key(self.storage(), account_id).decode()  # type: ignore[arg-type]
        return self.get(key), None

    def get(self, key: str) -> bytes | None:
        head, _, rest = self.server.ask("GET", key).partition(b"\r\n")
        return None if head == b"$-1" else rest[: int(head[1:])]

    def items(self) -> list[bytes]:
        answer = self.server.ask("KEYS", f"{self.prefix}:*}}").split(b"\r\n")
        keys = [line.decode() for line in answer if line.startswith(self.prefix.encode())]
        return [data for key in keys if (data := self.get(key)) is not None]


class SettlingMachine(Machine):
    """Lets the model and the store hear of the same before the next step is made."""

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return super().run(work)
        finally:
            turns = 3
            while turns > 0 or self.unheard or self.loop.clock.threads:
                self.loop.run_until_complete(asyncio.sleep(0))
                turns -= 1


class SqliteMachine(SettlingMachine):
    place_type = SqlitePlace  # type: ignore[assignment]


class RedisMachine(SettlingMachine):
    place_type = RedisPlace  # type: ignore[assignment]


machines: Mapping[str, type[Machine]] = {"sqlite": SqliteMachine, "redis": RedisMachine}
every_storage = pytest.mark.parametrize("name", machines)


@every_storage
def test_a_store_is_its_model_on_a_database_and_on_a_server(name: str) -> None:
    # promises 1-11, 13
    if name == "redis":
        pytest.importorskip("redis")
    quick = settings(
        max_examples=8,
        stateful_step_count=30,
        derandomize=True,
        phases=[Phase.generate],
        **COMMON,
    )
    run_state_machine_as_test(machines[name], settings=quick)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@every_storage
def test_a_store_is_its_model_there_for_long(name: str) -> None:
    # promises 1-11, 13
    if name == "redis":
        pytest.importorskip("redis")
    examples = 100 if name == "redis" else 400  # each look at the server is a connection
    slow = settings(max_examples=examples, stateful_step_count=50, **COMMON)
    run_state_machine_as_test(machines[name], settings=slow)
