"""The `Storage` contract, over every storage there is.

To add one, give `STORAGES` a function that returns an opener: each call of the opener makes
another storage object on the same records.
"""

# ruff: noqa: ASYNC240  the directory is looked at while nothing runs on the loop
from __future__ import annotations

import ast
import asyncio
import atexit
import contextlib
import functools
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis_server import RedisServer, a_busy_server_is_not_a_dead_one, redis_cluster

from qqbot_session import FileStorage, MemoryStorage
from qqbot_session.storages import RedisStorage, SqliteStorage
from qqbot_session.testing import storage_contract
from qqbot_session.testing.storage_contract import CHECKS, LEASING_CHECKS, ODD_IDS, Check, Opener

__all__ = ["a_busy_server_is_not_a_dead_one"]


def _memory(place: Path) -> Opener:
    records: dict[str, bytes] = {}
    return lambda: MemoryStorage(records)


def _redis(place: Path) -> Opener:
    """A server of all tests together; each has keys of its own in it."""
    url, prefix = _server().url, f"test [{secrets.token_hex(4)}]*"
    return lambda: RedisStorage(url, prefix=prefix)


def _cluster(place: Path) -> Opener:
    """By the address of one of its nodes, as an operator would name it."""
    url, prefix = _masters()[0].url, f"test [{secrets.token_hex(4)}]*"
    return lambda: RedisStorage(url, prefix=prefix)


def _behind_one_address(place: Path) -> Opener:
    """A cluster-mode server with all slots, as the clouds sell it."""
    url, prefix = _lone_master().url, f"test [{secrets.token_hex(4)}]*"
    return lambda: RedisStorage(url, prefix=prefix)


@functools.cache
def _masters() -> list[RedisServer]:
    pytest.importorskip("redis")
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(redis_cluster())


@functools.cache
def _lone_master() -> RedisServer:
    pytest.importorskip("redis")
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(redis_cluster(1))[0]


@functools.cache
def _server() -> RedisServer:
    pytest.importorskip("redis")
    server = RedisServer()
    atexit.register(server.__exit__, None, None, None)
    return server


STORAGES: dict[str, Callable[[Path], Opener]] = {
    "memory": _memory,
    "files": lambda place: lambda: FileStorage(place / "sessions"),
    "files-not-durable": lambda place: lambda: FileStorage(place / "sessions", durable=False),
    "sqlite": lambda place: lambda: SqliteStorage(place / "sessions.db"),
    "sqlite-not-durable": lambda place: lambda: SqliteStorage(place / "sessions.db", durable=False),
    "redis": _redis,
    "redis-cluster": _cluster,
    "redis-behind-one-address": _behind_one_address,
}


@pytest.fixture(params=STORAGES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return STORAGES[request.param](tmp_path)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_storage_keeps_the_contract(check: Check, opener: Opener) -> None:
    asyncio.run(check(opener))


@pytest.mark.parametrize("check", LEASING_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["sqlite", "redis", "redis-cluster", "redis-behind-one-address"])
def test_every_leasing_storage_keeps_the_contract(check: Check, name: str, tmp_path: Path) -> None:
    asyncio.run(check(STORAGES[name](tmp_path)))


async def test_odd_ids_stay_within_the_directory(tmp_path: Path) -> None:  # promise 14
    storage = FileStorage(tmp_path / "sessions")
    await storage.commit(dict.fromkeys(ODD_IDS, b"x"))
    await storage.aclose()
    assert {path.name for path in tmp_path.iterdir()} == {"sessions"}
    assert not [path for path in (tmp_path / "sessions").glob("*") if path.is_dir()]


def test_no_check_is_left_out_and_no_odd_id_is_there_twice() -> None:
    source = ast.parse(Path(storage_contract.__file__).read_text("utf-8"))
    public = {
        node.name
        for node in source.body
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_")
    }
    assert {check.__name__ for check in CHECKS + LEASING_CHECKS} == public
    assert len(set(ODD_IDS)) == len(ODD_IDS)


def test_a_storage_that_breaks_the_contract_is_found_out() -> None:
    """Each of these is wrong in one way, and some check says so."""

    class Forgets(MemoryStorage):
        async def read(self, account_id: str) -> bytes | None:
            return None

    class Unbounded(MemoryStorage):
        async def read(self, account_id: str) -> bytes | None:
            return self.records.get(account_id)

    class Mixes(MemoryStorage):
        async def commit(self, changes):  # type: ignore[no-untyped-def]
            return await super().commit({k.lower(): v for k, v in changes.items()})

    class Reorders(MemoryStorage):
        async def commit(self, changes):  # type: ignore[no-untyped-def]
            self.turn = getattr(self, "turn", 3) - 1
            for _ in range(self.turn % 3 * 2):
                await asyncio.sleep(0)
            return await super().commit(changes)

    class Discards(MemoryStorage):
        async def discard(self, key: str, expected: bytes) -> bool:
            return self.records.pop(key, None) is not None

    for broken in (Forgets, Unbounded, Mixes, Reorders, Discards):
        failed = []
        for check in CHECKS:
            records: dict[str, bytes] = {}
            try:
                asyncio.run(check(lambda broken=broken, records=records: broken(records)))
            except AssertionError:
                failed.append(check.__name__)
        assert failed, broken


def test_the_contract_needs_nothing_that_an_extra_installs() -> None:
    program = (
        "import sys, qqbot_session.testing.storage_contract\n"
        "print(sorted({'aiohttp', 'pytest', 'redis', 'sqlite3'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
