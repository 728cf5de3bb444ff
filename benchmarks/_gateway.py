"""A gateway that does nothing but answer, and what QQ's HTTP API must say for a bot to get there.

It runs in the benchmark's own process, so that its work is in no client's processor time. The lines
of several clients are told apart by the path they connect to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

_HELLO = '{"op":10,"d":{"heartbeat_interval":600000}}'
_READY = '{"op":0,"s":1,"t":"READY","d":{"session_id":"%s","user":{"id":"1","username":"b"}}}'
_BODY = json.dumps(
    {
        "id": "ROBOT1.0_%032d",
        "content": "hello world, this is a message of ordinary length",
        "timestamp": "2026-11-30T18:00:00+08:00",
        "author": {"id": "A" * 32, "user_openid": "A" * 32, "union_openid": "B" * 32},
        "message_scene": {"source": "default"},
        "message_type": 0,
    }
)
_EVENT = '{"op":0,"s":%d,"t":"%s","id":"C2C:%d","d":' + _BODY + "}"
MESSAGE, GO, END = "C2C_MESSAGE_CREATE", "GO", "END"


@dataclass
class Line:
    """An open line and the last number sent on it."""

    socket: web.WebSocketResponse
    seq: int = 0
    up: bool = False

    async def send(self, kind: str, number: int) -> None:
        self.seq += 1
        await self.socket.send_str(_EVENT % (self.seq, kind, number, number))


class Gateway:
    """A gateway on loopback.

    Attributes:
        port: where it listens.
        delay: seconds before each answer to an HTTP call.
        lines: the lines of each client that are open, in the order in which they came.
    """

    def __init__(self) -> None:
        self.port, self.delay = 0, 0.0
        self.lines: defaultdict[str, list[Line]] = defaultdict(list)
        self._news = asyncio.Event()
        self._number = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def all_up(self, client: str, count: int = 1) -> list[Line]:
        """Return the client's lines when so many have a session."""
        while True:
            lines = [line for line in self.lines[client] if line.up]
            if len(lines) >= count:
                return lines
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 60)

    async def none_left(self, client: str) -> None:
        """Wait until all the client's lines have ended."""
        while self.lines[client]:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 60)

    async def tell(self, client: str, kind: str) -> None:
        """Send every line an event of this kind; no event is like any other."""
        for line in self.lines[client]:
            self._number += 1
            await line.send(kind, self._number)

    async def drive(self, client: str, events: int, rate: float | None = None) -> None:
        """Send every line so many messages, so many a second; `None` = as fast as they go."""
        clock = asyncio.get_running_loop().time
        for _ in range(events):
            due = clock() + (0.0 if rate is None else 1 / rate)
            for line in self.lines[client]:
                self._number += 1
                await line.send(MESSAGE, self._number)
                if self._number % 20 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(max(0.0, due - clock()))

    async def _line(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await socket.send_str(_HELLO)
        line = Line(socket)
        lines = self.lines[request.match_info["client"]]
        lines.append(line)
        async for message in socket:
            frame = json.loads(message.data)
            match frame["op"]:
                case 2:
                    line.seq = 1
                    await socket.send_str(_READY % f"{id(line):036}")
                case 6:
                    line.seq = frame["d"]["seq"] + 1
                    await socket.send_str(f'{{"op":0,"s":{line.seq},"t":"RESUMED","d":""}}')
                case 1:
                    await socket.send_str('{"op":11}')
                    continue
            line.up = True
            self._news.set()
        lines.remove(line)
        self._news.set()
        return socket

    async def _http(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.delay)
        limit = {"total": 1000, "remaining": 1000, "reset_after": 86_400_000, "max_concurrency": 1}
        answers = {
            "getAppAccessToken": {"access_token": "token", "expires_in": "7200"},
            "bot": {"url": f"{self.url}/line/bot", "shards": 1, "session_start_limit": limit},
            "gateway": {"url": f"{self.url}/line/bot"},
        }
        answer = answers.get(request.path.rpartition("/")[2], {"id": "1", "username": "bot"})
        text = json.dumps(answer)  # botpy reads this content type alone
        headers = {"Content-Type": "application/json"}
        return web.Response(body=text.encode(), headers=headers)


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    """Serve until the block ends."""
    with contextlib.suppress(ValueError, OSError):  # two descriptors a line, at most
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    here, app = Gateway(), web.Application()
    app.router.add_get("/line/{client}", here._line)
    app.router.add_route("*", "/{path:.*}", here._http)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        here.port = runner.addresses[0][1]
        yield here
    finally:
        await runner.cleanup()
