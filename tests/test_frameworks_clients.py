"""Clients that somebody else wrote, and what only one of the frameworks has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import frameworks
import pytest
from framework_runs import Build, Outcome, bot_at_qq, emit, restart, slow_handlers

from qqbot_session import AsyncSessionStore, SessionState

pytestmark = pytest.mark.real_time


def build(environment: str, program: str, how: str) -> Build:
    if not frameworks.python_of(environment).exists():
        pytest.skip(f"no environment: python tests/frameworks.py {environment}")
    return Build(environment, f"framework_{program}", how)


async def killed_and_terminated(bot: Build) -> tuple[Outcome, Outcome]:
    runs = (restart(bot, number) for number in (signal.SIGKILL, signal.SIGTERM))
    killed, terminated = await asyncio.gather(*runs)
    return killed, terminated


@pytest.mark.parametrize("shape", ["remembered", "queue remembered", "backoff remembered"])
async def test_a_remembered_client_resumes_whatever_its_own_bot_connect_does(shape: str) -> None:
    killed, terminated = await killed_and_terminated(build("botpy", "botpy", shape))
    assert killed.lost == []
    assert (terminated.lost, terminated.twice, terminated.status) == ([], [], 0)
    for outcome in (killed, terminated):
        assert (outcome.identifies, outcome.resumes) == (1, 1)


@pytest.mark.parametrize("shape", ["queue", "backoff"])
async def test_alone_such_a_client_loses_events(shape: str) -> None:
    killed, _ = await killed_and_terminated(build("botpy", "botpy", shape))
    assert killed.lost
    assert killed.identifies == 2


@pytest.mark.parametrize(
    ("framework", "shape"),
    [
        ("botpy", "pipeline answered remembered"),
        ("botpy", "pipeline hold remembered"),
        ("agent-sdk", "queue answered remembered"),
    ],
)
async def test_an_application_that_answers_later_loses_nothing(framework: str, shape: str) -> None:
    # promise 35
    bot = build(framework, framework.replace("-", "_"), shape)
    killed, terminated = await killed_and_terminated(bot)
    assert (killed.lost, terminated.lost, terminated.twice) == ([], [], [])
    for outcome in (killed, terminated):
        assert (outcome.identifies, outcome.resumes) == (1, 1)


async def test_its_messages_are_lost_if_they_count_as_handled_when_they_are_queued() -> None:
    killed = await slow_handlers(build("botpy", "botpy", "pipeline remembered"))
    assert killed.lost


async def test_ctrl_c_ends_a_client_in_order_as_sigterm_does() -> None:
    # promise 22
    outcome = await restart(build("botpy", "botpy", "mixin"), signal.SIGINT)
    assert (outcome.lost, outcome.twice, outcome.status) == ([], [], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["", " background", " background store"])
async def test_signals_end_in_order_what_only_awaits_start(
    number: signal.Signals, where: str
) -> None:
    # promise 22
    outcome = await restart(build("botpy", "botpy", f"started remembered{where}"), number)
    assert (outcome.lost, outcome.twice) == ([], [])
    if not where:
        assert outcome.status == 0
    elif number is signal.SIGTERM:  # what it does to a program without a handler
        assert outcome.status == -signal.SIGTERM


@pytest.mark.parametrize("environment", ["botpy", "botpy-sdk"])
async def test_handlers_at_work_can_still_answer_while_the_bot_stops(environment: str) -> None:
    # promise 22
    async with bot_at_qq(build(environment, "botpy", "mixin")) as (bot, qq):
        await bot.start(longest=1.5)
        await bot.online()
        await emit(qq, range(1, 6), verb="reply")
        await bot.until(lambda bot: sum(line["what"] == "started" for line in bot.said) == 5)
        await bot.stop(signal.SIGTERM)
        assert sorted(bot.handled) == [1, 2, 3, 4, 5]
        assert len(qq.sent) == 5


async def test_behind_the_sdks_store_protocol_a_kill_loses_what_ran_and_no_more() -> None:
    bot = build("botpy-sdk", "botpy", "our store")
    killed, slow = await asyncio.gather(restart(bot, signal.SIGKILL), slow_handlers(bot))
    assert max(killed.lost, default=0) <= 20  # nothing of what came while it was dead
    assert (killed.identifies, killed.resumes) == (1, 1)
    assert slow.lost  # as its docstring says: the mixin loses none


async def test_nonebot_on_fastapi_keeps_its_number_when_a_webhook_brings_another() -> None:
    bot_build = build("nonebot", "nonebot", "adapter ~fastapi+~httpx+~websockets")
    async with bot_at_qq(bot_build) as (bot, qq):
        await bot.start(longest=0.05)
        await bot.online()
        await emit(qq, [1, 2])
        await bot.until(lambda bot: set(bot.handled) >= {1, 2})
        body = {"op": 0, "s": 999, "t": "C2C_MESSAGE_CREATE", "id": "e", "d": qq.c2c_message("3")}
        await asyncio.to_thread(post_webhook, bot.port, qq.app_id, body)
        await bot.until(lambda bot: 3 in bot.handled)
        await bot.stop(signal.SIGTERM)
        kept = await kept_in(bot.sessions)
        assert kept.last_seq == 3  # READY's is 1
        assert sorted(bot.handled) == [1, 2, 3]


async def test_nonebots_matchers_end_before_plugins_close_what_they_need() -> None:
    # promise 22
    outcome = await restart(build("nonebot", "nonebot", "adapter ~none+~aiohttp"), signal.SIGTERM)
    assert (outcome.lost, outcome.twice, outcome.status) == ([], [], 0)
    assert (outcome.times("database closed"), outcome.times("bot gone")) == (0, 0)


async def test_a_nonebot_plugin_that_answers_later_loses_nothing() -> None:
    # promise 35
    bot = build("nonebot", "nonebot", "queue-answered ~none+~aiohttp")
    killed, terminated = await killed_and_terminated(bot)
    assert (killed.lost, terminated.lost, terminated.twice) == ([], [], [])
    queued = await slow_handlers(build("nonebot", "nonebot", "queue ~none+~aiohttp"))
    assert queued.lost


@pytest.mark.parametrize(
    ("bot_build", "path"),
    [
        (("nonebot", "nonebot", "adapter ~none+~aiohttp"), "/gateway/bot"),
        (("botpy", "botpy", "mixin"), "/gateway/bot"),
        (("botpy-sdk", "botpy", "mixin"), "/users/@me"),
    ],
)
async def test_a_bot_starts_while_qq_is_out_of_order(bot_build: Any, path: str) -> None:
    async with bot_at_qq(build(*bot_build)) as (bot, qq):
        qq.fail("GET", path, 500, status=500, times=3 if "sdk" in bot_build[0] else 1)
        await bot.start()
        await bot.online()
        printed = "\n".join(bot.printed)
        assert "log in" in printed or "登录" in printed


async def test_nonebot_resumes_where_it_was_if_qq_does_not_say_where_the_gateway_is() -> None:
    async with bot_at_qq(build("nonebot", "nonebot", "adapter ~none+~aiohttp")) as (bot, qq):
        for life in (1, 2):
            await bot.start()
            await bot.online(life)
            await bot.stop(signal.SIGTERM)
            qq.fail("GET", "/gateway/bot", 500, status=500, times=None)
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


async def test_nonebots_console_says_that_the_bot_is_connected_also_after_a_resume() -> None:
    async with bot_at_qq(build("nonebot", "nonebot", "adapter ~none+~aiohttp")) as (bot, _):
        for life in (1, 2):
            await bot.start()
            await bot.online(life)
            await bot.until(lambda bot, life=life: bot.said.count({"what": "ready"}) == life)
            await bot.stop(signal.SIGTERM)
        printed = "\n".join(bot.printed)
    assert printed.count("Bot 102000000 connected") == 2
    assert "102000000-0-1: session resumed from number 1, caught up on 0 event(s)" in printed


def post_webhook(port: int, app_id: str, body: Any) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/qq/webhook",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-Bot-Appid": app_id},
    )
    urllib.request.urlopen(request, timeout=30).close()


async def kept_in(sessions: Path) -> SessionState:
    async with AsyncSessionStore(sessions) as store:
        (state,) = await store.load_all()
    assert isinstance(state, SessionState)
    return state


async def test_nonebot_is_disconnected_when_its_last_shard_is_down() -> None:
    bot_build = build("nonebot", "nonebot", "adapter ~none+~aiohttp")
    async with bot_at_qq(bot_build, shards=2, heartbeat_interval=45.0) as (bot, qq):

        def said(what: str) -> int:
            return sum(line["what"] == what for line in bot.said)

        await bot.start(longest=0.05)
        await bot.online(2)
        await qq.drop(shard=(0, 2))
        await bot.online(3)
        assert (said("ready"), said("disconnected")) == (1, 0)
        await qq.drop()
        await bot.online(5)
        await bot.until(lambda _: said("ready") == 2)
        assert (said("ready"), said("disconnected")) == (2, 1)
        await bot.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    "case",
    [
        "what_a_handler_holds_is_resumed_from_and_not_settled_by_its_copy",
        "what_nobody_wants_settles_itself",
        "op_9_gives_the_session_up",
        "op_9_that_lets_resume_keeps_it",
        "after_three_unanswered_resumes_it_identifies",
        "a_handler_that_raises_has_handled_its_event",
        "the_copy_of_an_event_whose_handler_was_cancelled_leaves_it_open",
        "a_new_session_begins_at_its_own_number",
        "what_comes_after_the_store_was_closed_is_no_error",
        "drain_waits_for_handlers_and_then_cancels_them",
        "an_answer_that_is_awaited_needs_a_client_that_sends_it",
    ],
)
def test_with_qqbot_agent_sdk(case: str) -> None:
    # promises 16 to 18
    build("agent-sdk", "agent_sdk", "remembered")
    result = subprocess.run(
        [frameworks.python_of("agent-sdk"), frameworks.PROGRAMS / "agent_bridge.py", case],
        env=os.environ | {"PYTHONPATH": str(frameworks.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
