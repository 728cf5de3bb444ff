"""A bot with a loop of its own, on the pure connection; `bot.py` does the same in fewer lines.

At QQ: set `QQBOT_APP_ID` and `QQBOT_SECRET`. On this machine: run `python -m qqbot_session.testing`
beside it, and set the four variables that it prints.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable

import aiohttp

from qqbot_session import AsyncSessionStore, GatewayProtocolError
from qqbot_session.gateway import Connection, Dispatch, GatewaySession, Next
from qqbot_session.shard import open_gateway

DATA = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)


async def run_own_loop(
    store: AsyncSessionStore,
    gateway: GatewaySession,
    open_socket: Callable[[], Awaitable[aiohttp.ClientWebSocketResponse]],
    get_token: Callable[[bool], Awaitable[str]],  # a fresh one if it is given True
    handle: Callable[[Dispatch], Awaitable[object]],
) -> None:
    epoch = time.time() - time.monotonic()  # dates a clock that nobody sets
    handlers: set[asyncio.Task[None]] = set()
    fresh = False

    def now() -> float:
        return epoch + time.monotonic()

    async def work(event: Dispatch) -> None:
        try:
            with gateway.handling(event):  # handled when it returns or raises
                await handle(event)
        except Exception:
            logging.exception("the handler of %s failed", event.type)
        store.record_nowait(gateway)

    def take(connection: Connection, frame: str | bytes) -> None:
        try:
            event = connection.receive(frame, now())
        except GatewayProtocolError as error:
            logging.warning("a frame was skipped: %s", error)
            return
        if isinstance(event, Dispatch) and not event.already_handled:
            handlers.add(task := asyncio.create_task(work(event)))  # reading waits for no handler
            task.add_done_callback(handlers.discard)
        store.record_nowait(gateway)  # a mark: the state is asked for when it is written

    async def live(connection: Connection, ws: aiohttp.ClientWebSocketResponse) -> None:
        while connection.close_with is None:
            for frame in connection.frames_to_send():
                await ws.send_str(frame)
            try:
                message = await ws.receive(max(0.001, (connection.get_timer() or 0) - now()))
            except TimeoutError:
                connection.handle_timer(now())
                continue
            if message.type not in DATA:
                return
            take(connection, message.data)

    try:
        while True:
            connection, code, ws = gateway.connect(), None, None
            try:
                async with asyncio.timeout(20):
                    token = await get_token(fresh)
                    ws = await open_socket()
                connection.opened(token, now())
                await live(connection, ws)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                logging.warning("the line broke: %r", error)
            finally:
                if ws is not None:
                    await ws.close(code=4000)  # 1000 might end the session
                    code = ws.close_code
            rule = connection.closed(code)
            store.record_nowait(gateway)
            logging.info("%s Next: %s in %.1f s", rule.meaning, rule.next.value, rule.wait)
            if rule.next is Next.STOP:
                raise ConnectionRefusedError(rule.meaning)
            fresh = rule.refresh_token or (fresh and ws is None)
            await asyncio.sleep(rule.wait)
    finally:
        try:
            if handlers:  # what does not end in time is not handled, and comes again
                await asyncio.wait(handlers, timeout=5)
        finally:  # also when a second signal ends the wait
            for task in handlers:
                task.cancel()
            if handlers:  # the store must stay open until they have ended
                await asyncio.wait(handlers, timeout=2)


class QQ:
    """The two HTTP calls that a loop needs (bot-docs, api-use.md and openapi/wss/url_get.md)."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.app_id, self.secret = os.environ["QQBOT_APP_ID"], os.environ["QQBOT_SECRET"]
        self.api_url = os.environ.get("QQBOT_API_URL", "https://api.bot.qq.com")
        usual = "https://api.bot.qq.com/app/getAppAccessToken"
        self.token_url = os.environ.get("QQBOT_TOKEN_URL", usual)
        self.token, self.renew_at, self.ws_url = "", 0.0, ""

    async def get_token(self, fresh: bool = False) -> str:
        if fresh or time.monotonic() >= self.renew_at:
            body = {"appId": self.app_id, "clientSecret": self.secret}
            async with self.http.post(self.token_url, json=body) as response:
                answer = await response.json(content_type=None)
            if "access_token" not in answer:
                raise OSError(f"no access token: {answer}")
            self.token = answer["access_token"]
            self.renew_at = time.monotonic() + int(answer["expires_in"]) - 60
        return self.token

    async def open_socket(self) -> aiohttp.ClientWebSocketResponse:
        if not self.ws_url:  # asked for seldom: QQ limits that call
            headers = {"Authorization": f"QQBot {await self.get_token()}"}
            async with self.http.get(f"{self.api_url}/gateway", headers=headers) as response:
                response.raise_for_status()
                self.ws_url = (await response.json(content_type=None))["url"]
        url, self.ws_url = self.ws_url, ""  # asked for again if this fails: it may have moved
        ws = await self.http.ws_connect(url)
        self.ws_url = url
        return ws

    async def answer(self, event: Dispatch) -> None:
        if event.type == "C2C_MESSAGE_CREATE":
            url = f"{self.api_url}/v2/users/{event.data['author']['user_openid']}/messages"
            body = {"msg_type": 0, "msg_id": event.data["id"], "content": event.data["content"]}
            headers = {"Authorization": f"QQBot {await self.get_token()}"}
            async with self.http.post(url, json=body, headers=headers) as response:
                answer = await response.json(content_type=None)
                if answer.get("code", 0) not in (0, 40054005):  # the latter: QQ has it already
                    raise OSError(f"not answered: {answer}")


async def bot() -> None:
    async with AsyncSessionStore("sessions") as store, aiohttp.ClientSession() as http:
        qq = QQ(http)
        gateway = await open_gateway(store, qq.app_id, intents=1 << 25)
        await run_own_loop(store, gateway, qq.open_socket, qq.get_token, qq.answer)


async def main() -> None:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(bot())
    for number in (signal.SIGINT, signal.SIGTERM):  # signal.signal works on Windows, too
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(task.cancel) and None)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
