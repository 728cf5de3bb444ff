#!/usr/bin/env bash
# qqbot-agent-sdk 1.2.2 keeps the sessions of all bots in one `ws_sessions.json`, which it reads once and writes whole. So
# of two bots that were started with one directory, the later save removes the other bot's session, and that bot
# identifies at its next start. One directory per bot avoids it.
# Seen: after A and then B saved, the file has B alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qqbot-agent-sdk==1.2.2
cd "$folder"
venv/bin/python - <<'P'
from qqbot_agent_sdk.session_store import WSSessionStore
a, b = WSSessionStore("sessions"), WSSessionStore("sessions")  # two bots, started together
a.save("A", "session-of-a", 41, 1)
b.save("B", "session-of-b", 7, 1)
left = [app for app in "AB" if WSSessionStore("sessions").get(app).session_id]
print("qqbot-agent-sdk 1.2.2: sessions left after both saved:", left)
assert left == ["B"], "the finding no longer holds"
P
