#!/usr/bin/env bash
# qqbot-openapi 0.1.1: whether a bot resumes depends on whether it has a method `on_ready`. An event without a callback is
# put aside before anybody looks at it, READY among them, and READY is what brings the session id: a bot that has only
# message handlers identifies after each 4009, though the log says that the next connection will resume. An empty
# `on_ready` cures it. Besides, its wait before a new connection doubles with each one and never falls again, however
# well the lines before it lived: from the fifth 4009 on, half an hour apart or not, the bot is away for 30 s each time.
# Seen on Python 3.11.7: "without on_ready: Identify, Identify, Identify", "with on_ready: Identify, Resume, Resume", and
# "seconds away: 2, 4".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qqbot-openapi==0.1.1 aiohttp==3.14.5
cd "$folder"
venv/bin/python - <<'P'
import asyncio, logging, time

from aiohttp import web
from qqbot_openapi import Client, Intents
from qqbot_openapi.connection import ConnectionState, GatewayClient

logging.disable(logging.CRITICAL)


class Quiet(Client):
    async def on_c2c_message_create(self, message):
        pass


class WithOnReady(Quiet):
    async def on_ready(self):
        pass


class Tokens:
    async def get_access_token(self):
        return "t"


async def three_lines(bot):
    """End three lines with 4009, and return how each began and how long the bot was away."""
    began, away, left, done = [], [], None, asyncio.Event()

    async def gateway(request):
        nonlocal left
        if left is not None:
            away.append(round(time.monotonic() - left))
        line = web.WebSocketResponse()
        await line.prepare(request)
        await line.send_json({"op": 10, "d": {"heartbeat_interval": 45000}})
        op = (await line.receive_json())["op"]
        began.append({2: "Identify", 6: "Resume"}[op])
        ready = {"session_id": "x", "user": {"id": "1", "username": "b"}, "shard": [0, 1]}
        answer = {"t": "READY", "d": ready} if op == 2 else {"t": "RESUMED", "d": ""}
        await line.send_json({"op": 0, "s": len(began)} | answer)
        await asyncio.sleep(0.5)
        if len(began) == 3:
            done.set()
        await line.close(code=4009)
        left = time.monotonic()
        return line

    app = web.Application()
    app.router.add_get("/", gateway)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"ws://127.0.0.1:{runner.addresses[0][1]}/"
    running = asyncio.create_task(
        GatewayClient(url, Tokens(), Intents(), ConnectionState(bot)).run()
    )
    await asyncio.wait_for(done.wait(), 60)
    running.cancel()
    await runner.cleanup()
    return began, away


async def main():
    without, _ = await three_lines(Quiet())
    having, away = await three_lines(WithOnReady())
    print("without on_ready:", ", ".join(without))
    print("with on_ready:", ", ".join(having))
    print("seconds away:", ", ".join(map(str, away)))
    assert without == ["Identify"] * 3, "the finding no longer holds"
    assert having == ["Identify", "Resume", "Resume"], "the finding no longer holds"
    assert away == [2, 4], "the finding no longer holds"


asyncio.run(main())
P
