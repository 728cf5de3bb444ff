"""Every row of the close table on real sockets: what is kept, and what is sent next.

Two situations: a bot that is connected, and one in the middle of its Resume. The expectations are
literal, from error-trace/websocket.md; nothing here looks at `CLOSE_RULES`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.gateway import (
    Dispatch,
    GatewaySession,
    Hello,
    Next,
)
from qqbot_session.state import decode
from qqbot_session.storages.files import FileStorage
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time

C2C = "C2C_MESSAGE_CREATE"

RESUME = [1000, 1001, 1011, 4000, 4003, 4004, 4005, 4008, 4009, 4015, 4899, 4916, 4999]
IDENTIFY = [4006, 4007, *range(4900, 4914)]
STOP = [4001, 4002, 4010, 4011, 4012, 4013, 4014, 4914, 4915]


class Bot:
    """A loop that does not wait, and notes after each line what is on storage."""

    def __init__(self, qq: LocalGateway, store: AsyncSessionStore, directory: Path) -> None:
        self.qq, self.store, self.directory = qq, store, directory
        self.gateway = GatewaySession("bot-0-1", app_id=qq.app_id, intents=1 << 25)
        self.token = ""
        self.may_answer_hello = asyncio.Event()
        self.may_answer_hello.set()
        self.handled: list[str] = []
        self._has_handled = asyncio.Event()
        self.kept: list[tuple[str, int, int] | None] = []  # session id, number, failed Resumes
        self.next: list[str] = []

    async def run(self) -> None:
        async with aiohttp.ClientSession() as self.http:
            while await self.one_line() is not Next.STOP:
                pass

    async def one_line(self) -> Next:
        connection, code = self.gateway.connect(), None
        ws = await self.http.ws_connect(self.qq.ws_url)
        connection.opened(await self.get_token(), time.time())
        try:
            async for message in ws:
                event = connection.receive(message.data, time.time())
                if isinstance(event, Hello):
                    await self.may_answer_hello.wait()
                elif isinstance(event, Dispatch) and not event.already_handled:
                    with self.gateway.handling(event):
                        self.handled.append(event.data["content"])
                        self._has_handled.set()
                await self.store.record(self.gateway)
                if connection.close_with is not None:
                    break
                for frame in connection.frames_to_send():
                    await ws.send_str(frame)
            await ws.close(code=4000)
            code = ws.close_code
        except (aiohttp.ClientError, OSError):
            await ws.close()
        rule = connection.closed(code)
        await self.store.record(self.gateway)
        await self.store.flush()
        state = await read(self.directory)
        kept = state is not None and state.resumable and state  # else it has the budget alone
        self.kept.append((kept.session_id, kept.last_seq, kept.failed_resumes) if kept else None)
        self.next.append(rule.next.value)
        if rule.refresh_token:
            self.token = ""
        return rule.next

    async def get_token(self) -> str:
        if not self.token:
            body = {"appId": self.qq.app_id, "clientSecret": self.qq.client_secret}
            async with self.http.post(self.qq.token_url, json=body) as answer:
                self.token = (await answer.json())["access_token"]
        return self.token

    async def until_handled(self, *contents: str) -> None:
        async with asyncio.timeout(30):
            while len(self.handled) < len(contents):
                self._has_handled.clear()
                await self._has_handled.wait()
        assert self.handled == list(contents)

    @property
    def fetched_tokens(self) -> int:
        return self.qq.requests["/app/getAppAccessToken"]


async def read(directory: Path) -> SessionState | None:
    """Read what is on storage, past the store that writes it."""
    storage = FileStorage(directory)
    try:
        data = await storage.read("bot-0-1")
    finally:
        await storage.aclose()
    return None if data is None else decode(data)


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[tuple[LocalGateway, Bot, asyncio.Task[None]]]:
    """A bot that got READY as number 1 and handled an event with number 2."""
    async with LocalGateway() as qq, AsyncSessionStore(directory) as store:
        bot = Bot(qq, store, directory)
        running = asyncio.create_task(bot.run())
        try:
            await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
            await qq.emit(C2C, qq.c2c_message("before"))
            await bot.until_handled("before")
            yield qq, bot, running
        finally:
            running.cancel()
            await asyncio.wait([running])


async def end_of_tcp(qq: LocalGateway) -> None:
    """End the connection in order, without a close frame: clients call it 1006."""
    for line in qq._lines:
        line.transport.close()


Strike = Callable[[LocalGateway], Awaitable[object]]


def close(code: int) -> Strike:
    return lambda qq: qq.close(code)


CONNECTED: list[tuple[str, Strike, str]] = [
    ("a dropped line", lambda qq: qq.drop(), "resume"),
    ("the end of TCP", end_of_tcp, "resume"),
    ("op 7, then 4009", lambda qq: qq.reconnect(), "resume"),
    ("op 7, then 1000", lambda qq: qq.reconnect(1000), "resume"),
    ("op 9 with true", lambda qq: qq.invalid_session(True), "resume"),
    ("op 9 with false", lambda qq: qq.invalid_session(False), "identify"),
    *[(str(code), close(code), "resume") for code in RESUME],
    *[(str(code), close(code), "identify") for code in IDENTIFY],
    *[(str(code), close(code), "stop") for code in STOP],
]


@pytest.mark.parametrize(
    ("strike", "next"), [pytest.param(row[1], row[2], id=row[0]) for row in CONNECTED]
)
async def test_a_connected_bot_does_what_the_table_says(
    directory: Path, request: pytest.FixtureRequest, strike: Strike, next: str
) -> None:
    # promise 16
    async with connected(directory) as (qq, bot, running):
        old = qq.clients[0].session_id
        await strike(qq)
        if next == "stop":
            await asyncio.wait_for(running, 30)
            assert (len(qq.clients), len(qq.identifies), qq.resumes) == (1, 1, [])
            assert bot.kept == [None]
        else:
            await qq.wait_for(lambda qq: len(qq.clients) == 2 and qq.clients[1].started)
            check_the_new_line(qq, 1, next, old)
            assert bot.kept == [(old, 2, 0) if next == "resume" else None]
        assert bot.next == [next]
        assert bot.handled == ["before"]
        assert bot.fetched_tokens == (2 if is_row(request, "4004") else 1)


def check_the_new_line(qq: LocalGateway, index: int, next: str, old: str | None) -> None:
    client = qq.clients[index]
    if next == "resume":
        assert [(r.session_id, r.seq) for r in client.resumes] == [(old, 2)]
        assert (client.started, client.session_id) == ("RESUMED", old)
        assert (len(client.identifies), len(qq.identifies)) == (0, 1)
    else:
        assert [(i.intents, i.shard) for i in client.identifies] == [(1 << 25, [0, 1])]
        assert (client.started, client.resumes) == ("READY", [])
        assert client.session_id != old


def is_row(request: pytest.FixtureRequest, row: str) -> bool:
    return request.node.callspec.id == row


def refuse(code: Any) -> Callable[[LocalGateway, Bot], Awaitable[None]]:
    async def script(qq: LocalGateway, bot: Bot) -> None:
        qq.refuse_resumes(1, code)
        await qq.drop()

    return script


def interrupt(send: Strike) -> Callable[[LocalGateway, Bot], Awaitable[None]]:
    """Send something between Hello and the answer to Resume, which is read first."""

    async def script(qq: LocalGateway, bot: Bot) -> None:
        bot.may_answer_hello.clear()
        await qq.drop()
        await qq.wait_for(lambda qq: len(qq.clients) == 2)
        await send(qq)
        bot.may_answer_hello.set()

    return script


MIDDLE: list[tuple[str, Callable[[LocalGateway, Bot], Awaitable[None]], str]] = [
    ("a dropped line", refuse(None), "resume"),
    ("op 7, then 4009", interrupt(lambda qq: qq.reconnect()), "resume"),
    ("op 9 with true", interrupt(lambda qq: qq.invalid_session(True)), "resume"),
    ("op 9 with false", refuse("op9"), "identify"),
    *[(str(code), refuse(code), "resume") for code in RESUME],
    *[(str(code), refuse(code), "identify") for code in IDENTIFY],
    *[(str(code), refuse(code), "stop") for code in STOP],
]


@pytest.mark.parametrize(
    ("script", "next"), [pytest.param(row[1], row[2], id=row[0]) for row in MIDDLE]
)
async def test_a_bot_in_the_middle_of_its_resume_does_what_the_table_says(
    directory: Path,
    request: pytest.FixtureRequest,
    script: Callable[[LocalGateway, Bot], Awaitable[None]],
    next: str,
) -> None:
    # promises 16 and 17
    async with connected(directory) as (qq, bot, running):
        old = qq.clients[0].session_id
        await script(qq, bot)
        if next == "stop":
            await asyncio.wait_for(running, 30)
            assert (len(qq.clients), len(qq.identifies), len(qq.resumes)) == (2, 1, 1)
            assert bot.kept == [(old, 2, 0), None]
        else:
            await qq.wait_for(lambda qq: len(qq.clients) == 3 and qq.clients[2].started)
            check_the_new_line(qq, 2, next, old)
            counted = not (is_row(request, "4004") or is_row(request, "4008"))
            assert bot.kept == [(old, 2, 0), (old, 2, counted) if next == "resume" else None]
        assert [(r.session_id, r.seq) for r in qq.clients[1].resumes] == [(old, 2)]
        assert bot.next == ["resume", next]
        assert bot.handled == ["before"]
        assert bot.fetched_tokens == (2 if is_row(request, "4004") else 1)


async def test_what_was_sent_while_the_line_was_down_comes_after_each_resumable_close(
    directory: Path,
) -> None:
    # promises 16 and 18
    async with connected(directory) as (qq, bot, _):
        for number, code in enumerate(RESUME, 1):
            await qq.close(code)
            await qq.emit(C2C, qq.c2c_message(str(code)))
            await bot.until_handled("before", *map(str, RESUME[:number]))
        assert len(qq.resumes) == len(RESUME)
        assert len(qq.identifies) == 1


async def test_three_resumes_in_a_row_are_refused_and_then_the_bot_identifies(
    directory: Path,
) -> None:
    # promise 17
    async with connected(directory) as (qq, bot, _):
        old = qq.clients[0].session_id
        qq.refuse_resumes(10, None)
        await qq.drop()
        await qq.wait_for(lambda qq: len(qq.identifies) == 2 and qq.clients[-1].started)
        assert [(r.session_id, r.seq) for r in qq.resumes] == [(old, 2)] * 3
        assert bot.next == ["resume", "resume", "resume", "identify"]
        assert bot.kept == [(old, 2, failed) for failed in (0, 1, 2, 3)]
        assert qq.clients[-1].session_id != old
