"""`run_bot` against QQ on localhost, with real sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, GatewayRefusedError, MemoryStorage
from qqbot_session import bot as bot_module
from qqbot_session import pace as pace_module
from qqbot_session import shard as shard_module
from qqbot_session.bot import SANDBOX_API_URL, TOKEN_URL, ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.testing import LocalGateway
from qqbot_session.web import api as api_module
from qqbot_session.web import entrance as entrance_module

pytestmark = pytest.mark.real_time

C2C = "C2C_MESSAGE_CREATE"
INTENTS = 1 << 25
GATEWAY = "/gateway/bot"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause short: what is asked here is what happens, and in which order."""

    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds / 50)

    monkeypatch.setattr(shard_module, "_pause", pause)
    monkeypatch.setattr(entrance_module, "_pause", pause)
    monkeypatch.setattr(pace_module, "_pause", pause)


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway(heartbeat_interval=0.5) as local:
        yield local


async def answer(event: Dispatch, bot: Bot) -> None:
    """Answer a message, as a bot does."""
    user = event.data["author"]["user_openid"]
    body = {"content": event.data["content"], "msg_type": 0, "msg_id": event.data["id"]}
    await bot.request("POST", f"/v2/users/{user}/messages", json=body)


def start(qq: LocalGateway, **options: Any) -> asyncio.Task[None]:
    urls = {"api_url": qq.api_url, "token_url": qq.token_url}
    options = {"intents": INTENTS, "handle": answer, "sessions": MemoryStorage()} | urls | options
    return asyncio.create_task(run_bot(qq.app_id, qq.client_secret, **options))


@asynccontextmanager
async def running(qq: LocalGateway, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    lines = len(qq.clients)
    task = start(qq, **options)
    try:
        await qq.wait_for(lambda qq: len(qq.clients) > lines and qq.clients[-1].started)
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            raise error


async def say(qq: LocalGateway, *texts: str) -> None:
    for text in texts:
        await qq.emit(C2C, qq.c2c_message(text))


# A bot's life


async def test_a_bot_answers_what_it_is_told(qq: LocalGateway) -> None:
    async with running(qq):
        await say(qq, "hello")
        await qq.wait_for(lambda qq: qq.sent)
        assert qq.sent[0].body["content"] == "hello"
        assert qq.sent[0].status == 200


async def test_a_queued_message_is_handled_when_its_answer_was_accepted(
    qq: LocalGateway, directory: Path
) -> None:
    # promise 35
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def queue_it(event: Dispatch, bot: Bot) -> None:
        await queue.put((event, bot))

    async with running(qq, handle=queue_it, until="answered", sessions=directory, grace=0):
        await say(qq, "a", "b")
        await answer(*await queue.get())
        await queue.get()  # and die before the answer
    async with AsyncSessionStore(directory) as store:
        (state,) = await store.load_all()
    assert state.last_seq == 2  # READY's is 1
    async with running(qq, handle=queue_it, until="answered", sessions=directory, grace=0):
        event, _ = await queue.get()
        assert event.data["content"] == "b"


async def test_its_session_goes_on_at_the_next_start(qq: LocalGateway, directory: Path) -> None:
    # promise 22
    async with running(qq, sessions=directory):
        await say(qq, "first")
        await qq.wait_for(lambda qq: len(qq.sent) == 1)
    await say(qq, "meanwhile")
    async with running(qq, sessions=directory):
        await qq.wait_for(lambda qq: len(qq.sent) == 2)
    assert [sent.body["content"] for sent in qq.sent] == ["first", "meanwhile"]
    assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


async def test_a_store_of_the_callers_is_used_and_left_open(qq: LocalGateway) -> None:
    async with AsyncSessionStore(MemoryStorage()) as store:
        async with running(qq, sessions=store):
            await say(qq, "hello")
            await qq.wait_for(lambda qq: qq.sent)
        assert await store.load(f"{qq.app_id}-0-1") is not None


async def test_a_bot_knows_its_user_and_its_health(qq: LocalGateway, directory: Path) -> None:
    bots: list[Bot] = []

    async def keep(event: Dispatch, bot: Bot) -> None:
        bots.append(bot)

    for asked in (0, 1):  # READY tells; a bot that resumed has to ask
        async with running(qq, sessions=directory, handle=keep):
            await say(qq, "hello")
            await qq.wait_for(lambda _, n=asked: len(bots) > n)
            bot = bots[-1]
            assert (await bot.user())["bot"] is True
            assert (await bot.user())["bot"] is True
            assert qq.requests["/users/@me"] == asked
            (health,) = bot.health.values()
            assert health.connected_since is not None
            assert list(bot.health) == [(0, 1)]


async def test_the_sandbox_has_sessions_of_its_own(qq: LocalGateway) -> None:
    storage = MemoryStorage()
    async with running(qq, sessions=storage, sandbox=True):
        await say(qq, "hello")
        await qq.wait_for(lambda qq: qq.sent)
    async with AsyncSessionStore(storage) as store:
        (state,) = await store.load_all()
        assert state.account_id == f"{qq.app_id}-0-1-sandbox"
    assert SANDBOX_API_URL != bot_module.API_URL


async def test_cancelled_it_is_cancelled(qq: LocalGateway) -> None:
    async with running(qq) as task:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_ban_ends_every_shard_with_one_sentence(qq: LocalGateway) -> None:
    # promise 16
    qq.max_concurrency = 2
    task = start(qq, shards=2)
    await qq.wait_for(lambda qq: len([c for c in qq.clients if c.started]) >= 2)
    await qq.close(4915, shard=(1, 2))
    with pytest.raises(GatewayRefusedError, match="banned") as caught:
        await task
    assert caught.value.account_id == f"{qq.app_id}-1-2"
    assert pickle.loads(pickle.dumps(caught.value)).code == 4915


# Calls


async def test_an_error_of_the_api_has_code_message_and_trace_id(qq: LocalGateway) -> None:
    errors: list[ApiError] = []

    async def try_to_answer(event: Dispatch, bot: Bot) -> None:
        try:
            await answer(event, bot)
        except ApiError as error:
            errors.append(error)

    async with running(qq, handle=try_to_answer):
        qq.fail("POST", "/v2/users/{openid}/messages", 40034, "msg_id has expired")
        await say(qq, "late")
        await qq.wait_for(lambda _: errors)
        error = errors[0]
        assert (error.status, error.code, error.message) == (400, 40034, "msg_id has expired")
        assert error.trace_id
        assert error.trace_id in str(error)
        assert pickle.loads(pickle.dumps(error)).trace_id == error.trace_id


async def test_an_error_that_is_no_json_is_one_too(qq: LocalGateway) -> None:
    errors: list[ApiError] = []

    async def try_to_answer(event: Dispatch, bot: Bot) -> None:
        try:
            await bot.request("GET", "/broken")
        except ApiError as error:
            errors.append(error)

    async with running(qq, handle=try_to_answer):
        qq.respond("GET", "/broken", "<html>bad gateway</html>", status=502)
        await say(qq, "hello")
        await qq.wait_for(lambda _: errors)
        assert (errors[0].status, errors[0].code) == (502, None)
        assert "bad gateway" in errors[0].message


async def test_a_call_whose_token_is_refused_is_made_again_with_a_fresh_one(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_JUST_FETCHED", 0.0)
    async with running(qq):
        qq.revoke_tokens()
        await say(qq, "hello")
        await qq.wait_for(lambda qq: [sent for sent in qq.sent if sent.status == 200])
        assert qq.requests[qq.TOKEN] == 2


async def test_a_token_is_fetched_once_for_all_calls_until_it_ends(qq: LocalGateway) -> None:
    async with running(qq):
        await say(qq, *map(str, range(20)))
        await qq.wait_for(lambda qq: len(qq.sent) == 20)
        assert qq.requests[qq.TOKEN] == 1


@pytest.mark.parametrize("path", ["v2/users", "@example.com/", "http://example.com/", ""])
async def test_a_path_that_could_lead_elsewhere_is_refused(qq: LocalGateway, path: str) -> None:
    # promise 15
    errors: list[Exception] = []

    async def try_it(event: Dispatch, bot: Bot) -> None:
        try:
            await bot.request("GET", path)
        except ValueError as error:
            errors.append(error)

    async with running(qq, handle=try_it):
        await say(qq, "hello")
        await qq.wait_for(lambda _: errors)


# Tokens


async def test_a_wrong_secret_ends_with_one_sentence_that_does_not_show_it(
    qq: LocalGateway, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GatewayRefusedError, match="app id or the secret is wrong") as caught:
        await run_bot(
            qq.app_id,
            "not-the-secret",
            intents=INTENTS,
            handle=answer,
            sessions=MemoryStorage(),
            api_url=qq.api_url,
            token_url=qq.token_url,
        )
    assert caught.value.code == 100016
    assert "not-the-secret" not in str(caught.value) + caplog.text
    assert qq.requests[qq.TOKEN] == 1


@pytest.mark.parametrize(
    "trouble",
    [
        lambda qq: qq.respond("POST", qq.TOKEN, "<html>", status=502, times=3),
        lambda qq: qq.respond("POST", qq.TOKEN, {"access_token": None}, times=3),
        lambda qq: qq.respond("POST", qq.TOKEN, [], times=3),
        lambda qq: qq.respond("POST", qq.TOKEN, "{", times=3),
        lambda qq: qq.fail("POST", qq.TOKEN, 100001, "Too many requests", times=3),
        lambda qq: qq.fail("POST", qq.TOKEN, 100002, "internal err", status=200, times=3),
        lambda qq: qq.cut("POST", qq.TOKEN, times=3),
        lambda qq: qq.hang("POST", qq.TOKEN, times=3),
    ],
    ids=["HTML", "null", "array", "half", "too often", "internal", "cut", "hangs"],
)
async def test_a_token_endpoint_that_fails_ends_nothing(
    trouble: Any, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 20
    monkeypatch.setattr(api_module, "_TOKEN_WAIT", 0.1)
    monkeypatch.setattr(api_module, "_FIRST_BACK_OFF", 0.01)
    trouble(qq)
    async with running(qq):
        await say(qq, "hello")
        await qq.wait_for(lambda qq: qq.sent)
    assert qq.requests[qq.TOKEN] == 4


async def test_a_token_endpoint_that_is_slow_is_asked_once_and_waited_for(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 20
    monkeypatch.setattr(api_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(api_module, "_FIRST_BACK_OFF", 0.01)
    qq.latency = 0.5  # of each answer
    async with running(qq):
        await say(qq, "hello")
        await qq.wait_for(lambda qq: qq.sent)
    assert qq.requests[qq.TOKEN] == 1


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7200", 7200.0), (30, 30.0), (10**30, 86_400.0)]
    + [(nonsense, 60.0) for nonsense in (0, -1, "soon", None, [], float("inf"), float("nan"))],
)
def test_a_token_s_life_that_makes_no_sense_is_a_minute(told: object, seconds: float) -> None:
    # promise 20
    assert api_module._seconds(told) == seconds


async def test_a_token_that_cannot_be_renewed_serves_to_its_end(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_FIRST_BACK_OFF", 3600.0)

    async def answer_late(event: Dispatch, bot: Bot) -> None:
        bot._api.tokens._renew_at = 0.0  # as if it were time
        await answer(event, bot)

    async with running(qq, handle=answer_late):
        qq.cut("POST", qq.TOKEN, times=None)
        for number, text in enumerate(("hello", "again"), 1):
            await say(qq, text)
            await qq.wait_for(lambda qq, n=number: len(qq.sent) == n)
        assert qq.requests[qq.TOKEN] == 2


# The gateway's address and its limits


async def test_the_address_is_asked_for_once_however_many_lines_it_takes(qq: LocalGateway) -> None:
    # promise 21
    async with running(qq):
        for number in range(5):
            await qq.drop()
            await qq.wait_for(lambda qq, n=number: len(qq.resumes) > n)
            await qq.wait_for(lambda qq: qq.clients[-1].started)
        assert qq.requests[GATEWAY] == 1


@pytest.mark.parametrize(
    "trouble",
    [
        lambda qq: qq.fail("GET", GATEWAY, 100001, "frequency limit exceeded", status=429),
        lambda qq: qq.respond("GET", GATEWAY, "<html>", status=502),
        lambda qq: qq.respond("GET", GATEWAY, {"url": "javascript:"}),
        lambda qq: qq.hang("GET", GATEWAY),
    ],
    ids=["too often", "HTML", "no address", "hangs"],
)
@pytest.mark.parametrize("shards", [None, 1])
async def test_a_bot_with_a_session_resumes_though_the_address_cannot_be_asked_for(
    trouble: Any, shards: int | None, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 20
    monkeypatch.setattr(entrance_module, "_ASK_WAIT", 0.1)
    storage = MemoryStorage()
    async with running(qq, sessions=storage):
        await say(qq, "first")
        await qq.wait_for(lambda qq: qq.sent)
    trouble(qq)
    await say(qq, "meanwhile")
    async with running(qq, sessions=storage, shards=shards):
        await qq.wait_for(lambda qq: len(qq.sent) == 2)
        assert len(qq.identifies) == 1


@pytest.mark.parametrize(("status", "code"), [(429, 1), (400, 100001), (200, 100017)])
async def test_asked_too_often_it_waits_a_minute_however_qq_says_it(
    status: int, code: int, qq: LocalGateway, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 21
    qq.fail("GET", GATEWAY, code, "too often", status=status)
    task = start(qq)
    await qq.wait_for(lambda qq: qq.requests[GATEWAY])
    async with asyncio.timeout(20):
        while not (told := [r for r in caplog.records if hasattr(r, "qqbot_wait")]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert [r.qqbot_wait for r in told] == [60.0]


async def test_a_bot_that_crashes_all_the_time_asks_no_more_often_than_it_may(
    qq: LocalGateway,
) -> None:
    # promise 21
    qq.gateway_rate = 2
    storage = MemoryStorage()
    for number in range(14):
        async with running(qq, sessions=storage):
            await say(qq, str(number))
            await qq.wait_for(lambda qq, n=number: len(qq.sent) > n)
    assert len(qq.identifies) == 1


async def test_a_bot_without_a_session_waits_until_it_may_ask(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance_module, "_TOO_OFTEN_WAIT", 0.05)
    qq.rate_limit(3)
    async with running(qq):
        assert qq.requests[GATEWAY] == 4


async def test_identifies_are_paced_over_all_shards(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 21
    monkeypatch.setattr(pace_module, "_PACE", 0.8)
    monkeypatch.setattr(pace_module, "_pause", asyncio.sleep)
    qq.shards, qq.max_concurrency, qq.identify_window = 6, 2, 0.3
    async with running(qq):
        await qq.wait_for(lambda qq: len([c for c in qq.clients if c.started]) >= 6)
        assert len(qq.identifies) == 6  # the gateway refuses those that come too soon
        assert {tuple(i.shard) for i in qq.identifies} == {(n, 6) for n in range(6)}  # type: ignore


async def test_none_identifies_when_no_session_start_remains_and_the_log_says_until_when(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 21
    monkeypatch.setattr(pace_module, "_NAP", 5.0)
    monkeypatch.setattr(pace_module, "_ASK_AGAIN", 0.0)
    qq.session_starts = 0
    task = start(qq)
    await qq.wait_for(lambda qq: qq.requests[GATEWAY] >= 3)
    assert (qq.clients, task.done()) == ([], False)
    told = [r for r in caplog.records if getattr(r, "qqbot_reason", "") == "session_starts"]
    assert len(told) >= 1
    assert "waiting until 20" in told[0].getMessage()
    qq.session_starts = 1000
    await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
    task.cancel()
    await asyncio.wait([task])


async def test_several_processes_may_share_the_shards(qq: LocalGateway) -> None:
    qq.max_concurrency = 2
    async with running(qq, shards=[(0, 4), (2, 4)]):
        await qq.wait_for(lambda qq: len([c for c in qq.clients if c.started]) >= 2)
        assert sorted(i.shard for i in qq.identifies) == [[0, 4], [2, 4]]  # type: ignore[type-var]


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_without_an_error(qq: LocalGateway, number: signal.Signals) -> None:
    # promise 22
    before = signal.getsignal(number)
    async with running(qq) as task:
        await say(qq, "hello")
        await qq.wait_for(lambda qq: qq.sent)
        os.kill(os.getpid(), number)
        await task
        assert qq.clients[-1].close_code == 4000
    assert signal.getsignal(number) is before


async def test_a_signal_works_on_a_loop_that_takes_none(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 22: every loop on Windows
    def refuse(*_: object) -> None:
        raise NotImplementedError

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_signal_handler", refuse)
    monkeypatch.setattr(loop, "remove_signal_handler", refuse)
    before = signal.getsignal(signal.SIGTERM)
    async with running(qq) as task:
        os.kill(os.getpid(), signal.SIGTERM)
        await task
    assert signal.getsignal(signal.SIGTERM) is before


async def test_signals_are_left_alone_if_asked_so_and_outside_the_main_thread(
    qq: LocalGateway,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with running(qq, signals=False):
        assert signal.getsignal(signal.SIGTERM) is before

    async def elsewhere() -> None:
        async with LocalGateway() as other, running(other):
            pass

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("every_signal_counts")
async def test_handlers_get_their_grace_and_a_second_signal_ends_it(qq: LocalGateway) -> None:
    # promise 22
    begun, ended = asyncio.Event(), []

    async def work(event: Dispatch, bot: Bot) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(event.seq)

    async with running(qq, handle=work, grace=3600.0) as task:
        await say(qq, "hello")
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await qq.wait_for(lambda qq: qq.clients[-1].closed_at)
        assert ended == []
        os.kill(os.getpid(), signal.SIGTERM)
        await task
        assert ended == [2]


# Arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"app_id": 102000000}, TypeError),
        ({"secret": ""}, ValueError),
        ({"secret": None}, TypeError),
        ({"intents": "all"}, TypeError),
        ({"shards": 0}, ValueError),
        ({"shards": []}, TypeError),
        ({"shards": [(2, 2)]}, ValueError),
        ({"shards": [(0, 2), (1, 2), (0, 2)]}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"grace": -1}, ValueError),
        ({"handle": None}, TypeError),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_touched(
    options: dict[str, Any], error: type[Exception], directory: Path
) -> None:
    # promise 10
    arguments = {"app_id": "1", "secret": "s", "intents": 1, "handle": answer} | options
    with pytest.raises(error):
        await run_bot(**arguments, sessions=directory, api_url="http://127.0.0.1:9")
    assert not os.path.lexists(directory)  # noqa: ASYNC240


async def test_no_token_or_secret_is_shown(
    qq: LocalGateway, caplog: pytest.LogCaptureFixture, directory: Path
) -> None:
    # promise 15
    caplog.set_level(logging.DEBUG, "qqbot_session")
    bots: list[Bot] = []

    async def keep(event: Dispatch, bot: Bot) -> None:
        bots.append(bot)

    async with running(qq, handle=keep, sessions=directory):
        await say(qq, "hello")
        await qq.wait_for(lambda _: bots)
        token = str(qq.identifies[0].token).removeprefix("QQBot ")
        shown = caplog.text + repr(bots[0])
    written = read_all(directory)
    for secret in (token, qq.client_secret):
        assert secret not in shown + written


def read_all(directory: Path) -> str:
    return b"".join(path.read_bytes() for path in directory.iterdir()).decode()


def test_the_default_addresses_are_the_documented_ones() -> None:
    assert bot_module.API_URL == "https://api.bot.qq.com"
    assert TOKEN_URL == "https://api.bot.qq.com/app/getAppAccessToken"
