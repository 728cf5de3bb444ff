#!/usr/bin/env bash
# satori-python-adapter-qq 0.6.2 resumes only when the gateway asks for it by op 7. Every other end of a line, 4009 ("expired:
# reconnect and resume") and a dropped connection alike, makes it forget the session: its reading loop takes aiohttp's
# quiet end of the iteration for the end of the session, and the branch that knows a close frame is never reached. So
# each costs one of the day's session starts, and the events of the five seconds until it is back.
# Seen on Python 3.11.7: "op 7: Resume; 4009: Identify; dropped: Identify".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q satori-python-adapter-qq==0.6.2 satori-python-server==1.3.11 aiohttp==3.14.5
cd "$folder"
venv/bin/python - <<'P'
import asyncio, logging, os, socket

from aiohttp import web
from loguru import logger
from satori.adapters.qq.main import *  # noqa: F403
from satori.adapters.qq.websocket import QQBotWebsocketAdapter, QQBotWebsocketConfig
from satori.server import Server

logger.remove()
logging.disable(logging.CRITICAL)
ENDS = ["op 7", "4009", "dropped", "the last"]
seen = []


async def main():
    done = asyncio.Event()

    async def gateway(request):
        line = web.WebSocketResponse()
        await line.prepare(request)
        await line.send_json({"op": 10, "d": {"heartbeat_interval": 45000}})
        first = await line.receive_json()
        ready = {"session_id": "x", "user": {"id": "1", "username": "b"}, "shard": [0, 1]}
        if first["op"] == 2:
            await line.send_json({"op": 0, "s": 1, "t": "READY", "d": ready})
        else:
            await line.send_json({"op": 0, "s": 2, "t": "RESUMED", "d": ""})
        seen.append({2: "Identify", 6: "Resume"}[first["op"]])
        await asyncio.sleep(1)
        end = ENDS[len(seen) - 1]
        if end == "op 7":
            await line.send_json({"op": 7})
            await line.receive()
        elif end == "4009":
            await line.close(code=4009)
        elif end == "dropped":
            request.transport.abort()
        else:
            done.set()
            await asyncio.sleep(5)
        return line

    async def api(request):
        path = request.path
        if path == "/token":
            return web.json_response({"access_token": "t", "expires_in": "7200"})
        if path == "/gateway/bot":
            return web.json_response({"url": f"ws{base[4:]}/line", "shards": 1})
        return web.json_response({"id": "1", "username": "b", "avatar": ""})

    app = web.Application()
    app.router.add_get("/line", gateway)
    app.router.add_route("*", "/{path:.*}", api)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = Server(host="127.0.0.1", port=free.getsockname()[1], token="t")
    config = QQBotWebsocketConfig("1", "secret", api_base=base, auth_base=f"{base}/token")
    server.apply(QQBotWebsocketAdapter(config))
    running = asyncio.create_task(server.run_async())
    await asyncio.wait_for(done.wait(), 90)
    print("; ".join(f"{end}: {answer}" for end, answer in zip(ENDS, seen[1:])), flush=True)
    holds = seen == ["Identify", "Resume", "Identify", "Identify"]
    if not holds:
        print("the finding no longer holds", flush=True)
    os._exit(not holds)


asyncio.run(main())
P
