"""`run_bot`: a whole bot on aiohttp, without a framework (extra `bot`).

Rules:

* A bot provides `handle(event, bot)`. `ShardRunner` keeps up its lines and sessions, `entrance`
  finds the gateway, `api` calls QQ over HTTP. This module puts them together and ends them in
  order.

Source of the addresses: QQ's live pages in 2026-08.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit

try:
    import aiohttp  # noqa: F401
except ImportError as error:
    raise ImportError(
        'qqbot_session.bot needs aiohttp: pip install "qqbot_session[bot]"'
    ) from error

from .answers import Answers, Until, answers_for
from .errors import ApiError, LeaseLostError
from .gateway import Dispatch, Event, GatewaySession, Hello, Ready
from .guard import check_handler, end
from .integrations.aiohttp import AiohttpSocket
from .lifetime import run_together, run_until_stopped
from .logs import say
from .net.proxies import check_proxy, proxy_for
from .shard import Health, ShardRunner, account_id_for, check_options, open_gateway
from .state import check_app_id, check_intents, check_shard
from .storages import Storage
from .store import AsyncSessionStore
from .web.api import Api, Tokens
from .web.entrance import MAX_SHARDS, Entrance, Shard
from .web.http import Http
from .words import Secret, address, hidden, shown, whenever

__all__ = ["API_URL", "SANDBOX_API_URL", "TOKEN_URL", "ApiError", "Bot", "run_bot"]

API_URL = "https://api.bot.qq.com"
"""Where QQ's HTTP API is."""
SANDBOX_API_URL = "https://sandbox.api.sgroup.qq.com"
"""The only sandbox that the documentation names."""
TOKEN_URL = "https://api.bot.qq.com/app/getAppAccessToken"
"""Where access tokens come from, also for the sandbox."""

Handle: TypeAlias = "Callable[[Dispatch, Bot], Awaitable[object]]"

_CALLS = 100  # of the bot's own at a time, as in aiohttp
_LEASE = 15.0  # seconds, as in client-go's leaderelection


class Bot:
    """The bot, as its handlers see it: a way to answer.

    Attributes:
        app_id: the bot's app id.
    """

    def __init__(self, app_id: str, api: Api, answers: Answers | None = None) -> None:
        self.app_id = app_id
        self._api = api
        self._answers = answers
        self._user: Mapping[str, Any] | None = None
        self._runners: dict[Shard, ShardRunner] = {}

    @whenever
    def __repr__(self) -> str:
        return f"<Bot app_id={self.app_id!r} shards={list(self._runners)}>"

    async def request(self, method: str, path: str, *, json: Any = None) -> Any:
        """Call QQ's HTTP API with a valid token, and return the answer.

        Args:
            method: such as `POST`.
            path: such as `/v2/users/{openid}/messages`.
            json: the body.

        Returns:
            The decoded JSON; `None` if the answer was empty.

        Raises:
            ApiError: QQ answered with an error; it has the code, message and trace id.
            aiohttp.ClientError, TimeoutError: QQ did not answer. Whether to try again is up to you.
        """
        try:
            answer = await self._api.request(method, path, json=json)
        except Exception as error:
            if self._answers is not None:
                self._answers.sent(json, error)
            raise
        if self._answers is not None:
            self._answers.sent(json)
        return answer

    async def user(self) -> Mapping[str, Any]:
        """Return the bot's own user, from READY or `/users/@me`, which is called at most once."""
        if self._user is None:
            self._user = await self.request("GET", "/users/@me")
        return self._user

    @property
    def health(self) -> dict[tuple[int, int], Health]:
        """The health of each shard, by `(shard id, shard count)`."""
        return {shard: runner.health for shard, runner in self._runners.items()}


async def run_bot(
    app_id: str,
    secret: str,
    *,
    intents: int,
    handle: Handle,
    until: Until = "handled",
    sessions: AsyncSessionStore | Storage | str | os.PathLike[str] | None = "sessions",
    shards: int | Sequence[tuple[int, int]] | None = None,
    sandbox: bool = False,
    lease: bool | float = False,
    api_url: str | None = None,
    token_url: str | None = None,
    proxy: str | None = None,
    started: Callable[[Bot], object] | None = None,
    signals: bool = True,
    concurrency: int | None = None,
    grace: float = 5.0,
) -> None:
    """Run a bot until SIGTERM, SIGHUP or Ctrl-C, and keep its sessions for the next start.

    On the first signal it stops reading, gives running handlers `grace` seconds, saves what they
    handled, and returns. A second signal ends the grace. Events that were not handled come again
    after the next start; those that were do not. To cancel it does the same and raises
    `asyncio.CancelledError`. All bots of a process stop together, and signal handlers of the
    program's own still run; `lifetime` has the rules.

    Args:
        app_id: the bot's app id.
        secret: its secret.
        intents: the events it wants; `1 << 25` is group and C2C messages.
        handle: the bot's work, an `async def handle(event, bot)`; see `ShardRunner`. Handlers run
            concurrently.
        until: when a message counts as handled: `"handled"`, at the end of its handler;
            `"answered"`, when QQ accepted an answer to it through `Bot.request`, or 60 s after its
            handler ended; or `qqbot_session.answers.Answers(…)` with other limits.
        sessions: where sessions are kept: what `AsyncSessionStore` takes, or a store, which is not
            closed here.
        shards: how many shards there are, all to run here; or the ones to run here, as
            `(shard id, shard count)` pairs; `None` = as many as QQ suggests. A bot with one shard
            whose session can be resumed stays with one; the log says so if QQ suggests more.
        sandbox: use QQ's sandbox, which has sessions of its own.
        lease: let only one process at a time run a shard, and wait for this one's turn. A number
            is the lease's `ttl` in seconds, `True` is 15. Needs SQLite or Redis; see
            `AsyncSessionStore.lease`. A shard that loses its lease gives its handlers `grace`
            and waits for its turn again. Keep `grace` within a third of `ttl`, after which
            another process may begin.
        api_url: the base of QQ's HTTP API; `None` = QQ's, or its sandbox's.
        token_url: where access tokens come from; `None` = QQ.
        proxy: the HTTP proxy for the token, the API and the line, such as
            `http://user:password@127.0.0.1:7890`; `None` = what `HTTPS_PROXY`, `HTTP_PROXY` and
            `NO_PROXY` say.
        started: called once with the bot before its first line: the place to keep it for probes,
            metrics, and messages that answer nothing. A coroutine function runs beside the bot
            and is cancelled when the last handler has ended.
        signals: whether signals stop the bot. They can be taken only in the main thread; a bot in
            another thread stops together with the bots there.
        concurrency: how many handlers run at a time per shard; read `ShardRunner` before you set
            it.
        grace: seconds that handlers get to finish when the bot stops.

    Raises:
        GatewayRefusedError: QQ refused the bot: a wrong secret, a ban, intents it may not use.
        TypeError, ValueError: an argument is not valid.
    """
    secret = _check_secret(secret)
    sessions, proxy = address(sessions), address(proxy)
    api_url, token_url = address(api_url), address(token_url)
    answers = answers_for(until)
    check_app_id(app_id)
    check_intents(intents)
    wanted = _check_shards(shards)
    ttl = _check_lease(lease)
    options = {"concurrency": concurrency, "grace": grace}
    check_options(**options)
    check_handler("handle", handle, "event", "bot")
    _check_started(started)
    api_url = api_url or (SANDBOX_API_URL if sandbox else API_URL)
    way = _Way(app_id, secret, api_url, token_url or TOKEN_URL, proxy)
    lines = partial(
        _Lines, handle=handle, intents=intents, sandbox=sandbox, ttl=ttl, options=options
    )
    await run_until_stopped(_live(sessions, way, answers, started, lines, wanted), signals=signals)


class _Way:
    """How to reach QQ."""

    def __init__(
        self, app_id: str, secret: Secret, api_url: str, token_url: str, proxy: object
    ) -> None:
        self.app_id, self._secret = app_id, secret
        self._api_url, self._token_url = api_url, token_url
        self._proxy = _check_way(proxy, api_url=api_url, token_url=token_url)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Tokens, Entrance, Api]]:
        """Yield what lines need, and the API of the bot's own calls: lines never wait for those."""
        async with (
            Http(self._proxy) as http,
            Http(self._proxy, calls=_CALLS) as calls,
            Tokens(http, self.app_id, self._secret, self._token_url) as tokens,
            Entrance(http, Api(http, self.app_id, self._api_url, tokens)) as entrance,
        ):
            yield tokens, entrance, Api(calls, self.app_id, self._api_url, tokens)


async def _live(
    sessions: AsyncSessionStore | Storage | str | os.PathLike[str] | None,
    way: _Way,
    answers: Answers | None,
    started: Callable[[Bot], object] | None,
    lines: Callable[..., _Lines],
    wanted: Sequence[Shard],
) -> None:
    """Open everything, run the lines, and close it all in order."""
    async with contextlib.AsyncExitStack() as stack:
        store = sessions
        if not isinstance(store, AsyncSessionStore):
            store = await stack.enter_async_context(AsyncSessionStore(store))
        tokens, entrance, api = await stack.enter_async_context(way.open())
        bot = Bot(way.app_id, api, answers)
        shards = lines(store=store, bot=bot, tokens=tokens, entrance=entrance)
        shards.check_lease()
        await stack.enter_async_context(_beside(started, bot))
        await shards.run(wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """All shards of a bot: one `ShardRunner` each, and what they share."""

    store: AsyncSessionStore
    bot: Bot
    tokens: Tokens
    entrance: Entrance
    handle: Handle
    intents: int
    sandbox: bool
    ttl: float | None
    options: Mapping[str, Any]  # of each runner

    def check_lease(self) -> None:
        """Say at once if a lease is wanted that cannot be had."""
        if self.ttl is not None:
            _ = self.store.lease(self.bot.app_id, ttl=self.ttl)

    async def run(self, wanted: Sequence[Shard]) -> None:
        """Run these shards, or as many as QQ suggests if the list is empty."""
        shards = wanted or await self._suggested()
        await run_together([self._run_shard(shard) for shard in shards])

    async def _suggested(self) -> list[Shard]:
        """Return the shards that QQ suggests, or the only one so far if its session can resume."""
        only = account_id_for(self.bot.app_id, sandbox=self.sandbox)
        if self.ttl is None and await self.store._is_resumable(only):
            self.entrance.goes_on_with(1)
            return [(0, 1)]
        known = partial(_known_shards, self.store, self.bot.app_id, self.sandbox)
        return await self.entrance.suggested_shards(known)

    async def _run_shard(self, shard: Shard) -> None:
        """Keep the shard up, with a lease while this process has it."""
        if self.ttl is None:
            await self._keep_up(shard)
            return
        account_id = account_id_for(self.bot.app_id, shard, sandbox=self.sandbox)
        while True:
            try:
                async with self.store.lease(account_id, ttl=self.ttl):
                    await self._keep_up(shard)
            except LeaseLostError:  # the store has logged it
                self.bot._runners.pop(shard, None)

    async def _keep_up(self, shard: Shard) -> None:
        """Open the shard's session and keep its line up."""
        gateway = await open_gateway(
            self.store,
            self.bot.app_id,
            intents=self.intents,
            shard=shard,
            sandbox=self.sandbox,
            secret=self.tokens._secret,
        )
        answers = self.bot._answers
        runner = self.bot._runners[shard] = ShardRunner(
            self.store,
            gateway,
            connect=partial(self._connect, gateway),
            token=self.tokens.get,
            handle=self._handle if answers is None else answers.awaited(self._handle),
            observe=self._observe,
            pace=self.entrance.pace,
            **self.options,
        )
        await runner.run()

    async def _handle(self, event: Dispatch) -> None:
        await self.handle(event, self.bot)

    async def _connect(self, gateway: GatewaySession) -> AiohttpSocket:
        socket, address = await self.entrance.connect(gateway.address)
        gateway.remember_address(address)
        return socket

    def _observe(self, event: Event) -> None:
        if isinstance(event, Hello):
            self.entrance.greeted()
        elif isinstance(event, Ready) and isinstance(event.user, Mapping):
            self.bot._user = event.user


async def _known_shards(store: AsyncSessionStore, app_id: str, sandbox: bool) -> list[Shard]:
    """Return all shards, as many as the app's newest session had."""
    newest, count = 0.0, 0
    for state in await store.load_all():
        if state.app_id != app_id or state.shard is None or state.saved_at <= newest:
            continue
        if state.account_id == account_id_for(app_id, state.shard, sandbox=sandbox):
            newest, count = state.saved_at, state.shard[1]
    return [(number, count) for number in range(count)]


@contextlib.asynccontextmanager
async def _beside(started: Callable[[Bot], object] | None, bot: Bot) -> AsyncIterator[None]:
    """Call `started`, and run the coroutine that it may return until the body ends."""
    answer = None if started is None else started(bot)
    if not inspect.isawaitable(answer):
        yield
        return
    task = asyncio.create_task(_run_beside(answer), name="qqbot_session:started")
    try:
        yield
    finally:
        await end(task)


async def _run_beside(work: Awaitable[object]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the bot goes on without it
        extra = {"qqbot_reason": "started"}
        say(
            logging.ERROR, "what `started` began has failed: %r", error, exc_info=error, extra=extra
        )


def _check_secret(secret: object) -> Secret:
    if not isinstance(secret, str):
        raise TypeError(f"secret must be a str, not {type(secret).__name__}")
    if not secret:
        raise ValueError("secret must not be empty: ''")
    return Secret(secret)


def _check_started(started: object) -> None:
    if started is not None and not callable(started):
        raise TypeError(f"started must be callable or None, not {started!r:.100}")


def _check_way(proxy: object, **urls: str) -> Secret | None:
    """Return the proxy that was named; say what is wrong with the addresses and the way to them."""
    plain = [name for name, url in urls.items() if not _is_private(name, url)]
    if plain:
        text = "%s: without TLS, everybody on the way can read the secret and the token"
        names = " and ".join(f"{name} is {hidden(urls[name])}" for name in plain)
        say(logging.WARNING, text, names, extra={"qqbot_reason": "plain"})
    if proxy is not None:
        return check_proxy("proxy", proxy)
    for url in urls.values():
        _ = proxy_for(url)  # or say at once that it cannot be used
    return None


def _is_private(name: str, url: object) -> bool:
    """Whether what goes to this address can be read there alone."""
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a str or None, not {type(url).__name__}")
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    if scheme not in ("http", "https") or not host:
        raise ValueError(f"{name} must begin with https://, not {shown(hidden(url))!r}")
    return scheme == "https" or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_lease(lease: object) -> float | None:
    """Return the lease's seconds, `None` for none; the store checks how many they are."""
    if not isinstance(lease, int | float):
        raise TypeError(f"lease must be a bool or seconds as a float, not {lease!r:.100}")
    if isinstance(lease, bool):
        return _LEASE if lease else None
    try:
        return float(lease)
    except OverflowError:
        raise ValueError(f"lease must be seconds, not {shown(lease)}") from None


def _check_shards(shards: object) -> list[Shard]:
    """Return the shards to run; an empty list for as many as QQ suggests."""
    if shards is None:
        return []
    if isinstance(shards, int) and not isinstance(shards, bool):
        if not 1 <= shards <= MAX_SHARDS:
            raise ValueError(f"shards must be from 1 to {MAX_SHARDS}, not {shown(shards)}")
        return [(number, shards) for number in range(shards)]
    if not isinstance(shards, Sequence) or not shards:
        raise TypeError(
            f"shards must be a number or (shard id, shard count) pairs, not {shards!r:.100}"
        )
    wanted = [check_shard(shard) for shard in shards]
    if len(set(wanted)) < len(wanted):  # each would end the other's line, again and again
        raise ValueError(f"shards must differ from each other: {wanted!r:.200}")
    return wanted
