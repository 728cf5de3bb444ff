"""HTTP calls on aiohttp that keep their secrets and know their bounds (extra `bot`).

Rules:

* A call goes where it was sent. No redirect is followed, by a call or a line: the token and the
  secret are for one origin only, and never travel from TLS to plain.
* An answer is read up to 1 MiB, before and after it is unpacked.
* No frame, error or `repr` of ours holds a secret in the open, whatever the answer repeats of it:
  an `Answer` shows nothing of itself, its error is masked and cut, and an error of aiohttp's loses
  its request, which holds the headers, and the frames, which hold the response.
* Lines have connections of their own, so that calls that hang do not keep them waiting.
"""

from __future__ import annotations

import asyncio
import json as _json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict, CIMultiDictProxy

from .errors import ApiError
from .integrations.aiohttp import AiohttpSocket, connect
from .network import look_up
from .proxies import aiohttp_options, proxy_for
from .words import MASK, shown, without

MAX_BODY = 1024 * 1024
"""Bytes of an answer that are read; a longer one is an error."""

_MESSAGE = 200  # characters of what an answer says
_LOOKED_AT = 10_000  # characters in which secrets are looked for
_NUMERIC = 4 | 1024  # AI_NUMERICHOST | AI_NUMERICSERV
_CREDENTIALS = re.compile(  # whatever looks like one, known to us or not
    r"""((?:access_?token|client_?secret|app_?secret|authorization)\W{1,5}(?:(?:QQBot|Bearer)\s+)?)
    [\w.~+/=-]{4,}""",
    re.IGNORECASE | re.VERBOSE,
)
_Error = TypeVar("_Error", bound=BaseException)


class Answer:
    """What an endpoint answered; what the body says is in no `repr`, for it may repeat a secret.

    Attributes:
        status: of HTTP.
    """

    __slots__ = ("_body", "_location", "_reason", "_secrets", "_trace_id", "status")

    def __init__(
        self, response: aiohttp.ClientResponse, body: bytes, secrets: Sequence[str]
    ) -> None:
        self.status, self._reason = response.status, response.reason
        self._trace_id = response.headers.get("X-Tps-trace-ID")
        self._location = response.headers.get("Location")
        self._body, self._secrets = body, secrets

    def __repr__(self) -> str:
        return f"<Answer status={self.status} bytes={len(self._body)}>"

    @property
    def value(self) -> Any:
        """The decoded JSON whatever its type is said to be, `None` for nothing, or the text."""
        text = self._body.decode(errors="replace")
        try:
            return _json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            return text

    @property
    def code(self) -> int | None:
        """QQ's error code; `None` without one, or for 0."""
        value = self.value
        code = value.get("code") if isinstance(value, Mapping) else None
        if isinstance(code, str) and code.isdecimal() and len(code) < 16:
            code = int(code)
        known = isinstance(code, int) and not isinstance(code, bool) and abs(code) < 10**16
        return (code or None) if known else None

    def error(self, *, quote: bool = True) -> ApiError:
        """Return the answer as an error.

        Args:
            quote: whether to show a body that is not QQ's: HTML, or JSON without a message.
        """
        value = self.value
        fields = value if isinstance(value, Mapping) else {}
        words: object = fields.get("message") or (value if quote else None) or self._reason or ""
        if 300 <= self.status < 400 and self._location is not None:
            words = f"redirects to {self._location.partition('?')[0]}, which is not followed"
        trace_id = self._trace_id or fields.get("trace_id")
        return ApiError(
            self.status,
            self.code,
            self._masked(words, _MESSAGE),
            None if trace_id is None else self._masked(trace_id, 100),
        )

    def _masked(self, words: object, limit: int) -> str:
        text = without(str(words)[:_LOOKED_AT], self._secrets)
        return shown(_CREDENTIALS.sub(rf"\1{MASK}", text), limit)


class Http:
    """The HTTP side of one bot; an async context manager.

    Args:
        proxy: for everything; `None` = as the environment says.
        calls: how many may be under way at once; 0 = no limit.
    """

    def __init__(self, proxy: str | None = None, *, calls: int = 0) -> None:
        self._proxy = proxy
        connector = aiohttp.TCPConnector(limit=calls, resolver=_Resolver())
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)  # of a line; calls follow none
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[trace],
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        url: str,
        *,
        wait: float,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
    ) -> Answer:
        """Send a request and return the answer, whatever its status is.

        Args:
            wait: seconds for all of it.
            json: the body; secrets in it are `Secret`s, as in `headers`.
            secrets: what must not be shown of the answer.

        Raises:
            ApiError: the answer is too long.
            aiohttp.ClientError, OSError, TimeoutError: there is no answer.
        """
        try:
            return await self._exchange(method, url, wait, json, headers or {}, secrets)
        except (aiohttp.ClientError, OSError, ApiError, asyncio.CancelledError) as error:
            if type(error) is TimeoutError:  # aiohttp's says nothing
                raise TimeoutError(f"no answer within {wait:g} s") from None
            raise bare(error) from None  # no frame below this one, where the response is at hand

    async def connect(self, url: str) -> AiohttpSocket:
        """Open a line to the gateway.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: there is none to be had.
        """
        try:
            return await connect(self._session, url, **{"proxy": None, **self._way(url)})
        except (aiohttp.ClientError, OSError) as error:
            raise bare(error) from None

    def _way(self, url: str) -> dict[str, Any]:
        return aiohttp_options(url, self._proxy or proxy_for(url))

    async def _exchange(
        self,
        method: str,
        url: str,
        wait: float,
        json: Any,
        headers: Mapping[str, str],
        secrets: Sequence[str],
    ) -> Answer:
        way = self._way(url)
        async with self._session.request(
            method,
            url,
            json=json,
            headers={**headers, **way.pop("headers", {}), "Accept-Encoding": "gzip, deflate"},
            timeout=aiohttp.ClientTimeout(total=wait),
            allow_redirects=False,
            **way,
        ) as response:
            return Answer(response, await _read(response), secrets)


class _Resolver(AbstractResolver):
    """aiohttp's look-ups, in threads of their own; see `network`."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=where[0] if len(where) < 4 or not where[3] else f"{where[0]}%{where[3]}",
                port=where[1],
                family=family,
                proto=protocol,
                flags=_NUMERIC,
            )
            for family, _, protocol, _, where in await look_up(host, port, family)
        ]

    async def close(self) -> None:
        pass


def bare(error: _Error) -> _Error:
    """Return the error without the request that it holds, and without its frames and causes."""
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        nothing: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        error.request_info = aiohttp.RequestInfo(info.url, info.method, nothing, info.real_url)
        error.headers, error.history = None, ()
        error.args = (error.request_info, ())
        error.message = shown(error.message, _MESSAGE)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: object, details: aiohttp.TraceRequestRedirectParams
) -> None:
    details.response.close()
    where = shown(details.response.headers.get("Location", ""))
    raise aiohttp.ClientPayloadError(f"the gateway redirects to {where}: that is not followed")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, unpacked."""
    chunks, length = [], 0
    async for chunk in response.content.iter_any():
        length += len(chunk)
        _check_length(response, length)
        chunks.append(chunk)
    body = b"".join(chunks)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(response.status, None, f"the answer is packed as {shown(encoding, 20)}")
    try:
        body = zlib.decompressobj(wbits=47).decompress(body, MAX_BODY + 1)  # 47: either of them
    except zlib.error as error:
        raise aiohttp.ClientPayloadError(f"the answer cannot be unpacked: {error}") from None
    _check_length(response, len(body))
    return body


def _check_length(response: aiohttp.ClientResponse, length: int) -> None:
    if length > MAX_BODY:
        response.close()
        raise ApiError(response.status, None, f"the answer is longer than {MAX_BODY} bytes")
