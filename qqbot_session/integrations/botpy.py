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
from typing import Any, TypeVar

try:
    import botpy
    from botpy.connection import ConnectionSession
except ModuleNotFoundError as error:
    raise ImportError(
        'qqbot_session.integrations.botpy needs qq-botpy: pip install "qqbot_session[botpy]"'
    ) from error

from ..lifetime import handling_signals
from ._botpy_life import Life, started_now
from ._events import Sessions
from ._shapes import require

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
            if started_now.get(None) is None:
                await asyncio.wait([life])
        await super().close()

    async def _bot_init(self, token: Any) -> Any:
        life = self._qqbot_live(token.bot_token())
        return life if self.ret_coro else await life

    async def _qqbot_live(self, token: Any) -> None:
        asked = _requests_to_cancel()
        self._qqbot_life = asyncio.create_task(Life(self, token).run())
        try:
            await self._qqbot_life
        except asyncio.CancelledError:
            if _requests_to_cancel() > asked:
                raise  # else it was `close`

    def _schedule_event(self, coro: Any, event_name: str, *args: Any, **kwargs: Any) -> Any:
        started = started_now.get(None)
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


def _requests_to_cancel() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
