"""Kill a bot in the middle of its events, start it again, and watch it lose nothing.

QQ on localhost numbers, keeps and replays events as the real one does; the bot is `bot.py` in a
process of its own. Exits with 1 if an event stayed unanswered or the restarted bot had to Identify.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from qqbot_session.testing import LocalGateway

BOT = Path(__file__).parent / "bot.py"
BEFORE, DURING, AFTER = 20, 8, 12  # events sent before the kill, while the bot is dead, and after
STARTED = time.monotonic()


def say(who: str, text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.2f} s  {who:<8} {text}", flush=True)


async def start_bot(qq: LocalGateway, directory: str) -> asyncio.subprocess.Process:
    variables = {
        "QQBOT_APP_ID": qq.app_id,
        "QQBOT_SECRET": qq.client_secret,
        "QQBOT_API_URL": qq.api_url,
        "QQBOT_TOKEN_URL": qq.token_url,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(BOT),
        cwd=directory,
        env={**os.environ, **variables},
        stderr=asyncio.subprocess.PIPE,
    )


async def show(process: asyncio.subprocess.Process) -> None:
    """Print what the bot logs, until it ends."""
    assert process.stderr is not None
    async for line in process.stderr:
        say("bot", line.decode().rstrip())
    await process.wait()


async def send(qq: LocalGateway, numbers: range) -> None:
    for number in numbers:
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(f"message {number}"))
        await asyncio.sleep(0.02)


def answered(qq: LocalGateway) -> Counter[str]:
    return Counter(sent.body["content"] for sent in qq.sent if sent.status == 200)


async def demonstrate(qq: LocalGateway, directory: str) -> bool:
    """Kill and restart a bot; return whether all went well."""
    total = BEFORE + DURING + AFTER
    say("QQ", f"listens at {qq.api_url}")
    process = await start_bot(qq, directory)
    showing = asyncio.create_task(show(process))
    await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
    sending = asyncio.create_task(send(qq, range(1, BEFORE + 1)))
    await qq.wait_for(lambda qq: len(answered(qq)) >= BEFORE // 2)
    process.kill()
    await showing
    await sending
    say("QQ", f"SIGKILL: {len(answered(qq))} of {BEFORE} messages were answered")
    await send(qq, range(BEFORE + 1, BEFORE + DURING + 1))
    say("QQ", f"{DURING} more messages while the bot is dead")

    process = await start_bot(qq, directory)
    showing = asyncio.create_task(show(process))
    await qq.wait_for(lambda qq: qq.resumes or len(qq.identifies) > 1)
    await send(qq, range(BEFORE + DURING + 1, total + 1))
    try:
        await qq.wait_for(lambda qq: len(answered(qq)) == total)
    finally:
        process.send_signal(signal.SIGTERM)
        await showing
        times = answered(qq)
        twice = sum(count > 1 for count in times.values())
        identifies, resumes = len(qq.identifies), len(qq.resumes)
        say(
            "example",
            f"sent: {total}, answered twice: {twice}, Identify: {identifies}, Resume: {resumes}",
        )
        say("example", f"lost: {total - len(times)}")
    return identifies == 1 and resumes == 1 and process.returncode == 0


async def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        async with LocalGateway(heartbeat_interval=1.0) as qq:
            return 0 if await demonstrate(qq, directory) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
