"""The `Socket` of `ShardRunner` on aiohttp.

Rules:

* The line connects as the bot's HTTP calls do: directly, or through the proxy that the environment
  names.
* A redirect is an error, because the token would go where it leads.
"""

from __future__ import annotations

from typing import Any

import aiohttp

from ..net.proxies import aiohttp_options, proxy_for
from ..shard import MAX_FRAME_BYTES
from ..words import shown

_DATA = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
_NO_CODE = (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)


class AiohttpSocket:
    """An `aiohttp.ClientWebSocketResponse` as `qqbot_session.shard.Socket`."""

    __slots__ = (
        "_response",
        "_transport",
        "_ws",
    )

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        # aiohttp has no public way to drop a connection without a close handshake.
        self._response = getattr(ws, "_response", None)
        connection = getattr(self._response, "connection", None)
        self._transport = getattr(connection, "transport", None)

    def refuse_redirect(self) -> None:
        """Drop the line and raise a `ClientError` if a redirect was followed."""
        if getattr(self._response, "history", ()):
            if self._transport is not None:
                self._transport.abort()
            where = shown(getattr(self._response, "url", ""))
            raise aiohttp.ClientError(f"the gateway redirects to {where}, which is not followed")

    async def send(self, frame: str, /) -> None:
        """Send a text frame."""
        await self._ws.send_str(frame)

    async def receive(self) -> str | bytes | None:
        """Return the next frame, `None` after the last. Cancelling this loses no frame."""
        message = await self._ws.receive()
        if message.type in _DATA:
            return message.data  # type: ignore[no-any-return]
        if message.type is aiohttp.WSMsgType.ERROR:
            raise message.data
        return None

    async def close(self, code: int, /) -> int | None:
        """Close it if it is open; if cancelled, drop it. Return the code that it ended with."""
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

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: it cannot be opened.
        ValueError: the environment names a proxy that cannot be used.
    """
    # Undecoded, a text frame that is not UTF-8 is one skipped frame, and not the end of the line.
    defaults: dict[str, Any] = {"max_msg_size": MAX_FRAME_BYTES, "decode_text": False}
    if "proxy" not in options and getattr(http, "_default_proxy", None) is None:
        defaults |= aiohttp_options(url, proxy_for(url))
    socket = AiohttpSocket(await http.ws_connect(url, **{**defaults, **options}))
    socket.refuse_redirect()
    return socket
