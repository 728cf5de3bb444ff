#!/usr/bin/env bash
# qq-botpy 1.2.1: Client(bot_log=False), documented to turn off the console and the extra handlers, also takes botpy's logger
# off the list of known ones. The next botpy.logging.get_logger(), which botpy's own examples call in every module, takes it
# for a new one and gives it the extra handlers: a file botpy.log appears in the current directory, at level DEBUG, and
# from then on has every line. A module of a bot that is imported after its client is made is enough. Whoever wants to write
# to botpy's log without that uses logging.getLogger("botpy"). Seen on Python 3.11.7.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qq-botpy==1.2.1 setuptools
mkdir "$folder/bot"
cd "$folder/bot"
"$folder/venv/bin/python" - <<'P'
import asyncio
import os

asyncio.set_event_loop(asyncio.new_event_loop())
import botpy
from botpy import logging


def state():
    handlers = [type(handler).__name__ for handler in __import__("logging").getLogger("botpy").handlers]
    return os.listdir(), handlers


botpy.Client(intents=botpy.Intents.none(), bot_log=False)
print("after Client(bot_log=False):", *state())
if state() != ([], []):
    raise SystemExit("bot_log=False leaves something: the finding no longer holds")
logging.get_logger().info("hello")
print("after get_logger():", *state())
if state() != (["botpy.log"], ["TimedRotatingFileHandler"]):
    raise SystemExit("get_logger() opens nothing: the finding no longer holds")
P
