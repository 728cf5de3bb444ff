"""QQ's HTTP endpoints: token, gateway, and those a bot answers by.

Every body is `Content-Type: application/json` and nothing more, because botpy reads only that
(http.py). Errors have the shape seen in the field (LangBot#2290): `code`, `message`, `err_code`,
`trace_id`, and the header `X-Tps-trace-ID`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from aiohttp import web

from .apps import Apps
from .line import until_closing
from .payloads import dump, message_id, now
from .records import Call, Records, Sent
from .settings import Settings

_log = logging.getLogger("qqbot_session.testing")

TOKEN = "/app/getAppAccessToken"
_REPLIES = {
    ("POST", "/v2/users/{to}/messages"): "c2c",
    ("POST", "/v2/groups/{to}/messages"): "group",
    ("POST", "/channels/{to}/messages"): "channel",
    ("POST", "/dms/{to}/messages"): "direct",
    ("POST", "/v2/users/{to}/files"): "c2c file",
    ("POST", "/v2/groups/{to}/files"): "group file",
    ("PUT", "/interactions/{to}"): "interaction",
}
_BURST = 10  # calls of /gateway before its rate counts; live docs, 2026-07-22
_FILE_LIFETIME = 3600  # seconds for which an uploaded file can be sent
_REPEATED = "消息被去重，请检查请求msgseq"  # noqa: RUF001  (QQ's own words)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `status=None` cuts the connection, `hang` leaves it without a word."""

    body: Any = None
    status: int | None = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    hang: bool = False


@dataclass(slots=True)
class _Scripted:
    method: str
    path: re.Pattern[str]
    answer: Answer
    times: int | None  # None = always

    def matches(self, call: Call) -> bool:
        return self.method == call.method and self.path.fullmatch(call.path) is not None


class Api:
    """Answer HTTP calls, and record them."""

    def __init__(
        self,
        settings: Settings,
        apps: Apps,
        records: Records,
        ws_url: Callable[[], str],
        changed: Callable[[], object],
    ) -> None:
        self._settings, self._apps, self._records = settings, apps, records
        self._ws_url, self._changed = ws_url, changed
        self._scripted: list[_Scripted] = []
        self._answered: set[tuple[object, ...]] = set()
        self._allowance, self._allowed_at = float(_BURST), time.monotonic()
        self.requests: Counter[str] = Counter()
        self.rate_limited = 0
        self._hanging: set[asyncio.Transport] = set()

    def script(self, method: str, path: str, answer: Answer, times: int | None) -> None:
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash: {path!r}")
        if times is None or times > 0:
            self._scripted.append(_Scripted(method.upper(), _pattern(path), answer, times))

    def clear_script(self) -> None:
        self._scripted.clear()

    def hang_up(self) -> None:
        """Cut off the calls left hanging."""
        for transport in self._hanging:
            transport.abort()

    def count(self, request: web.Request) -> None:
        self.requests[request.path] += 1
        self._changed()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.count(request)
        call = Call(
            method=request.method,
            path=request.path,
            app_id=self._caller(request),
            body=_parsed((await request.read()).decode("utf-8", "replace")),
            status=None,
            answer=None,
            at=time.monotonic(),
        )
        answer = self._next_scripted(call) or self._answer(call)
        await asyncio.sleep(answer.delay + self._settings.latency)
        self._record(call, answer)
        return await self._send(request, answer)

    def _next_scripted(self, call: Call) -> Answer | None:
        scripted = next((s for s in reversed(self._scripted) if s.matches(call)), None)
        if scripted is None:
            return None
        if scripted.times is not None:
            scripted.times -= 1
            if scripted.times == 0:
                self._scripted.remove(scripted)
        body = scripted.answer.body
        return replace(scripted.answer, body=body(call)) if callable(body) else scripted.answer

    def _record(self, call: Call, answer: Answer) -> None:
        status = None if answer.hang else answer.status
        fields = {name: getattr(call, name) for name in Call.__slots__}
        fields |= {"status": status, "answer": answer.body}
        kind, to = _reply(call)
        if kind is None:
            self._records.add(Call(**fields))
            _log.debug("%s %s: %s", call.method, call.path, status or "no answer")
            return
        sent = Sent(**fields, kind=kind, to=to)
        self._records.add(sent)
        what, to_what = sent.content or dump(sent.body), sent.msg_id or sent.event_id
        _log.debug("%s to %s: %r, to answer %.20s…: %s", kind, to, what, to_what, status)

    async def _send(self, request: web.Request, answer: Answer) -> web.Response:
        if (answer.hang or answer.status is None) and request.transport is not None:
            await self._leave(request.transport, answer.hang)
        if answer.hang or answer.status is None:
            return web.Response()
        trace_id = uuid4().hex
        body, content_type = _encoded(answer.body, trace_id)
        headers = {"X-Tps-trace-ID": trace_id, **content_type, **answer.headers}
        return web.Response(status=answer.status, body=body, headers=headers)

    async def _leave(self, transport: asyncio.Transport, hang: bool) -> None:
        """Cut a call off, at once or when its caller or the gateway is gone."""
        self._hanging.add(transport)
        if hang:
            await until_closing(transport)
        self._hanging.remove(transport)
        transport.abort()

    def _caller(self, request: web.Request) -> str | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        app_id, good = self._apps.find(token)
        return app_id if scheme == "QQBot" and good else None

    def _answer(self, call: Call) -> Answer:
        if (call.method, call.path) == ("POST", TOKEN):
            return self._token(call.body)
        if call.app_id is None:
            return failure(11244, "token not exist or expire", 401)
        match call.method, call.path:
            case "GET", "/gateway" | "/gateway/bot":
                return self._gateway(call.path, call.app_id)
            case "GET", "/users/@me":
                me = {"id": call.app_id, "username": "local bot", "avatar": "", "bot": True}
                return Answer(me)
            case "POST", "/users/@me/dms":
                return Answer({"guild_id": "4", "channel_id": "5", "create_time": now()})
        kind, to = _reply(call)
        if kind is None:
            return failure(11254, f"{call.method} {call.path} is for respond() to answer", 404)
        return self._reply(call, kind, to)

    def _token(self, body: Any) -> Answer:
        """Answer as api-use.md says; `expires_in` is a string, as in its sample."""
        fields = body if isinstance(body, dict) else {}
        app_id, secret = fields.get("appId"), fields.get("clientSecret")
        if not isinstance(app_id, str) or not isinstance(secret, str):
            return failure(100007, "appId or clientSecret missing", 400)
        granted = self._apps.grant(app_id, secret)
        if granted is None:
            return failure(100016, "invalid appid or secret", 200)
        return Answer({"access_token": granted[0], "expires_in": str(int(granted[1]))})

    def _gateway(self, path: str, app_id: str) -> Answer:
        if self.rate_limited or not self._allows_gateway():
            self.rate_limited = max(0, self.rate_limited - 1)
            return failure(100001, "frequency limit exceeded", 429)
        if path == "/gateway":
            return Answer({"url": self._ws_url()})
        limit = {
            "total": self._settings.session_starts,
            "remaining": self._apps.remaining(app_id),
            "reset_after": round(self._apps.reset_after(app_id) * 1000),
            "max_concurrency": self._settings.max_concurrency,
        }
        shards = self._settings.shards
        return Answer({"url": self._ws_url(), "shards": shards, "session_start_limit": limit})

    def _allows_gateway(self) -> bool:
        rate, at = self._settings.gateway_rate, time.monotonic()
        if rate is None:
            return True
        earned = (at - self._allowed_at) * rate / 60
        self._allowance, self._allowed_at = min(_BURST, self._allowance + earned), at
        allowed = self._allowance >= 1
        self._allowance -= allowed
        return allowed

    def _reply(self, call: Call, kind: str, to: str) -> Answer:
        body = call.body
        if not isinstance(body, dict):
            return failure(11255, "invalid request", 400)
        if kind == "interaction":
            return Answer(None, 204)
        if kind.endswith(" file"):
            return Answer(
                {"file_uuid": uuid4().hex, "file_info": uuid4().hex, "ttl": _FILE_LIFETIME}
            )
        if kind in ("c2c", "group"):
            if self._is_repeated(kind, to, body):
                return failure(40054005, _REPEATED, 400)
            return Answer({"id": message_id(), "timestamp": now()})
        author = {"id": call.app_id, "username": "local bot", "bot": True}
        place = {"guild_id": to if kind == "direct" else "1", "channel_id": to}
        message = {"id": message_id(), "content": body.get("content") or "", "timestamp": now()}
        return Answer(message | place | {"author": author})

    def _is_repeated(self, kind: str, to: str, body: Mapping[str, Any]) -> bool:
        """Return whether QQ has seen this `msg_id` and `msg_seq`, by default 1 (LangBot#2290)."""
        if not self._settings.deduplicate_replies or not body.get("msg_id"):
            return False
        key = (kind, to, body["msg_id"], body.get("msg_seq") or 1)
        repeated = key in self._answered
        self._answered.add(key)
        return repeated


def failure(code: int, message: str, status: int) -> Answer:
    return Answer({"code": code, "message": message, "err_code": code, "trace_id": ""}, status)


def _pattern(path: str) -> re.Pattern[str]:
    """Return what `/v2/users/{openid}/messages` stands for: a name in braces is any one part."""
    parts = re.split(r"\{\w+\}", path)
    return re.compile("([^/]+)".join(map(re.escape, parts)))


_REPLY_PATTERNS = [(method, _pattern(path), kind) for (method, path), kind in _REPLIES.items()]


def _reply(call: Call) -> tuple[str | None, str]:
    """Return what kind of answer a call is, and to whom it goes."""
    for method, pattern, kind in _REPLY_PATTERNS:
        if method == call.method and (match := pattern.fullmatch(call.path)):
            return kind, match[1]
    return None, ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text


def _encoded(body: Any, trace_id: str) -> tuple[bytes | None, dict[str, str]]:
    """Return the bytes and their header: text goes out as HTML, all else as JSON."""
    if body is None:
        return None, {}
    if isinstance(body, bytes):
        return body, {"Content-Type": "application/octet-stream"}
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "text/html"}
    if isinstance(body, dict) and body.get("trace_id") == "":
        body = body | {"trace_id": trace_id}
    return dump(body).encode(), {"Content-Type": "application/json"}
