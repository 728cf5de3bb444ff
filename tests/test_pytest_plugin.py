"""The fixture `local_gateway`, in the suites of others: whatever runs their asynchronous tests.

Each test here is a run of pytest on a user's files, without any configuration.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from qqbot_session.testing import LocalGateway

ROOT = Path(__file__).parent.parent
FATAL = [  # all but what other plugins say of themselves
    "-Werror::ResourceWarning",
    "-Werror::pytest.PytestAssertRewriteWarning",
    "-Werror::pytest.PytestUnhandledThreadExceptionWarning",
    "-Werror::pytest.PytestUnraisableExceptionWarning",
]
NAME, MODULE = "qqbot_session", "qqbot_session_pytest"
PLUGINS = {plugin.name for plugin in entry_points(group="pytest11")}
NO_OTHERS = [f"-pno:{name}" for name in PLUGINS - {NAME, "asyncio", "anyio"}]  # cost a second

BOT = """
import asyncio, contextlib, json
import aiohttp

@contextlib.asynccontextmanager
async def my_bot(app_id, secret, *, api_url, token_url):
    task = asyncio.create_task(run(app_id, secret, api_url, token_url))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])

async def run(app_id, secret, api_url, token_url):
    async with aiohttp.ClientSession() as http:
        body = {"appId": app_id, "clientSecret": secret}
        async with http.post(token_url, json=body) as answer:
            token = "QQBot " + (await answer.json())["access_token"]
        http.headers["Authorization"] = token
        async with http.get(api_url + "/gateway") as answer:
            url = (await answer.json())["url"]
        seq, hello = 0, {"op": 2, "d": {"token": token, "intents": 1 << 25, "shard": [0, 1]}}
        while True:
            async with http.ws_connect(url) as ws:
                await ws.send_json(hello)
                async for message in ws:
                    event = json.loads(message.data)
                    if event.get("t") == "READY":
                        session_id = event["d"]["session_id"]
                    if event.get("t") == "C2C_MESSAGE_CREATE":
                        await answer_message(http, api_url, event["d"])
                    seq = event.get("s", seq)
            hello = {"op": 6, "d": {"token": token, "session_id": session_id, "seq": seq}}

async def answer_message(http, api_url, message):
    path = "/v2/users/%s/messages" % message["author"]["user_openid"]
    body = {"content": "pong", "msg_id": message["id"]}
    await http.post(api_url + path, json=body)

def bot_for(qq):
    return my_bot(qq.app_id, qq.client_secret, api_url=qq.api_url, token_url=qq.token_url)

async def play(qq):
    await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
    message = qq.c2c_message("ping")
    assert await qq.emit("C2C_MESSAGE_CREATE", message) == (2,)
    await qq.wait_for(lambda qq: qq.sent)
    assert [(sent.content, sent.msg_id) for sent in qq.sent] == [("pong", message["id"])]
    assert len(qq.identifies) == 1
"""

ASYNCHRONOUS = """
import pytest
from my_bot import bot_for, play
{extra}

@{fixture}
async def bot(local_gateway):
    async with bot_for(local_gateway):
        yield

{mark}
async def test_the_bot_answers(bot, local_gateway):
    await play(local_gateway)

{mark}
async def test_every_test_has_a_gateway_of_its_own(bot, local_gateway):
    await play(local_gateway)
"""

PLAIN = """
import asyncio
from my_bot import bot_for, play

def test_the_bot_answers(local_gateway):
    async def main():
        async with bot_for(local_gateway):
            await play(local_gateway)
    asyncio.run(main())
"""

ANYIO = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'"
STRICT = {"extra": "import pytest_asyncio", "fixture": "pytest_asyncio.fixture"}
MODES: dict[str, tuple[list[str], str]] = {
    "pytest-asyncio strict": (
        ["-p", "no:anyio"],
        ASYNCHRONOUS.format(**STRICT, mark="@pytest.mark.asyncio"),
    ),
    "pytest-asyncio auto": (
        ["-p", "no:anyio", "--asyncio-mode=auto"],
        ASYNCHRONOUS.format(extra="", fixture="pytest.fixture", mark=""),
    ),
    "anyio": (
        ["-p", "no:asyncio"],
        ASYNCHRONOUS.format(extra=ANYIO, fixture="pytest.fixture", mark="@pytest.mark.anyio"),
    ),
    "none": (["-p", "no:asyncio", "-p", "no:anyio"], PLAIN),
}


def run_pytest(directory: Path, *options: str, **files: str) -> tuple[dict[str, int], str]:
    """Run pytest on a user's files; return its counts of outcomes, and what it printed."""
    for name, text in files.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(text), "utf-8")
    # A checkout that was installed before there was a plugin has no entry point for it.
    plugin = [] if NAME in PLUGINS else ["-p", MODULE]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    result = subprocess.run(
        [*command, *FATAL, *NO_OTHERS, *plugin, *options],
        cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    *_, summary = result.stdout.strip().splitlines()
    words = summary.replace(",", "").split()
    counts = dict(zip(words[1::2], map(int, filter(str.isdigit, words[::2])), strict=False))
    return counts, result.stdout + result.stderr


@pytest.mark.parametrize("mode", MODES)
def test_the_fixture_needs_no_configuration(tmp_path: Path, mode: str) -> None:
    options, program = MODES[mode]
    if mode == "anyio":
        pytest.importorskip("anyio")
    counts, output = run_pytest(tmp_path, *options, my_bot=BOT, test_bot=program)
    assert counts == {"passed": 1 if mode == "none" else 2}, output


@pytest.mark.parametrize("readme", ["docs/testing.md", "docs/testing.zh.md"])
def test_the_pages_say_what_there_is(readme: str) -> None:
    what_you_can_do = section(readme).split("\n## ")[2]
    names = re.findall(r"(?:(?<=[|,] )|(?<=、))`(\w+)`", what_you_can_do)
    assert len(names) > 30
    with LocalGateway().serving() as gateway:
        assert [name for name in names if not hasattr(gateway, name)] == []


def test_the_test_on_the_page_passes(tmp_path: Path) -> None:
    program = re.findall(r"^```python\n(.*?)^```", section("docs/testing.md"), re.M | re.S)[0]
    options = ["-p", "no:anyio", "--asyncio-mode=auto"]
    program = "from my_bot import my_bot\n" + program
    counts, output = run_pytest(tmp_path, *options, my_bot=BOT, test_readme=program)
    assert counts == {"passed": 1}, output


def section(page: str) -> str:
    """Return the page's words."""
    return (ROOT / page).read_text("utf-8")


def test_it_is_imported_when_used_and_made_as_a_marker_says(tmp_path: Path) -> None:
    program = """
        import sys
        import pytest

        def test_nothing_is_imported():
            assert "aiohttp" not in sys.modules
            assert "qqbot_session.testing.gateway" not in sys.modules

        def test_unmarked(local_gateway):
            assert "aiohttp" in sys.modules
            assert (local_gateway.heartbeat_interval, local_gateway.shards) == (45.0, 1)

        @pytest.mark.local_gateway(heartbeat_interval=0.5, shards=3)
        def test_marked(local_gateway):
            assert (local_gateway.heartbeat_interval, local_gateway.shards) == (0.5, 3)

        @pytest.mark.local_gateway(no_such=1)
        def test_mistaken(local_gateway):
            pass
    """
    counts, output = run_pytest(tmp_path, "-p", "no:anyio", test_lazy=program)
    assert counts == {"passed": 3, "error": 1}, output
    assert "no_such" in output


def test_without_aiohttp_only_tests_that_use_it_fail_and_say_why(tmp_path: Path) -> None:
    program = """
        import sys
        sys.modules["aiohttp"] = None

        def test_of_something_else():
            pass

        def test_of_a_bot(local_gateway):
            pass
    """
    counts, output = run_pytest(tmp_path, "-p", "no:anyio", test_missing=program)
    assert counts == {"passed": 1, "error": 1}, output
    assert 'pip install "qqbot_session[testing]"' in output


def test_the_plugin_is_where_pytest_looks_for_it() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {NAME: MODULE}


# From another thread and loop


@pytest.mark.real_time
@pytest.mark.local_gateway(session_starts=7)
async def test_the_gateway_may_be_used_from_a_loop_that_is_not_its_own(
    local_gateway: LocalGateway,
) -> None:
    with pytest.raises(TimeoutError, match=r"not within 0.01 s"):
        await local_gateway.wait_for(lambda qq: qq.identifies, timeout=0.01)
    assert await local_gateway.emit("A", {}) == ()
    assert (await local_gateway.drop(), local_gateway.remaining()) == (0, 7)
    with pytest.raises(RuntimeError, match="already serving"):
        await local_gateway.__aenter__()


def test_serving_ends_with_its_block_and_can_begin_again() -> None:
    gateway = LocalGateway()
    with gateway.serving():
        url = gateway.api_url
    with gateway.serving():
        assert gateway.api_url == url


def test_a_taken_port_is_an_error_where_serving_begins(local_gateway: LocalGateway) -> None:
    with (
        pytest.raises(OSError, match="in use"),
        LocalGateway(port=local_gateway.port).serving(),
    ):
        pass
