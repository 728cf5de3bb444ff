"""Puts our gateway loop in the place of LangBot's (`QQOfficialClient.connect_gateway`, 4.11).

LangBot 4.11.2 forgets its session when the process ends, and discards it after close code 4009. Its
handlers only put messages into a queue, so a message counts as handled once its answer was sent.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

from ..answers import Answers
from ..errors import GatewayRefusedError
from ..gateway import Dispatch, Event, Ready, Resumed
from ..integrations._shapes import require
from ..integrations.websockets import WebsocketsSocket, connect
from ._lines import keep_up

WRAPPED = "langbot.libs.qq_official_api.api"
"""The module of the application that `wrap` takes."""

_NEEDED = (
    "connect_gateway",
    "get_gateway_url",
    "check_access_token",
    "get_access_token",
    "_http_client_context",
)


def wrap(module: ModuleType) -> None:
    """Replace the loop of every client.

    Raises:
        ImportError: this version lacks a method that we need.
    """
    client = module.QQOfficialClient
    require("langbot", client, dict.fromkeys(_NEEDED, ()), __name__)

    async def connect_gateway(
        self: Any,
        on_event: Callable[[str, dict[str, Any]], Any],
        on_ready: Callable[[], Any] | None = None,
        on_error: Callable[[Exception], Any] | None = None,
    ) -> None:
        """Stay connected to the gateway until cancelled, and resume the session."""
        try:
            await _Line(self, on_event, on_ready).run()
        except GatewayRefusedError as error:
            await self.logger.error(str(error))
            if on_error is not None:
                await _call(on_error, error)

    client.connect_gateway = connect_gateway


class _Line:
    def __init__(
        self,
        client: Any,
        on_event: Callable[[str, dict[str, Any]], Any],
        on_ready: Callable[[], Any] | None,
    ) -> None:
        self._client, self._on_event, self._on_ready = client, on_event, on_ready
        self._answers = Answers()
        self._url = ""
        self._ready: asyncio.Task[None] | None = None

    async def run(self) -> None:
        client = self._client
        open_http = client._http_client_context

        @asynccontextmanager
        async def open_watched(timeout: float | None = None) -> AsyncIterator[Any]:  # noqa: ASYNC109
            async with open_http(timeout) as http:
                hooks = http.event_hooks
                if self._note_answer not in hooks["response"]:
                    hooks["response"].append(self._note_answer)
                    http.event_hooks = hooks
                yield http

        client._http_client_context = open_watched
        try:
            await keep_up(
                client.app_id,
                client.FULL_INTENTS,
                answers=self._answers,
                connect=self._connect,
                token=self._token,
                handle=self._handle,
                observe=self._observe,
            )
        finally:
            client._http_client_context = open_http

    async def _note_answer(self, response: Any) -> None:
        """Note an answer to a message; httpx calls this before it has read the response body."""
        try:
            body = json.loads(response.request.content)
        except ValueError:
            return
        await response.aread()
        self._answers.sent(body, RuntimeError(response.text) if response.is_error else None)

    async def _connect(self) -> WebsocketsSocket:
        url, self._url = self._url or await self._client.get_gateway_url(), ""
        socket = await connect(url)
        self._url = url  # asked for again only where it did not work
        return socket

    async def _token(self, new: bool) -> str:
        if new:
            self._client.access_token, self._client.access_token_expiry_time = "", None
        if not await self._client.check_access_token():
            await self._client.get_access_token()
        return str(self._client.access_token)

    def _observe(self, event: Event) -> None:
        if isinstance(event, Ready | Resumed | Dispatch) and self._ready is None:
            self._ready = asyncio.create_task(_call(self._on_ready), name="LangBot's on_ready")

    async def _handle(self, event: Dispatch) -> None:
        data = event.data if isinstance(event.data, dict) else {}
        if event.type == "INTERACTION_CREATE":
            await _call(self._client._interaction_handler, data, event.id)
        else:
            await _call(self._on_event, event.type, data)


async def _call(function: Callable[..., Any] | None, *arguments: object) -> None:
    """Call what may be a function, a coroutine function, or nothing."""
    result = function(*arguments) if function is not None else None
    if inspect.isawaitable(result):
        await result
