"""Endpoints that no gateway is: raw HTTP servers that answer as a test says, and a proxy."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


@dataclass
class Request:
    """What a client sent: its first line, its headers by their lower names, its body."""

    line: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Endpoint:
    """A server on loopback; `requests` is what came."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"


Work = Callable[[Request, Reader, Writer], Awaitable[None]]


@asynccontextmanager
async def endpoint(work: Work) -> AsyncIterator[Endpoint]:
    """Run a server that gives each request to `work`, which writes what it likes."""
    here = Endpoint()
    writers: set[Writer] = set()

    async def serve(reader: Reader, writer: Writer) -> None:
        writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await read_request(reader)
                here.requests.append(request)
                await work(request, reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def read_request(reader: Reader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(head[0], headers, body)


def answers(status: str, body: bytes = b"", **headers: str) -> Work:
    """Return the work of an endpoint that always answers the same."""

    async def work(request: Request, reader: Reader, writer: Writer) -> None:
        await respond(writer, status, body, **headers)

    return work


async def respond(writer: Writer, status: str, body: bytes = b"", **headers: str) -> None:
    """Write an answer; a header's `_` is a `-`."""
    fields = {"Content_Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    writer.write(f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode() + body)
    await writer.drain()


def upgrade(request: Request, writer: Writer) -> None:
    """Answer a WebSocket's handshake."""
    key = request.headers["sec-websocket-key"] + _MAGIC
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )


@asynccontextmanager
async def proxy(*, user: str | None = None) -> AsyncIterator[Endpoint]:
    """Run an HTTP proxy to whom every name is loopback; `user` is `name:password`."""
    pumps: set[asyncio.Task[None]] = set()

    async def work(request: Request, reader: Reader, writer: Writer) -> None:
        given = request.headers.get("proxy-authorization", "").removeprefix("Basic ")
        if user is not None and base64.b64decode(given).decode() != user:
            await respond(writer, "407 Proxy Authentication Required")
            return
        method, target, version = request.line.split()
        place = urlsplit(f"//{target}" if method == "CONNECT" else target)
        there, out = await asyncio.open_connection("127.0.0.1", place.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            again = {} if "upgrade" in request.headers else {"connection": "close"}  # one request
            headers = request.headers | again
            lines = [f"{name}: {value}" for name, value in headers.items() if value]
            head = "\r\n".join([f"{method} {place.path} {version}", *lines, "", ""])
            out.write(head.encode() + request.body)
        pumps.add(asyncio.create_task(_pump(there, writer)))
        await _pump(reader, out)

    async with endpoint(work) as here:
        try:
            yield here
        finally:
            for pump in pumps:
                pump.cancel()


async def _pump(reader: Reader, writer: Writer) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
