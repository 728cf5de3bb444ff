"""A bot in a process of its own, for test_misfortune.py.

It waits for a line on its standard input, so that it can be started before it is needed. What it
does it prints as it does it, one JSON object per line; an event's line is printed before the event
is settled, so that whoever ends the process knows what was handled. On SIGTERM it stops reading,
gives its handlers `--grace` seconds, cancels the rest, records, and closes its store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from typing import Any

import aiohttp

from qqbot_session import AsyncSessionStore
from qqbot_session.gateway import (
    CloseRule,
    Connection,
    Dispatch,
    Event,
    GatewaySession,
    InvalidSession,
    Next,
    Ready,
    Resumed,
)

INTENTS = 1 << 25


def say(what: str, **details: object) -> None:
    line = {"what": what, "at": time.monotonic(), **details}
    print(json.dumps(line), flush=True)


class FailedOnPurpose(Exception):
    pass


class Bot:
    def __init__(
        self, options: argparse.Namespace, store: AsyncSessionStore, http: aiohttp.ClientSession
    ) -> None:
        self.options, self.store, self.http = options, store, http
        self.random = random.Random(options.seed)
        self.gateway: GatewaySession
        self.token = ""
        self.handlers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep one line up until cancelled, or until there is no point."""
        options = self.options
        state = await self.store.load(options.account, app_id=options.app_id, intents=INTENTS)
        self.gateway = GatewaySession(
            options.account,
            app_id=options.app_id,
            intents=INTENTS,
            resume=state,
            failed="keep",
            remember_events=options.remember,
        )
        try:
            while (rule := await self.one_line()).next is not Next.STOP:
                if rule.refresh_token:
                    self.token = ""
                await asyncio.sleep(rule.wait * options.scale)
        finally:
            await self.finish_handlers()
            await self.store.record(self.gateway)

    async def one_line(self) -> CloseRule:
        connection, code = self.gateway.connect(), None
        try:
            ws = await self.http.ws_connect(await self.socket_url())
            try:
                connection.opened(await self.get_token(), time.time())
                await self.read(ws, connection)
            finally:
                await ws.close(code=4000)
            code = ws.close_code
        except (aiohttp.ClientError, OSError):
            pass
        rule = connection.closed(code)
        await self.store.record(self.gateway)
        say("closed", code=code, next=rule.next.value)
        return rule

    async def read(self, ws: aiohttp.ClientWebSocketResponse, connection: Connection) -> None:
        while connection.close_with is None:
            for frame in connection.frames_to_send():
                self.say_handshake(json.loads(frame))
                await ws.send_str(frame)
            due = connection.get_timer()
            try:
                message = await ws.receive(due and max(0.001, due - time.time()))
            except TimeoutError:
                connection.handle_timer(time.time())
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            self.take(connection.receive(message.data, time.time()))
            await self.store.record(self.gateway)

    def say_handshake(self, payload: dict[str, Any]) -> None:
        if payload["op"] == 6:
            say("resume", session_id=payload["d"]["session_id"], seq=payload["d"]["seq"])
        elif payload["op"] == 2:
            say("identify")

    def take(self, event: Event) -> None:
        match event:
            case Ready() | Resumed():
                state = self.gateway.state
                assert state is not None
                what = "ready" if isinstance(event, Ready) else "resumed"
                say(what, connected_at=state.last_connected_at)
            case Dispatch(already_handled=False):
                task = asyncio.create_task(self.handle(event))
                self.handlers.add(task)
                task.add_done_callback(self.handlers.discard)
            case Dispatch(deaths=deaths) if deaths:
                say("let go", content=event.data["content"], seq=event.seq, deaths=deaths)
            case InvalidSession(resumable):
                say("invalid session", d=resumable)

    async def handle(self, event: Dispatch) -> None:
        """Take a random time, then fail or say that it is done."""
        content = event.data["content"]
        with contextlib.suppress(FailedOnPurpose), self.gateway.handling(event):
            await asyncio.sleep(self.random.uniform(0, self.options.longest))
            if self.random.random() < self.options.fail:
                say("failed", content=content, seq=event.seq)
                raise FailedOnPurpose
            say("handled", content=content, seq=event.seq, replayed=event.replayed)
        await self.store.record(self.gateway)

    async def finish_handlers(self) -> None:
        if self.handlers:
            _, late = await asyncio.wait(self.handlers, timeout=self.options.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def get_token(self) -> str:
        if not self.token:
            body = {"appId": self.options.app_id, "clientSecret": self.options.secret}
            async with self.http.post(self.options.token_url, json=body) as answer:
                self.token = (await answer.json())["access_token"]
        return self.token

    async def socket_url(self) -> str:
        """Ask before every connection, so that limited calls and dead tokens are met."""
        headers = {"Authorization": f"QQBot {await self.get_token()}"}
        async with self.http.get(f"{self.options.api_url}/gateway", headers=headers) as answer:
            if answer.status == 401:
                self.token = ""
            answer.raise_for_status()
            url: str = (await answer.json())["url"]
            return url


async def live(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    say("start")
    store = AsyncSessionStore(
        options.directory, debounce=options.debounce, on_write=lambda _: say("write")
    )
    with contextlib.suppress(asyncio.CancelledError):
        async with store, aiohttp.ClientSession() as http:
            await Bot(options, store, http).run()
    say("end")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--api-url", "--token-url", "--app-id", "--secret", "--account", "--directory"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.02, help="seconds a handler takes")
    parser.add_argument("--fail", type=float, default=0.0, help="how likely a handler fails")
    parser.add_argument("--scale", type=float, default=0.002, help="of the close rules' waits")
    parser.add_argument("--debounce", type=float, default=0.02, help="seconds")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds for handlers at SIGTERM")
    parser.add_argument("--remember", type=int, default=0, help="events known by their ids")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    if sys.stdin.readline():
        asyncio.run(live(options))


if __name__ == "__main__":
    main()
