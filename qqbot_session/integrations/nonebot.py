"""NoneBot2 bots whose session survives a restart: register this `Adapter` instead of theirs.

    from qqbot_session.integrations.nonebot import Adapter as QQAdapter

QQ_SESSIONS in `.env` says where the sessions are kept, by default in the directory `sessions`.
`Config` lists the other settings.

Rules:

* This replaces `run_bot_websocket`, which asks for the gateway's address once: ours tries again.
  And it replaces `_forward_ws`: instead of one session for all shards of a bot, one `ShardRunner`
  per shard. Webhooks, `Bot`, events, matchers and the API stay nonebot-adapter-qq's.
* An event is handled when every matcher of every priority has ended: `nonebot.message.handle_event`
  waits for them, and logs what they raise. One that cannot be parsed is handled, too. With
  QQ_SESSIONS_UNTIL=answered a message is handled when QQ accepted an answer to it, or when every
  matcher that ran raised: see `qqbot_session.answers`.
* The bot is connected while at least one of its shards is, and at the end until its matchers have
  ended. `self_info` is READY's user; without a READY, because the session was resumed, QQ is asked.
* Shutdown hooks run in the reverse order of their registration. So ours is registered when all
  plugins have started, and lets matchers finish before the plugins close their databases.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

from ._shapes import missing, require, too_old

try:
    from nonebot import get_plugin_config
    from nonebot.adapters import qq
    from nonebot.adapters.qq import Bot
    from nonebot.adapters.qq.exception import AuditException
    from nonebot.adapters.qq.models import Dispatch as Payload
    from nonebot.adapters.qq.utils import log
    from nonebot.compat import type_validate_python
    from nonebot.drivers import URL, Request, Timeout, WebSocket
    from nonebot.exception import WebSocketClosed
    from nonebot.message import run_postprocessor
    from nonebot.utils import escape_tag
    from pydantic import BaseModel
except ImportError as error:
    here = "qqbot_session.integrations.nonebot"
    if error.name in ("nonebot", "nonebot.adapters", "nonebot.adapters.qq") and isinstance(
        error, ModuleNotFoundError
    ):
        raise missing(here, "nonebot", "NoneBot2 and nonebot-adapter-qq") from error
    raise too_old("nonebot2", "2.4.3", here, beside="nonebot-adapter-qq 1.6.4") from error

from ..answers import answers_for, end_of, handler_raised
from ..errors import GatewayRefusedError, describe
from ..gateway import Dispatch, Event, GatewaySession, Ready, Resumed
from ..pace import Pace
from ..shard import ShardRunner, Socket, account_id_for, open_gateway
from ..store import AsyncSessionStore
from ..words import Secret, shown
from ._console import Console, console_line
from ._sessions import Loads, is_wrong_bot, known_address, only_line, waits

_HERE = "qqbot_session.integrations.nonebot"
require(
    "nonebot-adapter-qq",
    qq.Adapter,
    {
        "_call_api": ("bot", "api"),
        "_forward_ws": ("bot", "ws_url", "shard"),
        "dispatch_event": ("bot", "payload"),
        "run_bot_websocket": ("bot_info",),
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
        qq_sessions_until: `handled` = a message is handled when its matchers have ended;
            `answered` = when QQ accepted an answer to it, for plugins that queue messages.
        qq_sessions_grace: seconds that matchers, and messages that wait for their answers, get to
            finish at the end.
    """

    qq_sessions: str = os.environ.get("QQBOT_SESSION_STORAGE", "sessions")
    qq_sessions_until: Literal["handled", "answered"] = "handled"
    qq_sessions_grace: float = 5.0


_pause = asyncio.sleep


class Adapter(qq.Adapter):
    """nonebot-adapter-qq's adapter, whose bots on WebSockets resume."""

    async def startup(self) -> None:
        """Open the store, and start the bots."""
        self._qqbot_config = config = get_plugin_config(Config)
        self._qqbot_loads: Loads = {}
        self._qqbot_store = AsyncSessionStore(
            config.qq_sessions,
            on_load=lambda found: self._qqbot_loads.update({found.account_id: found}),
        )
        self._qqbot_lines: set[asyncio.Task[Any]] = set()
        self._qqbot_up: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        self._qqbot_paces: dict[str, Pace] = {}
        self._qqbot_ending = False
        self._qqbot_answers = answers_for(config.qq_sessions_until)
        if self._qqbot_answers is not None:
            run_postprocessor(_note_matcher)
        self.driver.on_shutdown(self._qqbot_end_lines)  # registered last, so it runs first
        self._qqbot_told = False  # where the sessions are kept
        await super().startup()

    async def shutdown(self) -> None:
        """End the lines if they have not ended yet, cancel what is left, and save."""
        if not hasattr(self, "_qqbot_store"):  # `startup` never ran: a plugin failed before
            await super().shutdown()
            return
        await self._qqbot_end_lines()
        await super().shutdown()
        await self._qqbot_store.aclose()

    async def _qqbot_end_lines(self) -> None:
        """End the lines, and let the matchers finish."""
        self._qqbot_ending = True
        for line in self._qqbot_lines:
            line.cancel()
        if self._qqbot_lines:
            await asyncio.wait(self._qqbot_lines)
        for self_id in self._qqbot_up:
            self._qqbot_disconnect(self_id)

    async def run_bot_websocket(self, bot_info: Any) -> None:
        """Ask for the gateway's address until there is one, then start the bot's shards."""
        bot, only = Bot(self, bot_info.id, bot_info), bot_info.shard
        del bot_info  # it shows its secret, and tracebacks show variables
        self._qqbot_paces.setdefault(bot.self_id, Pace(partial(self._qqbot_ask, bot)))
        told = await self._qqbot_gateway_of(bot)
        if told is None or self._qqbot_ending:
            return
        address, count = told
        url = getattr(self.qq_config, "qq_custom_gateway_url", None) or URL(address)
        shards = [(number, count) for number in range(count)]
        for shard in shards if only is None else [only]:
            task = asyncio.create_task(self._forward_ws(bot, url, tuple(shard)))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    async def _qqbot_gateway_of(self, bot: Bot) -> tuple[str, int] | None:
        """Return the gateway's address and the number of shards, `None` after a refusal."""
        for seconds in waits():
            try:
                told = await bot.shard_url_get()
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                if _is_refusal(error):
                    _tell(logging.ERROR, console_line("en", "refused", error=describe(error)))
                    return None
                shard = tuple(bot.bot_info.shard or (0, 1))
                api_url = str(self.get_api_base())
                gateway = await self._qqbot_open(bot, shard)
                if shard[1] == 1 and (known := known_address(gateway, api_url)):
                    return known, 1
                text = console_line("en", "login", wait=seconds, error=describe(error))
                _tell(logging.WARNING, f"Bot {bot.self_id} {text}")
            else:
                self._qqbot_paces[bot.self_id].learn(told.session_start_limit.__dict__)
                return told.url, told.shards or 1
            await _pause(seconds)
        raise AssertionError("there is always one more try")

    async def _qqbot_ask(self, bot: Bot) -> bool:
        told = await bot.shard_url_get()
        self._qqbot_paces[bot.self_id].learn(told.session_start_limit.__dict__)
        return True

    async def _forward_ws(self, bot: Bot, ws_url: URL, shard: tuple[int, int]) -> None:
        """Keep one shard's line up, instead of what does so in nonebot-adapter-qq."""
        task = asyncio.current_task()
        assert task is not None
        self._qqbot_lines.add(task)
        task.add_done_callback(self._qqbot_lines.discard)
        try:
            async with only_line(self._qqbot_config.qq_sessions, self._qqbot_account(bot, shard)):
                await (await self._qqbot_runner(bot, ws_url, shard)).run()
        except GatewayRefusedError as error:
            _tell(logging.ERROR, console_line("en", "refused", error=error))
        except Exception as error:  # noqa: BLE001 - nobody else would ever read it
            log("ERROR", f"Bot {bot.self_id}, shard {shard}: the line stays down", error)

    def _qqbot_account(self, bot: Bot, shard: tuple[int, int]) -> str:
        return account_id_for(bot.bot_info.id, shard, sandbox=self._qqbot_sandbox())

    def _qqbot_sandbox(self) -> bool:
        return getattr(self.qq_config, "qq_is_sandbox", False)  # gone in 1.7

    async def _qqbot_open(self, bot: Bot, shard: tuple[int, int]) -> GatewaySession:
        return await open_gateway(
            self._qqbot_store,
            bot.bot_info.id,
            intents=bot.bot_info.intent.to_int(),
            shard=shard,
            sandbox=self._qqbot_sandbox(),
            secret=bot.bot_info.secret,
        )

    async def _qqbot_runner(self, bot: Bot, ws_url: URL, shard: tuple[int, int]) -> ShardRunner:
        gateway = await self._qqbot_open(bot, shard)
        if not self._qqbot_told:  # a relative directory is known by now
            self._qqbot_told = True
            _tell(logging.INFO, f"the sessions are kept in {self._qqbot_store!r}")
        loaded = self._qqbot_loads.get(gateway.account_id)
        shard_log = Console(gateway.account_id, "en", _tell, loaded=loaded)

        async def connect() -> Socket:
            if bot._self_info is None and gateway.resumable:  # there will be no READY
                bot._self_info = await bot.me()  # no setter before 1.6.4
            lost = partial(self._qqbot_lost, bot, shard)
            line = self.websocket(Request("GET", ws_url, timeout=_TIMEOUT))
            socket = await _Socket.open(line, lost)
            gateway.remember_address(str(ws_url))
            return socket

        handle = partial(self._qqbot_handle, bot)
        answers = self._qqbot_answers
        return ShardRunner(
            self._qqbot_store,
            gateway,
            connect=connect,
            token=partial(_access_token, bot),
            handle=handle if answers is None else answers.awaited(handle),
            observe=partial(self._qqbot_observe, bot, shard, shard_log),
            pace=self._qqbot_paces[bot.self_id],
            grace=self._qqbot_config.qq_sessions_grace,
            log=shard_log,
        )

    def _qqbot_observe(
        self, bot: Bot, shard: tuple[int, int], shard_log: Console, event: Event
    ) -> None:
        shard_log.count(event)
        ready = None
        if isinstance(event, Ready):
            data = {"session_id": event.session_id, "user": event.user, "shard": shard}
            ready = _payload("READY", event.seq, None, {"version": 1, **data})
            bot._self_info = self.payload_to_event(ready).user
        if isinstance(event, Ready | Resumed | Dispatch):  # a replayed event comes before RESUMED
            self._qqbot_up[bot.self_id].add(shard)
            if bot.self_id not in self.bots:
                self.bot_connect(bot)
                _tell(logging.INFO, f"Bot {bot.self_id} connected")
        if ready is not None:
            self.dispatch_event(bot, ready)

    def _qqbot_lost(self, bot: Bot, shard: tuple[int, int]) -> None:
        if self._qqbot_ending:
            return  # matchers still answer
        up = self._qqbot_up[bot.self_id]
        if up == {shard}:
            self._qqbot_disconnect(bot.self_id)
        up.discard(shard)

    def _qqbot_disconnect(self, self_id: str) -> None:
        if (bot := self.bots.get(self_id)) is not None:
            self.bot_disconnect(bot)
            _tell(logging.INFO, f"Bot {self_id} disconnected")

    async def _qqbot_handle(self, bot: Bot, event: Dispatch) -> None:
        before = set(self.tasks)
        failed: list[bool] = []
        _matchers.set(failed)  # in the context of this event's own task
        self.dispatch_event(bot, _payload(event.type, event.seq, event.id, event.data))
        await end_of(self.tasks - before)
        if failed and all(failed):
            handler_raised()

    async def _call_api(self, bot: Bot, api: str, **data: Any) -> Any:
        """Call QQ's API, and note what answers a message."""
        answers = self._qqbot_answers
        if answers is None:
            return await super()._call_api(bot, api, **data)
        try:
            result = await super()._call_api(bot, api, **data)
        except AuditException:  # QQ has accepted it, and looks at it
            answers.sent(data)
            raise
        except Exception as error:
            answers.sent(data, error)
            raise
        answers.sent(data)
        return result


_matchers: ContextVar[list[bool] | None] = ContextVar("qqbot_session_matchers", default=None)


async def _note_matcher(exception: Exception | None) -> None:
    """Note whether a matcher of the event at hand raised."""
    if (failed := _matchers.get()) is not None:
        failed.append(exception is not None)


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
    return Secret(await bot.get_access_token())


def _is_refusal(error: Exception) -> bool:
    """Whether another try is no use; NoneBot says "network error" of a wrong secret, too."""
    status = getattr(error, "status_code", None)
    return status in (401, 403) or is_wrong_bot(error)


def _tell(level: int, text: str, stacklevel: int = 1) -> None:
    """Write a line to NoneBot's log, which names no speaker."""
    log(logging.getLevelName(level), escape_tag(shown(text, 1000)))


def _payload(kind: str, seq: int | None, event_id: str | None, data: Any) -> Payload:
    fields = {"opcode": 0, "data": data, "sequence": seq, "type": kind, "id": event_id}
    return type_validate_python(Payload, fields)
