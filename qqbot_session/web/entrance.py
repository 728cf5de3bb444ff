"""`/gateway/bot`: the gateway's address, and how many sessions may be started (extra `bot`).

Rules:

* We ask as rarely as QQ's limit demands, and obey the answer: Identifies are paced across all
  shards, and none is sent when none remains.
* Shards that ask at the same time wait for one answer. A failure counts for all of them until the
  next try; the pauses between tries grow.
* A Resume needs a token and a socket. If an address is known, it is used at once, and we ask in
  the background.
* An API that we reach over TLS cannot send us to a gateway without TLS.

Source: bot-docs, openapi/wss/shard_url_get.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..errors import ApiError, GatewayRefusedError, describe
from ..guard import end
from ..integrations.aiohttp import AiohttpSocket
from ..logs import say
from ..pace import Pace, count
from ..words import shown
from .api import NO_ANSWER, Api, back_off, now
from .http import Http

Shard: TypeAlias = tuple[int, int]

MAX_SHARDS = 100_000
"""The most shards that a bot may have; a larger number is a mistake."""

_ASK_WAIT = 5.0  # seconds; less than the runner waits for a connection; these are our choice
_TOO_OFTEN = {429, 100001, 100017}  # HTTP status, and QQ's codes; the last was seen in 2026-08
_TOO_OFTEN_WAIT = 60.0  # seconds, as in the clients that we read
_ASKS, _ASK_EVERY = 10, 30.0  # 10 at once, 2 a minute (live page of `/gateway`, 2026-07-22)
_QQ = ".qq.com"  # where QQ's gateways are
_LEAST_PAUSE = 1.0  # seconds between two tries to learn how many shards there are
_pause = asyncio.sleep


class Entrance:
    """How a bot's shards get to the gateway; an async context manager.

    Args:
        http: opens the lines.
        api: answers `/gateway/bot`.

    Attributes:
        pace: paces the Identifies of all shards.
    """

    def __init__(self, http: Http, api: Api) -> None:
        self._http, self._api = http, api
        # What `GET /gateway` answers in every sample; used when we cannot ask.
        self._usual_url = api.base.replace("http", "ws", 1) + "/websocket/"
        self._lock = asyncio.Lock()  # around asking
        self._beside: asyncio.Task[None] | None = None  # asks, while a line is opened
        self.pace = Pace(self._ask)
        self._url: str | None = None
        self._shards: int | None = None
        self._running: int | None = None  # shards, if they were not asked for
        self._asks: deque[float] = deque(maxlen=_ASKS)
        self._failures = 0
        self._try_at = 0.0  # the loop's clock, as all here
        self._doubtful = False

    async def __aenter__(self) -> Entrance:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beside is not None:
            await end(self._beside)

    async def suggested_shards(self, known: Callable[[], Awaitable[list[Shard]]]) -> list[Shard]:
        """Return the shards that QQ suggests; if it does not answer, those that ran before."""
        looked = False
        while self._shards is None:
            if await self._ask():
                break
            if not looked and (before := await known()):
                return before
            looked = True  # once is enough: nobody else runs this bot's shards meanwhile
            # It may not even have been asked, for want of a token, or because it was too often.
            await _pause(max(_LEAST_PAUSE, self._try_at - now()))
        count = max(1, self._shards or 1)
        return [(number, count) for number in range(count)]

    async def connect(self, known: str | None = None) -> tuple[AiohttpSocket, str]:
        """Open a socket to the latest known address; return the socket and the address.

        Args:
            known: the address that an earlier process used; ignored unless it is one of QQ's.
        """
        if self._url is None and known is not None and self._is_qq(known):
            self._url = known
        if self._url is None:
            await self._ask()
        elif self.pace.asked_at == float("-inf") or (self._doubtful and self.pace.is_old):
            self._ask_beside()
        url = self._url or self._usual_url
        try:
            return await self._http.connect(url), url
        except Exception:
            self._doubtful = True
            raise

    def goes_on_with(self, shards: int) -> None:
        """Note how many shards the bot runs without having asked QQ."""
        self._running = shards

    def greeted(self) -> None:
        """Note that Hello came, so the address is right."""
        self._doubtful = False

    def _ask_beside(self) -> None:
        """Ask in the background; whoever needs the answer calls `_ask` and waits."""
        if self._beside is None or self._beside.done():
            self._beside = asyncio.create_task(self._ask_alone(), name="qqbot_session:gateway")

    async def _ask_alone(self) -> None:
        with contextlib.suppress(GatewayRefusedError):  # the line gets the same error and raises it
            await self._ask()

    async def _ask(self) -> bool:
        """Ask unless it is too soon; return whether there is a new answer."""
        began = now()
        async with self._lock:
            if self.pace.asked_at >= began:  # another shard did
                return True
            asked = now()
            spent = len(self._asks) == _ASKS and asked < self._asks[0] + _ASKS * _ASK_EVERY
            if asked < self._try_at or spent or not await self._has_token():
                return False
            self._asks.append(asked)
            try:
                self._learn(await self._api.request("GET", "/gateway/bot", wait=_ASK_WAIT))
            except (*NO_ANSWER, ValueError) as error:
                self._note_failure(error)
                return False
            self._failures = 0
            return True

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        pause = back_off(self._failures)
        if isinstance(error, ApiError) and {error.status, error.code} & _TOO_OFTEN:
            pause = _TOO_OFTEN_WAIT
        self._try_at = now() + pause
        fields = {"qqbot_reason": "gateway", "qqbot_app": self._api.app_id, "qqbot_wait": pause}
        text = "/gateway/bot: %s; next try in %.0f s or later"
        say(logging.WARNING, text, describe(error), pause, extra=fields)

    async def _has_token(self) -> bool:
        """Whether there is a token; a failure is logged where the token is fetched."""
        try:
            await self._api.tokens.get()
        except NO_ANSWER:
            return False
        return True

    def _learn(self, answer: Any) -> None:
        """Take QQ's answer; a limit that it leaves out is no limit."""
        fields = answer if isinstance(answer, Mapping) else {}
        url, shards = fields.get("url"), count(fields.get("shards"))
        if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
            raise ValueError("the answer has no gateway address")
        if not self._is_safe(url):
            raise ValueError(
                f"the API was reached over TLS but names a gateway without TLS: {shown(url)}; "
                "it gets no token"
            )
        if shards is not None and shards > MAX_SHARDS:
            raise ValueError(f"QQ suggests {shards} shards, but at most {MAX_SHARDS} are possible")
        self._url, self._shards, self._doubtful = url, shards, False
        if shards is not None and self._running not in (None, shards):
            text = "QQ suggests %d shards; this bot keeps its %d, whose session it resumed"
            extra = {"qqbot_reason": "shards", "qqbot_app": self._api.app_id}
            say(logging.INFO, text, shards, self._running, extra=extra)
        self.pace.learn(fields.get("session_start_limit"))

    def _is_safe(self, url: str) -> bool:
        return url.startswith("wss://") or not self._api.base.startswith("https://")

    def _is_qq(self, url: str) -> bool:
        """Whether a token may go to an address from a record, which others may have written."""
        try:
            host, own = urlsplit(url).hostname or "", urlsplit(self._api.base).hostname or ""
        except ValueError:
            return False
        return self._is_safe(url) and (host == own or host.endswith(_QQ))
