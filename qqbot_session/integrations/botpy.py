"""botpy bots whose session survives a restart.

    class MyClient(SessionMixin, botpy.Client):
        ...

    MyClient(intents=intents, sessions="sessions").run(appid=..., secret=...)

or `remember(client, "sessions")` for a client that somebody else wrote. For every distribution of
the import name `botpy`: qq-botpy, qq-botpy-rc, -community and -v2, and qq-botpy-sdk.

Rules:

* What is replaced is what botpy calls "connect", in all its distributions `_bot_init`: instead of
  sockets that forget, one `ShardRunner` per shard. So a `bot_connect` of the client's own is never
  called. Login, parsers, `on_…`, `api` and the token stay botpy's.
* An event is handled when every task has ended that botpy started for it. botpy swallows both what
  a handler raises (`on_error` has it, and the event is handled) and its cancellation (then it is
  not handled: it comes again).
* `on_ready` comes once per process, before the first event, also when there was no READY because
  the session was resumed; `on_resumed` after every RESUMED.
* A refusal (such as 4914) ends all shards: `start` and `run` raise `GatewayRefusedError`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias, TypeVar

import botpy
from botpy import gateway, logging
from botpy.connection import ConnectionSession

from ..gateway import Dispatch, Event, Hello, Ready, Resumed
from ..lifetime import handling_signals, run_together
from ..pace import Pace
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from ._events import Sessions, end_of, kept_in
from ._shapes import require

_log = logging.get_logger()

_HERE = "qqbot_session.integrations.botpy"
require(
    "botpy",
    botpy.Client,
    {
        "_bot_init": ("token",),
        "_schedule_event": ("coro", "event_name"),
        "ws_dispatch": ("event",),
        "start": ("appid", "secret"),
        "close": (),
        "run": (),
    },
    _HERE,
)
require("botpy", ConnectionSession, {"add": ("_session",)}, _HERE)

Shard: TypeAlias = tuple[int, int]
_Client = TypeVar("_Client", bound=botpy.Client)


class _Started(list[asyncio.Task[Any]]):
    """The tasks that botpy started for one event."""

    cancelled = False


_started: ContextVar[_Started] = ContextVar("qqbot_session_started")


class SessionMixin(botpy.Client):
    """What makes a client resume; before `botpy.Client` among the bases.

    Args:
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store, which is
            then not closed here. All other arguments are botpy's.
    """

    _qqbot_sessions: Sessions = "sessions"
    _qqbot_main: asyncio.Task[Any] | None = None  # in which `start` was called
    _qqbot_life: asyncio.Task[Any] | None = None  # in which the lines are kept up
    _qqbot_was_ready = False

    def __init__(self, *args: Any, sessions: Sessions = "sessions", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._qqbot_sessions = sessions

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run until SIGTERM or Ctrl-C, which end the lines in order; then return.

        Handlers get 5 s to finish; a second signal ends that.

        Raises:
            GatewayRefusedError: QQ refused the bot.
        """
        stopped = False

        def stop(number: int) -> None:
            nonlocal stopped
            if self._qqbot_main is None:  # not that far yet
                raise KeyboardInterrupt
            stopped = True
            self._qqbot_main.cancel()

        with handling_signals(self.loop, stop):
            try:
                super().run(*args, **kwargs)
            except asyncio.CancelledError:
                if not stopped:
                    raise

    async def start(self, *args: Any, **kwargs: Any) -> Any:
        """Log in, and keep the lines up until `close`; may be called again afterwards.

        Raises:
            GatewayRefusedError: QQ refused the bot.
        """
        self._qqbot_main = asyncio.current_task()
        return await super().start(*args, **kwargs)

    async def close(self) -> None:
        """End the lines, let handlers finish, save, and close what botpy has open.

        Called by a handler, it does not wait for the handlers.
        """
        life = self._qqbot_life
        if life is not None and not life.done():
            life.cancel()
            if _started.get(None) is None:
                await asyncio.wait([life])
        await super().close()

    async def _bot_init(self, token: Any) -> Any:
        life = self._qqbot_live(token.bot_token())
        return life if self.ret_coro else await life

    async def _qqbot_live(self, token: Any) -> None:
        asked = _requests_to_cancel()
        self._qqbot_life = asyncio.create_task(_Life(self, token).run())
        try:
            await self._qqbot_life
        except asyncio.CancelledError:
            if _requests_to_cancel() > asked:
                raise  # else it was `close`

    def _schedule_event(self, coro: Any, event_name: str, *args: Any, **kwargs: Any) -> Any:
        started = _started.get(None)
        if started is None:
            return super()._schedule_event(coro, event_name, *args, **kwargs)

        async def watched(*args: Any, **kwargs: Any) -> None:
            try:
                await coro(*args, **kwargs)
            except asyncio.CancelledError:
                started.cancelled = True  # botpy swallows it
                raise

        task = super()._schedule_event(watched, event_name, *args, **kwargs)
        started.append(task)
        return task


def remember(client: _Client, sessions: Sessions = "sessions") -> _Client:
    """Make a client resume that somebody else wrote; before its `run` or `start`.

    Args:
        client: gets a class of its own, with `SessionMixin` before the class it had.
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store.

    Returns:
        The client.
    """
    kind = type(client)
    if not isinstance(client, SessionMixin):
        client.__class__ = type(
            kind.__name__, (SessionMixin, kind), {"__module__": kind.__module__}
        )
    client._qqbot_sessions = sessions
    return client


class _Life:
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
        started = _Started()
        _started.set(started)  # in the context of this event's own task
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


def _requests_to_cancel() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
