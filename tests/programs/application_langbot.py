"""LangBot's client for QQ, with a queue behind its handlers, as LangBot has one."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

from langbot.libs.qq_official_api.api import QQOfficialClient


class Logger:
    async def _say(self, text: str) -> None:
        print(text, flush=True)

    info = warning = error = debug = _say


async def answer(client: QQOfficialClient, queue: asyncio.Queue[dict[str, Any]]) -> None:
    while True:
        message = await queue.get()
        await asyncio.sleep(random.uniform(0, float(os.environ["LONGEST"])))
        text = f"answer {message['content'].split()[-1]}"
        user = message["author"]["user_openid"]
        await client.send_private_text_msg(user, text, message["id"])


async def main() -> None:
    client = QQOfficialClient(os.environ["QQ_SECRET"], "", os.environ["QQ_APP"], Logger(), True)
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    workers = [asyncio.create_task(answer(client, queue)) for _ in range(4)]

    async def on_event(kind: str, data: dict[str, Any]) -> None:
        if kind == "C2C_MESSAGE_CREATE":
            queue.put_nowait(data)

    await client.connect_gateway_loop(on_event)
    await asyncio.gather(*workers)


asyncio.run(main())
