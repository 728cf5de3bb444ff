"""How the sockets of aiohttp, websockets and httpx-ws get there, and what they show on the way."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib import metadata
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from endpoints import Reader, Request, Writer, answers, endpoint, proxy, upgrade

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.net import network
from qqbot_session.shard import ShardRunner, Socket, open_gateway
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time

Connect = Callable[[str], Awaitable[Socket]]


@pytest.fixture(params=["aiohttp", "websockets", "httpx_ws"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    pytest.importorskip(request.param)
    return importlib.import_module(f"qqbot_session.integrations.{request.param}")


@pytest.fixture
async def connect(library: ModuleType) -> AsyncIterator[Connect]:
    if not library.__name__.endswith("aiohttp"):
        yield library.connect
        return
    async with aiohttp.ClientSession() as http:
        yield functools.partial(library.connect, http)


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway(heartbeat_interval=0.3) as local:
        yield local


async def test_a_close_frame_is_heard_at_once_though_tcp_stays_open(connect: Connect) -> None:
    async def work(request: Request, reader: Reader, writer: Writer) -> None:
        upgrade(request, writer)
        writer.write(b"\x81\x02hi\x88\x02" + struct.pack("!H", 4903))
        await reader.read()  # until the client hangs up

    async with endpoint(work) as gateway:
        line = await connect(gateway.ws_url)
        async with asyncio.timeout(30):
            assert await line.receive() in ("hi", b"hi")
            assert await line.receive() is None
            assert await line.close(4000) == 4903


async def test_no_token_goes_to_where_a_redirect_leads(connect: Connect) -> None:
    # promise 33
    frames: list[bytes] = []

    async def elsewhere(request: Request, reader: Reader, writer: Writer) -> None:
        upgrade(request, writer)
        frames.append(await reader.read(100))

    async with endpoint(elsewhere) as other:
        redirects = answers("302 Found", Location=other.url)
        async with endpoint(redirects) as gateway:
            with pytest.raises(Exception):  # noqa: B017, PT011 - each library has its own
                await connect(gateway.ws_url)
    assert frames in ([], [b""])


async def test_the_way_leads_through_the_proxy_of_the_environment(
    library: ModuleType, connect: Connect, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library.__name__.endswith("httpx_ws"):
        pytest.skip("httpcore speaks TLS to whatever it reaches by CONNECT, to ws:// as well")
    async with proxy() as way:
        monkeypatch.setenv("HTTP_PROXY", way.url)
        address = f"ws://localhost:{qq.port}/websocket"
        if library.__name__.endswith("websockets") and metadata.version("websockets") < "15":
            with pytest.raises(ValueError, match="websockets 15"):  # never past the proxy
                await connect(address)
            return
        line = await connect(address)
        assert await line.receive()
        await line.close(4000)
        assert len(way.requests) == 1


async def test_no_proxy_means_none(
    connect: Connect, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy() as way:
        monkeypatch.setenv("HTTP_PROXY", way.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        line = await connect(qq.ws_url)
        await line.close(4000)
        assert way.requests == []


async def test_a_frame_beyond_all_bounds_ends_the_line(
    library: ModuleType, connect: Connect, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MAX_FRAME_BYTES", 200_000)
    line = await connect(qq.ws_url)
    await line.receive()
    await qq.send("x" * 199_000)
    assert len(await line.receive() or "") == 199_000
    await qq.send("x" * 270_000)
    with suppress(aiohttp.WebSocketError):
        assert await line.receive() is None
    await line.close(4000)


async def test_the_debug_lines_of_the_libraries_do_not_show_the_token(
    connect: Connect, qq: LocalGateway, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 33
    caplog.set_level(logging.DEBUG)
    token = qq._apps.grant(qq.app_id, qq.client_secret)[0]

    async def get_token(new: bool) -> str:
        return str(token)

    async def handle(event: object) -> None: ...

    async with AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, qq.app_id, intents=1 << 25)
        runner = ShardRunner(
            store, gateway, connect=lambda: connect(qq.ws_url), token=get_token, handle=handle
        )
        run = asyncio.create_task(runner.run())
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        run.cancel()
        await asyncio.wait([run])
    assert str(token) not in caplog.text
    assert str(token) in str(qq.identifies[0].token)


async def test_an_ipv6_address_that_leads_nowhere_costs_websockets_a_head_start(
    qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    websockets = importlib.import_module("qqbot_session.integrations.websockets")
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", qq.port))
    nowhere = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("100::1", qq.port, 0, 0))
    monkeypatch.setattr(network, "_look_up", lambda *_: [nowhere, here])
    dial = network._connect

    async def silent(address: Any) -> socket.socket:
        return await (asyncio.sleep(3600) if address is nowhere else dial(address))

    monkeypatch.setattr(network, "_connect", silent)
    async with asyncio.timeout(30):
        line = await websockets.connect(f"ws://localhost:{qq.port}/websocket")
    await line.close(4000)
