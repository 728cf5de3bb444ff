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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import botpy
from botpy import gateway, logging
from botpy.connection import ConnectionSession

from ..gateway import Dispatch, Event, Ready, Resumed
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from ._lines import Entrance, Sessions, Told, end_of, kept_in, run_together, stopping_at_signals
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
    _qqbot_main: asyncio.Task[Any] | None = None
    _qqbot_life: asyncio.Task[Any] | None = None
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
        with stopping_at_signals(self.loop, lambda: self._qqbot_main) as stopped:
            try:
                super().run(*args, **kwargs)
            except asyncio.CancelledError:
                if not stopped():
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
        life = self._live(token.bot_token())
        return life if self.ret_coro else await life

    async def _live(self, token: Any) -> None:
        """Keep the lines up until cancelled, until `close`, or until a refusal."""
        asked = _requests_to_cancel()
        self._qqbot_life = asyncio.create_task(self._keep_lines(token))
        try:
            await self._qqbot_life
        except asyncio.CancelledError:
            if _requests_to_cancel() > asked:
                raise  # else it was `close`

    async def _keep_lines(self, token: Any) -> None:
        entrance = Entrance(self._ask, _told(self._ws_ap))
        count = self._ws_ap["shards"]
        async with kept_in(self._qqbot_sessions) as store, _sockets(self) as connect:
            _log.info("[botpy] the sessions are kept in %s", store)
            shards = [(number, count) for number in range(count)]
            for shard in shards:
                self._connection.add(_session(shard))  # what qq-botpy-sdk waits for
            runners = [await self._runner(store, s, token, entrance, connect) for s in shards]
            await run_together([runner.run() for runner in runners])

    async def _runner(
        self,
        store: AsyncSessionStore,
        shard: tuple[int, int],
        token: Any,
        entrance: Entrance,
        connect: Any,
    ) -> ShardRunner:
        sandbox = bool(self.http.is_sandbox)
        intents = self.intents or 1  # as botpy sends it
        gateway = await open_gateway(
            store, str(token.app_id), intents=intents, shard=shard, sandbox=sandbox
        )

        async def open_line() -> Socket:
            socket = await connect(self._ws_ap["url"])
            return _Telling(socket, lambda: self._mark("disconnected", shard))

        return ShardRunner(
            store,
            gateway,
            connect=open_line,
            token=partial(_access_token, token),
            handle=self._handle,
            observe=partial(self._observe, shard),
            before_identify=entrance.before_identify,
        )

    async def _ask(self) -> Told:
        self._ws_ap = await self.api.get_ws_url()
        return _told(self._ws_ap)

    def _observe(self, shard: tuple[int, int], event: Event) -> None:
        if isinstance(event, Ready | Resumed | Dispatch):
            self._mark("ready", shard)
            if not self._qqbot_was_ready:
                self._qqbot_was_ready = True
                self.ws_dispatch("ready")
        if isinstance(event, Resumed):
            self.ws_dispatch("resumed")

    def _mark(self, what: str, shard: tuple[int, int]) -> None:
        """Tell qq-botpy-sdk, which holds messages back while a shard is not ready."""
        if mark := getattr(self._connection, f"mark_{what}", None):
            mark(_session(shard))

    async def _handle(self, event: Dispatch) -> None:
        started = _Started()
        _started.set(started)  # in the context of this event's own task
        frame = {"op": 0, "s": event.seq, "t": event.type, "id": event.id, "d": event.data}
        if parse := self._connection.parser.get(event.type.lower()):
            parse(frame)
        if raw_dispatch := getattr(self, "ws_raw_dispatch", None):  # qq-botpy-sdk
            from botpy.protocol.events import parse_gateway_event

            await raw_dispatch(parse_gateway_event(frame))
        await end_of(started)
        if started.cancelled:
            raise asyncio.CancelledError

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


async def _access_token(token: Any, new: bool) -> str:
    if new:
        token.access_token = None
    await token.check_token()
    return str(token.access_token)


def _told(answer: Mapping[str, Any]) -> Told:
    limit = answer["session_start_limit"]
    return Told(
        answer["url"],
        remaining=limit["remaining"],
        reset_after=limit["reset_after"] / 1000,
        max_concurrency=limit["max_concurrency"],
    )


def _session(shard: tuple[int, int]) -> dict[str, Any]:
    return {"shards": {"shard_id": shard[0], "shard_count": shard[1]}}


def _requests_to_cancel() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
