"""HTTP calls on aiohttp that protect secrets and are bounded (extra `bot`).

Rules:

* Neither calls nor lines follow a redirect: the token and the secret are for one origin only, and
  never go from TLS to plain text.
* At most 1 MiB of an answer is read, both compressed and decompressed.
* No frame, error or `repr` of ours shows a secret, even if the answer repeats it. An `Answer` hides
  its body; the error made from it is masked and cut. An error from aiohttp loses its request, which
  holds the headers, and its frames, which hold the response.
* Each `Http` has connections of its own, so that hanging calls do not block lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as _json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict, CIMultiDictProxy

from ..errors import ApiError, bare
from ..integrations.aiohttp import AiohttpSocket, connect
from ..net.network import look_up
from ..net.proxies import aiohttp_options, proxy_for
from ..words import MASK, shown, without

MAX_BODY = 1024 * 1024
"""The most bytes of an answer that are read; a longer answer is an error."""

_MESSAGE = 200  # characters of an answer's message that are shown
_ACCEPTED = (201, 202)  # done later; the code in such an answer is not an error (error/error.md)
_DIGITS = 300  # of an integer that a float can hold; Python reads at most 4300 as an integer
_LOOKED_AT = 10_000  # characters that are searched for secrets
_NUMERIC = 4 | 1024  # AI_NUMERICHOST | AI_NUMERICSERV
_CREDENTIALS = re.compile(  # whatever looks like one, whether or not we know it
    r"""((?:access_?token|client_?secret|app_?secret|authorization)\W{1,5}(?:(?:QQBot|Bearer)\s+)?)
    [\w.~+/=-]{4,}""",
    re.IGNORECASE | re.VERBOSE,
)
_Error = TypeVar("_Error", bound=BaseException)


class Answer:
    """An endpoint's answer; no `repr` shows its body, which may repeat a secret.

    Attributes:
        status: the HTTP status.
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
        """The decoded JSON, whatever the content type; `None` if empty; the text if not JSON."""
        text = self._body.removeprefix(BOM_UTF8).decode(errors="replace")
        try:
            return _json.loads(text, parse_int=_integer) if text.strip() else None
        except (ValueError, RecursionError):
            return text

    @property
    def code(self) -> int | None:
        """QQ's error code; `None` if there is none, if it is 0, or if no code is that long."""
        return int(self._code) if 0 < abs(self._code) < 2**53 else None

    @property
    def is_error(self) -> bool:
        """Whether it says that the call failed; with HTTP 200, a code or a page says so."""
        if self.status >= 300 or self.status in _ACCEPTED:
            return self.status >= 300
        return self._code != 0 or _is_page(self.value)

    @property
    def _code(self) -> float:
        value = self.value
        fields = value if isinstance(value, Mapping) else {}
        for code in (fields.get("code"), fields.get("err_code")):
            with contextlib.suppress(TypeError, ValueError):
                if not isinstance(code, bool) and (number := float(code)):  # type: ignore[arg-type]
                    return number
        return 0.0

    def error(self, *, quote: bool = True) -> ApiError:
        """Return the answer as an error.

        Args:
            quote: whether to show a body that is not in QQ's form: HTML, or JSON without a message.
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
        proxy: the proxy for everything; `None` = the one that the environment names.
        calls: how many connections may be open at once; 0 = no limit.
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
        """Send a request and return the answer, whatever its status.

        Args:
            wait: seconds for the whole call.
            json: the body; secrets in it, as in `headers`, are `Secret`s.
            secrets: what must not appear in anything shown of the answer.

        Raises:
            ApiError: the answer is too long.
            aiohttp.ClientError, OSError, TimeoutError: there was no answer.
        """
        try:
            return await self._exchange(method, url, wait, json, headers or {}, secrets)
        except (aiohttp.ClientError, OSError, ApiError, asyncio.CancelledError) as error:
            if type(error) is TimeoutError:  # aiohttp's has no message
                raise TimeoutError(f"no answer within {wait:g} s") from None
            raise _bare(error) from None  # drops the frames below, which hold the response

    async def connect(self, url: str) -> AiohttpSocket:
        """Open a line to the gateway.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: it cannot be opened.
        """
        try:
            return await connect(self._session, url, **{"proxy": None, **self._way(url)})
        except (aiohttp.ClientError, OSError) as error:
            raise _bare(error) from None

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
    """Look up names for aiohttp in threads of their own; see `network`."""

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


def _integer(text: str) -> int | float:
    """Return the number; one of very many digits as a float, which may be infinite."""
    return int(text) if len(text) < _DIGITS else float(text)


def _is_page(value: object) -> bool:
    """Whether it is HTML or XML, from a portal or a proxy on the way."""
    return isinstance(value, str) and value.lstrip().startswith("<")


def _bare(error: _Error) -> _Error:
    """Return the error without its request, frames and causes."""
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        nothing: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        error.request_info = aiohttp.RequestInfo(info.url, info.method, nothing, info.real_url)
        error.headers, error.history = None, ()
        error.args = (error.request_info, ())
        error.message = shown(error.message, _MESSAGE)
    return bare(error)


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: object, details: aiohttp.TraceRequestRedirectParams
) -> None:
    details.response.close()
    where = shown(details.response.headers.get("Location", ""))
    raise aiohttp.ClientPayloadError(f"the gateway redirects to {where}: that is not followed")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the decompressed body."""
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
        raise ApiError(response.status, None, f"unknown Content-Encoding {shown(encoding, 20)!r}")
    try:
        body = zlib.decompressobj(wbits=47).decompress(body, MAX_BODY + 1)  # 47: either of them
    except zlib.error as error:
        raise aiohttp.ClientPayloadError(f"cannot decompress the answer: {error}") from None
    _check_length(response, len(body))
    return body


def _check_length(response: aiohttp.ClientResponse, length: int) -> None:
    if length > MAX_BODY:
        response.close()
        raise ApiError(response.status, None, f"the answer is longer than {MAX_BODY} bytes")
