#!/usr/bin/env bash
# nb-cli 1.7.4 and NoneBot 2.5.0's own driver `~none`: `nb run` answers Ctrl-C by sending SIGTERM to its child, which has
# had the terminal's SIGINT a millisecond before, and the driver takes a second signal for "force quit". So under `nb run`
# each Ctrl-C cancels the shutdown hooks in their middle, those that store something too; with `--reload` a plain `kill` of
# nb does (two SIGTERM within 0.05 s). `python bot.py` lets them finish; so does `nb run` on uvicorn (`~fastapi`), which
# only counts SIGINT. Seen on Python 3.11.7: "python bot.py, Ctrl-C: finished", "nb run, Ctrl-C: cut off", "nb run, kill:
# finished" and "nb run --reload, kill: cut off".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nb-cli==1.7.4 nonebot2==2.5.0
cd "$folder"
export PATH="$folder/venv/bin:$PATH"
cat >pyproject.toml <<'T'
[project]
name = "bot"
version = "0"
[tool.nonebot]
plugins = []
adapters = []
T
cat >bot.py <<'P'
import asyncio

import nonebot

nonebot.init(driver="~none")


@nonebot.get_driver().on_startup
async def started():
    open("ready", "w").close()


@nonebot.get_driver().on_shutdown
async def store_something():
    said = "cut off"
    try:
        await asyncio.sleep(1)
        said = "finished"
    finally:
        with open("hook", "w") as file:
            file.write(said)


nonebot.run()
P
cat >look.py <<'P'
import os, signal, subprocess, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it


def hook(command, send, number):
    for name in ("ready", "hook"):
        if os.path.exists(name):
            os.remove(name)
    process = subprocess.Popen(
        command.split(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not os.path.exists("ready"):
        time.sleep(0.05)
    time.sleep(1)
    send(process.pid, number)
    process.wait()
    return open("hook").read()


ctrl_c = (os.killpg, signal.SIGINT)  # as a terminal sends it
kill = (os.kill, signal.SIGTERM)
seen = {
    "python bot.py, Ctrl-C": hook("python bot.py", *ctrl_c),
    "nb run, Ctrl-C": hook("nb run", *ctrl_c),
    "nb run, kill": hook("nb run", *kill),
    "nb run --reload, kill": hook("nb run --reload", *kill),
}
for name, said in seen.items():
    print(f"{name}: {said}")
expected = ["finished", "cut off", "finished", "cut off"]
assert list(seen.values()) == expected, "the finding no longer holds"
P
timeout 120 python look.py
