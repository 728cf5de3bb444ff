"""A bot on qqbot-agent-sdk whose session survives a kill.

Offline by default, against QQ on localhost; `--live` with `QQBOT_APP_ID` and `QQBOT_SECRET` in
the environment runs it at QQ.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import Any

if "QQBOT_API" in os.environ:  # the SDK reads where QQ is when it is imported
    os.environ["QQ_API_BASE"] = os.environ["QQBOT_API"]
    os.environ["QQ_TOKEN_URL"] = os.environ["QQBOT_TOKEN_URL"]

import httpx
from _frameworks import run_example
from qqbot_agent_sdk import QQApiClient, QQWebSocket, WSCallbacks

from qqbot_session import AsyncSessionStore
from qqbot_session.integrations.agent_sdk import drain, remember


class Host:
    """A program that lets the SDK call it."""

    def __init__(self, app_id: str, secret: str) -> None:
        self.api = QQApiClient(app_id, secret)
        self.stop = asyncio.Event()

    async def on_message(self, kind: str, data: dict[str, Any]) -> None:
        """Take a while, and answer."""
        await asyncio.sleep(random.uniform(0, 0.3))
        text, user = f"You said {data['content']}", data["author"]["user_openid"]
        await self.api.send_text("c2c", user, text, reply_to=data["id"])
        print(f"answered {data['content']!r}", flush=True)

    def callbacks(self) -> WSCallbacks:
        """Return what the SDK is to call."""
        return WSCallbacks(
            on_message_event=self.on_message,
            on_connected=lambda: print("connected", flush=True),
            on_disconnected=lambda: print("disconnected", flush=True),
            on_fatal_error=lambda code, message: print(f"{code}: {message}", flush=True),
            get_token=self.api.ensure_token_sync,
            get_session=lambda: (None, None),  # ours take the place of these two
            set_session=lambda session_id, seq: None,
            set_heartbeat_interval=lambda seconds: None,
            clear_token=self.api.clear_token,
            fail_pending=lambda reason: None,
            get_gateway_url=self.api.get_gateway_url_sync,
        )


async def live(app_id: str, secret: str) -> None:
    """Run it until SIGTERM or Ctrl-C, and let the handlers end before the store is closed."""
    host, loop = Host(app_id, secret), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop.set)
    sessions = os.environ.get("QQBOT_SESSIONS", "sessions")
    async with httpx.AsyncClient() as http, AsyncSessionStore(sessions) as store:
        host.api.setup(http)
        callbacks = await remember(host.callbacks(), store, app_id=app_id)
        socket = QQWebSocket(callbacks)
        socket.start(await host.api.get_gateway_url(), loop)
        await host.stop.wait()
        await socket.async_stop()
        await drain(callbacks)


def bot(app_id: str, secret: str) -> None:
    """Run it on a loop of its own."""
    asyncio.run(live(app_id, secret))


if __name__ == "__main__":
    run_example(__doc__ or "", bot)
