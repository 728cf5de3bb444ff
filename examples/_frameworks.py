"""What the frameworks' example bots share: their command line, and a kill on localhost."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable

from qqbot_session.testing import LocalGateway

BEFORE, DURING, AFTER = 20, 8, 12  # messages sent before the kill, while the bot is dead, and after


def run_example(description: str, bot: Callable[[str, str], None]) -> None:
    """Run the bot at QQ with `--live`; else kill and restart it against QQ on localhost.

    Args:
        description: what the command says of itself.
        bot: runs the bot, given its app id and secret, until it is ended.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--live", action="store_true", help="QQBOT_APP_ID and QQBOT_SECRET at QQ")
    if not parser.parse_args().live:
        sys.exit(0 if asyncio.run(_kill_and_restart()) else 1)
    app_id, secret = os.environ.get("QQBOT_APP_ID"), os.environ.get("QQBOT_SECRET")
    if not app_id or not secret:
        sys.exit("--live needs QQBOT_APP_ID and QQBOT_SECRET")
    bot(app_id, secret)


async def _kill_and_restart() -> bool:
    """Return whether the bot lost nothing, and had to Identify only once."""
    total = BEFORE + DURING + AFTER
    async with LocalGateway(heartbeat_interval=1.0) as qq:
        with tempfile.TemporaryDirectory() as directory:
            bot = await _start(qq, directory)
            await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started, 60)
            await _send(qq, range(1, BEFORE + 1))
            await qq.wait_for(lambda qq: len(_answered(qq)) >= BEFORE // 2, 60)
            bot.kill()
            await bot.wait()
            print(f"-- killed after {len(_answered(qq))} of {BEFORE} answers", flush=True)
            await _send(qq, range(BEFORE + 1, BEFORE + DURING + 1))
            bot = await _start(qq, directory)
            await qq.wait_for(lambda qq: len(qq.resumes) + len(qq.identifies) == 2, 60)
            await _send(qq, range(BEFORE + DURING + 1, total + 1))
            await qq.wait_for(lambda qq: len(_answered(qq)) == total, 60)
            bot.terminate()
            await bot.wait()
        print(
            f"-- {total} messages, {total - len(_answered(qq))} lost,"
            f" {len(qq.sent) - total} answered twice,"
            f" {len(qq.identifies)} Identify, {len(qq.resumes)} Resume"
        )
        return len(qq.identifies) == 1


async def _start(qq: LocalGateway, directory: str) -> asyncio.subprocess.Process:
    environment = os.environ | {
        "QQBOT_APP_ID": qq.app_id,
        "QQBOT_SECRET": qq.client_secret,
        "QQBOT_API": qq.api_url,
        "QQBOT_TOKEN_URL": qq.token_url,
        "QQBOT_SESSIONS": directory,
    }
    command = (sys.executable, sys.argv[0], "--live")
    return await asyncio.create_subprocess_exec(*command, env=environment)


async def _send(qq: LocalGateway, numbers: range) -> None:
    for number in numbers:
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(f"message {number}"))
        await asyncio.sleep(0.03)


def _answered(qq: LocalGateway) -> set[object]:
    """Return the messages that were answered."""
    return {answer.msg_id for answer in qq.sent}
