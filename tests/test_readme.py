"""The code of README, and of the pages on a bot and a loop, is run as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import signal
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from misfortunes import MISFORTUNES

from qqbot_session import AsyncSessionStore
from qqbot_session.gateway import CLOSE_RULES, Dispatch, connection
from qqbot_session.shard import open_gateway
from qqbot_session.testing import LocalGateway

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
ENGLISH, CHINESE = READMES
OWN_LOOP = ROOT / "docs" / "own-loop.md"
STORE = ROOT / "docs" / "store.md"
BOT = ROOT / "examples" / "bot.py"  # what the page on a first bot includes


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


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_each_language_leads_to_the_other_and_shows_a_bot_in_a_short_page(readme: Path) -> None:
    lines = readme.read_text("utf-8").splitlines()
    other = CHINESE if readme == ENGLISH else ENGLISH
    assert f"({other.name})" in lines[1]
    assert "async def handle(event: Dispatch, bot: Bot)" in "\n".join(lines[:25])
    assert len(lines) <= 120


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_every_link_leads_to_a_file(readme: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text("utf-8")):
        assert link.startswith("http") or (ROOT / link).is_file(), link


@pytest.mark.real_time
async def test_the_first_bot_answers(tmp_path: Path) -> None:
    async with LocalGateway() as qq:
        command = (sys.executable, "-W", "error", "-c", blocks(ENGLISH)[0])
        bot = await start(*command, cwd=tmp_path, env=os.environ | at(qq), stderr=PIPE)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await qq.emit("C2C_MSG_REJECT", {})  # handled before the others are answered
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("ping"))
        await qq.emit("GROUP_AT_MESSAGE_CREATE", qq.group_at_message("ping all"))
        await qq.wait_for(lambda qq: len(qq.sent) == 2)
        bot.send_signal(signal.SIGTERM)
        _, said = await bot.communicate()
        assert (bot.returncode, b"Traceback" in said) == (0, False), said
        assert b"no handler for C2C_MSG_REJECT" in said
        assert {answer.content for answer in qq.sent} == {"ping", "ping all"}


@pytest.mark.real_time
async def test_an_answer_that_qq_has_already_is_no_error_of_the_first_bot(tmp_path: Path) -> None:
    async with LocalGateway() as qq:
        qq.fail("POST", "/v2/users/{to}/messages", status=400, code=40054005)
        command = (sys.executable, "-W", "error", "-c", blocks(ENGLISH)[0])
        bot = await start(*command, cwd=tmp_path, env=os.environ | at(qq), stderr=PIPE)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("ping"))
        await qq.wait_for(lambda qq: qq.calls)
        bot.send_signal(signal.SIGTERM)
        _, said = await bot.communicate()
        assert (bot.returncode, b"Traceback" in said) == (0, False), said


@pytest.mark.real_time
@pytest.mark.parametrize("missing", ["QQBOT_APP_ID", "QQBOT_SECRET"])
async def test_without_credentials_the_first_bot_says_so_in_one_line(
    tmp_path: Path, missing: str
) -> None:
    variables = {"QQBOT_APP_ID": "102000000", "QQBOT_SECRET": "secret", missing: ""}
    command = (sys.executable, "-c", blocks(ENGLISH)[0])
    bot = await start(*command, cwd=tmp_path, env=os.environ | variables, stderr=PIPE)
    _, said = await bot.communicate()
    assert (bot.returncode, said) == (1, b"set QQBOT_APP_ID and QQBOT_SECRET\n")


def at(qq: LocalGateway) -> dict[str, str]:
    """Return the variables that lead a bot to QQ on this machine."""
    return {
        "QQBOT_APP_ID": qq.app_id,
        "QQBOT_SECRET": qq.client_secret,
        "QQBOT_API_URL": qq.api_url,
        "QQBOT_TOKEN_URL": qq.token_url,
    }


async def test_the_lines_for_the_store_alone_keep_what_the_next_process_resumes_from(
    tmp_path: Path,
) -> None:
    names: dict[str, Any] = {}
    exec(block_with("async def take"), names)
    known: list[int | None] = []

    async with AsyncSessionStore(tmp_path) as store:

        async def handle(frame: dict[str, Any]) -> None:
            state = await store.load("me")
            known.append(state and state.last_seq)

        await names["take"](
            store, {"op": 0, "t": "READY", "s": 1, "d": {"session_id": "s"}}, handle
        )
        await names["take"](store, {"op": 0, "t": "C2C_MESSAGE_CREATE", "s": 2, "d": {}}, handle)
        state = await store.load("me")
        assert (state and state.last_seq, known) == (2, [1])  # remembered after it was handled
        await names["take"](store, {"op": 11}, handle)
        await names["take"](store, {"op": 9, "d": False}, handle)
        assert await store.load("me") is None


# The programs for bots


def block_with(text: str, page: Path = ENGLISH) -> str:
    (block,) = [block for block in blocks(page) if text in block]
    return block


@pytest.mark.real_time
async def test_a_wrong_secret_ends_the_example_with_a_sentence(tmp_path: Path) -> None:
    async with LocalGateway() as qq:
        env = os.environ | at(qq) | {"QQBOT_SECRET": "wrong"}
        bot = await start(sys.executable, str(BOT), cwd=tmp_path, env=env, stderr=PIPE)
        _, said = await bot.communicate()
        assert (bot.returncode, said.count(b"\n")) == (1, 1), said
        assert b"The app id or the secret is wrong." in said


def test_the_example_of_an_own_loop_is_what_its_page_shows() -> None:
    example = (ROOT / "examples" / "own_loop.py").read_text("utf-8")
    shown = block_with("async def run_own_loop", OWN_LOOP)
    assert shown[shown.index("DATA = ") :] in example


@pytest.mark.real_time
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_bot_answers_and_goes_on_where_it_was(tmp_path: Path, loop: str) -> None:
    """As its page says: QQ by its command on this machine, and the variables that it prints."""
    pytest.importorskip(loop)
    text = BOT.read_text("utf-8").replace("asyncio.run(", f"{loop}.run(")
    text = text.replace("import asyncio\n", f"import {loop}\n", 1)
    program = [sys.executable, "-W", "error", "-c", text]
    command = ["-u", "-m", "qqbot_session.testing", "--port", "0", "--every", "0.05"]
    qq = await start(sys.executable, *command, stdout=PIPE)
    try:
        variables = dict([await next_variable(qq) for _ in range(4)])
        for handshake in ("Identify", "Resume from"):
            bot = await start(*program, cwd=tmp_path, env={**os.environ, **variables}, stderr=PIPE)
            assert handshake in await until_line(bot.stderr, r"Identify|Resume")
            await until_line(qq.stdout, r"answer|sent|messages")
            bot.send_signal(signal.SIGTERM)
            said = await bot.stderr.read()  # type: ignore[union-attr]
            assert (await bot.wait(), b"Traceback" in said) == (0, False), said
    finally:
        qq.kill()
        await qq.wait()


async def start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, **options)


async def until_line(output: asyncio.StreamReader | None, pattern: str) -> str:
    assert output is not None
    async with asyncio.timeout(60):
        async for line in output:
            if re.search(pattern, line.decode()):
                return line.decode()
    raise AssertionError(f"no line with {pattern}")


async def next_variable(qq: asyncio.subprocess.Process) -> tuple[str, str]:
    line = await until_line(qq.stdout, "^export ")
    name, _, value = line.removeprefix("export ").strip().partition("=")
    return name, value


class OwnBot:
    """A bot on the loop that the page shows."""

    def __init__(self, qq: LocalGateway) -> None:
        self.qq = qq
        self.handled: list[str] = []
        self.news = asyncio.Event()

    async def handle(self, event: Dispatch) -> None:
        self.handled.append(event.data["content"])
        self.news.set()

    async def run(self, directory: Path) -> None:
        names: dict[str, Any] = {}
        exec(compile(block_with("async def run_own_loop", OWN_LOOP), "own-loop.md", "exec"), names)
        qq, token = self.qq, ""
        rules = {code: replace(rule, wait=rule.wait / 50) for code, rule in CLOSE_RULES.items()}
        async with AsyncSessionStore(directory) as store, aiohttp.ClientSession() as http:

            async def get_token(fresh: bool) -> str:
                nonlocal token
                if fresh or not token:
                    token = await fetch_token(qq)
                return token

            await names["run_own_loop"](
                store,
                await open_gateway(store, qq.app_id, intents=1 << 25, close_rules=rules),
                lambda: http.ws_connect(qq.ws_url),
                get_token,
                self.handle,
            )

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.qq.emit("C2C_MESSAGE_CREATE", self.qq.c2c_message(text))

    async def until_handled(self, *texts: str) -> None:
        async with asyncio.timeout(60):
            while not set(texts) <= set(self.handled):
                self.news.clear()
                await self.news.wait()


@pytest.mark.real_time
@pytest.mark.parametrize("strike", MISFORTUNES, ids=lambda strike: strike.__name__)
async def test_the_own_loop_loses_nothing_and_handles_nothing_twice(
    strike: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promises 16, 18 and 21
    async with LocalGateway(heartbeat_interval=0.3) as qq:
        bot = OwnBot(qq)
        running = asyncio.create_task(bot.run(tmp_path))
        try:
            await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
            await bot.say("before", "just before")
            monkeypatch.setattr(connection, "_PATIENCE", 0.5)  # with the lines that come now
            await strike(qq)
            await bot.say("while")
            await bot.until_handled("before", "just before", "while")
            await bot.say("after")
            await bot.until_handled("after")
        finally:
            running.cancel()
            await asyncio.wait([running])
        assert running.cancelled()
        assert sorted(bot.handled) == ["after", "before", "just before", "while"]
        assert len(qq.identifies) == 1


@pytest.mark.real_time
async def test_the_own_loop_handles_slow_and_failing_work_and_a_ban(tmp_path: Path) -> None:
    async with LocalGateway(heartbeat_interval=0.2) as qq:
        bot = OwnBot(qq)
        note = bot.handle

        async def handle(event: Dispatch) -> None:
            await asyncio.sleep(0.5)  # more than two heartbeats
            await note(event)
            raise aiohttp.ClientError("the handler's own")

        bot.handle = handle  # type: ignore[method-assign]
        running = asyncio.create_task(bot.run(tmp_path))
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await bot.say(*map(str, range(20)))
        await bot.until_handled(*map(str, range(20)))
        assert (len(qq.clients), len(bot.handled)) == (1, 20)
        await qq.close(4915)
        with pytest.raises(ConnectionRefusedError, match="banned"):
            await running


@pytest.mark.real_time
async def test_a_second_cancellation_ends_the_handlers_of_the_own_loop_before_the_store_closes(
    tmp_path: Path,
) -> None:
    """What they worked on comes again, and nothing else does."""
    async with LocalGateway(heartbeat_interval=5) as qq:
        bot = OwnBot(qq)
        note, slow, begun = bot.handle, True, asyncio.Event()

        async def handle(event: Dispatch) -> None:
            if slow and event.data["content"] == "slow":
                begun.set()
                await asyncio.sleep(3600)
            await note(event)

        bot.handle = handle  # type: ignore[method-assign]
        running = asyncio.create_task(bot.run(tmp_path))
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await bot.say("quick", "slow")
        await bot.until_handled("quick")
        await begun.wait()
        for _ in range(2):
            running.cancel()
            await asyncio.sleep(0.1)
        await asyncio.wait([running])
        assert not [task for task in asyncio.all_tasks() if "work" in repr(task.get_coro())]
        slow = False
        running = asyncio.create_task(bot.run(tmp_path))
        await bot.until_handled("slow")
        running.cancel()
        await asyncio.wait([running])
        assert bot.handled == ["quick", "slow"]


@pytest.mark.real_time
async def test_the_own_loop_asks_for_the_address_again_when_it_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalGateway() as qq, aiohttp.ClientSession() as http:
        for name, value in at(qq).items():
            monkeypatch.setenv(name, value)
        bot = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))["QQ"](http)
        qq.respond("GET", "/gateway", {"url": "ws://127.0.0.1:9/"}, times=1)
        with pytest.raises(aiohttp.ClientError):
            await bot.open_socket()
        for _ in range(2):
            await (await bot.open_socket()).close()
        assert qq.requests["/gateway"] == 2


@pytest.mark.real_time
async def test_the_runner_keeps_its_line_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block_with("async def run_shard", OWN_LOOP), "own-loop.md", "exec"), names)
    seen = asyncio.Event()

    async def handle(event: Dispatch) -> None:
        seen.set()

    async with LocalGateway() as qq:
        token = await fetch_token(qq)

        async def get_token(fresh: bool) -> str:
            return token

        running = asyncio.create_task(names["run_shard"](qq.app_id, qq.ws_url, get_token, handle))
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await qq.close(4009)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        await asyncio.wait_for(seen.wait(), 60)
        running.cancel()
        await asyncio.wait([running])


LIKE_WINDOWS = """
import asyncio
def refuse(self, *_): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse
asyncio.SelectorEventLoop.remove_signal_handler = refuse
"""
A_BOT = """
async def run() -> None:
    async with AsyncSessionStore("sessions", debounce=200) as store:
        await store.save(SessionState(account_id="bot", session_id="s", last_seq=1))
        await store.flush()
        await store.update_last_seq("bot", 7)
        print("ready", flush=True)
        await asyncio.Event().wait()
"""


@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", ["", LIKE_WINDOWS], ids=["", "like Windows"])
async def test_the_recipe_for_signals_saves_and_ends_with_status_0(
    tmp_path: Path, number: signal.Signals, before: str
) -> None:
    # promise 9
    page = block_with("loop.call_soon_threadsafe(task.cancel)", STORE)
    imports = "import asyncio, signal\nfrom qqbot_session import AsyncSessionStore, SessionState\n"
    program = before + imports + A_BOT + page[page.index("async def main()") :]
    bot = await start(
        *(sys.executable, "-W", "error", "-c", program), cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    assert await until_line(bot.stdout, "ready")
    bot.send_signal(number)
    _, said = await bot.communicate()
    assert (bot.returncode, said) == (0, b"")
    async with AsyncSessionStore(tmp_path / "sessions") as store:
        state = await store.load("bot")
        assert state is not None
        assert state.last_seq == 7


@pytest.mark.real_time
async def test_the_example_of_a_kill_loses_nothing() -> None:
    example = await start(sys.executable, str(ROOT / "examples" / "resume.py"), stdout=PIPE)
    said, _ = await example.communicate()
    assert example.returncode == 0, said.decode()
    assert b"lost: 0" in said


@pytest.mark.real_time
async def test_the_example_of_an_own_loop_answers_and_stops_in_order(tmp_path: Path) -> None:
    async with LocalGateway() as qq:
        command = (sys.executable, "-W", "error", str(ROOT / "examples" / "own_loop.py"))
        bot = await start(*command, cwd=tmp_path, env=os.environ | at(qq), stderr=PIPE)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        await qq.wait_for(lambda qq: qq.sent)
        bot.send_signal(signal.SIGTERM)
        _, said = await bot.communicate()
        assert bot.returncode == 0, said.decode()


async def fetch_token(qq: LocalGateway) -> str:
    body = {"appId": qq.app_id, "clientSecret": qq.client_secret}
    async with aiohttp.ClientSession() as http, http.post(qq.token_url, json=body) as answer:
        return (await answer.json())["access_token"]
