"""QQ's HTTP calls: the access token, the API, and `/gateway/bot` (extra `bot`).

Rules:

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
import json as _json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import aiohttp

from .errors import ApiError, GatewayRefusedError, describe
from .integrations.aiohttp import AiohttpSocket, connect
from .logs import say
from .pace import Pace, count

Shard: TypeAlias = tuple[int, int]

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
_pause = asyncio.sleep

_NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ApiError)


class Tokens:
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


class Api:
    """QQ's HTTP API, with a token that is renewed when it is refused."""

    def __init__(self, http: aiohttp.ClientSession, app_id: str, base: str, tokens: Tokens) -> None:
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


class Entrance:
    """`/gateway/bot`: where the gateway is, and how many may enter when."""

    def __init__(self, http: aiohttp.ClientSession, api: Api) -> None:
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
