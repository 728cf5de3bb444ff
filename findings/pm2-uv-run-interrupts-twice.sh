#!/usr/bin/env bash
# PM2 7.0.4 and `uv run` of uv 0.13.9, each right by itself: `pm2 stop` interrupts every process of the tree, the bot among
# them, and uv, which is interrupted without a terminal, hands the interrupt on to its child 0.2 s later. So the bot gets
# two upon every stop and restart, and one that takes the second for impatience cuts its shutdown short each time. Without
# `uv run` it gets one; so it does in a terminal, where uv leaves Ctrl-C to the terminal. Needs node and npm. Seen on Python
# 3.11.7: "python: 1 interrupt(s)" and "uv run python: 2 interrupt(s)".
set -euo pipefail
folder=$(mktemp -d)
cd "$folder"
export PM2_HOME="$folder/pm2" UV_NO_PROJECT=1
trap 'node_modules/.bin/pm2 kill >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
python3 -m venv venv
venv/bin/pip install -q uv==0.13.9
npm install --silent --no-audit --no-fund --ignore-scripts pm2@7.0.4
cat >bot.py <<'P'
import signal, sys, time

came = []
signal.signal(signal.SIGINT, lambda *_: came.append(time.monotonic()))
open(f"{sys.argv[1]}.ready", "w").close()
while not (came and time.monotonic() > came[0] + 1.5):
    time.sleep(0.05)
with open(sys.argv[1], "w") as file:
    file.write(str(len(came)))
P
interrupts() { # NAME COMMAND...: how many interrupts the bot gets at `pm2 stop`
  local name=$1
  shift
  node_modules/.bin/pm2 start "$1" --name "$name" --interpreter none --kill-timeout 10000 -- "${@:2}" bot.py "$name" >/dev/null
  until [ -e "$name.ready" ]; do sleep 0.1; done
  sleep 1
  node_modules/.bin/pm2 stop "$name" >/dev/null
  until [ -s "$name" ]; do sleep 0.1; done
  cat "$name"
}
python=$folder/venv/bin/python
alone=$(interrupts alone "$python")
wrapped=$(interrupts wrapped "$folder/venv/bin/uv" run --no-project --python "$python" python)
echo "python: $alone interrupt(s)"
echo "uv run python: $wrapped interrupt(s)"
[ "$alone $wrapped" = "1 2" ] || { echo "the finding no longer holds"; exit 1; }
