"""A bot on whatever distribution is imported as `botpy`; BUILD says how it is built."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import time
from contextlib import AbstractContextManager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import botpy
from botpy import robot
from botpy.gateway import BotWebSocket
from botpy.http import Route
from framework_work import API, APP_ID, BUILD, SECRET, SESSIONS, TOKEN_URL, say, work


def go_to_localhost() -> dict[str, Any]:
    """Return the arguments that lead to QQ on localhost; older versions have none for it."""
    takes = inspect.signature(botpy.Client).parameters
    if "token_base_url" in takes:
        wanted = {"base_url": API, "token_base_url": API, "rate_limit": False}
        return {name: value for name, value in wanted.items() if name in takes}
    import aiohttp

    async def update_access_token(self: Any) -> None:
        body = {"appId": self.app_id, "clientSecret": self.secret}
        async with aiohttp.ClientSession() as http, http.post(TOKEN_URL, json=body) as answer:
            found = await answer.json()
        self.access_token = found["access_token"]
        self.expires_in = int(found["expires_in"]) + int(time.time())

    robot.Token.update_access_token = update_access_token
    Route.SCHEME, Route.DOMAIN = urlsplit(API)[:2]
    return {}


class Bot(botpy.Client):  # type: ignore[misc]
    async def on_ready(self) -> None:
        say("ready", name=self.robot.name)

    async def on_resumed(self) -> None:
        say("resumed")

    async def on_error(self, event_method: str, *args: Any, **kwargs: Any) -> None:
        say("error", method=event_method)

    async def on_c2c_message_create(self, message: Any) -> None:
        await work(message.content, lambda text: message.reply(content=text))


class WithQueue(Bot):
    """The shape of AstrBot's client: sockets and a `bot_connect` of its own, and a queue."""

    class Socket(BotWebSocket):  # type: ignore[misc]
        async def close(self) -> None:
            self._can_reconnect = False
            if self._conn is not None and not self._conn.closed:
                await self._conn.close()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._active_websockets: set[WithQueue.Socket] = set()
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def on_c2c_message_create(self, message: Any) -> None:
        await super().on_c2c_message_create(message)
        self.queue.put_nowait(message)

    async def bot_connect(self, session: Any) -> None:
        socket = self.Socket(session, self._connection)
        self._active_websockets.add(socket)
        try:
            await socket.ws_connect()
        except Exception as error:  # noqa: BLE001 - as theirs
            if not self.is_closed():
                await socket.on_error(error)
        finally:
            self._active_websockets.discard(socket)

    async def live(self, stop: asyncio.Event) -> None:
        running = asyncio.create_task(self.start(appid=APP_ID, secret=SECRET))
        await stop.wait()
        await asyncio.gather(*(socket.close() for socket in self._active_websockets))
        await self.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class WithPipeline(Bot):
    """An application that answers later: its handler returns at once, and a worker takes over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def on_c2c_message_create(self, message: Any) -> None:
        held: AbstractContextManager[Any] = contextlib.nullcontext()
        if "hold" in BUILD:
            from qqbot_session.answers import hold

            held = hold()
        self.queue.put_nowait((message, held))

    async def answer(self, message: Any, held: AbstractContextManager[Any]) -> None:
        with held:
            await work(f"reply {message.content}", lambda text: message.reply(content=text))

    async def take_over(self) -> None:
        async with asyncio.TaskGroup() as answering:
            while True:
                answering.create_task(self.answer(*await self.queue.get()))

    async def live(self, stop: asyncio.Event) -> None:
        worker = asyncio.create_task(self.take_over())
        running = asyncio.create_task(self.start(appid=APP_ID, secret=SECRET))
        await stop.wait()
        await self.close()
        for task in (running, worker):
            task.cancel()
        await asyncio.gather(running, worker, return_exceptions=True)


class WithBackoff(Bot):
    """The shape of nanobot's client: waits of its own in `bot_connect`, `start` in a loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ws_backoff: dict[int, int] = {}

    async def bot_connect(self, session: Any) -> None:
        await asyncio.sleep(self._ws_backoff.pop(id(session), 0))
        try:
            await BotWebSocket(session, self._connection).ws_connect()
        except Exception:  # noqa: BLE001 - as theirs
            self._ws_backoff[id(session)] = 1
            self._connection.add(session)

    async def live(self, stop: asyncio.Event) -> None:
        running = asyncio.create_task(self.start_again_and_again(stop))
        await stop.wait()
        with contextlib.suppress(Exception):
            await self.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def start_again_and_again(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                await self.start(appid=APP_ID, secret=SECRET)
            await asyncio.sleep(1)


class Started(Bot):
    """A program that only awaits `start`, or leaves it in the background."""

    async def live(self, stop: asyncio.Event) -> None:
        if "background" in BUILD:
            running = asyncio.create_task(self.start(appid=APP_ID, secret=SECRET))
            await asyncio.Event().wait()
            running.cancel()
        else:
            await self.start(appid=APP_ID, secret=SECRET)
            await self.close()


Shape: TypeAlias = Started | WithQueue | WithPipeline | WithBackoff


async def until_sigterm(client: Shape) -> None:
    stop = asyncio.Event()
    if not isinstance(client, Started):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await client.live(stop)


async def main(kind: type[Shape], arguments: dict[str, Any]) -> None:
    """Make the client on the loop that runs, as both of those programs do."""
    client = kind(**arguments)
    if "remembered" in BUILD:
        from qqbot_session.integrations.botpy import remember

        sessions: Any = SESSIONS
        if "store" in BUILD:
            from qqbot_session import AsyncSessionStore

            sessions = AsyncSessionStore(SESSIONS)
        remember(client, sessions, until="answered" if "answered" in BUILD else "handled")
    await until_sigterm(client)


def build() -> None:
    arguments = {
        "intents": botpy.Intents(public_messages=True),
        "bot_log": None,
        "ext_handlers": False,
        **go_to_localhost(),
    }
    shapes = {
        "started": Started,
        "queue": WithQueue,
        "pipeline": WithPipeline,
        "backoff": WithBackoff,
    }
    if shape := shapes.get(BUILD.partition(" ")[0]):
        asyncio.run(main(shape, arguments))
        return
    kind: type[botpy.Client] = Bot
    if BUILD == "mixin":
        from qqbot_session.integrations.botpy import SessionMixin

        kind = type("MixedBot", (SessionMixin, Bot), {})
        arguments["sessions"] = SESSIONS
    elif BUILD == "their store":
        from botpy.protocol import JsonFileSessionStore

        arguments["session_store"] = JsonFileSessionStore(SESSIONS)
    elif BUILD == "our store":
        from qqbot_session.integrations.botpy_sdk_store import SessionStore

        arguments["session_store"] = SessionStore(SESSIONS)
    client = kind(**arguments)
    if BUILD == "remembered":
        from qqbot_session.integrations.botpy import remember

        remember(client, SESSIONS)
    client.run(appid=APP_ID, secret=SECRET)


if __name__ == "__main__":
    build()
