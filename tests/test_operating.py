"""The recipes for operators: metrics, and a probe that asks the record's age."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.cli import main
from qqbot_session.testing import LocalGateway

EXAMPLE = Path(__file__).parent.parent / "examples" / "metrics.py"


@pytest.mark.real_time
async def test_the_metrics_tell_what_was_loaded_written_and_handled(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with LocalGateway(heartbeat_interval=0.3) as qq, aiohttp.ClientSession() as http:
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
        async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
            metrics = await response.text()
        bot.terminate()
        await bot.communicate()
        assert bot.returncode == 0
    assert 'qqbot_session_loads_total{reason="absent"} 1.0' in metrics
    assert "qqbot_session_write_failures_total 0.0" in metrics
    assert 'qqbot_handlers{shard="0"} 1.0' in metrics


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
