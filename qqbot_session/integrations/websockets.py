"""The `Socket` of `ShardRunner` on websockets."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _connect
from websockets.exceptions import ConnectionClosed

from ..shard import MAX_FRAME_BYTES


class WebsocketsSocket:
    """A `websockets.asyncio.client.ClientConnection` as `qqbot_session.shard.Socket`."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws

    async def send(self, frame: str, /) -> None:
        """Send a text frame."""
        await self._ws.send(frame)

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last; to be cancelled loses no frame."""
        try:
            # Undecoded, a text frame that is not UTF-8 is one skipped frame, and not a dead line.
            return await self._ws.recv(decode=False)
        except ConnectionClosed:
            return None

    async def close(self, code: int, /) -> int | None:
        """Close if it is open; cancelled, cut the line. Return the code it ended with."""
        try:
            await self._ws.close(code)
        finally:
            self._ws.transport.abort()
        return self._ws.protocol.close_code  # 13.0 has it here alone


async def connect(url: str, **options: Any) -> WebsocketsSocket:
    """Open a socket to the gateway.

    Args:
        url: the gateway's address, as `GET /gateway` tells it.
        options: for `websockets.asyncio.client.connect`. Its own pings are off unless asked for:
            the gateway's heartbeats see whether the line lives.
    """
    defaults = {"max_size": MAX_FRAME_BYTES, "ping_interval": None, "compression": None}
    return WebsocketsSocket(await _connect(url, **{**defaults, **options}))
