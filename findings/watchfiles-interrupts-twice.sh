#!/bin/sh
# watchfiles 1.3.0, `watchfiles COMMAND PATH`: Ctrl-C reaches the command twice, once from the
# terminal, which interrupts the whole foreground group, and within 0.2 s once more from watchfiles,
# which interrupts its child without asking whether that is ending already. A program that takes the
# second Ctrl-C for impatience cuts its shutdown short on every single one.
# Seen: "interrupts: 2". Fails if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install watchfiles==1.3.0
mkdir "$folder/watched"
cat > "$folder/command.py" <<'PROGRAM'
import signal
import sys
import time

came = []
signal.signal(signal.SIGINT, lambda *_: came.append(time.monotonic()))
open(sys.argv[1], "w").close()
end = time.monotonic() + 20
while time.monotonic() < end and not (came and time.monotonic() > came[0] + 1):
    time.sleep(0.05)
with open(sys.argv[1], "w") as file:
    file.write(f"interrupts: {len(came)}")
PROGRAM
cat > "$folder/terminal.py" <<'PROGRAM'
import os
import signal
import subprocess
import sys
import time

folder, python = sys.argv[1], sys.executable
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it
group = subprocess.Popen(
    [f"{folder}/venv/bin/watchfiles", f"{python} {folder}/command.py {folder}/out",
     f"{folder}/watched"],
    start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
while not os.path.exists(f"{folder}/out"):
    time.sleep(0.05)
time.sleep(1)
os.killpg(group.pid, signal.SIGINT)  # as a terminal does upon Ctrl-C
group.wait()
time.sleep(0.5)
print(open(f"{folder}/out").read())
PROGRAM
seen=$("$folder/venv/bin/python" "$folder/terminal.py" "$folder")
echo "$seen"
[ "$seen" = "interrupts: 2" ]
