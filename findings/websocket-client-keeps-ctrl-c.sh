#!/usr/bin/env bash
# websocket-client 1.9.2, on which QwenPaw is built: WebSocketApp.run_forever() keeps Ctrl-C to itself. It goes to
# `on_error`, and run_forever returns, so that the usual `while True: app.run_forever()` connects again instead of ending.
# What it returns does not help: the docstring says False for "closed or Ctrl-C", True for any other error; Ctrl-C gives
# True, exactly as a lost connection does. SystemExit, raised by a SIGTERM handler say, does come out. Seen on Python
# 3.11.7: "Ctrl-C: returned True, on_error got KeyboardInterrupt", "dropped: returned True, on_error got
# WebSocketConnectionClosedException" and "sys.exit: raised SystemExit, on_error got SystemExit".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q websocket-client==1.9.2 websockets==17.4
"$folder/venv/bin/python" - <<'P'
import asyncio, os, signal, sys, threading, time

import websocket
from websockets.asyncio.server import serve

signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
ports = []


async def server():
    async def drop(line):
        if line.request.path == "/drop":
            line.transport.abort()
        await line.wait_closed()

    async with serve(drop, "127.0.0.1", 0) as listening:
        ports.append(listening.sockets[0].getsockname()[1])
        await asyncio.Event().wait()


threading.Thread(target=asyncio.run, args=(server(),), daemon=True).start()
while not ports:
    time.sleep(0.05)


def run(path, number=None):
    errors = []

    def opened(app):
        if number:
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()

    app = websocket.WebSocketApp(
        f"ws://127.0.0.1:{ports[0]}{path}",
        on_open=opened,
        on_error=lambda app, error: errors.append(type(error).__name__),
    )
    try:
        end = f"returned {app.run_forever()}"
    except BaseException as error:
        end = f"raised {type(error).__name__}"
    return f"{end}, on_error got {errors[0]}"


seen = {
    "Ctrl-C": run("/", signal.SIGINT),
    "dropped": run("/drop"),
    "sys.exit": run("/", signal.SIGTERM),
}
for name, said in seen.items():
    print(f"{name}: {said}")
expected = {
    "Ctrl-C": "returned True, on_error got KeyboardInterrupt",
    "dropped": "returned True, on_error got WebSocketConnectionClosedException",
    "sys.exit": "raised SystemExit, on_error got SystemExit",
}
assert seen == expected, "the finding no longer holds"
P
