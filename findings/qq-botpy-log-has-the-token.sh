#!/usr/bin/env bash
# qq-botpy 1.2.1 looks through the command line of the whole program for `-d` or `--debug`, whoever it is meant for: a bot
# with an option of its own (`bot.py -d data`) is logged at level DEBUG from then on. That is not only more lines:
# `botpy.log`, which every client opens in the current directory, readable for everybody (0644), then has the whole
# Authorization header of each HTTP call and the frames that carry the token to the gateway. Whoever reads such a log can
# act as the bot for up to two hours. Client(..., ext_handlers=False) opens no file; log_level=logging.INFO overrides the
# option. Seen on Python 3.11.7: "bot.py: token in botpy.log: False", "bot.py -d data: token in botpy.log: True, mode 644".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qq-botpy==1.2.1 setuptools
cat >"$folder/bot.py" <<'P'
import asyncio, os, time

asyncio.set_event_loop(loop := asyncio.new_event_loop())
import botpy
from aiohttp import web
from botpy.http import Route

os.umask(0o022)


async def main():
    async def me(request):
        return web.json_response({"id": "1", "username": "b"})

    app = web.Application()
    app.router.add_get("/users/@me", me)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    Route.SCHEME, Route.DOMAIN = "http", f"127.0.0.1:{runner.addresses[0][1]}"
    client = botpy.Client(intents=botpy.Intents(public_messages=True))
    token = botpy.robot.Token("1", "secret")
    token.access_token, token.expires_in = "the-access-token", int(time.time()) + 7200
    await client.http.login(token)  # asks for /users/@me
    await client.close()
    await runner.cleanup()


loop.run_until_complete(main())
P
run() { # DIRECTORY ARGUMENTS...
  mkdir "$folder/$1"
  (cd "$folder/$1" && ../venv/bin/python ../bot.py "${@:2}" 2>/dev/null)
}
has() { grep -q "QQBot the-access-token" "$folder/$1/botpy.log" && echo True || echo False; }
run plain
run option -d data
seen="$(has plain) $(has option) $(stat -c %a "$folder/option/botpy.log")"
read -r plain option mode <<<"$seen"
echo "bot.py: token in botpy.log: $plain"
echo "bot.py -d data: token in botpy.log: $option, mode $mode"
[ "$seen" = "False True 644" ] || { echo "the finding no longer holds"; exit 1; }
