#!/usr/bin/env bash
# gunicorn 27.0.1 with its own ASGI worker (`-k asgi`): SIGINT, which is what Ctrl-C and PM2 send, ends the application
# without `lifespan.shutdown`. Its tasks are cancelled, and the status is 0; what an application closes behind the `yield`
# of its lifespan stays as it was. SIGTERM does send it. uvicorn 0.54.0, hypercorn 0.18.0 and granian 2.8.9 send it upon
# both. Seen on Python 3.11.7: "gunicorn: SIGTERM shutdown, SIGINT no shutdown, status 0" and "uvicorn/hypercorn/granian:
# SIGTERM shutdown, SIGINT shutdown".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gunicorn==27.0.1 uvicorn==0.54.0 hypercorn==0.18.0 granian==2.8.9
cd "$folder"
export HOME=$folder  # gunicorn puts a socket there
cat >web.py <<'P'
async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        kind = (await receive())["type"].removeprefix("lifespan.")
        open(kind, "w").close()
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
P
cat >look.py <<'P'
import os, signal, socket, subprocess, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it
SERVERS = {
    "gunicorn": "gunicorn -k asgi web:app -b 127.0.0.1:PORT",
    "uvicorn": "uvicorn web:app --port PORT",
    "hypercorn": "hypercorn web:app -b 127.0.0.1:PORT",
    "granian": "granian --interface asgi web:app --port PORT",
}


def stop(command, number):
    """Return whether the application heard of the end, and the server's status."""
    for name in ("startup", "shutdown"):
        if os.path.exists(name):
            os.remove(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = command.replace("PORT", str(port)).split()
    server = subprocess.Popen(
        [f"venv/bin/{program}", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not os.path.exists("startup"):
        time.sleep(0.05)
    time.sleep(1)
    server.send_signal(number)
    status = server.wait(30)
    return os.path.exists("shutdown"), status


seen = {}
for name, command in SERVERS.items():
    (terminated, _), (interrupted, status) = (
        stop(command, number) for number in (signal.SIGTERM, signal.SIGINT)
    )
    seen[name] = (terminated, interrupted, status)
    words = {True: "shutdown", False: "no shutdown"}
    print(f"{name}: SIGTERM {words[terminated]}, SIGINT {words[interrupted]}, status {status}")
expected = {name: (True, name != "gunicorn", 0) for name in SERVERS}
assert seen == expected, "the finding no longer holds"
P
timeout 200 venv/bin/python look.py
