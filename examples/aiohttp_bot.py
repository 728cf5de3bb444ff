"""A QQ bot on aiohttp whose session survives drops, restarts and kills.

Offline by default, against a gateway on localhost; `--live` with `QQBOT_APP_ID` and
`QQBOT_SECRET` in the environment runs it at QQ.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
from _common import Handlers, Service, open_gateway, run_example, say_handshake

from qqbot_session import AsyncSessionStore
from qqbot_session.gateway import (
    Connection,
    Dispatch,
    HeartbeatRequest,
    Hello,
    InvalidSession,
    Next,
    Reconnect,
    Resumed,
)


async def bot(service: Service, directory: str) -> None:
    """Keep one connection up until cancelled, or until QQ says there is no point."""
    async with AsyncSessionStore(directory) as store, aiohttp.ClientSession() as http:
        gateway = await open_gateway(service, store)
        handlers = Handlers(store, gateway)
        try:
            while True:
                connection = gateway.connect()
                code = None
                try:
                    ws = await http.ws_connect(await service.socket_url())
                    try:
                        await read(ws, connection, service, handlers)
                    finally:
                        await ws.close(code=4000)  # 1000 might end the session
                    code = ws.close_code
                except (aiohttp.ClientError, OSError) as error:
                    print(f"no connection: {error!r}", flush=True)
                rule = connection.closed(code)
                await store.record(gateway)
                print(f"closed with {code}: {rule.meaning} next: {rule.next.value}", flush=True)
                if rule.next is Next.STOP:
                    raise ConnectionRefusedError(rule.meaning)
                if rule.refresh_token:
                    service.forget_token()
                await asyncio.sleep(rule.wait)
        finally:
            await handlers.finish()


async def read(
    ws: aiohttp.ClientWebSocketResponse,
    connection: Connection,
    service: Service,
    handlers: Handlers,
) -> None:
    """Serve one socket until it ends."""
    beating: asyncio.Task[None] | None = None
    try:
        async for message in ws:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            event = connection.receive(message.json(), time.time())
            match event:
                case Hello():
                    payload = connection.handshake(await service.token(), time.time())
                    await ws.send_json(say_handshake(payload))
                    beating = asyncio.create_task(beat(ws, connection, event.heartbeat_interval))
                case Dispatch(already_handled=False):
                    handlers.start(event)
                case HeartbeatRequest():
                    await ws.send_json(connection.heartbeat())
                case Resumed():
                    print("resumed", flush=True)
                case Reconnect() | InvalidSession():
                    break
            await handlers.record()
    finally:
        if beating is not None:
            beating.cancel()


async def beat(
    ws: aiohttp.ClientWebSocketResponse, connection: Connection, interval: float
) -> None:
    """Send heartbeats, and end the line when one was not acknowledged."""
    while connection.acknowledged:
        await ws.send_json(connection.heartbeat())
        await asyncio.sleep(interval)
    await ws.close(code=4000)


if __name__ == "__main__":
    run_example(__doc__ or "", bot)
