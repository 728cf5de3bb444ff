"""The `Socket` of `ShardRunner` on websockets.

Rules:

* The line connects as the bot's HTTP calls do: directly, or through the proxy that the environment
  names. We open the TCP connection, so that Happy Eyeballs work on every event loop.
* No redirect is followed, because the token would go where it leads.
* websockets' DEBUG messages stay off for these lines: they show every frame, and so the token.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _Connect
from websockets.exceptions import ConnectionClosed

from ..net.network import dial
from ..net.proxies import proxy_for
from ..shard import MAX_FRAME_BYTES

_LINGER = 0.05  # seconds for our answer to a close frame to leave; our choice
_OWN_WAY = {"proxy", "sock", "host", "port", "unix", "path", "local_addr", "family"}
_PROXIES = "proxy" in inspect.signature(_Connect.__init__).parameters  # since 15.0


class _Logger(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic since 3.11, for checkers
    """websockets' logger without DEBUG messages."""

    def isEnabledFor(self, level: int) -> bool:
        return level > logging.DEBUG and super().isEnabledFor(level)


_LOGGER = _Logger(logging.getLogger("websockets.client"), {})


class _Connection(ClientConnection):
    """A connection that ends when the close frame arrives.

    websockets also waits for the peer to close TCP, which a gateway behind a load balancer may
    never do.
    """

    _said_goodbye = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.protocol.close_rcvd is not None and not self._said_goodbye:
            self._said_goodbye = True
            self.loop.call_later(_LINGER, self.transport.abort)


class _connect(_Connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebsocketsSocket:
    """A `websockets.asyncio.client.ClientConnection` as `qqbot_session.shard.Socket`."""

    __slots__ = ("_ws",)

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws

    async def send(self, frame: str, /) -> None:
        """Send a text frame."""
        await self._ws.send(frame)

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last. Cancelling this loses no frame."""
        try:
            # Undecoded, a text frame that is not UTF-8 is one skipped frame, and not a dead line.
            return await self._ws.recv(decode=False)
        except ConnectionClosed:
            return None

    async def close(self, code: int, /) -> int | None:
        """Close it if it is open; if cancelled, drop it. Return the code that it ended with."""
        try:
            await self._ws.close(code)
        finally:
            self._ws.transport.abort()
        return self._ws.protocol.close_code  # 13.0 has it here alone


async def connect(url: str, **options: Any) -> WebsocketsSocket:
    """Open a socket to the gateway.

    Args:
        url: the gateway's address, as `GET /gateway` tells it.
        options: for `websockets.asyncio.client.connect`. Its own pings are off by default: the
            gateway's heartbeats show whether the line is alive.

    Raises:
        OSError, TimeoutError, websockets.exceptions.WebSocketException: it cannot be
            opened.
        ValueError: the environment names a proxy that cannot be used.
    """
    defaults = {
        "max_size": MAX_FRAME_BYTES,
        "ping_interval": None,
        "compression": None,
        "logger": _LOGGER,
        "create_connection": _Connection,
    }
    if not _OWN_WAY & options.keys():
        async with asyncio.timeout(options.get("open_timeout", 10)):
            defaults |= await _way(url)
    return WebsocketsSocket(await _connect(url, **{**defaults, **options}))


async def _way(url: str) -> dict[str, Any]:
    """Return the option that decides how to connect."""
    if (proxy := proxy_for(url)) is not None:
        if not _PROXIES:
            raise ValueError("using a proxy needs websockets 15 or later")
        return {"proxy": proxy}
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    return {"sock": await dial(parts.hostname or "", port)}
