"""One WebSocket connection: what goes out, in order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp import web

from .payloads import dump
from .records import Client, Party
from .settings import Settings, Shard

GOODBYE = 1.0  # seconds a client has to answer a close frame
_MINUTE = 60.0
_POLL = 0.05  # seconds between looks whether somebody who is left waiting is gone

_log = logging.getLogger("qqbot_session.testing")
_DATA = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})


class Carried(Protocol):
    """What a line knows about the session that it carries."""

    id: str
    shard: Shard

    def leave(self, line: Line, /) -> None:
        """Go offline if this line carries the session."""
        ...


@dataclass(frozen=True, slots=True)
class _Frame:
    data: str | bytes
    on_sent: Callable[[], object]
    due: float


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str
    due: float


class Line:
    """The request's own task writes; it owns the one that reads, and the timers."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        client: Client,
        settings: Settings,
        changed: Callable[[], object],
    ) -> None:
        self.ws = ws
        self.transport = transport
        self.client = client
        self.session: Carried | None = None
        self.farewell: int | None = None  # the answer to the client's close; None = its own code
        self.closing = False
        self.frozen = False
        self._settings = settings
        self._changed = changed
        self._outbox: asyncio.Queue[_Frame | _Close | None] = asyncio.Queue()
        self._pushed = self._written = 0
        self._payloads: deque[float] = deque()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def ended(self) -> bool:
        return self.client.closed_at is not None

    def push(
        self,
        frame: Mapping[str, object] | str | bytes,
        on_sent: Callable[[], object] = lambda: None,
    ) -> Callable[[], bool]:
        """Queue a frame; return a function that tells whether it is sent, or never will be."""
        if self.closing or self.frozen:
            return lambda: True
        data = dump(frame) if isinstance(frame, Mapping) else frame
        self._outbox.put_nowait(_Frame(data, on_sent, self._due()))
        self._pushed += 1
        ticket = self._pushed
        return lambda: self._written >= ticket or self.ended or self.frozen

    def close(self, code: int, reason: str = "") -> None:
        """Close once the queue is sent; cut off a client that does not let that happen."""
        if self.closing:
            return
        self.detach()
        if not self.frozen:
            self._outbox.put_nowait(_Close(code, reason, self._due()))
            self.later("cut off", self._settings.latency + GOODBYE, self.drop)

    def drop(self) -> None:
        self.detach()
        self._end(None, "gateway")
        self.transport.abort()

    def freeze(self) -> None:
        """Send nothing any more, not even a close frame, and hear nothing."""
        self.frozen = True
        self._changed()

    def detach(self) -> None:
        """Take the session off the line for good."""
        self.closing = True
        self.release()

    def release(self) -> None:
        """Take the session offline; the line stays and may Identify again."""
        session, self.session = self.session, None
        if session is not None:
            session.leave(self)

    def later(self, name: str, delay: float, call: Callable[..., object], *args: object) -> None:
        """Call once after `delay` seconds, instead of the earlier call of that name."""
        if earlier := self._timers.get(name):
            earlier.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(delay, call, *args)

    def floods(self) -> bool:
        """Count a payload of the client, and return whether it is one too many in a minute."""
        limit, now = self._settings.payload_rate, time.monotonic()
        if limit is None:
            return False
        self._payloads.append(now)
        while self._payloads[0] <= now - _MINUTE:
            self._payloads.popleft()
        return len(self._payloads) > limit

    async def run(self, receive: Callable[[str | bytes], object]) -> None:
        name = f"LocalGateway reader {self.client.number}"
        reader = asyncio.create_task(self._read(receive), name=name)
        reader.add_done_callback(lambda _: self._outbox.put_nowait(None))
        try:
            farewell = await self._write()
            await _stop(reader)
            if farewell is not None:
                self._end(farewell.code, "gateway")
                await self.ws.close(code=farewell.code, message=farewell.reason.encode())
        finally:
            await _stop(reader)
            self.detach()
            self._end(None, "client")
            for timer in self._timers.values():
                timer.cancel()
        if not reader.cancelled():
            reader.result()

    def _due(self) -> float:
        return time.monotonic() + self._settings.latency

    async def _read(self, receive: Callable[[str | bytes], object]) -> None:
        while (message := await self.ws.receive()).type not in _LAST:
            if self.frozen:
                continue
            if message.type in _DATA:
                receive(message.data)
            elif message.type is aiohttp.WSMsgType.PING:
                await self.ws.pong(message.data)
        if self.frozen:
            await until_closing(self.transport)
        elif message.type is aiohttp.WSMsgType.CLOSE:
            self._answer_close(int(message.data or 1005))  # 1005: a close frame without a code

    def _answer_close(self, code: int) -> None:
        self.detach()
        self._end(code, "client")
        self.later("cut off", self._settings.latency + GOODBYE, self.drop)
        while not self._outbox.empty():
            self._outbox.get_nowait()
        answer = 1000 if code == 1005 else code
        self._outbox.put_nowait(_Close(self.farewell or answer, "", self._due()))

    async def _write(self) -> _Close | None:
        while (item := await self._outbox.get()) is not None:
            if (wait := item.due - time.monotonic()) > 0 and not self.frozen:
                await asyncio.sleep(wait)
            if self.frozen:
                continue
            if isinstance(item, _Close):
                return item
            if not await self._send(item):
                return None
        return None

    async def _send(self, frame: _Frame) -> bool:
        """Return whether the peer was still there."""
        send = self.ws.send_str if isinstance(frame.data, str) else self.ws.send_bytes
        try:
            await send(frame.data)  # type: ignore[arg-type]
        except (ConnectionError, aiohttp.ClientError):
            return False
        if self.transport.is_closing():  # a send that an abort cut short does not raise
            return False
        self._written += 1
        frame.on_sent()
        self._changed()
        return True

    def _end(self, code: int | None, by: Party) -> None:
        if not self.ended:
            self.client.closed_at = time.monotonic()
            self.client.close_code, self.client.closed_by = code, by
            _log.debug("client %d: closed by the %s, code %s", self.client.number, by, code)
            self._changed()


_LAST = frozenset(
    {
        aiohttp.WSMsgType.CLOSE,
        aiohttp.WSMsgType.CLOSING,
        aiohttp.WSMsgType.CLOSED,
        aiohttp.WSMsgType.ERROR,
    }
)


async def until_closing(transport: asyncio.Transport) -> None:
    while not transport.is_closing():  # noqa: ASYNC110  (aiohttp tells nobody)
        await asyncio.sleep(_POLL)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
