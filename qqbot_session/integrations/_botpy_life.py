"""The lines of a botpy client, from its login to its end: what `botpy` puts in botpy's place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

from botpy import gateway as botpy_gateway
from botpy.http import Route

from ..answers import Answers, answers_for, end_of, handler_raised
from ..errors import GatewayRefusedError
from ..gateway import Dispatch, Event, GatewaySession, Ready, Resumed
from ..lifetime import run_together
from ..logs import LOG, say
from ..pace import Pace
from ..shard import ShardRunner, Socket, account_id_for, open_gateway
from ..store import AsyncSessionStore
from ..words import Secret
from ._console import Console, console_line
from ._sessions import Loads, Telling, kept_in, known_address, only_line

Shard: TypeAlias = tuple[int, int]
_Connect: TypeAlias = Callable[[str], Awaitable[Socket]]


def tell(level: int, text: str, stacklevel: int = 1) -> None:
    """Write a line to botpy's log, and to ours where botpy's console is off (`bot_log=False`)."""
    logger = logging.getLogger("botpy")  # its get_logger would open the file again
    say(level, "%s", text, logger=logger, stacklevel=stacklevel + 1)
    if not (logger.propagate or LOG.handlers or LOG.level):  # with those, ours has its own lines
        say(level, "%s", text, stacklevel=stacklevel + 1)


class Started(list[asyncio.Task[Any]]):
    """The tasks that botpy started for one event."""

    cancelled = False
    raised = False


started_now: ContextVar[Started] = ContextVar("qqbot_session_started_now")


class Life:
    """The lines of a client's shards, from its login to its end."""

    def __init__(self, client: Any, token: Any) -> None:
        self._client, self._token = client, token
        self._answers = answers_for(client._qqbot_until)
        self._task: asyncio.Task[Any] | None = None
        self._ready: set[Shard] = set()
        self._loads: Loads = {}
        self._pace = Pace(self._ask)
        if limit := client._ws_ap.get("session_start_limit"):
            self._pace.learn(limit)

    async def run(self) -> None:
        """Keep them up until cancelled, or until a refusal, which is raised."""
        self._task = asyncio.current_task()
        client, count = self._client, self._client._ws_ap["shards"]
        shards = [(number, count) for number in range(count)]
        async with contextlib.AsyncExitStack() as stack:
            account_ids = [self._account_id(shard) for shard in shards]
            for account_id in account_ids:
                await stack.enter_async_context(only_line(client._qqbot_sessions, account_id))
            store = await stack.enter_async_context(
                kept_in(client._qqbot_sessions, self._loads, account_ids)
            )
            connect = await stack.enter_async_context(_sockets(client))
            stack.enter_context(_noting_answers(client.http, self._answers))
            for shard in shards:
                client._connection.add(_session(shard))  # those that qq-botpy-sdk waits for
            runners = [await self._runner(store, shard, connect) for shard in shards]
            tell(logging.INFO, f"[botpy] 会话保存在 {store!r}")
            try:
                await run_together([runner.run() for runner in runners])
            except GatewayRefusedError as error:
                tell(logging.ERROR, console_line("zh", "refused", error=error))
                raise

    def _account_id(self, shard: Shard) -> str:
        sandbox = bool(self._client.http.is_sandbox)
        return account_id_for(str(self._token.app_id), shard, sandbox=sandbox)

    async def _runner(
        self, store: AsyncSessionStore, shard: Shard, connect: _Connect
    ) -> ShardRunner:
        client = self._client
        gateway = await _open(client, store, self._token, shard)
        loaded = self._loads.get(gateway.account_id)
        log = Console(gateway.account_id, "zh", tell, name=self._name, loaded=loaded)

        async def open_line() -> Socket:
            socket = await connect(client._ws_ap["url"])
            gateway.remember_address(client._ws_ap["url"])
            return Telling(socket, partial(self._mark, shard, False))

        return ShardRunner(
            store,
            gateway,
            connect=open_line,
            token=self._access_token,
            handle=self._handle if self._answers is None else self._answers.awaited(self._handle),
            observe=partial(self._observe, shard, log),
            pace=self._pace,
            grace=client._qqbot_grace,
            log=log,
        )

    def _name(self) -> object:
        return getattr(self._client.robot, "name", "")

    async def _ask(self) -> bool:
        answer = await self._client.api.get_ws_url()  # `None` after a time-out
        self._pace.learn(answer["session_start_limit"])
        self._client._ws_ap = answer
        return True

    async def _access_token(self, new: bool) -> str:
        if new:
            self._token.access_token = None
        await self._token.check_token()
        return Secret(self._token.access_token)

    def _observe(self, shard: Shard, log: Console, event: Event) -> None:
        log.count(event)
        client = self._client
        if isinstance(event, Ready | Resumed | Dispatch):  # replayed events precede RESUMED
            self._mark(shard, True)
            if not client._qqbot_was_ready:
                client._qqbot_was_ready = True
                client.ws_dispatch("ready")
            if isinstance(event, Resumed):
                client.ws_dispatch("resumed")

    def _mark(self, shard: Shard, ready: bool) -> None:
        """Tell qq-botpy-sdk, which holds messages back while a shard is not ready.

        But not at the end, when handlers still send their answers.
        """
        if ready is (shard in self._ready) or (self._task is not None and self._task.cancelling()):
            return
        (self._ready.add if ready else self._ready.discard)(shard)
        name = "mark_ready" if ready else "mark_disconnected"
        if mark := getattr(self._client._connection, name, None):
            mark(_session(shard))

    async def _handle(self, event: Dispatch) -> None:
        started = Started()
        started_now.set(started)  # in the context of this event's own task
        client = self._client
        if parse := client._connection.parser.get(event.type.lower()):
            parse(_frame(event))
        if raw_dispatch := getattr(client, "ws_raw_dispatch", None):  # qq-botpy-sdk
            from botpy.protocol.events import parse_gateway_event

            await raw_dispatch(parse_gateway_event(_frame(event)))
        await end_of(started)
        if started.cancelled:
            raise asyncio.CancelledError
        if started.raised:
            handler_raised()


async def known_gateway(client: Any, token: Any) -> dict[str, Any] | None:
    """Return what `/gateway/bot` would answer, from the session of a bot of one shard."""
    async with kept_in(client._qqbot_sessions) as store:
        gateway = await _open(client, store, token, (0, 1))
    api_url = getattr(client.http, "base_url", None) or f"{Route.SCHEME}://{Route.DOMAIN}"
    address = known_address(gateway, api_url)
    if address is None:
        return None
    # The limits are not known: who must Identify asks first.
    return {"url": address, "shards": 1, "session_start_limit": _UNKNOWN}


async def _open(client: Any, store: AsyncSessionStore, token: Any, shard: Shard) -> GatewaySession:
    return await open_gateway(
        store,
        str(token.app_id),
        intents=client.intents or 1,  # as botpy sends it
        shard=shard,
        sandbox=bool(client.http.is_sandbox),
        secret=getattr(token, "secret", None),
    )


class _Limits(dict[str, int]):
    """What botpy reads of `session_start_limit`, where QQ has not said any; false."""

    def __bool__(self) -> bool:
        return False


_UNKNOWN = _Limits(max_concurrency=1, remaining=1)


@contextlib.asynccontextmanager
async def _sockets(client: Any) -> AsyncIterator[_Connect]:
    """Give what opens a line with the library that this botpy is built on."""
    if hasattr(botpy_gateway, "aconnect_ws"):
        from .httpx_ws import connect as connect_with_httpx

        ssl, proxy = (getattr(client, name, None) for name in ("_ssl", "_proxy"))  # from 2.0.8 on
        yield partial(connect_with_httpx, verify=True if ssl is None else ssl, proxy=proxy)
    else:
        import aiohttp

        from .aiohttp import connect

        async with aiohttp.ClientSession() as http:
            yield partial(connect, http, proxy=None)  # as botpy's own calls: directly


@contextlib.contextmanager
def _noting_answers(http: Any, answers: Answers | None) -> Iterator[None]:
    """Hear what the client's API sends, for as long as the body runs."""
    if answers is None:
        yield
        return
    request = http.request

    async def noting(route: Any, *args: Any, **kwargs: Any) -> Any:
        body = kwargs.get("json")
        try:
            answer = await request(route, *args, **kwargs)
        except Exception as error:
            answers.sent(body, error)
            raise
        if answer is not None:  # botpy's way to say that the call timed out
            answers.sent(body)
        return answer

    http.request = noting
    try:
        yield
    finally:
        if http.request is noting:
            http.request = request


def _frame(event: Dispatch) -> dict[str, Any]:
    """Return it as botpy wants it; no variable holds that, for tracebacks show those."""
    return {"op": 0, "s": event.seq, "t": event.type, "id": event.id, "d": event.data}


def _session(shard: Shard) -> dict[str, Any]:
    return {"shards": {"shard_id": shard[0], "shard_count": shard[1]}}
