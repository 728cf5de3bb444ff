#!/bin/sh
# hypercorn 0.18.0: `await hypercorn.asyncio.serve(app, config)` takes SIGTERM and SIGINT with
# `loop.add_signal_handler` and never gives them back. Once `serve` has returned, the rest of the
# program hears neither: SIGTERM, which would have ended it, and Ctrl-C do nothing any more.
# Seen: "before SIG_DFL, after _sighandler_noop, still alive". uvicorn, in the same place, restores.
# Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install hypercorn==0.18.0
cat > "$folder/program.py" <<'PROGRAM'
import asyncio
import os
import signal

from hypercorn.asyncio import serve
from hypercorn.config import Config


async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def main():
    config = Config()
    config.bind, config.errorlog = ["127.0.0.1:0"], None
    before = signal.getsignal(signal.SIGTERM)
    asyncio.get_running_loop().call_later(1, os.kill, os.getpid(), signal.SIGTERM)
    await serve(app, config)
    after = signal.getsignal(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.5)
    print(f"before {before.name}, after {after.__name__}, still alive")


asyncio.run(main())
PROGRAM
seen=$("$folder/venv/bin/python" "$folder/program.py")
echo "$seen"
[ "$seen" = "before SIG_DFL, after _sighandler_noop, still alive" ]
