"""A loop that keeps its session with the store alone: what to call, and when.

It shows the store's part and no more: no pacing, no check for a dead line, one handler at a time.
`ShardRunner` and `examples/own_loop.py` have all that. Set `QQBOT_APP_ID` and `QQBOT_SECRET`; on
this machine, the four variables that `python -m qqbot_session.testing` prints.
"""

import asyncio
import json
import os
import signal
import urllib.request
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from qqbot_session import AsyncSessionStore, SessionState

API = os.environ.get("QQBOT_API_URL") or "https://api.bot.qq.com"
TOKEN = os.environ.get("QQBOT_TOKEN_URL") or f"{API}/app/getAppAccessToken"
ME = os.environ["QQBOT_APP_ID"]  # the record's key
ENDED = {4006, 4007, *range(4900, 4914)}  # closes with which the gateway ends the session


async def handle(frame: dict[str, Any]) -> None:
    print(frame["t"], frame["d"].get("content"), flush=True)


async def live(store: AsyncSessionStore, line: ClientConnection, token: str) -> None:
    hello = json.loads(await line.recv())
    received = await shake_hands(store, line, token)

    async def beat() -> None:
        while True:
            await asyncio.sleep(hello["d"]["heartbeat_interval"] / 1000)
            await line.send(json.dumps({"op": 1, "d": received}))

    beating = asyncio.create_task(beat())
    try:
        async for text in line:
            frame = json.loads(text)
            received = frame.get("s") or received
            if not await take(store, frame):
                return
    finally:
        beating.cancel()


async def shake_hands(store: AsyncSessionStore, line: ClientConnection, token: str) -> int | None:
    state = await store.load(ME)  # for every line anew
    if state is None:
        identify = {"token": token, "intents": 1 << 25, "shard": [0, 1]}
        await line.send(json.dumps({"op": 2, "d": identify}))
        return None
    resume = {"token": token, "session_id": state.session_id, "seq": state.last_seq}
    await line.send(json.dumps({"op": 6, "d": resume}))
    return state.last_seq


async def take(store: AsyncSessionStore, frame: dict[str, Any]) -> bool:
    """Return whether to go on with the line."""
    match frame:
        case {"op": 0, "t": "READY", "s": seq, "d": {"session_id": session_id}}:
            await store.save(SessionState(account_id=ME, session_id=session_id, last_seq=seq))
        case {"op": 0, "t": "RESUMED", "s": seq}:
            await store.update_last_seq(ME, seq)
        case {"op": 0, "s": seq}:
            await handle(frame)  # first handle the event,
            await store.update_last_seq(ME, seq)  # then remember its number
        case {"op": 11}:  # a heartbeat was answered: the session lives, even if nobody says a word
            await store.touch(ME)
        case {"op": 7}:
            return False
        case {"op": 9, "d": resumable}:
            if resumable is not True:
                await store.clear(ME)
            return False
    return True


def ask(url: str, body: dict[str, str] | None = None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Authorization": token}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


async def run() -> None:
    credentials = {"appId": ME, "clientSecret": os.environ["QQBOT_SECRET"]}
    async with AsyncSessionStore("sessions") as store:
        while True:
            answer = await asyncio.to_thread(ask, TOKEN, credentials)
            token = f"QQBot {answer['access_token']}"
            gateway = await asyncio.to_thread(ask, f"{API}/gateway", None, token)
            async with connect(gateway["url"]) as line:
                try:
                    await live(store, line, token)
                except ConnectionClosed as end:
                    if end.rcvd is not None and end.rcvd.code in ENDED:
                        await store.clear(ME)
                finally:
                    await line.close(4000)  # 1000 might end the session
            await asyncio.sleep(1)


async def main() -> None:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(run())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(task.cancel))
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


if __name__ == "__main__":
    asyncio.run(main())
