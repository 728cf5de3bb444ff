"""NoneBot2 bots whose session survives a restart: register this `Adapter` instead of theirs.

    from qqbot_session.integrations.nonebot import Adapter as QQAdapter

QQ_SESSIONS in `.env` says where the sessions are kept, by default in the directory `sessions`.

Rules:

* What is replaced is `_forward_ws`: instead of one session for all shards of a bot, one
  `ShardRunner` per shard. Webhooks, `Bot`, events, matchers and the API stay nonebot-adapter-qq's.
* An event is handled when every matcher of every priority has ended: `nonebot.message.handle_event`
  waits for them, and logs what they raise. One that cannot be parsed is handled, too.
* The bot is connected while at least one of its shards is. `self_info` is READY's user, and QQ is
  asked for it where there is no READY because the session was resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

try:
    from nonebot.adapters import qq
except ModuleNotFoundError as error:
    raise ImportError(
        "qqbot_session.integrations.nonebot needs NoneBot2 and its QQ adapter:"
        ' pip install "qqbot_session[nonebot]"'
    ) from error

from nonebot import get_plugin_config
from nonebot.adapters.qq import Bot
from nonebot.adapters.qq.models import Dispatch as Payload
from nonebot.adapters.qq.utils import log
from nonebot.compat import type_validate_python
from nonebot.drivers import URL, Request, Timeout, WebSocket
from nonebot.exception import WebSocketClosed
from nonebot.utils import escape_tag
from pydantic import BaseModel

from ..answers import end_of
from ..errors import GatewayRefusedError
from ..gateway import Dispatch, Event, Hello, Ready, Resumed
from ..pace import Pace
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from ._shapes import require

_HERE = "qqbot_session.integrations.nonebot"
require(
    "nonebot-adapter-qq",
    qq.Adapter,
    {
        "_forward_ws": ("bot", "ws_url", "shard"),
        "dispatch_event": ("bot", "payload"),
        "startup": (),
        "shutdown": (),
    },
    _HERE,
)
require("nonebot-adapter-qq", Bot, {"get_access_token": (), "me": (), "shard_url_get": ()}, _HERE)

_WAITS = {"connect": 10.0, "read": None, "close": 2.0}  # seconds; heartbeats find a dead line
_TIMEOUT = Timeout(
    **{  # `close` is new in nonebot2 2.5
        name: seconds for name, seconds in _WAITS.items() if name in Timeout.__dataclass_fields__
    }
)


class Config(BaseModel):
    """What `.env` may say.

    Attributes:
        qq_sessions: what `AsyncSessionStore` takes: a directory, `sqlite:…`, `redis://…`. Without
            it the environment's QQBOT_SESSION_STORAGE counts, else it is `sessions`.
    """

    qq_sessions: str = os.environ.get("QQBOT_SESSION_STORAGE", "sessions")


class Adapter(qq.Adapter):
    """nonebot-adapter-qq's adapter, whose bots on WebSockets resume."""

    async def startup(self) -> None:
        """Open the store, and start the bots."""
        self._qqbot_store = AsyncSessionStore(get_plugin_config(Config).qq_sessions)
        self._qqbot_lines: set[asyncio.Task[Any]] = set()
        self._qqbot_up: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        self._qqbot_paces: dict[str, Pace] = {}
        log("INFO", escape_tag(f"the sessions are kept in {self._qqbot_store!r}"))
        await super().startup()

    async def shutdown(self) -> None:
        """End the lines, let the matchers finish, and save; then cancel what is left."""
        for line in self._qqbot_lines:
            line.cancel()
        if self._qqbot_lines:
            await asyncio.wait(self._qqbot_lines)
        await super().shutdown()
        await self._qqbot_store.aclose()

    async def _forward_ws(self, bot: Bot, ws_url: URL, shard: tuple[int, int]) -> None:
        """Keep one shard's line up, instead of what does so in nonebot-adapter-qq."""
        line = asyncio.current_task()
        assert line is not None
        self._qqbot_lines.add(line)
        line.add_done_callback(self._qqbot_lines.discard)
        try:
            await (await self._qqbot_runner(bot, ws_url, shard)).run()
        except GatewayRefusedError as error:
            log("ERROR", escape_tag(f"{error}: the shard stays down"))
        except Exception as error:  # noqa: BLE001 - nobody else would ever read it
            log("ERROR", f"bot {bot.self_id}, shard {shard}: the line stays down", error)

    async def _qqbot_runner(self, bot: Bot, ws_url: URL, shard: tuple[int, int]) -> ShardRunner:
        gateway = await open_gateway(
            self._qqbot_store,
            bot.bot_info.id,
            intents=bot.bot_info.intent.to_int(),
            shard=shard,
            sandbox=getattr(self.qq_config, "qq_is_sandbox", False),  # gone in 1.7
        )

        async def connect() -> Socket:
            if bot._self_info is None and gateway.resumable:  # there will be no READY
                bot.self_info = await bot.me()
            lost = partial(self._qqbot_lost, bot, shard)
            return await _Socket.open(
                self.websocket(Request("GET", ws_url, timeout=_TIMEOUT)), lost
            )

        async def ask() -> bool:
            pace.learn((await bot.shard_url_get()).session_start_limit.__dict__)
            return True

        pace = self._qqbot_paces.setdefault(bot.self_id, Pace(ask))
        return ShardRunner(
            self._qqbot_store,
            gateway,
            connect=connect,
            token=partial(_access_token, bot),
            handle=partial(self._qqbot_handle, bot),
            observe=partial(self._qqbot_observe, bot, shard),
            before_identify=partial(pace.before_identify, shard),
        )

    def _qqbot_observe(self, bot: Bot, shard: tuple[int, int], event: Event) -> None:
        ready = None
        if isinstance(event, Hello):
            self._qqbot_paces[bot.self_id].handshake_goes_out(shard)
        if isinstance(event, Ready):
            data = {"session_id": event.session_id, "user": event.user, "shard": shard}
            ready = _payload("READY", event.seq, None, {"version": 1, **data})
            bot.self_info = self.payload_to_event(ready).user
        if isinstance(event, Ready | Resumed | Dispatch):  # a replayed event comes before RESUMED
            self._qqbot_up[bot.self_id].add(shard)
            if bot.self_id not in self.bots:
                self.bot_connect(bot)
        if ready is not None:
            self.dispatch_event(bot, ready)

    def _qqbot_lost(self, bot: Bot, shard: tuple[int, int]) -> None:
        up = self._qqbot_up[bot.self_id]
        if up == {shard} and bot.self_id in self.bots:
            self.bot_disconnect(bot)
        up.discard(shard)

    async def _qqbot_handle(self, bot: Bot, event: Dispatch) -> None:
        before = set(self.tasks)
        self.dispatch_event(bot, _payload(event.type, event.seq, event.id, event.data))
        await end_of(self.tasks - before)


class _Socket:
    """A WebSocket of whichever driver NoneBot runs on, as `qqbot_session.shard.Socket`."""

    def __init__(
        self, ws: WebSocket, stack: contextlib.AsyncExitStack, lost: Callable[[], object]
    ) -> None:
        self._ws, self._stack, self._lost = ws, stack, lost
        self._code: int | None = None

    @classmethod
    async def open(
        cls, line: AbstractAsyncContextManager[WebSocket], lost: Callable[[], object]
    ) -> _Socket:
        stack = contextlib.AsyncExitStack()
        return cls(await stack.enter_async_context(line), stack, lost)

    async def send(self, frame: str, /) -> None:
        await self._ws.send(frame)

    async def receive(self) -> str | bytes | None:
        try:
            frame: str | bytes = await self._ws.receive()
        except WebSocketClosed as end:
            self._code = end.code
            return None
        return frame

    async def close(self, code: int, /) -> int | None:
        self._lost()
        try:
            await self._ws.close(code)
        finally:
            await self._stack.aclose()
        # Who could not send has not read the code; all drivers' sockets have it.
        return self._code or getattr(getattr(self._ws, "websocket", None), "close_code", None)


async def _access_token(bot: Bot, new: bool) -> str:
    if new:
        bot._access_token = None
    return str(await bot.get_access_token())


def _payload(kind: str, seq: int | None, event_id: str | None, data: Any) -> Payload:
    fields = {"opcode": 0, "data": data, "sequence": seq, "type": kind, "id": event_id}
    return type_validate_python(Payload, fields)
