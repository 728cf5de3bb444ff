"""The sockets of aiohttp and websockets on real lines, and the runner on both."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from descriptors import descriptors
from misfortunes import MISFORTUNES

from qqbot_session import AsyncSessionStore, MemoryStorage, shard
from qqbot_session.gateway import Dispatch, connection
from qqbot_session.integrations import aiohttp as aiohttp_socket
from qqbot_session.integrations import websockets as websockets_socket
from qqbot_session.shard import ShardRunner, Socket, open_gateway
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time

C2C = "C2C_MESSAGE_CREATE"
Connect = Callable[[str], Awaitable[Socket]]


@pytest.fixture(params=["aiohttp", "websockets"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    if request.param == "websockets":
        yield websockets_socket.connect
        return
    async with aiohttp.ClientSession() as http:
        yield lambda url: aiohttp_socket.connect(http, url)


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway(heartbeat_interval=0.3) as local:
        yield local


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every patience short: what is asked here is what happens, not when."""

    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds / 50)

    monkeypatch.setattr(shard, "_pause", pause)
    monkeypatch.setattr(shard, "_GOODBYE", 0.2)


async def a_token(qq: LocalGateway) -> str:
    body = {"appId": qq.app_id, "clientSecret": qq.client_secret}
    async with aiohttp.ClientSession() as http, http.post(qq.token_url, json=body) as answer:
        return str((await answer.json())["access_token"])


@asynccontextmanager
async def a_raw_server(frames: bytes) -> AsyncIterator[str]:
    """Accept a WebSocket and send these bytes as they are."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(
            line for line in head.splitlines() if line.lower().startswith("sec-websocket-key")
        )
        magic = key.partition(":")[2].strip() + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
            + frames
        )
        await reader.read(1)  # the client's close frame
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_frames_come_as_they_were_sent(connect: Connect, qq: LocalGateway) -> None:
    socket = await connect(qq.ws_url)
    await socket.receive()
    await qq.send("text")
    await qq.send(b"\x00\xff")
    assert [await socket.receive(), await socket.receive()] == [b"text", b"\x00\xff"]
    await socket.close(4000)


async def test_a_text_frame_that_is_not_utf8_does_not_end_the_line(connect: Connect) -> None:
    # promise 20
    async with a_raw_server(b"\x81\x02\xff\xfe" + b"\x81\x04text") as url:
        socket = await connect(url)
        assert [await socket.receive(), await socket.receive()] == [b"\xff\xfe", b"text"]
        await socket.close(4000)


async def test_a_cancelled_receive_loses_no_frame(connect: Connect, qq: LocalGateway) -> None:
    # promise 20
    socket = await connect(qq.ws_url)
    await socket.receive()
    sending = asyncio.create_task(send_numbers(qq, 200))
    seen: list[str | bytes | None] = []
    while len(seen) < 200:
        try:
            async with asyncio.timeout(0.0005 * (len(seen) % 3)):
                seen.append(await socket.receive())
        except TimeoutError:
            continue
    assert seen == [str(number).encode() for number in range(200)]
    await sending
    await socket.close(4000)


async def send_numbers(qq: LocalGateway, count: int) -> None:
    for number in range(count):
        await qq.send(str(number))


async def test_the_code_that_the_gateway_closed_with_is_told(
    connect: Connect, qq: LocalGateway
) -> None:
    socket = await connect(qq.ws_url)
    await socket.receive()
    await qq.close(4009)
    assert await socket.receive() is None
    assert await socket.close(4000) == 4009


@pytest.mark.parametrize("cancelled", [False, True], ids=["", "after a cancelled receive"])
async def test_the_gateway_is_told_the_code_that_we_close_with(
    connect: Connect, qq: LocalGateway, cancelled: bool
) -> None:
    socket = await connect(qq.ws_url)
    await socket.receive()
    if cancelled:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await socket.receive()
    assert await socket.close(4000) == 4000
    await qq.wait_for(lambda qq: qq.clients[0].close_code == 4000)


async def test_a_line_that_dies_ends(connect: Connect, qq: LocalGateway) -> None:
    socket = await connect(qq.ws_url)
    await socket.receive()
    await qq.drop()
    with suppress(OSError, aiohttp.ClientError):
        assert await socket.receive() is None
    assert await socket.close(4000) in (None, 1006, 4000)


async def test_a_close_that_nobody_answers_is_cut_and_leaves_no_descriptor(
    connect: Connect, qq: LocalGateway
) -> None:
    # promise 20
    socket = await connect(qq.ws_url)
    await socket.receive()
    before = descriptors()
    await qq.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await socket.close(4000)
    for _ in range(5):
        await asyncio.sleep(0)
    assert descriptors() < before


async def test_a_frame_beyond_all_bounds_ends_the_line_and_not_the_process(
    connect: Connect, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (aiohttp_socket, websockets_socket):
        monkeypatch.setattr(module, "MAX_FRAME_BYTES", 1000)
    socket = await connect(qq.ws_url)
    await socket.receive()
    await qq.send("x" * 1001)
    with suppress(aiohttp.WebSocketError):
        assert await socket.receive() is None
    await socket.close(4000)


# The runner on a real line


class Counted:
    """A bot on a runner; what it handled, by the message's text."""

    def __init__(self, qq: LocalGateway, connect: Connect) -> None:
        self.qq, self.connect = qq, connect
        self.handled: list[str] = []
        self.wait = 0.0
        self.news = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ShardRunner]:
        qq = self.qq
        async with AsyncSessionStore(MemoryStorage()) as store:
            runner = ShardRunner(
                store,
                await open_gateway(store, qq.app_id, intents=1 << 25),
                connect=lambda: self.connect(qq.ws_url),
                token=lambda new: a_token(qq),
                handle=self.handle,
            )
            task = asyncio.create_task(runner.run())
            try:
                await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started)
                yield runner
            finally:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result()

    async def handle(self, event: Dispatch) -> None:
        await asyncio.sleep(self.wait)
        self.handled.append(event.data["content"])
        self.news.set()

    async def say(self, *texts: object) -> None:
        for text in texts:
            await self.qq.emit(C2C, self.qq.c2c_message(str(text)))

    async def until_handled(self, *texts: object) -> None:
        wanted = {str(text) for text in texts}
        async with asyncio.timeout(20):
            while not wanted <= set(self.handled):
                self.news.clear()
                await self.news.wait()


@pytest.mark.parametrize("strike", MISFORTUNES, ids=lambda strike: strike.__name__)
async def test_no_event_is_lost_and_none_comes_twice(
    strike: Callable[[LocalGateway], Awaitable[None]],
    connect: Connect,
    qq: LocalGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # promises 16, 18 and 20
    bot = Counted(qq, connect)
    async with bot.running():
        await bot.say("before", "just before")
        monkeypatch.setattr(connection, "_PATIENCE", 0.5)  # with the lines that come now
        await strike(qq)
        await bot.say("while")
        await bot.until_handled("before", "just before", "while")
        await bot.say("after")
        await bot.until_handled("after")
        assert sorted(bot.handled) == ["after", "before", "just before", "while"]
        assert len(qq.identifies) == 1


async def test_many_missed_events_and_slow_handlers_at_short_beats(
    connect: Connect, qq: LocalGateway
) -> None:
    # promise 20
    bot = Counted(qq, connect)
    bot.wait = 0.8  # more than two heartbeats
    async with bot.running():
        await qq.drop()
        await bot.say(*range(60))
        await bot.until_handled(*range(60))
        assert len(bot.handled) == 60
        assert (len(qq.identifies), len(qq.clients)) == (1, 2)


async def test_nothing_is_left_behind_after_many_lines(connect: Connect, qq: LocalGateway) -> None:
    bot = Counted(qq, connect)
    tasks, before = len(asyncio.all_tasks()), descriptors()
    async with bot.running():
        for number in range(4):
            await bot.say(number)
            await bot.until_handled(number)
            await (qq.freeze() if number % 2 else qq.drop())
            await qq.wait_for(lambda qq, n=number: len(qq.resumes) > n)
    async with asyncio.timeout(30):  # the gateway's own ends of frozen lines stay: 8 at most
        while len(asyncio.all_tasks()) > tasks or descriptors() > before + 8:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_the_package_alone_imports_neither_library() -> None:
    program = (
        "import sys, qqbot_session, qqbot_session.shard;"
        "print([m for m in ('aiohttp', 'websockets', 'qqbot_session.bot') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
