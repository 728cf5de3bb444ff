"""Wraps a framework once a program started by `qqbot-session run` has imported it.

Rules:

* The sessions are kept where QQBOT_SESSION_STORAGE says.
* A bot that already uses one of our integrations is left alone.
* In applications whose handlers only put messages into a queue (`QUEUES`), a message counts as
  handled when its answer is out.
* An integration is imported as late as possible. If that fails, one line on standard error says
  so, and the program runs on without it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ..answers import Answers, Until
from . import VARIABLE, say

QUEUES: Mapping[str, Mapping[str, Any]] = {
    "astrbot": {},
    "nanobot": {"in_handler": False},  # its handler sends "⏳ Processing..."
}
"""The top-level packages of applications whose handlers return before anybody reads the message,
and the arguments of `Answers` for each."""

CLIENTS: weakref.WeakSet[Any] = weakref.WeakSet()
"""The botpy clients that were made to resume."""


def wrap_botpy(botpy: ModuleType) -> None:
    """Make every client resume, from its construction on."""
    construct = botpy.Client.__init__

    @functools.wraps(construct)
    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        try:
            from ..integrations.botpy import SessionMixin, remember
        except ImportError as error:
            say(f"botpy will not resume: {error}")
            botpy.Client.__init__ = construct
            return
        if not isinstance(self, SessionMixin):
            CLIENTS.add(remember(self, _storage(), until=_until(type(self))))

    botpy.Client.__init__ = constructed


def wrap_nonebot(qq: ModuleType) -> None:
    """Put our `Adapter` in the place of nonebot-adapter-qq's."""
    if "qqbot_session.integrations.nonebot" in sys.modules:
        return  # the program's own choice, and perhaps being imported just now
    from ..integrations.nonebot import Adapter

    places: list[Any] = [qq, sys.modules.get("nonebot.adapters.qq.adapter")]
    for module in filter(None, places):
        module.Adapter = Adapter


def wrap_agent_sdk(sdk: ModuleType) -> None:
    """Make every socket resume, from its thread's start on."""
    _AgentSdk(sdk)


def wrap_langbot(module: ModuleType) -> None:
    """Replace LangBot's own loop."""
    from . import langbot

    langbot.wrap(module)


def wrap_nanobot(module: ModuleType) -> None:
    """Let nanobot's own restart stop in order."""
    from . import nanobot

    nanobot.wrap(module)


def wrap_hermes(module: ModuleType) -> None:
    """Replace hermes-agent's own loop."""
    from . import hermes

    hermes.wrap(module)


class _AgentSdk:
    """The SDK's sockets, which know no app id, and its API clients, which do."""

    def __init__(self, sdk: ModuleType) -> None:
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._stores: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._note_clients(sdk.QQApiClient)
        self._wrap_thread(sdk.QQWebSocket)
        self._wrap_stop(sdk.QQWebSocket)

    def _note_clients(self, kind: Any) -> None:
        construct = kind.__init__

        @functools.wraps(construct)
        def constructed(client: Any, *args: Any, **kwargs: Any) -> None:
            construct(client, *args, **kwargs)
            self._clients.add(client)

        kind.__init__ = constructed

    def _wrap_thread(self, kind: Any) -> None:
        run = kind._run_ws_thread

        @functools.wraps(run)
        def in_thread(socket: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                asyncio.run_coroutine_threadsafe(self._remember(socket), socket._main_loop).result()
            except Exception as error:  # noqa: BLE001 - the program must run on
                say(f"qqbot-agent-sdk will not resume: {error}")
            return run(socket, *args, **kwargs)

        kind._run_ws_thread = in_thread

    def _wrap_stop(self, kind: Any) -> None:
        stop = kind.async_stop

        @functools.wraps(stop)
        async def stopped(socket: Any) -> None:
            await stop(socket)
            if store := self._stores.pop(socket, None):
                await store.aclose()

        kind.async_stop = stopped

    async def _remember(self, socket: Any) -> None:
        """Give the socket callbacks of ours; on the program's loop."""
        from ..integrations.agent_sdk import remember
        from ..store import AsyncSessionStore

        if "qqbot_session" in type(getattr(socket._cb.get_session, "__self__", None)).__module__:
            return  # the program called `remember` itself
        app_id = self._app_id(socket)
        store = self._stores[socket] = AsyncSessionStore(_storage())
        socket._cb = await remember(socket._cb, store, app_id=app_id)

    def _app_id(self, socket: Any) -> str:
        owner: Any = getattr(socket._cb.get_token, "__self__", None)
        found = {client._app_id for client in self._clients}
        if owner in self._clients:
            return str(owner._app_id)
        if len(found) == 1:
            return str(*found)
        raise LookupError(f"which of {len(found)} app ids a socket is for cannot be told")


def _until(kind: type) -> Until:
    options = QUEUES.get(kind.__module__.partition(".")[0])
    return "handled" if options is None else Answers(**options)


def _storage() -> str:
    return os.environ[VARIABLE]
