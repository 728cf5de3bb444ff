"""Puts our gateway loop in the place of hermes-agent's (`gateway.platforms.qqbot.adapter`, 0.19).

hermes-agent 0.19.0 forgets its session when the process ends, and records a sequence number when
the event arrives. Its handlers start a task and return, and while it starts up it queues messages
once more. So a message counts as handled once its answer was sent. Notices and typing indicators
are no answers.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import aiohttp

from ..answers import Answers, skip_answer
from ..errors import GatewayRefusedError
from ..gateway import Dispatch, Event, Ready, Resumed
from ..integrations._sessions import Telling
from ..integrations._shapes import require
from ..integrations.aiohttp import connect
from ._lines import keep_up

WRAPPED = "gateway.platforms.qqbot.adapter"
"""The module of the application that `wrap` takes."""

_NEEDED = (
    "_open_ws",
    "_listen_loop",
    "_heartbeat_loop",
    "_dispatch_payload",
    "_on_message",
    "_on_interaction",
    "_api_request",
    "_ensure_token",
    "_get_gateway_url",
    "_mark_connected",
    "_mark_transport_disconnected",
    "_set_fatal_error",
)
_LONGEST = 300.0  # seconds that an agent may take; as `max_held_seconds`
_INTENTS = 1 << 25 | 1 << 30 | 1 << 12 | 1 << 26  # as its `_send_identify` asks for


def wrap(module: ModuleType) -> None:
    """Replace the loop of every adapter.

    Raises:
        ImportError: this version lacks a method that we need.
    """
    adapter = module.QQAdapter
    require("hermes-agent", adapter, dict.fromkeys(_NEEDED, ()), __name__)
    request = adapter._api_request

    async def open_ws(self: Any, gateway_url: str) -> None:
        self._qqbot_line = _Line(self, gateway_url)

    async def listen_loop(self: Any) -> None:
        await self._qqbot_line.run()

    async def heartbeat_loop(self: Any) -> None:
        """Leave the heartbeats to our loop."""

    @functools.wraps(request)
    async def api_request(
        self: Any, method: str, path: str, body: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        line: _Line | None = getattr(self, "_qqbot_line", None)
        if line is None:  # it only sends
            return await request(self, method, path, body, *args, **kwargs)
        try:
            answer = await request(self, method, path, body, *args, **kwargs)
        except Exception as error:
            line.answers.sent(body, error)
            raise
        line.answers.sent(body)
        return answer

    adapter._open_ws, adapter._listen_loop = open_ws, listen_loop
    adapter._heartbeat_loop, adapter._api_request = heartbeat_loop, api_request


class _Line:
    def __init__(self, adapter: Any, url: str) -> None:
        self._adapter, self._url = adapter, url
        self.answers = Answers(_LONGEST)

    async def run(self) -> None:
        adapter = self._adapter
        async with aiohttp.ClientSession(trust_env=True) as self._http:
            try:
                await keep_up(
                    adapter._app_id,
                    _INTENTS,
                    answers=self.answers,
                    connect=self._connect,
                    token=self._token,
                    handle=self._handle,
                    observe=self._observe,
                )
            except GatewayRefusedError as error:
                adapter._set_fatal_error("qq_refused", str(error), retryable=False)
                adapter._mark_transport_disconnected()

    async def _connect(self) -> Telling:
        url, self._url = self._url or await self._adapter._get_gateway_url(), ""
        socket = Telling(await connect(self._http, url), self._closed)
        self._url = url  # asked for again only where it did not work
        self._socket = socket
        return socket

    def _closed(self) -> None:
        self._adapter._ws = None
        self._adapter._mark_transport_disconnected()

    async def _token(self, new: bool) -> str:
        if new:
            self._adapter._access_token, self._adapter._token_expires_at = None, 0.0
        return str(await self._adapter._ensure_token())

    def _observe(self, event: Event) -> None:
        if isinstance(event, Ready | Resumed | Dispatch) and self._adapter._ws is None:
            self._adapter._ws = self._socket  # from here on it is connected, and may answer
            self._adapter._mark_connected()

    async def _handle(self, event: Dispatch) -> None:
        adapter = self._adapter
        if event.type.endswith("MESSAGE_CREATE"):
            if not self._is_new(event.data):
                skip_answer()
            await adapter._on_message(event.type, event.data)
        elif event.type == "INTERACTION_CREATE":
            await adapter._on_interaction(event.data)
        else:
            adapter._dispatch_payload({"op": 0, "t": event.type, "s": event.seq, "d": event.data})

    def _is_new(self, data: object) -> bool:
        """Whether the adapter does not know the message already, and so will answer it."""
        return isinstance(data, dict) and data.get("id") not in self._adapter._seen_messages
