#!/usr/bin/env bash
# APScheduler 3.11.3: `shutdown(wait=True)` is documented to wait for running jobs and to interrupt none. AsyncIOScheduler,
# which nonebot-plugin-apscheduler is made of, returns at once, and a coroutine that is in the middle of a job is
# cancelled: a message that was being sent is cut off, and what comes after `shutdown` finds the job unfinished.
# BackgroundScheduler, with the same call, waits. Seen on Python 3.11.7:
# "AsyncIOScheduler: begun, shutdown returned, cancelled" and "BackgroundScheduler: begun, ended, shutdown returned".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q apscheduler==3.11.3
"$folder/venv/bin/python" - <<'P'
import asyncio, logging, threading, time

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

logging.disable(logging.CRITICAL)
seen = []


async def on_the_loop():
    seen.append("begun")
    try:
        await asyncio.sleep(1)
        seen.append("ended")
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise


def in_a_thread():
    seen.append("begun")
    time.sleep(1)
    seen.append("ended")


async def main():
    scheduler = AsyncIOScheduler()
    scheduler.add_job(on_the_loop)
    scheduler.start()
    while not seen:
        await asyncio.sleep(0.01)
    scheduler.shutdown(wait=True)
    seen.append("shutdown returned")
    await asyncio.sleep(1.5)


asyncio.run(main())
loop, seen = seen, []
print("AsyncIOScheduler:", ", ".join(loop))
scheduler = BackgroundScheduler()
scheduler.add_job(in_a_thread)
scheduler.start()
while not seen:
    time.sleep(0.01)
scheduler.shutdown(wait=True)
seen.append("shutdown returned")
print("BackgroundScheduler:", ", ".join(seen))
assert loop == ["begun", "shutdown returned", "cancelled"], "the finding no longer holds"
assert seen == ["begun", "ended", "shutdown returned"], "the finding no longer holds"
P
