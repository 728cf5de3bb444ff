"""botpy bots whose session survives a restart.

    class MyClient(SessionMixin, botpy.Client):
        ...

    MyClient(intents=intents, sessions="sessions").run(appid=..., secret=...)

or `remember(client, "sessions")` for a client that somebody else wrote. For every distribution with
the import name `botpy`: qq-botpy, qq-botpy-rc, -community and -v2, b-botpy, and qq-botpy-sdk.

Rules:

* This replaces what botpy calls "connect", in all its distributions `_bot_init`: instead of sockets
  that forget, one `ShardRunner` per shard. So a `bot_connect` of the client's own is never called,
  and one log line says so. Login, parsers, `on_…`, `api` and the token stay botpy's.
* A login that fails because QQ cannot be reached, or is out of order, is tried again. If only the
  gateway's address is missing, a kept session of one shard is resumed where it was.
* An event is handled when every task has ended that botpy started for it. botpy swallows both what
  a handler raises (`on_error` gets it, and the event is handled) and its cancellation (then it is
  not handled: it comes again). With `until="answered"` a message is handled when QQ accepted an
  answer to it: see `qqbot_session.answers`.
* `on_ready` comes once per process, before the first event, even if there was no READY because the
  session was resumed; `on_resumed` after every RESUMED.
* A refusal (such as 4914) ends all shards: `start` and `run` raise `GatewayRefusedError`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar

from ._shapes import missing, require

try:
    import botpy
    from botpy.connection import ConnectionSession
except ModuleNotFoundError as error:
    forks = ("ymbotpy", "SuperQQBot", "pt_botpy", "pt_qq_botpy")
    here = "qqbot_session.integrations.botpy"
    raise missing(here, "botpy", "qq-botpy", forks=forks) from error

from ..answers import Until, answers_for, being_handled
from ..errors import describe
from ..lifetime import handling_signals, is_main_task, run_until_stopped
from ..loop.handlers import requests_to_cancel
from ..shard import check_options
from ..words import Secret
from ._botpy_life import Life, known_gateway, started_now, tell
from ._console import console_line
from ._sessions import Sessions, is_wrong_bot, waits

_HERE = "qqbot_session.integrations.botpy"
require(
    "botpy",
    botpy.Client,
    {
        "_bot_init": ("token",),
        "_bot_login": ("token",),
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
_P = ParamSpec("_P")
_R = TypeVar("_R")
_pause = asyncio.sleep


def _signed_as(theirs: Callable[_P, _R]) -> Callable[[Callable[..., Any]], Callable[_P, _R]]:
    """Let type checkers and editors see botpy's own signature."""
    return lambda ours: ours


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Unpack

    from botpy.flags import Intents

    class _SdkOptions(TypedDict, total=False):
        """What only qq-botpy-sdk's client takes."""

        session_store: Any
        transport: Any
        webhook_host: str
        webhook_port: int
        webhook_path: str
        webhook_server: Any
        middlewares: Iterable[Any] | None
        markdown_support: bool
        base_url: str | None
        token_base_url: str
        user_agent: str
        ssl: Any
        upload_cache: Any
        reply_limiter: Any
        send_policy: Any
        on_message_sent: Callable[[str, Mapping[str, Any]], Any] | None
        loguru_logger: Any
        menu: Any
        panels: Iterable[Any] | None
        config_sync_strict: bool
        gateway_send_timeout: float | None
        proxy: Any
        rate_limit: Any
        media_image_quota_policy: Any
        media_image_capacity_policy: Any


class SessionMixin(botpy.Client):
    """Make a client resume; put it before `botpy.Client` among the bases.

    Args:
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store, which is
            then not closed here. A relative directory is relative to the process's.
        until: when a message counts as handled: `"handled"`, at the end of its handler;
            `"answered"`, when QQ accepted an answer to it, or 60 s after its handler ended; or
            `qqbot_session.answers.Answers(…)` with other limits.
        grace: seconds that handlers, and messages that wait for their answers, get at the end.
            All other arguments are botpy's.
    """

    _qqbot_sessions: Sessions = "sessions"
    _qqbot_until: Until = "handled"
    _qqbot_grace = 5.0
    _qqbot_remembered = False  # by `remember`
    _qqbot_in_run = False  # and not only in `start`
    _qqbot_main: asyncio.Task[Any] | None = None  # in which `start` was called
    _qqbot_life: asyncio.Task[Any] | None = None  # in which the lines are kept up
    _qqbot_was_ready = False

    if TYPE_CHECKING:

        def __init__(
            self,
            intents: Intents,
            timeout: int = 5,
            is_sandbox: bool = False,
            log_config: str | dict[str, Any] | None = None,
            log_format: str | None = None,
            log_level: int | None = None,
            bot_log: bool | None = True,
            ext_handlers: dict[str, Any] | list[dict[str, Any]] | bool = True,
            *,
            sessions: Sessions = "sessions",
            until: Until = "handled",
            grace: float = 5.0,
            **sdk_options: Unpack[_SdkOptions],
        ) -> None: ...

    else:

        def __init__(
            self,
            *args: Any,
            sessions: Sessions = "sessions",
            until: Until = "handled",
            grace: float = 5.0,
            **kwargs: Any,
        ) -> None:
            _check(until, grace)
            super().__init__(*args, **kwargs)
            self._qqbot_sessions, self._qqbot_until = sessions, until
            self._qqbot_grace = grace

    @_signed_as(botpy.Client.run)
    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run until SIGTERM or Ctrl-C, which end the lines in order; then return.

        Handlers get `grace` seconds to finish; a second signal ends that.

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

        args, kwargs = _masked(args, kwargs)
        self._qqbot_in_run = True
        with handling_signals(self.loop, stop):
            try:
                super().run(*args, **kwargs)
            except asyncio.CancelledError:
                if not stopped:
                    raise
            finally:
                self._qqbot_in_run = False

    @_signed_as(botpy.Client.start)
    async def start(self, *args: Any, **kwargs: Any) -> Any:
        """Log in, and keep the lines up until `close`; may be called again afterwards.

        SIGTERM and Ctrl-C end the lines in order, and then do what they would have done without
        us; if this is the task that `asyncio.run` was called for, it returns instead.

        Raises:
            GatewayRefusedError: QQ refused the bot.
        """
        args, kwargs = _masked(args, kwargs)
        self._qqbot_main = asyncio.current_task()
        return await super().start(*args, **kwargs)

    async def close(self) -> None:
        """End the lines, let handlers finish, save, and close what botpy has open.

        Called by a handler, it does not wait for the handlers.
        """
        await self._qqbot_end()
        await super().close()

    async def _qqbot_end(self) -> None:
        life = self._qqbot_life
        if life is not None and not life.done():
            if not life.cancelling():  # else the grace would end
                life.cancel()
            if not being_handled():
                await asyncio.wait([life])

    async def _bot_login(self, token: Any, *args: Any, **kwargs: Any) -> None:
        ask = self.api.get_ws_url
        self.api.get_ws_url = partial(self._qqbot_where, token, ask)
        try:
            await self._qqbot_log_in(token, *args, **kwargs)
        finally:
            self.api.get_ws_url = ask

    async def _qqbot_where(self, token: Any, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask where the gateway is; a kept session is resumed where it was, if QQ cannot say."""
        error, answer = None, None
        try:
            answer = await ask()
        except Exception as raised:
            if not _may_pass(raised):
                raise
            error = raised
        if answer is None:
            answer = await known_gateway(self, token)
        if answer is None and error is not None:
            raise error
        return answer

    async def _qqbot_log_in(self, token: Any, *args: Any, **kwargs: Any) -> None:
        for seconds in waits():
            try:
                await super()._bot_login(token, *args, **kwargs)
                return
            except Exception as error:
                if self.is_closed() or not _may_pass(error):
                    raise
                tell(
                    logging.WARNING,
                    console_line("zh", "login", wait=seconds, error=describe(error)),
                )
            await _pause(seconds)

    async def _bot_init(self, token: Any) -> Any:
        life = self._qqbot_live(token.bot_token())
        return life if self.ret_coro else await life

    async def _qqbot_live(self, token: Any) -> None:
        if type(self).bot_connect is not botpy.Client.bot_connect:
            level = logging.INFO if self._qqbot_remembered else logging.WARNING
            tell(
                level,
                console_line("zh", "own_connect"),
            )
        asked = requests_to_cancel()
        life = asyncio.create_task(Life(self, token).run())
        if self._qqbot_life is None or self._qqbot_life.done():
            self._qqbot_life = life
        hand_on = not is_main_task(asyncio.current_task())
        try:
            await run_until_stopped(_end(life), signals=not self._qqbot_in_run, hand_on=hand_on)
        except asyncio.CancelledError:
            if requests_to_cancel() > asked:
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
            except Exception:
                started.raised = True  # `on_error` gets it
                raise

        task = super()._schedule_event(watched, event_name, *args, **kwargs)
        started.append(task)
        return task


def remember(
    client: _Client,
    sessions: Sessions = "sessions",
    *,
    until: Until = "handled",
    grace: float = 5.0,
) -> _Client:
    """Make a client that somebody else wrote resume; call it before `run` or `start`.

    Args:
        client: gets a class of its own, with `SessionMixin` before the class it had.
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store.
        until: when a message counts as handled; `"answered"` for an application that puts messages
            into a queue and answers later. See `SessionMixin`.
        grace: seconds that handlers, and messages that wait for their answers, get at the end.

    Returns:
        The client.

    Raises:
        RuntimeError: the client has logged in already.
        TypeError: it is not a botpy client.
    """
    _check(until, grace)
    if not isinstance(client, botpy.Client):
        name = f"{type(client).__module__}.{type(client).__qualname__}"
        raise TypeError(f"remember() takes a botpy.Client, not a {name}")
    if _is_logged_in(client):
        raise RuntimeError(
            "remember() comes too late: this client has logged in, and keeps its connections."
            " Call remember() before the client's run() or start()."
        )
    kind = type(client)
    if not isinstance(client, SessionMixin):
        names = {"__module__": kind.__module__, "_qqbot_remembered": True}
        client.__class__ = type(kind.__name__, (SessionMixin, kind), names)
    client._qqbot_sessions, client._qqbot_until = sessions, until
    client._qqbot_grace = grace
    return client


def _is_logged_in(client: botpy.Client) -> bool:
    if isinstance(client, SessionMixin):
        return client._qqbot_life is not None and not client._qqbot_life.done()
    return getattr(client, "_connection", None) is not None and not client.is_closed()


def _check(until: Until, grace: float) -> None:
    answers_for(until)
    check_options(None, grace)


_OUTAGES = ("ServerError", "SequenceNumberError", "RateLimitError", "TransportError")


def _may_pass(error: Exception) -> bool:
    """Whether a login may succeed later: QQ or the network is away, and nobody was refused."""
    kind = type(error)
    if isinstance(error, OSError) or kind.__module__.partition(".")[0] in ("aiohttp", "httpx"):
        return True
    if isinstance(status := getattr(error, "status", None), int):
        return status >= 500 or status in (408, 429)
    if isinstance(error, TypeError | AttributeError):
        return "NoneType" in str(error)  # what botpy makes of a call that timed out
    if kind is RuntimeError and str(error).startswith("{"):  # the token endpoint's answer
        return not is_wrong_bot(error)
    return kind.__name__ in _OUTAGES


def _masked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Mask the secret, for tracebacks show arguments; `appid` and `secret` come first."""
    masked = [Secret(each) if isinstance(each, str) else each for each in args[1:2]]
    if isinstance(secret := kwargs.get("secret"), str):
        kwargs = kwargs | {"secret": Secret(secret)}
    return (*args[:1], *masked, *args[2:]), kwargs


async def _end(life: asyncio.Task[None]) -> None:
    """Wait for the lines; cancelled, end them unless `close` does; again, end their grace."""
    asked = 0
    while not life.done():
        try:
            await asyncio.wait([life])
        except asyncio.CancelledError:
            asked += 1
            if asked > 1 or not life.cancelling():
                life.cancel()
    life.result()
