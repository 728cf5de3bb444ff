#!/usr/bin/env bash
# satori-python 1.3.11: the server half keeps the last 100 events for clients that come back, but looks for the number in
# `sequence`, the field of an older protocol. The client half of the same release, like nonebot-adapter-satori 1.3.0,
# sends it as `sn`. So both remember, and nothing is ever sent again: what happened while the client was away is lost.
# Seen on Python 3.11.7: "back with {'token': 't', 'sn': 2}: []" and "back with {'token': 't', 'sequence': 2}: [3, 4, 5]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q satori-python==1.3.11 aiohttp==3.14.5
cd "$folder"
venv/bin/python - <<'P'
import asyncio, os, socket
from datetime import datetime

import aiohttp
from loguru import logger
from satori.const import EventType
from satori.model import Event, Identify, Login, LoginStatus, User
from satori.server import Server

logger.remove()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
server = Server(host="127.0.0.1", port=port, token="t")
login = Login(sn=0, status=LoginStatus.ONLINE, adapter="x", platform="qq", user=User(id="1"))


async def post_three():
    for _ in range(3):
        await server.post(Event(EventType.MESSAGE_CREATED, datetime.now(), login))


async def numbers(body, after_ready=None):
    """Connect as a client does, and return the numbers of the events of one second."""
    got = []
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"http://127.0.0.1:{port}/v1/events") as line:
            await line.send_json({"op": 3, "body": body})
            assert (await line.receive_json())["op"] == 4  # READY
            if after_ready:
                await after_ready()
            try:
                while True:
                    frame = await line.receive_json(timeout=1)
                    got.append(frame["body"]["sn"])
            except asyncio.TimeoutError:
                return got


async def main():
    running = asyncio.create_task(server.run_async())
    while True:
        try:
            assert await numbers({"token": "t"}, post_three) == [0, 1, 2]
            break
        except aiohttp.ClientConnectorError:  # it is still starting
            await asyncio.sleep(0.2)
    await post_three()  # while nobody is connected
    ours = Identify(token="t", sn=2).dump()  # what its own client sends
    old = {"token": "t", "sequence": 2}
    new, former = await numbers(ours), await numbers(old)
    print(f"back with {ours}: {new}")
    print(f"back with {old}: {former}", flush=True)
    holds = (new, former) == ([], [3, 4, 5])
    if not holds:
        print("the finding no longer holds", flush=True)
    os._exit(not holds)


asyncio.run(main())
P
