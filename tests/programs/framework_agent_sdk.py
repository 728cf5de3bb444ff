"""A bot on qqbot-agent-sdk; BUILD is `stock`, `remembered`, or `queue remembered answered`."""

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

    async def answer(data: dict[str, Any], verb: str = "") -> None:
        user, message_id = data["author"]["user_openid"], data["id"]
        content = f"{verb} {data['content']}".strip()
        await work(content, lambda text: api.send_text("c2c", user, text, reply_to=message_id))

    async def on_message(kind: str, data: dict[str, Any]) -> None:
        if "queue" in BUILD:  # as a program that answers later
            task = asyncio.create_task(answer(data, "reply"))
            running.add(task)
            task.add_done_callback(running.discard)
            return
        await answer(data)

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
    api, callbacks, _ = make()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with httpx.AsyncClient() as http, AsyncSessionStore(SESSIONS) as store:
        api.setup(http)
        if "remembered" in BUILD:
            from qqbot_session.integrations.agent_sdk import remember

            until = "answered" if "answered" in BUILD else "handled"
            callbacks = await remember(callbacks, store, app_id=APP_ID, until=until)
        socket = QQWebSocket(callbacks)
        socket.start(await api.get_gateway_url(), loop)
        await stop.wait()
        await socket.async_stop()
        if "remembered" in BUILD:
            from qqbot_session.integrations.agent_sdk import drain

            await drain(callbacks)


if __name__ == "__main__":
    asyncio.run(main())
