"""What the example bots share: QQ's two HTTP calls, concurrent handlers, and the command line.

Sources: bot-docs, api-use.md (token) and openapi/wss/url_get.md (gateway).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp

from qqbot_session import AsyncSessionStore
from qqbot_session.gateway import Dispatch, GatewaySession
from qqbot_session.testing import LocalGateway

INTENTS = 1 << 25  # group and C2C messages
SHARD = (0, 1)


@dataclass
class Service:
    """QQ's HTTP endpoints for one bot. Tokens stay in memory."""

    app_id: str
    secret: str = field(repr=False)
    api_url: str = "https://api.sgroup.qq.com"
    token_url: str = "https://bots.qq.com/app/getAppAccessToken"
    _token: str = field(default="", repr=False)
    _expires: float = 0.0  # seconds, `time.monotonic`
    _socket_url: str = ""

    @property
    def account_id(self) -> str:
        """One account per shard."""
        return f"{self.app_id}-{SHARD[0]}-{SHARD[1]}"

    async def token(self) -> str:
        """Return an access token, a new one in the last minute of the old one's life."""
        if time.monotonic() >= self._expires:
            body = {"appId": self.app_id, "clientSecret": self.secret}
            async with aiohttp.ClientSession() as http, http.post(self.token_url, json=body) as r:
                answer: dict[str, Any] = await r.json(content_type=None)
            if "access_token" not in answer:
                raise SystemExit(f"no access token: {answer.get('message', answer)}")
            self._token = answer["access_token"]
            self._expires = time.monotonic() + int(answer["expires_in"]) - 60
        return self._token

    def forget_token(self) -> None:
        self._expires = 0.0

    async def socket_url(self) -> str:
        """Return the gateway's address, asked for once: the service limits that call."""
        if not self._socket_url:
            headers = {"Authorization": f"QQBot {await self.token()}"}
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                http.get(f"{self.api_url}/gateway", raise_for_status=True) as r,
            ):
                self._socket_url = (await r.json(content_type=None))["url"]
        return self._socket_url


async def open_gateway(service: Service, store: AsyncSessionStore) -> GatewaySession:
    """Return the bot's gateway session, with what the store remembers of it."""
    state = await store.load(
        service.account_id, app_id=service.app_id, shard=SHARD, intents=INTENTS
    )
    return GatewaySession(
        service.account_id, app_id=service.app_id, intents=INTENTS, shard=SHARD, resume=state
    )


async def print_message(event: Dispatch) -> None:
    """Be the bot's work: take a while, and say what came."""
    await asyncio.sleep(random.uniform(0, 0.3))
    content = event.data.get("content", "") if isinstance(event.data, dict) else ""
    print(f"handled seq={event.seq} replayed={event.replayed} {event.type} {content!r}", flush=True)


class Handlers:
    """Handlers that run concurrently; each settles its event when it ends well."""

    def __init__(self, store: AsyncSessionStore, gateway: GatewaySession) -> None:
        self._store = store
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, event: Dispatch) -> None:
        task = asyncio.create_task(self._handle(event), name=f"handler:{event.seq}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, seconds: float = 5.0) -> None:
        """Give those under way some seconds; what is not settled will be delivered again."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await self.record()

    async def record(self) -> None:
        """Keep what is settled now; returns without suspending."""
        await self._store.record(self._gateway)

    async def _handle(self, event: Dispatch) -> None:
        try:
            with self._gateway.handling(event):
                await print_message(event)
        except Exception:
            logging.exception("the handler of %s failed", event.type)
        await self.record()


def say_handshake(payload: dict[str, Any]) -> dict[str, Any]:
    """Print which handshake it is, and return it."""
    resume = payload["op"] == 6
    print(f"resume from seq={payload['d']['seq']}" if resume else "identify", flush=True)
    return payload


async def stop_on_sigterm(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` until SIGTERM or Ctrl-C, which cancel it, so that it can end in order."""
    task = asyncio.ensure_future(main())
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def emit_message(local: LocalGateway, number: int) -> None:
    """Give the bot one event with the documented shape, from a group or from a friend."""
    if number % 3 == 0:
        data = local.group_at_message(f"message {number}")
        await local.emit("GROUP_AT_MESSAGE_CREATE", data)
    else:
        await local.emit("C2C_MESSAGE_CREATE", local.c2c_message(f"message {number}"))


async def feed(local: LocalGateway) -> None:
    """Send 30 events, drop the line once, and end the bot with SIGTERM."""
    await local.wait_for(lambda local: local.identifies)
    for number in range(1, 31):
        if number == 10:
            print("-- the line drops")
            await local.drop()
        await emit_message(local, number)
        await asyncio.sleep(0.15)
    print(f"-- SIGTERM after {len(local.identifies)} Identify, {len(local.resumes)} Resume")
    os.kill(os.getpid(), signal.SIGTERM)


def live_service() -> Service:
    """Return the real service for the credentials in the environment."""
    app_id, secret = os.environ.get("QQBOT_APP_ID"), os.environ.get("QQBOT_SECRET")
    if not app_id or not secret:
        raise SystemExit("--live needs QQBOT_APP_ID and QQBOT_SECRET")
    return Service(app_id, secret)


Bot: TypeAlias = Callable[[Service, str], Awaitable[None]]


async def run_offline(bot: Bot, directory: str) -> None:
    """Run the bot against a gateway on localhost."""
    async with LocalGateway(heartbeat_interval=1.0) as local:
        feeding = asyncio.create_task(feed(local))
        try:
            await bot(
                Service(local.app_id, local.client_secret, local.api_url, local.token_url),
                directory,
            )
        finally:
            feeding.cancel()


def run_example(description: str, bot: Bot) -> None:
    """Run a bot at QQ with `--live`, else against a gateway on localhost."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--live", action="store_true", help="QQBOT_APP_ID and QQBOT_SECRET at QQ")
    parser.add_argument("--sessions", help="the store's directory; offline, a temporary one")
    options = parser.parse_args()

    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as temporary:
        if options.live:
            service = live_service()
            asyncio.run(stop_on_sigterm(lambda: bot(service, options.sessions or "sessions")))
        else:
            directory = options.sessions or temporary
            asyncio.run(stop_on_sigterm(lambda: run_offline(bot, directory)))
