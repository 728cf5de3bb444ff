"""What a string, a path or an object means where a storage is wanted, and what it cannot mean."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from reporters import shown_by_a_reporter

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage
from qqbot_session.bot import run_bot
from qqbot_session.cli import main
from qqbot_session.cli.rows import open_storage
from qqbot_session.gateway import GatewaySession
from qqbot_session.shard import ShardRunner
from qqbot_session.storages import RedisStorage, SqliteStorage, storage_of

WORD = "hunter2"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fleet.db", "sqlite:fleet.db"),
        ("/var/lib/bots/fleet.sqlite3", "sqlite:/var/lib/bots/fleet.sqlite3"),
        (Path("fleet.db"), "sqlite:fleet.db"),
        (":memory:", "MemoryStorage"),
        ("sqllite:x", "sqlite:PATH"),
        ("sqlite3:x", "sqlite:PATH"),
        ("sqlite:///x.db", "without slashes"),
        ("redis:localhost", "redis://HOST"),
        ("sqlite://bot:hunter2@h/x", "without slashes"),
        ("sqlite:redis://:hunter2@h", "its own URL"),
        ("redis//:hunter2@h", "redis://HOST"),
        ("redis;//:hunter2@h", "redis://HOST"),
        ("redis ://:hunter2@h", "Redis server"),
        ("bot:hunter2@h:6379", "redis://HOST"),
        (":hunter2@h:6379/0", "redis://HOST"),
        ("hunter2@localhost:6379", "redis://HOST"),
        ("rediss:/:hunter2@h/1", "rediss://HOST"),
        (Path("redis://:hunter2@h/1"), "redis://HOST"),
        ("localhost:6379", "redis://localhost:6379"),
        ("10.0.0.1:6379/1", "redis://10.0.0.1:6379/1"),
        ("redis://h:hunter2", "before the host"),
        ("redis://bot:hunter2/word@h:1", "percent-encoded"),
        ("redis://bot:1/hunter2@h:1", "percent-encoded"),
        ("redis://:hunter2@h:6379/sessions", "number"),
        ("redis://:hunter2@h:99999", "65535"),
        ("valkey://:hunter2@a:1,b:2", "RedisCluster"),
        ("redis+sentinel://:hunter2@h/m/0", "Sentinel"),
        ("redis://[::1:hunter2@h/0", "IPv6"),
        ("redis://:hunter2@h?max_connections=-4", "max_connections"),
        ("unix:/run/redis.sock?password=hunter2", "no storage claims unix"),
        ("postgresql://bot:hunter2@h/bots", "no storage claims postgresql"),
        ("file:///var/lib/bots", "a directory is a plain path"),
        ("nosuch://hunter2", "no storage claims nosuch"),
    ],
)
def test_a_name_that_means_well_is_answered_with_what_was_meant(
    name: str | os.PathLike[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never with a directory of that name, or with the password in it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w") as caught:
        AsyncSessionStore(name)
    assert said in str(caught.value)
    assert WORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert WORD not in shown_by_a_reporter(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SqliteStorage, "SqliteStorage(...)"),
        (lambda: MemoryStorage, "MemoryStorage(...)"),
        (lambda: redis_module().asyncio.from_url(f"redis://:{WORD}@h/1"), "RedisStorage(client)"),
        (lambda: redis_module().Redis.from_url(f"redis://:{WORD}@h/1"), "RedisStorage(client)"),
        (lambda: {"password": WORD}, "dict"),
        (lambda: b"sessions", "bytes"),
        (lambda: lambda: MemoryStorage(), "function"),
    ],
)
def test_an_object_that_is_no_storage_is_named_by_its_type(make: Any, said: str) -> None:
    """Its `repr` may hold a password, as those of redis-py's clients before 8 do."""
    with pytest.raises(TypeError, match="storage must be") as caught:
        AsyncSessionStore(make())
    assert said in str(caught.value)
    assert WORD not in str(caught.value)


def redis_module() -> Any:
    pytest.importorskip("redis.asyncio")
    import redis

    return redis


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: redis_module().Redis.from_url(f"redis://:{WORD}@h/1"), "redis.asyncio.Redis"),
        (lambda: redis_module().asyncio.Redis, "the class redis.Redis"),
        (
            lambda: redis_module().asyncio.Sentinel([("h", 1)], sentinel_kwargs={"password": WORD}),
            "master_for",
        ),
        (lambda: redis_module().asyncio.ConnectionPool(password=WORD), "ConnectionPool"),
        (lambda: None, "NoneType"),
    ],
)
def test_a_client_that_is_none_is_named_by_its_type(make: Any, said: str) -> None:
    with pytest.raises(TypeError, match="client must be") as caught:
        RedisStorage(make())
    assert said in str(caught.value)
    assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["valkey://h", "valkeys://h:1/2", "REDIS://h", " rediss://[::1]/0", "unix:///run/r.sock"]
)
def test_a_server_has_more_names_than_one(url: str) -> None:
    pytest.importorskip("redis.asyncio")
    assert isinstance(storage_of(url), RedisStorage)


@pytest.mark.parametrize("name", ["bots", "bots.d", "./fleet.db/", "bots:prod", "C:\\bots", "a b"])
def test_any_other_name_is_a_directory(name: str) -> None:
    assert isinstance(storage_of(name), FileStorage)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RedisStorage(f"redis://:{WORD}@h:1/0?socket_timeout=soon"),
        lambda: RedisStorage(f"redis://h:{WORD}@x:y"),
        lambda: RedisStorage(f"redis://:{WORD}@h", timeout=-1.0),
        lambda: AsyncSessionStore(f"redis://:{WORD}@h", debounce=-1.0),
        lambda: AsyncSessionStore(f"redis://h:{WORD}"),
        lambda: asyncio.run(
            run_bot("1", WORD, intents=1, handle=never, sessions=f"redis:{WORD}@h")
        ),
        *(
            lambda address=address: asyncio.run(
                run_bot("1", WORD, intents=1, handle=never, proxy=address)
            )
            for address in (f"socks5://u:{WORD}@h:1", f"http://u:{WORD}@h/x", f"http://u:{WORD}")
        ),
        lambda: asyncio.run(
            run_bot("1", WORD, intents=1, handle=never, api_url=f"ftp://u:{WORD}@h")
        ),
        lambda: open_storage(f"redis://:{WORD}@h:1:2"),
        lambda: SqliteStorage(""),
        lambda: FileStorage(""),
        lambda: ShardRunner(None, GatewaySession("a"), connect=never, token=never, handle=7),
    ],
)
def test_the_error_of_a_constructor_can_be_shown_with_its_variables(make: Any) -> None:
    """Nothing of it holds the password, and an object that is not whole can be shown, too."""
    pytest.importorskip("redis.asyncio")
    with pytest.raises(Exception, match=r"\w") as caught:
        make()
    assert WORD not in shown_by_a_reporter(caught.value)


async def never(event: object, bot: object) -> None: ...


@pytest.mark.parametrize(
    "argv",
    [
        [f"redis://:{WORD}@h", "list"],
        ["--storge", f"redis://h:{WORD}", "list"],
        ["copy", f"redis://:{WORD}@h", "bots", f"redis://:{WORD}@h"],
        ["--storage", f"redis://:{WORD}@h", "list", f"--max-age=redis://:{WORD}@h"],
        ["--storage", f"sqlite:redis://:{WORD}@h", "list"],
        ["--storage", f"unix:///nowhere?password={WORD}", "list"],
    ],
)
def test_the_command_repeats_no_password_of_an_argument_in_the_wrong_place(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) in (2, 3)
    assert WORD not in "".join(capsys.readouterr())


def test_the_hosts_name_is_compared_where_the_line_is_encrypted() -> None:
    """By some clients only if they are told to."""
    pytest.importorskip("redis.asyncio")
    for options, compares in (("", True), ("?ssl_cert_reqs=none", False)):
        client = RedisStorage(f"rediss://h/1{options}").client
        connection = client.connection_pool.make_connection()
        context = getattr(connection, "ssl_context", None)
        assert context.check_hostname is compares
