"""The page about the store alone: its loop, as a process on a real socket."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_readme import ROOT, start, until_line

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def bot_at(
    qq: LocalGateway, directory: Path, number: signal.Signals = signal.SIGTERM
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the example until the body ends, then send it the signal."""
    variables = {
        "QQBOT_APP_ID": qq.app_id,
        "QQBOT_SECRET": qq.client_secret,
        "QQBOT_API_URL": qq.api_url,
        "QQBOT_TOKEN_URL": qq.token_url,
    }
    program = str(ROOT / "examples" / "store_alone.py")
    env = os.environ | variables
    lines = len(qq.clients)
    bot = await start(
        sys.executable, "-W", "error", program, cwd=directory, env=env, stdout=PIPE, stderr=PIPE
    )
    try:
        await qq.wait_for(lambda qq: len(qq.clients) > lines and qq.clients[-1].started)
        yield bot
    finally:
        bot.send_signal(number)
        _, said = await bot.communicate()
    if number == signal.SIGTERM:
        assert (bot.returncode, said) == (0, b"")


async def emit(qq: LocalGateway, text: str) -> None:
    await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(text))


async def kept(qq: LocalGateway, directory: Path) -> SessionState | None:
    async with AsyncSessionStore(directory / "sessions") as store:
        return await store.load(qq.app_id)


async def until_kept(qq: LocalGateway, directory: Path, number: int) -> None:
    """Wait until the number is on storage."""
    async with asyncio.timeout(60):
        while getattr(await kept(qq, directory), "last_seq", None) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restarted_loop_on_the_store_alone_resumes_and_loses_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    # promise 9
    async with LocalGateway(heartbeat_interval=0.2) as qq:
        async with bot_at(qq, tmp_path, number) as bot:
            await emit(qq, "before")
            await until_line(bot.stdout, "before")
            await until_kept(qq, tmp_path, 2)
        await emit(qq, "meanwhile")
        async with bot_at(qq, tmp_path) as bot:
            await emit(qq, "after")
            await until_line(bot.stdout, "meanwhile")
            await until_line(bot.stdout, "after")
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


async def test_an_answered_heartbeat_is_a_sign_of_life(tmp_path: Path) -> None:
    async def saved_at(beats: int) -> float:
        await qq.wait_for(lambda qq: len(qq.heartbeats) >= beats)
        state = await kept(qq, tmp_path)
        assert state is not None
        return state.saved_at or 0.0

    async with LocalGateway(heartbeat_interval=0.2) as qq, bot_at(qq, tmp_path):
        first = await saved_at(beats=2)
        assert await saved_at(beats=8) > first


@pytest.mark.parametrize("how", ["op 9", "4006"])
async def test_a_session_that_the_gateway_ends_is_not_resumed(tmp_path: Path, how: str) -> None:
    async with LocalGateway() as qq, bot_at(qq, tmp_path):
        await (qq.invalid_session() if how == "op 9" else qq.close(4006))
        await qq.wait_for(lambda qq: len(qq.identifies) == 2)
        assert len(qq.resumes) == 0


async def test_a_line_that_the_gateway_wants_renewed_keeps_the_session(tmp_path: Path) -> None:
    async with LocalGateway() as qq, bot_at(qq, tmp_path):
        await qq.reconnect()
        await qq.wait_for(lambda qq: len(qq.resumes) == 1)
        assert len(qq.identifies) == 1
