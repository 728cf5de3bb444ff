"""The `Socket` of `ShardRunner` on aiohttp."""

from __future__ import annotations

from typing import Any

import aiohttp

from ..shard import MAX_FRAME_BYTES

_DATA = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
_NO_CODE = (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)


class AiohttpSocket:
    """An `aiohttp.ClientWebSocketResponse` as `qqbot_session.shard.Socket`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        # aiohttp has no public way to end a line without saying goodbye.
        connection = getattr(getattr(ws, "_response", None), "connection", None)
        self._transport = getattr(connection, "transport", None)

    async def send(self, frame: str, /) -> None:
        """Send a text frame."""
        await self._ws.send_str(frame)

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last; to be cancelled loses no frame."""
        message = await self._ws.receive()
        if message.type in _DATA:
            return message.data  # type: ignore[no-any-return]
        if message.type is aiohttp.WSMsgType.ERROR:
            raise message.data
        return None

    async def close(self, code: int, /) -> int | None:
        """Close if it is open; cancelled, cut the line. Return the code it ended with."""
        ours = not self._ws.closed
        try:
            await self._ws.close(code=code)
        finally:
            if self._transport is not None:
                self._transport.abort()
        # Once a `receive` was cancelled, aiohttp does not wait for the peer's code and says 1006.
        return code if ours and self._ws.close_code in _NO_CODE else self._ws.close_code


async def connect(http: aiohttp.ClientSession, url: str, **options: Any) -> AiohttpSocket:
    """Open a socket to the gateway.

    Args:
        http: not closed by us.
        url: the gateway's address, as `GET /gateway` tells it.
        options: for `ClientSession.ws_connect`, such as `proxy`.
    """
    # Undecoded, a text frame that is not UTF-8 is one skipped frame, and not the end of the line.
    defaults = {"max_msg_size": MAX_FRAME_BYTES, "decode_text": False}
    ws = await http.ws_connect(url, **{**defaults, **options})
    return AiohttpSocket(ws)
