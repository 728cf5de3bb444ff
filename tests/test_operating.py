"""The recipes for operators: metrics, and a probe that asks the record's age."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ports import free_port
from prometheus_client import CollectorRegistry

from qqbot_session import AsyncSessionStore, SessionState, WriteDetails, watch
from qqbot_session.bot import Bot, run_bot
from qqbot_session.cli import main
from qqbot_session.testing import LocalGateway

EXAMPLE = Path(__file__).parent.parent / "examples" / "metrics.py"
ACKNOWLEDGED = re.compile(r"^qqbot_last_ack_timestamp_seconds\S+ (\S+)", re.MULTILINE)


@pytest.mark.real_time
async def test_the_example_tells_what_is_loaded_written_and_handled(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()

    async def metrics() -> str:
        async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
            return await response.text()

    async with LocalGateway(heartbeat_interval=1) as qq, aiohttp.ClientSession() as http:
        environment = os.environ | {
            "QQBOT_APP_ID": qq.app_id,
            "QQBOT_SECRET": qq.client_secret,
            "QQBOT_API_URL": qq.api_url,
            "QQBOT_TOKEN_URL": qq.token_url,
            "METRICS_PORT": str(port),
        }
        bot = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), cwd=tmp_path, env=environment,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert bot.stdout is not None
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        assert await bot.stdout.readline() == b"handled C2C_MESSAGE_CREATE 2\n"
        async with asyncio.timeout(60):
            while not (acknowledged := ACKNOWLEDGED.search(told := await metrics())):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with http.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
        bot.terminate()
        await bot.communicate()
        assert bot.returncode == 0
    assert 'qqbot_session_loads_total{reason="absent"} 1.0' in told
    assert "qqbot_session_write_failures_total 0.0" in told
    assert 'qqbot_connected{account="102000000-0-1"} 1.0' in told
    assert 'qqbot_handlers{account="102000000-0-1"} 0.0' in told
    assert 0 <= time.time() - float(acknowledged[1]) < 60


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what changes is another thread's or another task's
            await asyncio.sleep(0.01)


@pytest.fixture
def served() -> Iterator[tuple[int, CollectorRegistry]]:
    prometheus = pytest.importorskip("qqbot_session.integrations.prometheus")
    registry = CollectorRegistry()
    server = prometheus.serve(0, registry=registry)
    try:
        yield server.port, registry
    finally:
        server.close()
    assert list(registry.collect()) == []
    assert watch.on_load == watch.on_write == []


@pytest.mark.real_time
async def test_healthz_is_200_only_while_every_line_has_a_session(
    tmp_path: Path, served: tuple[int, CollectorRegistry]
) -> None:
    port, registry = served

    async def ask() -> tuple[int, Any]:
        async with http.get(f"http://127.0.0.1:{port}/healthz") as response:
            return response.status, await response.json()

    async def handle(event: object, bot: Bot) -> None:
        await asyncio.Event().wait()

    async with LocalGateway() as qq, aiohttp.ClientSession() as http:
        assert await ask() == (503, {"ok": False, "lines": {}})
        bot = run_bot(
                qq.app_id,
                qq.client_secret,
                intents=1 << 25,
                handle=handle,
                grace=0.0,
                sessions=tmp_path,
                api_url=qq.api_url,
                token_url=qq.token_url,
                signals=False,
            )  # fmt: skip
        running = asyncio.create_task(bot)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        labels = {"account": "102000000-0-1"}
        await until(lambda: registry.get_sample_value("qqbot_handlers", labels) == 1.0)
        status, said = await ask()
        assert (status, sorted(said["lines"])) == (200, ["102000000-0-1"])
        assert registry.get_sample_value("qqbot_last_close_code", labels) is None
        qq.refuse_upgrades(503)
        await qq.drop()
        await until(lambda: registry.get_sample_value("qqbot_connected", labels) == 0.0)
        assert (await ask())[0] == 503
        running.cancel()
        await asyncio.wait([running])
        assert (await ask())[1]["lines"] == {}
    assert (registry.get_sample_value("qqbot_session_writes_total") or 0) >= 2


async def test_a_collector_hears_of_every_store_besides_the_stores_own_hook(
    tmp_path: Path, served: tuple[int, CollectorRegistry]
) -> None:
    seen: list[WriteDetails] = []
    async with AsyncSessionStore(str(tmp_path), on_write=seen.append) as store:
        await store.load("a")
        await store.save(SessionState(account_id="a", session_id="s", last_seq=1))
    _, registry = served
    assert len(seen) == 1
    assert registry.get_sample_value("qqbot_session_writes_total") == 1.0
    assert registry.get_sample_value("qqbot_session_loads_total", {"reason": "absent"}) == 1.0
    assert registry.get_sample_value("qqbot_session_commit_seconds_count") == 1.0


async def test_a_collector_that_raises_costs_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("a broken registry")

    monkeypatch.setattr(watch, "on_write", [broken])
    monkeypatch.setattr(watch, "on_load", [broken])
    async with AsyncSessionStore(str(tmp_path)) as store:
        assert await store.load("a") is None
        await store.save(SessionState(account_id="a", session_id="s", last_seq=1))
    async with AsyncSessionStore(str(tmp_path)) as store:
        assert await store.load("a") is not None


@pytest.mark.parametrize(("ago", "code"), [(60, 0), (200, 1)])
def test_the_probe_fails_once_no_heartbeat_was_answered_for_a_while(
    tmp_path: Path, ago: float, code: int
) -> None:
    async def save() -> None:
        state = SessionState(account_id="102000000-0-1", session_id="session", last_seq=1)
        async with AsyncSessionStore(str(tmp_path), clock=lambda: time.time() - ago) as store:
            await store.save(state)

    asyncio.run(save())
    storage = ["--storage", str(tmp_path)]
    assert main([*storage, "--max-age", "150", "why", "102000000-0-1"]) == code
