"""README's code is run as it stands there, in both languages."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.gateway import Dispatch
from qqbot_session.testing import LocalGateway

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
ENGLISH, CHINESE = READMES


def blocks(readme: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text("utf-8"), re.M | re.S)


def test_both_languages_show_the_same_code_and_the_same_commands() -> None:
    for language in ("python", "sh"):
        assert blocks(CHINESE, language) == blocks(ENGLISH, language)


def test_both_languages_have_the_same_sections_and_tables() -> None:
    def shape(readme: Path) -> list[int]:
        sections = re.split(r"^## ", readme.read_text("utf-8"), flags=re.M)
        return [len(re.findall(r"^\|", section, re.M)) for section in sections]

    assert shape(CHINESE) == shape(ENGLISH)


def test_the_first_program_stands_before_line_25_and_resumes_when_run_again(
    tmp_path: Path,
) -> None:
    program = blocks(ENGLISH)[0]
    assert ENGLISH.read_text("utf-8").index(program) < len(
        "\n".join(ENGLISH.read_text("utf-8").split("\n")[:25])
    )

    def run() -> str:
        command = [sys.executable, "-W", "error", "-c", program]
        return subprocess.run(
            command, cwd=tmp_path, text=True, capture_output=True, check=True
        ).stdout

    assert run().startswith("Identify")
    assert run() == "Resume from READY from 1\n"
    assert run() == "Resume from READY from 2\n"


@pytest.mark.parametrize("driver", ["run_with_aiohttp", "run_with_websockets"])
def test_a_driver_is_under_30_lines(driver: str) -> None:
    (block,) = [block for block in blocks(ENGLISH) if f"def {driver}" in block]
    function = block[block.index(f"async def {driver}") :].split("\n\n\n")[0]
    assert len(function.strip().splitlines()) < 30


@pytest.mark.real_time
@pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ["run_with_aiohttp", "run_with_websockets"])
async def test_a_driver_handles_every_event_once_through_drops_and_closes(
    driver: str, tmp_path: Path
) -> None:
    names: dict[str, Any] = {}
    for block in blocks(ENGLISH)[1:]:
        exec(compile(block, "README.md", "exec"), names)
    seen: list[str] = []

    async def handle(event: Dispatch) -> None:
        seen.append(event.data["content"])

    async with LocalGateway(heartbeat_interval=0.2) as qq, AsyncSessionStore(tmp_path) as store:
        token = await fetch_token(qq)

        async def get_token() -> str:
            return token

        gateway = await names["open_gateway"](store, qq.app_id, 1 << 25)
        bot = asyncio.create_task(names[driver](gateway, store, qq.ws_url, get_token, handle))
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        for number, misfortune in enumerate([qq.drop, lambda: qq.close(4009), qq.reconnect]):
            await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(f"before {number}"))
            await misfortune()
            await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(f"while {number}"))
            await qq.wait_for(lambda qq, n=number: len(qq.resumes) == n + 1)
            await qq.wait_for(lambda qq: qq.clients[-1].started)
        await qq.wait_for(lambda _: len(seen) == 6)
        bot.cancel()
        await asyncio.gather(bot, return_exceptions=True)
        del bot
        gc.collect()  # its last line, which it leaves without a close frame, to be resumed
        assert seen == [f"{when} {number}" for number in range(3) for when in ("before", "while")]
        assert len(qq.identifies) == 1
        state = await store.load(gateway.account_id)
        assert isinstance(state, SessionState)
        assert state.last_seq == gateway.received


async def fetch_token(qq: LocalGateway) -> str:
    import aiohttp

    body = {"appId": qq.app_id, "clientSecret": qq.client_secret}
    async with aiohttp.ClientSession() as http, http.post(qq.token_url, json=body) as answer:
        return (await answer.json())["access_token"]
