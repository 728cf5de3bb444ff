"""Kill a bot in the middle of its events, start it again, and watch it lose nothing.

A gateway on localhost numbers, keeps and replays events as QQ's does; the bot is
`aiohttp_bot.py` in a process of its own. Exits with 1 if an event was lost or the restarted bot had
to Identify. With `--live`, `QQBOT_APP_ID` and `QQBOT_SECRET`, the same bot runs at QQ instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field

from _common import Service, emit_message, run_example, stop_on_sigterm
from aiohttp_bot import bot

from qqbot_session.testing import LocalGateway

BEFORE, DURING, AFTER = 20, 8, 12  # events sent before the kill, while the bot is dead, and after


@dataclass
class Timeline:
    """What happened, and when."""

    started: float = field(default_factory=time.monotonic)
    handled: list[int] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, who: str, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.2f} s  {who:<8} {text}", flush=True)

    async def until_handled(self, number: int, seconds: float = 8.0) -> None:
        async with asyncio.timeout(seconds):
            while len(set(self.handled)) < number:
                self.news.clear()
                await self.news.wait()

    async def follow(self, output: asyncio.StreamReader) -> None:
        """Print what a bot says, and count what it handled."""
        async for line in output:
            text = line.decode().rstrip()
            self.say("bot", text)
            if found := re.match(r"handled .* 'message (\d+)'", text):
                self.handled.append(int(found[1]))
                self.news.set()


async def start_bot(local: LocalGateway, directory: str) -> asyncio.subprocess.Process:
    service = (local.app_id, local.client_secret, local.api_url, local.token_url)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--bot", *service, directory), stdout=asyncio.subprocess.PIPE
    )


async def send(local: LocalGateway, numbers: range) -> None:
    for number in numbers:
        await emit_message(local, number)
        await asyncio.sleep(0.05)


async def demonstrate(local: LocalGateway, directory: str) -> bool:
    """Kill and restart a bot; return whether all went well."""
    timeline = Timeline()
    total = BEFORE + DURING + AFTER
    timeline.say("gateway", f"listens at {local.ws_url}")

    process = await start_bot(local, directory)
    assert process.stdout is not None
    following = asyncio.create_task(timeline.follow(process.stdout))
    await local.wait_for(lambda local: local.identifies)
    await send(local, range(1, BEFORE + 1))
    await timeline.until_handled(BEFORE // 2)
    process.kill()
    await process.wait()
    await following
    timeline.say("example", f"SIGKILL: {len(timeline.handled)} of {BEFORE} events were handled")
    await send(local, range(BEFORE + 1, BEFORE + DURING + 1))
    timeline.say("gateway", f"{DURING} more events while the bot is dead")

    process = await start_bot(local, directory)
    assert process.stdout is not None
    following = asyncio.create_task(timeline.follow(process.stdout))
    await local.wait_for(lambda local: local.resumes or len(local.identifies) > 1)
    await send(local, range(BEFORE + DURING + 1, total + 1))
    with contextlib.suppress(TimeoutError):
        await timeline.until_handled(total)
    process.terminate()
    await process.wait()
    await following

    lost = sorted(set(range(1, total + 1)) - set(timeline.handled))
    again = len(timeline.handled) - len(set(timeline.handled))
    identifies = len(local.identifies)
    timeline.say("example", f"sent: {total}, handled twice: {again}, Identify: {identifies}")
    timeline.say("example", f"lost: {len(lost)} {lost or ''}")
    return not lost and identifies == 1 and bool(local.resumes)


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with LocalGateway(heartbeat_interval=1.0) as local:
            if not await demonstrate(local, directory):
                raise SystemExit(1)


if __name__ == "__main__":
    if "--live" in sys.argv or "-h" in sys.argv or "--help" in sys.argv:
        run_example(__doc__ or "", bot)
    elif sys.argv[1:2] == ["--bot"]:
        app_id, secret, api_url, token_url, sessions = sys.argv[2:]
        service = Service(app_id, secret, api_url, token_url)
        asyncio.run(stop_on_sigterm(lambda: bot(service, sessions)))
    else:
        asyncio.run(main())
