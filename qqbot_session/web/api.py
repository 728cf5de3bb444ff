"""QQ's access token and its HTTP API (extra `bot`).

Rules:

* The only answer of QQ's that ends the bot is that the app id or the secret is wrong. Everything
  else is retried with growing pauses. A failure is shared: shards that need the same answer wait
  for one request, not for one each.
* The token and the secret are `Secret`s, and each goes only where it is meant to go.

Sources: bot-docs, interface-framework/api-use.md; the token's error codes are from the live pages
of 2026-08.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Self

import aiohttp

from ..errors import ApiError, GatewayRefusedError, describe
from ..guard import end
from ..logs import say
from ..words import Secret
from .http import Answer, Http

_HTTP_WAIT = 30.0  # seconds for a call by the bot; all of these are our choice
_TOKEN_WAIT, _MAX_TOKEN_WAIT = 8.0, 60.0  # seconds for a request, doubling with each failure
_PATIENCE = 9.0  # seconds; less than the runner waits, so that the log names the error
_FIRST_BACK_OFF, _MAX_BACK_OFF = 1.0, 30.0  # seconds between two tries, doubling
_JUST_FETCHED = 5.0  # seconds for which a fresh token serves everyone who asks for one
_OLD_TOKEN = 60.0  # seconds before a token expires, from when QQ issues a new one (api-use.md)
_WRONG_BOT = {
    100007: "The app id is not valid, or the bot is banned or deleted.",
    100016: "The app id or the secret is wrong.",
    10004: "There is no bot with this app id.",
}
_TOKEN = re.compile(r"[!-~]{1,4096}")  # what fits in a header
_TOKEN_REFUSED = {401, 11244}  # HTTP status, and QQ's code for the same

NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ApiError)
"""What a call raises when it gets no usable answer."""


class Tokens:
    """The access token: shared by all shards, renewed in time, and retried with growing pauses.

    An async context manager. A slow request goes on when nobody waits any more, and whoever asks
    next waits for it.
    """

    def __init__(self, http: Http, app_id: str, secret: Secret, url: str) -> None:
        self._http, self._app_id, self._secret, self._url = http, app_id, secret, url
        self._lock = asyncio.Lock()
        self._token = Secret("")
        self._renew_at = self._ends_at = 0.0  # the loop's clock
        self._asked_new_at = float("-inf")
        self._failures = 0
        self._try_at = 0.0
        self._error: Exception = RuntimeError("not tried yet")
        self._request: asyncio.Task[tuple[Secret, float]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._request is not None:
            await end(self._request)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What must not appear in anything shown of an answer."""
        return self._secret, self._token

    async def get(self, new: bool = False) -> Secret:
        """Return the token; a fresh one if `new`.

        Raises:
            GatewayRefusedError: the app id or the secret is wrong.
            Exception: no token is available now. The endpoint is retried after 1 s, then 2, up to
                30; until then the last error is raised again.
        """
        if self._lock.locked() and not new and now() < self._ends_at:
            return self._token  # still valid while another task renews it
        async with self._lock:
            asked = now()
            fresh = asked < (self._asked_new_at + _JUST_FETCHED if new else self._renew_at)
            if self._token and fresh:
                return self._token
            if asked >= self._try_at:
                await self._try(asked)
                if new and not self._failures:
                    self._asked_new_at = asked
            if self._failures and (new or asked >= self._ends_at):
                raise self._error.with_traceback(None)
            return self._token

    async def _try(self, asked: float) -> None:
        try:
            token, seconds = await self._fetch_patiently()
        except NO_ANSWER as error:
            self._failures += 1
            self._error = error
            pause = back_off(self._failures)
            self._try_at = now() + pause
            text = "no access token: %s; next try in %.0f s or later"
            fields = {"qqbot_reason": "token", "qqbot_app": self._app_id, "qqbot_wait": pause}
            say(logging.WARNING, text, describe(error), pause, extra=fields)
            return
        self._failures, self._try_at = 0, 0.0
        self._token = token
        self._renew_at = asked + max(seconds - _OLD_TOKEN, seconds / 2)
        self._ends_at = asked + seconds

    async def _fetch_patiently(self) -> tuple[Secret, float]:
        if self._request is None:
            wait = min(_TOKEN_WAIT * 2.0 ** min(self._failures, 16), _MAX_TOKEN_WAIT)
            self._request = asyncio.create_task(self._fetch(wait), name="qqbot_session:token")
        await asyncio.wait([self._request], timeout=_PATIENCE)
        if not self._request.done():
            raise TimeoutError(f"no answer within {_PATIENCE:g} s, and still waiting")
        request, self._request = self._request, None
        return request.result()

    async def _fetch(self, wait: float) -> tuple[Secret, float]:
        """Return a token and its lifetime in seconds (a string in the sample of api-use.md)."""
        body = {"appId": self._app_id, "clientSecret": self._secret}
        answer = await self._http.call(
            "POST", self._url, json=body, wait=wait, secrets=self.secrets
        )
        if (token := _token(answer)) is not None:
            return token
        error = answer.error(quote=False)  # the body may hold a token in a shape we do not know
        if error.code in _WRONG_BOT:
            reason = f"{_WRONG_BOT[error.code]} QQ says: {error.message}"
            raise GatewayRefusedError(self._app_id, error.code, reason)
        raise error


class Api:
    """QQ's HTTP API, with a token that is renewed when QQ refuses it."""

    def __init__(self, http: Http, app_id: str, base: str, tokens: Tokens) -> None:
        self._http, self.app_id, self.tokens = http, app_id, tokens
        self.base = base.rstrip("/")

    async def request(
        self, method: str, path: str, *, json: Any = None, wait: float | None = None
    ) -> Any:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"path must begin with '/', not {path!r:.100}")
        token = await self.tokens.get()
        try:
            return await self._send(method, path, json, token, wait)
        except ApiError as error:
            if not _is_about_token(error):
                raise
            token = await self.tokens.get(new=True)
            return await self._send(method, path, json, token, wait)

    async def _send(
        self, method: str, path: str, json: Any, token: Secret, wait: float | None
    ) -> Any:
        headers = {"Authorization": "QQBot " + token, "X-Union-Appid": self.app_id}
        answer = await self._http.call(
            method,
            self.base + path,
            json=json,
            headers=headers,
            wait=_HTTP_WAIT if wait is None else wait,
            secrets=self.tokens.secrets,
        )
        if answer.is_error:
            raise answer.error()
        return answer.value


def _token(answer: Answer) -> tuple[Secret, float] | None:
    """Return the token in an answer and its lifetime in seconds; `None` if there is none."""
    value = answer.value
    fields = value if answer.status < 300 and isinstance(value, dict) else {}
    token = fields.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return None
    return Secret(token), _seconds(fields.get("expires_in"))


def _is_about_token(error: ApiError) -> bool:
    """Whether a fresh token may help."""
    return bool({error.status, error.code} & _TOKEN_REFUSED) and not error.is_not_allowed_here


def _seconds(value: object) -> float:
    """Return a token's lifetime in seconds; a minute if the value makes no sense."""
    try:
        seconds = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return _OLD_TOKEN
    return float(min(seconds, 86_400)) if seconds > 0 else _OLD_TOKEN


def now() -> float:
    return asyncio.get_running_loop().time()


def back_off(failures: int) -> float:
    """Return how many seconds to wait after this many failures in a row."""
    return min(_FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16), _MAX_BACK_OFF)
