"""`qqbot_session.integrations.botpy` in a process that has a loop of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from qqbot_session import AsyncSessionStore, GatewayRefusedError, SessionState
from qqbot_session.answers import hold
from qqbot_session.gateway import GatewaySession
from qqbot_session.integrations._sessions import known_address
from qqbot_session.testing import LocalGateway

botpy = pytest.importorskip("botpy")
integration = pytest.importorskip("qqbot_session.integrations.botpy")
SessionMixin, remember = integration.SessionMixin, integration.remember

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning"),
]

Work = Callable[[Any], Awaitable[object]]


class Client(botpy.Client):
    """A client whose work a test gives."""

    def __init__(self, work: Work, **arguments: Any) -> None:
        intents = botpy.Intents(public_messages=True)
        super().__init__(intents=intents, bot_log=None, ext_handlers=False, **arguments)
        self.work = work
        self.told: list[str] = []
        self._news = asyncio.Condition()

    async def on_ready(self) -> None:
        await self._tell("ready")

    async def on_resumed(self) -> None:
        await self._tell("resumed")

    async def on_error(self, event_method: str, *args: Any, **kwargs: Any) -> None:
        await self._tell(f"error in {event_method}")

    async def on_c2c_message_create(self, message: Any) -> None:
        await self._tell(message.content)
        await self.work(message)

    async def _tell(self, what: str) -> None:
        self.told.append(what)
        async with self._news:
            self._news.notify_all()

    async def hears(self, what: str) -> None:
        """Wait until it was told so."""
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: what in self.told)


class Resuming(SessionMixin, Client):
    pass


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalGateway], None]:
    """Return what leads botpy, whose addresses are fixed, to QQ on localhost."""

    def lead(qq: LocalGateway) -> None:
        async def update_access_token(self: Any) -> None:
            body = {"appId": self.app_id, "clientSecret": self.secret}
            async with aiohttp.ClientSession() as http, http.post(qq.token_url, json=body) as got:
                answer = await got.json()
            self.access_token = answer["access_token"]
            self.expires_in = time.time() + int(answer["expires_in"])

        scheme, domain = urlsplit(qq.api_url)[:2]
        monkeypatch.setattr(botpy.robot.Token, "update_access_token", update_access_token)
        monkeypatch.setattr(botpy.http.Route, "SCHEME", scheme)
        monkeypatch.setattr(botpy.http.Route, "DOMAIN", domain)

    return lead


def starting(client: Any, qq: LocalGateway) -> asyncio.Task[Any]:
    return asyncio.create_task(client.start(appid=qq.app_id, secret=qq.client_secret))


async def emit(qq: LocalGateway, content: str) -> None:
    await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(content))


async def nothing(message: Any) -> None:
    """Be a handler that has nothing to do."""


async def test_a_handler_that_closes_the_client_ends_it_and_is_handled(
    local: Any, directory: Path
) -> None:
    """A bot with a "stop" command must not be told to stop again when it is started again."""
    async with LocalGateway() as qq:
        local(qq)

        async def stop(message: Any) -> None:
            await client.close()

        client = Resuming(stop, sessions=directory, grace=3600)
        running = starting(client, qq)
        await client.hears("ready")
        await emit(qq, "stop")
        await asyncio.wait_for(running, 60)  # less than the grace
        async with AsyncSessionStore(directory) as store:
            (state,) = await store.load_all()
        assert state.last_seq == 2


async def test_an_event_whose_handler_was_cancelled_comes_again(
    local: Any, directory: Path
) -> None:
    # promise 18
    async def cancel(message: Any) -> None:
        if message.content == "a":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async with LocalGateway() as qq:
        local(qq)
        first = Resuming(cancel, sessions=directory)
        running = starting(first, qq)
        await first.hears("ready")
        await emit(qq, "a")
        await emit(qq, "b")
        await first.hears("b")
        await first.close()
        await running
        second = Resuming(nothing, sessions=directory)
        running = starting(second, qq)
        await second.hears("resumed")
        await second.hears("a")  # started once the replay is on storage
        await second.close()
        await running
        assert first.told == ["ready", "a", "b"]
        assert second.told[0] == "ready"
        assert sorted(second.told) == ["a", "ready", "resumed"]


async def test_an_error_of_a_handler_is_botpys_to_tell(local: Any, directory: Path) -> None:
    async def fail(message: Any) -> None:
        raise LookupError(message.content)

    async with LocalGateway() as qq:
        local(qq)
        client = Resuming(fail, sessions=directory)
        running = starting(client, qq)
        await client.hears("ready")
        await emit(qq, "a")
        await client.hears("error in on_c2c_message_create")
        await client.close()
        await running
        assert client.told == ["ready", "a", "error in on_c2c_message_create"]


async def test_a_client_may_be_started_again_and_says_once_that_it_is_ready(
    local: Any, directory: Path
) -> None:
    """nanobot does so when `start` has ended or raised."""
    async with LocalGateway() as qq:
        local(qq)
        client = remember(Client(nothing), directory)
        for event in ("ready", "resumed"):
            running = starting(client, qq)
            await client.hears(event)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        await client.close()
        assert client.told == ["ready", "resumed"]
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


async def test_a_remembered_client_keeps_its_class_and_its_store(
    local: Any, directory: Path
) -> None:
    async with LocalGateway() as qq, AsyncSessionStore(directory) as store:
        local(qq)
        client = Client(nothing)
        assert remember(client, "elsewhere") is client
        assert remember(client, store) is client
        assert isinstance(client, Client)
        assert type(client).__name__ == "Client"
        assert type(client).__mro__.count(SessionMixin) == 1
        running = starting(client, qq)
        await client.hears("ready")
        await client.close()
        await running
        assert len(await store.load_all()) == 1  # it is not closed
        assert "elsewhere" not in os.listdir()  # noqa: PTH208 - one call


async def test_a_refusal_ends_start_and_says_why(local: Any, directory: Path) -> None:
    # promise 16
    async with LocalGateway(shards=2) as qq:
        local(qq)
        client = Resuming(nothing, sessions=directory)
        running = starting(client, qq)
        await client.hears("ready")
        await qq.close(4914)
        with pytest.raises(GatewayRefusedError, match=r"102000000-\d-2: .* \(code 4914\)"):
            await asyncio.wait_for(running, 30)
        await client.close()


async def test_a_bot_without_session_starts_resumes_all_the_same(
    local: Any, directory: Path
) -> None:
    """botpy refuses to start, though a Resume costs none."""
    async with LocalGateway(session_starts=1) as qq:
        local(qq)
        for event in ("ready", "resumed"):
            client = Resuming(nothing, sessions=directory)
            running = starting(client, qq)
            await client.hears(event)
            await client.close()
            await running
        assert qq.remaining() == 0
        assert len(qq.resumes) == 1


async def test_it_says_once_where_the_sessions_are_kept(
    local: Any, directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("botpy"), "propagate", True)
    async with LocalGateway() as qq:
        local(qq)
        client = Resuming(nothing, sessions=directory)
        with caplog.at_level(logging.INFO, "botpy"):
            running = starting(client, qq)
            await client.hears("ready")
            await client.close()
            await running
    (line,) = [record.getMessage() for record in caplog.records if "会话保存在" in record.message]
    assert str(directory) in line


@pytest.fixture
def console(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Return what gives all that botpy's console has shown."""
    monkeypatch.setattr(logging.getLogger("botpy"), "propagate", True)
    caplog.set_level(logging.INFO, "botpy")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


async def test_the_console_says_who_is_on_line_and_what_was_resumed(
    local: Any, directory: Path, console: Any
) -> None:
    async with LocalGateway() as qq:
        local(qq)
        async with living(Resuming(nothing, sessions=directory), qq) as client:
            await client.hears("ready")
            assert "102000000-0-1：新建会话（没有保存过会话）" in console()
            assert "机器人「local bot」启动成功！102000000-0-1：新会话已建立" in console()
        await emit(qq, "a")
        await emit(qq, "b")
        async with living(Resuming(nothing, sessions=directory), qq) as client:
            await client.hears("resumed")
            assert "102000000-0-1：正在恢复会话，从序号 1 继续" in console()
            told = "机器人「local bot」恢复会话成功！102000000-0-1：从序号 1 继续，补收了 2 个事件"
            assert told in console()
            await qq.close(4006)
            async with asyncio.timeout(30):
                while "102000000-0-1：连接断开（代码 4006）" not in console():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


async def test_a_login_is_tried_again_until_qq_is_there(
    local: Any, directory: Path, console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration, "_pause", lambda seconds: asyncio.sleep(0))
    async with LocalGateway() as qq:
        local(qq)
        qq.fail("GET", "/users/@me", 500, status=500)
        qq.fail("GET", "/gateway/bot", 100017, status=429)
        async with living(Resuming(nothing, sessions=directory), qq) as client:
            await client.hears("ready")
        assert console().count("暂时无法登录 QQ") == 2
    assert len(qq.identifies) == 1


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ({"code": 100017, "message": "too often"}, True),
        ({"code": 500, "message": "out of order"}, True),
        ({"code": 100016, "message": "invalid appid or secret"}, False),
        ({"code": 100007, "message": "appid invalid"}, False),
    ],
)
async def test_only_a_wrong_bot_is_refused_by_the_token_endpoint(answer: Any, passes: bool) -> None:
    """botpy makes a RuntimeError of every answer without a token."""
    assert integration._may_pass(RuntimeError(str(answer))) is passes
    assert integration._may_pass(RuntimeError("the HTTP client is closed")) is False


async def test_a_session_is_resumed_where_it_was_if_qq_does_not_say_where_the_gateway_is(
    local: Any, directory: Path
) -> None:
    async with LocalGateway() as qq:
        local(qq)
        for event in ("ready", "resumed"):
            async with living(Resuming(nothing, sessions=directory), qq) as client:
                await client.hears(event)
            qq.fail("GET", "/gateway/bot", 500, status=500, times=None)
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


@pytest.mark.parametrize(
    ("address", "is_known"),
    [
        ("wss://api.sgroup.qq.com/websocket", True),
        ("ws://api.sgroup.qq.com/websocket", False),
        ("wss://qq.com.example.org/websocket", False),
        ("wss://[", False),
        (None, False),
    ],
)
def test_an_address_from_a_record_must_be_qqs(address: str | None, is_known: bool) -> None:
    state = SessionState(account_id="a", session_id="S", last_seq=1)
    gateway = GatewaySession("a", app_id="1", intents=1, resume=state)
    if address is not None:
        gateway.remember_address(address)
    known = known_address(gateway, "https://api.sgroup.qq.com")
    assert known == (address if is_known else None)


async def test_a_login_that_is_refused_is_not_tried_again(local: Any, directory: Path) -> None:
    async with LocalGateway() as qq:
        local(qq)
        qq.fail("GET", "/users/@me", 11, status=401)
        client = Resuming(nothing, sessions=directory)
        with pytest.raises(botpy.errors.AuthenticationFailedError):
            await client.start(qq.app_id, qq.client_secret)
        await client.close()


@pytest.mark.parametrize("by_name", [True, False])
async def test_no_variable_of_a_traceback_shows_the_secret(
    local: Any, directory: Path, by_name: bool
) -> None:
    # promise 33
    async with LocalGateway() as qq:
        local(qq)
        qq.fail("GET", "/users/@me", 11, status=401)
        client = Resuming(nothing, sessions=directory)
        given = {"secret": qq.client_secret} if by_name else {}
        positional = () if by_name else (qq.client_secret,)
        with pytest.raises(RuntimeError) as caught:
            await client.start(qq.app_id, *positional, **given)
        await client.close()
    frames = [frame for frame, _ in walk_tb(caught.tb) if frame.f_code.co_filename != __file__]
    assert any("botpy" in frame.f_code.co_filename for frame in frames)
    shown = [repr(value) for frame in frames for value in frame.f_locals.values()]
    assert not [text for text in shown if qq.client_secret in text]


async def test_remembering_a_client_that_has_logged_in_is_too_late(
    local: Any, directory: Path
) -> None:
    async with LocalGateway() as qq:
        local(qq)
        plain = Client(nothing)
        running = starting(plain, qq)
        await plain.hears("ready")
        with pytest.raises(RuntimeError, match=r"remember\(\) comes too late"):
            remember(plain, directory)
        await plain.close()
        running.cancel()
        await asyncio.wait([running])


async def test_what_is_no_client_of_botpys_is_named() -> None:
    with pytest.raises(TypeError, match=r"takes a botpy\.Client, not a builtins\.object"):
        remember(object())
    with pytest.raises(ValueError, match="not 'anwered'"):
        remember(Client(nothing), until="anwered")


async def test_a_second_client_with_the_same_session_is_told_so_and_a_reloaded_one_is_not(
    local: Any, directory: Path
) -> None:
    async def slow(message: Any) -> None:
        await asyncio.sleep(1)

    async with LocalGateway() as qq:
        local(qq)
        first = Resuming(slow, sessions=directory)
        async with living(first, qq):
            await first.hears("ready")
            for other in (Resuming(nothing, sessions=str(directory)), first):
                with pytest.raises(RuntimeError, match="another client of this process keeps"):
                    await asyncio.wait_for(starting(other, qq), 30)
                if other is not first:
                    await other.close()
            await emit(qq, "a")
            await first.hears("a")
            closing = asyncio.create_task(first.close())  # it lasts as long as the handler
            await asyncio.sleep(0)
            async with living(Resuming(nothing, sessions=directory), qq) as reloaded:
                await reloaded.hears("resumed")
            await closing
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


async def test_a_bot_connect_of_ones_own_is_said_to_be_ignored(
    local: Any, directory: Path, console: Any
) -> None:
    class Own(Client):
        async def bot_connect(self, session: Any) -> None:
            raise AssertionError("nobody calls it")

    async with LocalGateway() as qq:
        local(qq)
        async with living(remember(Own(nothing), directory), qq) as client:
            await client.hears("ready")
        assert "自己的 bot_connect 不会被调用" in console()


@asynccontextmanager
async def living(client: Any, qq: LocalGateway) -> AsyncIterator[Any]:
    running = starting(client, qq)
    try:
        yield client
    finally:
        await client.close()
        await running


async def kept(directory: Path) -> int | None:
    """Return the number that is on storage."""
    async with AsyncSessionStore(directory) as store:
        return max((state.last_seq for state in await store.load_all()), default=None)


async def test_a_queued_message_counts_once_its_answer_was_accepted(
    local: Any, directory: Path
) -> None:
    # promise 35
    queue: asyncio.Queue[Any] = asyncio.Queue()
    async with LocalGateway() as qq:
        local(qq)
        async with living(Resuming(queue.put, sessions=directory, until="answered"), qq) as client:
            await client.hears("ready")
            await emit(qq, "a")
            await emit(qq, "b")
            first, second = await queue.get(), await queue.get()
            await first.reply(content="to a")
            await settled(directory, 2)
            assert await kept(directory) == 2
            await second.reply(content="to b")
            await settled(directory, 3)
        assert await kept(directory) == 3


async def test_a_repeated_answer_is_one_and_any_other_refusal_is_none(
    local: Any, directory: Path
) -> None:
    # promise 35
    queue: asyncio.Queue[Any] = asyncio.Queue()
    async with LocalGateway(deduplicate_replies=True) as qq:
        local(qq)
        async with living(
            Resuming(queue.put, sessions=directory, until="answered", grace=0), qq
        ) as client:
            await client.hears("ready")
            await emit(qq, "a")
            message = await queue.get()
            async with aiohttp.ClientSession() as http:  # as in a life before this one
                url = f"{qq.api_url}/v2/users/{message.author.user_openid}/messages"
                body = {"msg_id": message.id, "msg_type": 0, "content": "before"}
                headers = {"Authorization": f"QQBot {client.http._token.access_token}"}
                async with http.post(url, json=body, headers=headers) as answer:
                    assert answer.status == 200
            await emit(qq, "b")
            other = await queue.get()
            qq.fail("POST", "/v2/users/{openid}/messages", 40034004, status=400)
            with pytest.raises(RuntimeError):
                await other.reply(content="refused")
            with pytest.raises(RuntimeError, match="消息被去重"):
                await message.reply(content="again")
            await settled(directory, 2)
        assert await kept(directory) == 2


async def test_a_handler_that_raises_is_waited_for_no_longer(local: Any, directory: Path) -> None:
    # promise 35
    async def fail(message: Any) -> None:
        hold()
        raise LookupError("no answer")

    async with LocalGateway() as qq:
        local(qq)
        async with living(Resuming(fail, sessions=directory, until="answered"), qq) as client:
            await client.hears("ready")
            await emit(qq, "a")
            await settled(directory, 2)
        assert await kept(directory) == 2


async def settled(directory: Path, number: int) -> None:
    """Wait until the number is on storage."""
    async with asyncio.timeout(30):
        while await kept(directory) != number:  # noqa: ASYNC110 - another store's doing
            await asyncio.sleep(0.02)


async def test_who_asks_for_the_coroutine_gets_it(local: Any, directory: Path) -> None:
    async with LocalGateway() as qq:
        local(qq)
        client = Resuming(nothing, sessions=directory)
        life = await client.start(qq.app_id, qq.client_secret, ret_coro=True)
        assert qq.clients == []
        running = asyncio.create_task(life)
        await client.hears("ready")
        await client.close()
        await running
