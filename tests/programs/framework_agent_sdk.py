"""A bot on qqbot-agent-sdk; BUILD is `stock` or `remembered`."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
from framework_work import APP_ID, BUILD, SECRET, SESSIONS, say, work
from qqbot_agent_sdk import QQApiClient, QQWebSocket, WSCallbacks

from qqbot_session import AsyncSessionStore


class State:
    """What a host keeps in memory, as the SDK's own examples do."""

    session: tuple[str | None, int | None] = (None, None)


def make() -> tuple[QQApiClient, WSCallbacks, set[asyncio.Task[Any]]]:
    """Return the API, the callbacks, and where the handlers that run are kept."""
    api, state, running = QQApiClient(APP_ID, SECRET), State(), set()

    async def on_message(kind: str, data: dict[str, Any]) -> None:
        task = asyncio.current_task()
        running.add(task)
        try:
            user = data["author"]["user_openid"]
            await work(data["content"], lambda text: api.send_text("c2c", user, text))
        finally:
            running.discard(task)

    callbacks = WSCallbacks(
        on_message_event=on_message,
        on_connected=lambda: say("ready"),
        on_disconnected=lambda: None,
        on_fatal_error=lambda code, message: say("fatal", code=code),
        get_token=api.ensure_token_sync,
        get_session=lambda: state.session,
        set_session=lambda *session: setattr(state, "session", session),
        set_heartbeat_interval=lambda seconds: None,
        clear_token=api.clear_token,
        fail_pending=lambda reason: None,
        get_gateway_url=api.get_gateway_url_sync,
    )
    return api, callbacks, running


async def main() -> None:
    api, callbacks, running = make()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with httpx.AsyncClient() as http, AsyncSessionStore(SESSIONS) as store:
        api.setup(http)
        if BUILD == "remembered":
            from qqbot_session.integrations.agent_sdk import remember

            callbacks = await remember(callbacks, store, app_id=APP_ID)
        socket = QQWebSocket(callbacks)
        socket.start(await api.get_gateway_url(), loop)
        await stop.wait()
        await socket.async_stop()
        if running:
            await asyncio.wait(running, timeout=5)


if __name__ == "__main__":
    asyncio.run(main())
