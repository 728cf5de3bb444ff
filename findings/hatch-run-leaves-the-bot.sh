#!/usr/bin/env bash
# hatch 1.18.2: `hatch run python bot.py` stays the parent of what it runs and hands no SIGTERM on. A supervisor that ends
# the process it started (supervisord, a shell's `kill`) ends hatch alone: the bot never hears of it and goes on, adopted by
# init, and the next start makes a second bot that takes the first one's session from it. `poetry run` 2.5.1 and `pipenv
# run` become the command, so the signal is the bot's; `uv run` and `pdm run` hand it on. Seen on Python 3.11.7: "hatch:
# ended by SIGTERM; the bot: still running, heard nothing" and "poetry: ended in order; the bot: ended, heard SIGTERM".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export HATCH_DATA_DIR="$folder/hatch" HATCH_CACHE_DIR="$folder/hatch-cache" POETRY_VIRTUALENVS_IN_PROJECT=true
python3 -m venv venv
venv/bin/pip install -q hatch==1.18.2 poetry==2.5.1
mkdir project
cd project
cat >pyproject.toml <<'T'
[project]
name = "bot"
version = "0"
requires-python = ">=3.11"
[tool.poetry]
package-mode = false
[tool.hatch.envs.default]
skip-install = true
T
cat >bot.py <<'P'
import os, signal, sys, time

came = []
signal.signal(signal.SIGTERM, lambda *_: came.append("SIGTERM"))
with open("pid.new", "w") as file:
    file.write(str(os.getpid()))
os.replace("pid.new", "pid")
end = time.monotonic() + 60
while not came and time.monotonic() < end:
    time.sleep(0.05)
open("heard", "w").close()
P
cat >look.py <<'P'
import os, signal, subprocess, sys, time

seen = {}
for tool in ("hatch", "poetry"):
    for name in ("pid", "heard"):
        if os.path.exists(name):
            os.remove(name)
    command = [f"../venv/bin/{tool}", "run", "python", "bot.py"]
    wrapper = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.exists("pid"):
        time.sleep(0.05)
    bot = int(open("pid").read())
    wrapper.terminate()
    status = wrapper.wait()
    time.sleep(1)
    try:
        os.kill(bot, 0)
        alive = True
    except ProcessLookupError:
        alive = False
    heard = os.path.exists("heard")
    if alive:
        os.kill(bot, signal.SIGKILL)
    seen[tool] = (status, alive, heard)
    end = {0: "ended in order", -signal.SIGTERM: "ended by SIGTERM"}.get(status, status)
    print(f"{tool}: {end}; the bot: {'still running' if alive else 'ended'},", end=" ")
    print(f"heard {'SIGTERM' if heard else 'nothing'}")
expected = {"hatch": (-signal.SIGTERM, True, False), "poetry": (0, False, True)}
assert seen == expected, "the finding no longer holds"
P
timeout 120 ../venv/bin/python look.py
