"""The lines of a botpy client, from its login to its end: what `botpy` puts in botpy's place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

from botpy import gateway, logging

from ..answers import end_of
from ..gateway import Dispatch, Event, Hello, Ready, Resumed
from ..lifetime import run_together
from ..pace import Pace
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from ._events import kept_in

_log = logging.get_logger()

Shard: TypeAlias = tuple[int, int]


class Started(list[asyncio.Task[Any]]):
    """The tasks that botpy started for one event."""

    cancelled = False


started_now: ContextVar[Started] = ContextVar("qqbot_sessionstarted_now")


class Life:
    """The lines of a client's shards, from its login to its end."""

    def __init__(self, client: Any, token: Any) -> None:
        self._client, self._token = client, token
        self._ready: set[Shard] = set()
        self._pace = Pace(self._ask)
        self._pace.learn(client._ws_ap["session_start_limit"])

    async def run(self) -> None:
        """Keep them up until cancelled, or until a refusal, which is raised."""
        client, count = self._client, self._client._ws_ap["shards"]
        shards = [(number, count) for number in range(count)]
        async with kept_in(client._qqbot_sessions) as store, _sockets(client) as connect:
            _log.info("[botpy] the sessions are kept in %s", store)
            for shard in shards:
                client._connection.add(_session(shard))  # those that qq-botpy-sdk waits for
            runners = [await self._runner(store, shard, connect) for shard in shards]
            await run_together([runner.run() for runner in runners])

    async def _runner(
        self, store: AsyncSessionStore, shard: Shard, connect: Callable[[str], Awaitable[Socket]]
    ) -> ShardRunner:
        client = self._client

        async def open_line() -> Socket:
            socket = await connect(client._ws_ap["url"])
            return _Telling(socket, partial(self._mark, shard, False))

        gateway = await open_gateway(
            store,
            str(self._token.app_id),
            intents=client.intents or 1,  # as botpy sends it
            shard=shard,
            sandbox=bool(client.http.is_sandbox),
        )
        return ShardRunner(
            store,
            gateway,
            connect=open_line,
            token=self._access_token,
            handle=self._handle,
            observe=partial(self._observe, shard),
            before_identify=partial(self._pace.before_identify, shard),
        )

    async def _ask(self) -> bool:
        answer = await self._client.api.get_ws_url()  # `None` after a time-out
        self._pace.learn(answer["session_start_limit"])
        self._client._ws_ap = answer
        return True

    async def _access_token(self, new: bool) -> str:
        if new:
            self._token.access_token = None
        await self._token.check_token()
        return str(self._token.access_token)

    def _observe(self, shard: Shard, event: Event) -> None:
        client = self._client
        if isinstance(event, Hello):
            self._pace.handshake_goes_out(shard)
        elif isinstance(event, Ready | Resumed | Dispatch):  # replayed events precede RESUMED
            self._mark(shard, True)
            if not client._qqbot_was_ready:
                client._qqbot_was_ready = True
                client.ws_dispatch("ready")
            if isinstance(event, Resumed):
                client.ws_dispatch("resumed")

    def _mark(self, shard: Shard, ready: bool) -> None:
        """Tell qq-botpy-sdk, which holds messages back while a shard is not ready."""
        if ready is (shard in self._ready):
            return
        (self._ready.add if ready else self._ready.discard)(shard)
        name = "mark_ready" if ready else "mark_disconnected"
        if mark := getattr(self._client._connection, name, None):
            mark(_session(shard))

    async def _handle(self, event: Dispatch) -> None:
        started = Started()
        started_now.set(started)  # in the context of this event's own task
        client = self._client
        frame = {"op": 0, "s": event.seq, "t": event.type, "id": event.id, "d": event.data}
        if parse := client._connection.parser.get(event.type.lower()):
            parse(frame)
        if raw_dispatch := getattr(client, "ws_raw_dispatch", None):  # qq-botpy-sdk
            from botpy.protocol.events import parse_gateway_event

            await raw_dispatch(parse_gateway_event(frame))
        await end_of(started)
        if started.cancelled:
            raise asyncio.CancelledError


class _Telling:
    """A socket that tells when it is closed."""

    def __init__(self, socket: Socket, tell: Callable[[], object]) -> None:
        self.send, self.receive = socket.send, socket.receive
        self._close, self._tell = socket.close, tell

    async def close(self, code: int, /) -> int | None:
        self._tell()
        return await self._close(code)


@contextlib.asynccontextmanager
async def _sockets(client: Any) -> AsyncIterator[Callable[[str], Awaitable[Socket]]]:
    """Give what opens a line with the library that this botpy is built on."""
    if hasattr(gateway, "aconnect_ws"):
        from .httpx_ws import connect as connect_with_httpx

        verify = True if client._ssl is None else client._ssl
        yield partial(connect_with_httpx, verify=verify, proxy=client._proxy)
    else:
        import aiohttp

        from .aiohttp import connect

        async with aiohttp.ClientSession() as http:
            yield partial(connect, http)


def _session(shard: Shard) -> dict[str, Any]:
    return {"shards": {"shard_id": shard[0], "shard_count": shard[1]}}
