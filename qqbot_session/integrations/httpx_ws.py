"""The `Socket` of `ShardRunner` on httpx-ws, which qq-botpy-sdk brings.

Its argument `max_message_size_bytes` is the size of a read, not of a message, and over TLS every
read allocates that much (0.9.0). So we keep it small and count the bytes of each message here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpcore
import httpx
from httpx_ws import AsyncWebSocketSession, HTTPXWSException, WebSocketDisconnect, aconnect_ws

from ..logs import say
from ..net.proxies import proxy_for
from ..shard import MAX_FRAME_BYTES

_READ = 65_536  # bytes; httpx-ws' own default


class _Bounded:
    """A network stream that fails when a message is too long.

    Attributes:
        bytes: bytes read since the last message.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, *args: Any, **options: Any) -> bytes:
        data: bytes = await self._stream.read(*args, **options)
        self.bytes += len(data)
        if self.bytes > MAX_FRAME_BYTES + _READ:
            raise httpcore.ReadError(f"a message is longer than {MAX_FRAME_BYTES} bytes")
        return data


class HttpxWsSocket:
    """An `httpx_ws.AsyncWebSocketSession` as `qqbot_session.shard.Socket`.

    A session ends its tasks by cancelling the task that opened it, so it is opened in a task of its
    own: the runner would take the cancellation as a request to stop.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._code: int | None = None
        self._frames: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._ws: asyncio.Future[AsyncWebSocketSession] = asyncio.Future()
        self._life = asyncio.create_task(self._live(url, options))

    async def opened(self) -> None:
        """Wait until it is open; raise whatever prevents that."""
        try:
            await self._ws
        except BaseException:
            self._life.cancel()
            raise

    async def send(self, frame: str, /) -> None:
        """Send a text frame."""
        await self._ws.result().send_text(frame)

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last. Cancelling this loses no frame."""
        return await self._frames.get()

    async def close(self, code: int, /) -> int | None:
        """Close it if it is open; return the code that it ended with."""
        try:
            if not self._life.done():
                await self._ws.result().close(code)
        finally:
            self._life.cancel()
        await asyncio.wait([self._life])
        return self._code

    async def _live(self, url: str, options: dict[str, Any]) -> None:
        limits = {"max_message_size_bytes": _READ, "keepalive_ping_interval_seconds": None}
        try:
            async with (
                httpx.AsyncClient(**{"timeout": None} | _way(url, options) | options) as http,
                aconnect_ws(url, http, **limits) as ws,
            ):
                self._ws.set_result(ws)
                await self._read(ws)
        except Exception as error:  # noqa: BLE001 - raised by `opened`
            if self._ws.done():
                say(logging.DEBUG, "httpx-ws: %r", error)
            else:
                self._ws.set_exception(error)
        finally:
            self._frames.put_nowait(None)

    async def _read(self, ws: AsyncWebSocketSession) -> None:
        try:
            ws.stream = stream = _Bounded(ws.stream)
            while True:
                frame = getattr(await ws.receive(), "data", "")
                stream.bytes = 0
                if len(frame) > MAX_FRAME_BYTES:
                    say(logging.DEBUG, "httpx-ws: a message of %d bytes", len(frame))
                    return
                self._frames.put_nowait(frame)
        except WebSocketDisconnect as end:
            self._code = end.code
        except HTTPXWSException as error:
            say(logging.DEBUG, "httpx-ws: %r", error)


def _way(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for connecting as the bot's HTTP calls do."""
    if {"proxy", "mounts", "transport"} & options.keys():
        return {}
    if (proxy := proxy_for(url)) is not None:
        return {"proxy": str(proxy)}
    return {"mounts": {"ws://": None, "wss://": None}}


async def connect(url: str, **options: Any) -> HttpxWsSocket:
    """Open a socket to the gateway.

    Args:
        url: the gateway's address, as `GET /gateway` tells it.
        options: for `httpx.AsyncClient`, such as `proxy` and `verify`.
    """
    socket = HttpxWsSocket(url, options)
    await socket.opened()
    return socket
