"""`run_bot`: a whole bot on aiohttp, without a framework (extra `bot`).

Rules:

* What a bot must write is `handle(event, bot)`. Lines and sessions are `ShardRunner`'s; here are
  QQ's HTTP calls, the pace that they demand, and the end of the process.
* Nothing that QQ's endpoints do ends the bot, but for the sentence that app id and secret are
  wrong. What failed is tried again, ever more seldom.
* `/gateway/bot` is asked as rarely as its limit demands, and obeyed: Identifies are paced over all
  shards, and none is sent when none remains.
* The token stays in memory, and is in no log line and no `repr`.

Sources: bot-docs, interface-framework/api-use.md (token) and openapi/wss/shard_url_get.md
(`/gateway/bot`); the bases and the token's error codes are those of the live pages in 2026-08.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as _json
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

try:
    import aiohttp
except ImportError as error:
    raise ImportError(
        'qqbot_session.bot needs aiohttp: pip install "qqbot_session[bot]"'
    ) from error

from .errors import ApiError, GatewayRefusedError, LeaseLostError
from .gateway import Dispatch, Event, Hello, Ready
from .guard import say
from .integrations.aiohttp import AiohttpSocket, connect
from .lifetime import handling_signals, run_together
from .pace import Pace, count
from .shard import Health, ShardRunner, account_id_for, check_options, describe, open_gateway
from .state import check_app_id, check_intents, check_shard
from .storages import Storage
from .store import AsyncSessionStore

__all__ = ["API_URL", "SANDBOX_API_URL", "TOKEN_URL", "ApiError", "Bot", "run_bot"]

API_URL = "https://api.bot.qq.com"
"""Where QQ's HTTP API is."""
SANDBOX_API_URL = "https://sandbox.api.sgroup.qq.com"
"""The only sandbox that a document names."""
TOKEN_URL = "https://api.bot.qq.com/app/getAppAccessToken"
"""Where a token is to be had, for the sandbox, too."""

Shard: TypeAlias = tuple[int, int]
Handle: TypeAlias = "Callable[[Dispatch, Bot], Awaitable[object]]"

_HTTP_WAIT = 30.0  # seconds for a call of the bot's; all of these are our choice
_TOKEN_WAIT = 8.0  # seconds; below the runner's patience, so that the error has a name
_ASK_WAIT = 5.0  # seconds for `/gateway/bot`; below the runner's patience for a connection
_FIRST_BACK_OFF, _MAX_BACK_OFF = 1.0, 30.0  # seconds between two tries, doubling
_JUST_FETCHED = 5.0  # seconds in which a token that another shard fetched is fresh enough
_OLD_TOKEN = 60.0  # seconds before its end at which QQ gives a new one (api-use.md)
_WRONG_BOT = {
    100007: "The app id is not valid, or the bot is banned or deleted.",
    100016: "The app id or the secret is wrong.",
    10004: "There is no bot with this app id.",
}
_TOKEN_REFUSED = 401
_TOO_OFTEN = {429, 100001}  # an HTTP status, and QQ's code for the same
_TOO_OFTEN_WAIT = 60.0  # seconds; as long as the clients we read wait
_ASKS, _ASK_EVERY = 10, 30.0  # `/gateway`: 10 at once, 2 a minute
_LEASE = 15.0  # seconds; as client-go's leaderelection
_pause = asyncio.sleep

_NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ApiError)


class Bot:
    """What a handler has of its bot: a way to answer.

    Attributes:
        app_id: the bot's app id.
    """

    def __init__(self, app_id: str, api: _Api) -> None:
        self.app_id = app_id
        self._api = api
        self._user: Mapping[str, Any] | None = None
        self._runners: dict[Shard, ShardRunner] = {}

    def __repr__(self) -> str:
        return f"<Bot app_id={self.app_id!r} shards={list(self._runners)}>"

    async def request(self, method: str, path: str, *, json: Any = None) -> Any:
        """Call QQ's HTTP API with a fresh token, and return what it answers.

        Args:
            method: such as `POST`.
            path: such as `/v2/users/{openid}/messages`.
            json: the body.

        Returns:
            The decoded JSON, `None` if the answer was empty.

        Raises:
            ApiError: QQ answered with an error: its code, message and trace id.
            aiohttp.ClientError, TimeoutError: QQ did not answer; up to you whether to try again.
        """
        return await self._api.request(method, path, json=json)

    async def user(self) -> Mapping[str, Any]:
        """Return the bot's own user, from READY or `/users/@me`; asked for once."""
        if self._user is None:
            self._user = await self.request("GET", "/users/@me")
        return self._user

    @property
    def health(self) -> dict[tuple[int, int], Health]:
        """How each shard is, by `(shard id, shard count)`."""
        return {shard: runner.health for shard, runner in self._runners.items()}


async def run_bot(
    app_id: str,
    secret: str,
    *,
    intents: int,
    handle: Handle,
    sessions: AsyncSessionStore | Storage | str | os.PathLike[str] | None = "sessions",
    shards: int | Sequence[tuple[int, int]] | None = None,
    sandbox: bool = False,
    lease: bool | float = False,
    api_url: str | None = None,
    token_url: str | None = None,
    signals: bool = True,
    concurrency: int | None = None,
    grace: float = 5.0,
) -> None:
    """Run a bot until SIGTERM or Ctrl-C, and keep its sessions for the next start.

    On the first signal it stops reading, gives running handlers `grace` seconds, saves what was
    handled, and returns; a second signal ends the grace. What was not handled comes again at the
    next start; what was does not.

    Args:
        app_id: the bot's app id.
        secret: its secret.
        intents: which events it wants: `1 << 25` is group and C2C messages.
        handle: the bot's work; see `ShardRunner`. Handlers run concurrently.
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store, which
            is then not closed here.
        shards: how many, all run here, or those to run here as `(shard id, shard count)`; `None`
            = as many as QQ suggests.
        sandbox: QQ's sandbox, with sessions of its own.
        lease: let only one process at a time be a shard, and wait until this is the one; a number
            is the lease's `ttl` in seconds, `True` is 15. Needs SQLite or Redis; see
            `AsyncSessionStore.lease`. A shard whose lease was lost waits for its turn again; its
            handlers get `grace` before that: keep it within a third of `ttl`, after which
            another process may begin.
        api_url: the base of QQ's HTTP API; `None` = QQ's, or its sandbox's.
        token_url: where access tokens come from; `None` = QQ.
        signals: whether to take SIGTERM and Ctrl-C; only in the main thread, else ignored.
        concurrency: how many handlers run at a time per shard; see `ShardRunner` before you do.
        grace: seconds that handlers get at the end.

    Raises:
        GatewayRefusedError: QQ refused the bot: a wrong secret, a ban, intents it may not use.
        TypeError, ValueError: an argument is not what it should be.
    """
    check_app_id(app_id)
    check_intents(intents)
    _check_secret(secret)
    wanted = _check_shards(shards)
    ttl = _check_lease(lease)
    options = {"concurrency": concurrency, "grace": grace}
    check_options(**options)
    if not callable(handle):
        raise TypeError(f"handle must be callable, not {handle!r}")

    async def live() -> None:
        async with contextlib.AsyncExitStack() as stack:
            store = sessions
            if not isinstance(store, AsyncSessionStore):
                store = await stack.enter_async_context(AsyncSessionStore(store))
            if ttl is not None:
                _ = store.lease(app_id, ttl=ttl)  # or say at once that it cannot be had
            http = await stack.enter_async_context(aiohttp.ClientSession())
            tokens = _Tokens(http, app_id, secret, token_url or TOKEN_URL)
            api = _Api(http, app_id, api_url or (SANDBOX_API_URL if sandbox else API_URL), tokens)
            lines = _Lines(
                store, tokens, _Entrance(http, api), Bot(app_id, api), handle, options, ttl
            )
            await lines.run(wanted, intents, sandbox)

    await _until_a_signal(live(), signals)


class _Lines:
    """All shards of a bot: a `ShardRunner` each, and what they share."""

    def __init__(
        self,
        store: AsyncSessionStore,
        tokens: _Tokens,
        entrance: _Entrance,
        bot: Bot,
        handle: Handle,
        options: Mapping[str, Any],
        ttl: float | None,
    ) -> None:
        self._store, self._tokens, self._entrance = store, tokens, entrance
        self._bot, self._handle, self._options, self._ttl = bot, handle, options, ttl

    async def run(self, wanted: Sequence[Shard], intents: int, sandbox: bool) -> None:
        shards = wanted or await self._entrance.suggested_shards(
            partial(_known_shards, self._store, self._bot.app_id, sandbox)
        )
        await run_together([self._run_shard(shard, intents, sandbox) for shard in shards])

    async def _run_shard(self, shard: Shard, intents: int, sandbox: bool) -> None:
        """Be the shard, as long as that is this process's to be."""
        if self._ttl is None:
            await self._keep_up(shard, intents, sandbox)
            return
        account_id = account_id_for(self._bot.app_id, shard, sandbox=sandbox)
        while True:
            try:
                async with self._store.lease(account_id, ttl=self._ttl):
                    await self._keep_up(shard, intents, sandbox)
            except LeaseLostError:  # said by whoever lost it
                self._bot._runners.pop(shard, None)

    async def _keep_up(self, shard: Shard, intents: int, sandbox: bool) -> None:
        """Open the shard's session and keep its line up."""
        gateway = await open_gateway(
            self._store, self._bot.app_id, intents=intents, shard=shard, sandbox=sandbox
        )
        runner = ShardRunner(
            self._store,
            gateway,
            connect=partial(self._entrance.connect, shard),
            token=self._tokens.get,
            handle=lambda event: self._handle(event, self._bot),
            observe=partial(self._observe, shard),
            before_identify=partial(self._entrance.before_identify, shard),
            **self._options,
        )
        self._bot._runners[shard] = runner
        await runner.run()

    def _observe(self, shard: Shard, event: Event) -> None:
        if isinstance(event, Hello):
            self._entrance.handshake_goes_out(shard)
        elif isinstance(event, Ready) and isinstance(event.user, Mapping):
            self._bot._user = event.user


async def _until_a_signal(life: Coroutine[Any, Any, None], signals: bool) -> None:
    """Await it in a task of its own, which the first signal cancels, and each later one again."""
    task = asyncio.current_task()
    asked_before = 0 if task is None else task.cancelling()
    work = asyncio.create_task(life)
    stopped = False

    def stop(number: int) -> None:
        nonlocal stopped
        stopped = True
        work.cancel()
        text = "%s: stopping; another signal ends the grace"
        say(logging.INFO, text, signal.Signals(number).name, extra={"qqbot_reason": "signal"})

    loop = asyncio.get_running_loop()
    with handling_signals(loop, stop) if signals else contextlib.nullcontext():
        try:
            await work
        except asyncio.CancelledError:
            if not stopped or (task is not None and task.cancelling() > asked_before):
                raise


class _Tokens:
    """The access token: fetched once for all, renewed in time, and tried for with patience."""

    def __init__(self, http: aiohttp.ClientSession, app_id: str, secret: str, url: str) -> None:
        self._http, self._app_id, self._secret, self._url = http, app_id, secret, url
        self._lock = asyncio.Lock()
        self._token = ""
        self._fetched_at = self._renew_at = self._ends_at = 0.0  # the loop's clock
        self._failures = 0
        self._try_at = 0.0
        self._error: Exception = RuntimeError("not tried yet")

    async def get(self, new: bool = False) -> str:
        """Return the token, a fresh one if `new`.

        Raises:
            GatewayRefusedError: app id or secret is wrong.
            Exception: there is none to be had now. The endpoint is asked again after 1 s, then 2,
                up to 30; until then the last error is raised again.
        """
        async with self._lock:
            now = _now()
            fresh = now < (self._fetched_at + _JUST_FETCHED if new else self._renew_at)
            if self._token and fresh:
                return self._token
            if now >= self._try_at:
                await self._try(now)
            if self._failures and (new or now >= self._ends_at):
                raise self._error.with_traceback(None)
            return self._token

    async def _try(self, now: float) -> None:
        try:
            token, seconds = await self._fetch()
        except GatewayRefusedError:
            raise
        except _NO_ANSWER as error:
            self._failures += 1
            self._error = error
            pause = _back_off(self._failures)
            self._try_at = _now() + pause
            text = "no access token: %s; next try in %.0f s or later"
            fields = {"qqbot_reason": "token", "qqbot_app": self._app_id, "qqbot_wait": pause}
            say(logging.WARNING, text, describe(error), pause, extra=fields)
            return
        self._failures, self._try_at = 0, 0.0
        self._token, self._fetched_at = token, now
        self._renew_at = now + max(seconds - _OLD_TOKEN, seconds / 2)
        self._ends_at = now + seconds

    async def _fetch(self) -> tuple[str, float]:
        """Return a token and its life in seconds (api-use.md; a string in its sample)."""
        body = {"appId": self._app_id, "clientSecret": self._secret}
        wait = aiohttp.ClientTimeout(total=_TOKEN_WAIT)
        async with self._http.post(self._url, json=body, timeout=wait) as response:
            answer = await _read(response)
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if isinstance(token, str) and token:
            return token, _seconds(answer.get("expires_in"))
        error = _api_error(response, answer)
        if error.code in _WRONG_BOT:
            reason = f"{_WRONG_BOT[error.code]} QQ says: {error.message}"
            raise GatewayRefusedError(self._app_id, error.code, reason)
        raise error


class _Api:
    """QQ's HTTP API, with a token that is renewed when it is refused."""

    def __init__(
        self, http: aiohttp.ClientSession, app_id: str, base: str, tokens: _Tokens
    ) -> None:
        self._http, self.app_id, self.tokens = http, app_id, tokens
        self.base = base.rstrip("/")

    async def request(
        self, method: str, path: str, *, json: Any = None, wait: float = _HTTP_WAIT
    ) -> Any:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"path must begin with '/', not {path!r}")
        token = await self.tokens.get()
        try:
            return await self._send(method, path, json, token, wait)
        except ApiError as error:
            if error.status != _TOKEN_REFUSED:
                raise
            if (fresh := await self.tokens.get(new=True)) == token:
                raise
            return await self._send(method, path, json, fresh, wait)

    async def _send(self, method: str, path: str, json: Any, token: str, wait: float) -> Any:
        headers = {"Authorization": f"QQBot {token}", "X-Union-Appid": self.app_id}
        timeout = aiohttp.ClientTimeout(total=wait)
        async with self._http.request(
            method, self.base + path, json=json, headers=headers, timeout=timeout
        ) as response:
            answer = await _read(response)
        if response.status >= 400:
            raise _api_error(response, answer)
        return answer


class _Entrance:
    """`/gateway/bot`: where the gateway is, and how many may enter when."""

    def __init__(self, http: aiohttp.ClientSession, api: _Api) -> None:
        self._http, self._api = http, api
        # What `GET /gateway` answered wherever it is documented; for when it cannot be asked.
        self._usual_url = api.base.replace("http", "ws", 1) + "/websocket/"
        self._lock = asyncio.Lock()  # around asking
        self._pace = Pace(self._ask)
        self._url: str | None = None
        self._shards: int | None = None
        self._asks: deque[float] = deque(maxlen=_ASKS)
        self._quiet_until = 0.0  # the loop's clock, as all here
        self._doubtful = False

    async def suggested_shards(self, known: Callable[[], Awaitable[list[Shard]]]) -> list[Shard]:
        """Return the shards that QQ suggests; those that were run before if it cannot be asked."""
        failures = 0
        while self._shards is None:
            if await self._ask():
                break
            if before := await known():
                return before
            failures += 1
            await _pause(_back_off(failures))
        count = max(1, self._shards or 1)
        return [(number, count) for number in range(count)]

    async def connect(self, shard: Shard) -> AiohttpSocket:
        """Open a socket to the address that was told last."""
        if self._url is None or (self._doubtful and self._pace.is_old):
            await self._ask()
        try:
            return await connect(self._http, self._url or self._usual_url)
        except Exception:
            self._doubtful = True
            self._pace.withdraw(shard)
            raise

    async def before_identify(self, shard: Shard) -> None:
        """Wait until one more Identify may be sent; see `Pace`."""
        await self._pace.before_identify(shard)

    def handshake_goes_out(self, shard: Shard) -> None:
        """Note that Hello came."""
        self._doubtful = False
        self._pace.handshake_goes_out(shard)

    async def _ask(self) -> bool:
        """Ask, unless that is too often; return whether there is a new answer."""
        began = _now()
        async with self._lock:
            if self._pace.asked_at >= began:  # another shard did
                return True
            now = _now()
            spent = len(self._asks) == _ASKS and now < self._asks[0] + _ASKS * _ASK_EVERY
            if now < self._quiet_until or spent or not await self._has_token():
                return False
            self._asks.append(now)
            try:
                self._learn(await self._api.request("GET", "/gateway/bot", wait=_ASK_WAIT))
            except GatewayRefusedError:
                raise
            except (*_NO_ANSWER, ValueError) as error:
                if isinstance(error, ApiError) and _is_too_often(error):
                    self._quiet_until = now + _TOO_OFTEN_WAIT
                fields = {"qqbot_reason": "gateway", "qqbot_app": self._api.app_id}
                say(logging.WARNING, "/gateway/bot: %s", describe(error), extra=fields)
                return False
            return True

    async def _has_token(self) -> bool:
        """Whether there is a token; that there is none is said where it is fetched."""
        try:
            await self._api.tokens.get()
        except _NO_ANSWER as error:
            if isinstance(error, GatewayRefusedError):
                raise
            return False
        return True

    def _learn(self, answer: Any) -> None:
        """Take what QQ answered (openapi/wss/shard_url_get.md); what it leaves out is no limit."""
        url = answer.get("url") if isinstance(answer, Mapping) else None
        if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
            raise ValueError("the answer has no url")
        self._url, self._doubtful = url, False
        self._shards = count(answer.get("shards"))
        self._pace.learn(answer.get("session_start_limit"))


async def _known_shards(store: AsyncSessionStore, app_id: str, sandbox: bool) -> list[Shard]:
    """Return all shards of the app's newest session."""
    newest, count = 0.0, 0
    for state in await store.load_all():
        if state.app_id != app_id or state.shard is None or state.saved_at <= newest:
            continue
        if state.account_id == account_id_for(app_id, state.shard, sandbox=sandbox):
            newest, count = state.saved_at, state.shard[1]
    return [(number, count) for number in range(count)]


async def _read(response: aiohttp.ClientResponse) -> Any:
    """Return the decoded JSON whatever its type is said to be, `None` for nothing, or the text."""
    text = (await response.read()).decode(errors="replace")
    try:
        return _json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        return text


def _api_error(response: aiohttp.ClientResponse, answer: Any) -> ApiError:
    fields = answer if isinstance(answer, Mapping) else {}
    message = str(fields.get("message") or answer or response.reason or "")
    trace_id = response.headers.get("X-Tps-trace-ID") or fields.get("trace_id")
    return ApiError(response.status, count(fields.get("code")), message[:200], trace_id)


def _is_too_often(error: ApiError) -> bool:
    return bool({error.status, error.code} & _TOO_OFTEN)


def _seconds(value: object) -> float:
    """Return a token's life; a minute if it makes no sense, so that it is soon asked again."""
    try:
        seconds = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return _OLD_TOKEN
    return float(min(seconds, 86_400)) if seconds > 0 else _OLD_TOKEN


def _now() -> float:
    return asyncio.get_running_loop().time()


def _back_off(failures: int) -> float:
    return min(_FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16), _MAX_BACK_OFF)


def _check_secret(secret: object) -> None:
    if not isinstance(secret, str):
        raise TypeError(f"secret must be a str, not {type(secret).__name__}")
    if not secret:
        raise ValueError("secret must not be empty: ''")


def _check_lease(lease: object) -> float | None:
    """Return the lease's seconds, `None` for none; the store checks how many they are."""
    if not isinstance(lease, int | float):
        raise TypeError(f"lease must be a bool or seconds as a float, not {lease!r}")
    if isinstance(lease, bool):
        return _LEASE if lease else None
    return float(lease)


def _check_shards(shards: object) -> list[Shard]:
    """Return the shards to run; an empty list for as many as QQ suggests."""
    if shards is None:
        return []
    if isinstance(shards, int) and not isinstance(shards, bool):
        if shards < 1:
            raise ValueError(f"shards must be at least 1, not {shards!r}")
        return [(number, shards) for number in range(shards)]
    if not isinstance(shards, Sequence) or not shards:
        raise TypeError(f"shards must be a number or (shard id, shard count) pairs, not {shards!r}")
    wanted = [check_shard(shard) for shard in shards]
    if len(set(wanted)) < len(wanted):  # each would end the other's line, again and again
        raise ValueError(f"shards must differ from each other: {wanted!r}")
    return wanted
