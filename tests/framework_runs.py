"""Bots on real frameworks, as processes against `LocalGateway`, and what is done to them.

Every scenario drives one bot and returns what became of its events; `test_frameworks_*.py` says
what must be, and `python -m benchmarks frameworks` prints it as a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frameworks import PROGRAMS, ROOT, python_of
from ports import free_port

from qqbot_session.testing import LocalGateway

_PATIENCE = 90.0  # seconds until what should happen is taken not to happen
_MORE = 10.0  # seconds for what some bots have lost, and others are late with
_AT_A_TIME = 6  # bots that run side by side


@dataclass(frozen=True)
class Build:
    """A bot: the environment it runs in, its program, and what BUILD tells the program.

    Attributes:
        launched: whether `qqbot-session run` starts it.
    """

    environment: str
    program: str
    how: str
    launched: bool = False


@dataclass
class Outcome:
    """What became of the events `sent`, by their numbers, and what the gateway saw."""

    sent: range
    handled: Counter[int]
    identifies: int
    resumes: int
    said: list[dict[str, Any]]
    status: int | None = None
    took: float = 0.0  # seconds from the signal to the end

    @property
    def lost(self) -> list[int]:
        return sorted(set(self.sent) - set(self.handled))

    @property
    def twice(self) -> list[int]:
        return sorted(number for number, times in self.handled.items() if times > 1)

    def times(self, what: str) -> int:
        return sum(line["what"] == what for line in self.said)


@dataclass
class Bot:
    """A bot that is started, ended and started again; what it says is kept over all its lives."""

    build: Build
    qq: LocalGateway
    sessions: Path
    said: list[dict[str, Any]] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    port: int = 0  # where a bot that has webhooks listens

    async def start(self, longest: float = 0.3) -> None:
        """Start a life in which a handler takes up to `longest` seconds."""
        self.port = free_port()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(PROGRAMS)]),
            "PYTHONUNBUFFERED": "1",
            "QQ_API": self.qq.api_url,
            "QQ_API_BASE": self.qq.api_url,  # what qqbot-agent-sdk reads, and so the next
            "QQ_TOKEN_URL": self.qq.token_url,
            "QQ_APP": self.qq.app_id,
            "QQ_SECRET": self.qq.client_secret,
            "QQ_SESSIONS": str(self.sessions),
            "BUILD": self.build.how,
            "LONGEST": str(longest),
            "PORT": str(self.port),
        }
        python = str(python_of(self.build.environment))
        launcher = [python, "-m", "qqbot_session", "--storage", str(self.sessions), "run", "--"]
        self.process = await asyncio.create_subprocess_exec(
            *(launcher if self.build.launched else []),
            python,
            PROGRAMS / f"{self.build.program}.py",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.sessions.parent,
            env=environment,
        )
        self._heard = asyncio.Event()
        self._reading = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.printed.append(text)
            if text.startswith(">> "):
                self.said.append(json.loads(text[3:]))
            self._heard.set()

    @property
    def handled(self) -> Counter[int]:
        return Counter(line["number"] for line in self.said if line["what"] == "handled")

    async def online(self, lines: int = 1) -> None:
        """Wait until this many lines got as far as READY or RESUMED.

        Raises:
            TimeoutError: if they do not, or if the bot ends instead.
        """
        assert self.process is not None
        coming = asyncio.create_task(self.qq.wait_for(lambda qq: started(qq) >= lines, _PATIENCE))
        ending = asyncio.create_task(self.process.wait())
        await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not coming.done():
            coming.cancel()
            raise TimeoutError(f"the bot ended with status {self.process.returncode}")
        coming.result()

    async def until(self, condition: Callable[[Bot], object], within: float = _PATIENCE) -> bool:
        """Wait until `condition(self)` is true; return whether it came true in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not condition(self):
                    self._heard.clear()
                    await self._heard.wait()
        return bool(condition(self))

    async def ends(self, within: float = _PATIENCE) -> int | None:
        """Wait for the process to end; return its status, or `None` if it does not end."""
        assert self.process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.process.wait()
                await self._reading
        return self.process.returncode

    async def stop(self, number: signal.Signals) -> int | None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        status = await self.ends()
        if status is None:
            self.process.kill()
            await self.process.wait()
        return status


@contextlib.asynccontextmanager
async def bot_at_qq(build: Build, **gateway: Any) -> AsyncIterator[tuple[Bot, LocalGateway]]:
    """Give a bot, not yet started, and its QQ; show what it printed if the body fails."""
    async with LocalGateway(**{"heartbeat_interval": 3.0} | gateway) as qq:
        with tempfile.TemporaryDirectory() as directory:
            bot = Bot(build, qq, Path(directory, "sessions"))
            try:
                yield bot, qq
            except BaseException as error:
                error.add_note("\n".join([repr(build), *bot.printed[-80:]]))
                raise
            finally:
                if bot.process is not None and bot.process.returncode is None:
                    bot.process.kill()
                    await bot.process.wait()


async def emit(
    qq: LocalGateway, numbers: Iterable[int], gap: float = 0.0, verb: str = "", **to: Any
) -> None:
    """Give the bot messages with these numbers, `gap` seconds apart."""
    for number in numbers:
        message = qq.c2c_message(f"{verb} {number}".strip())
        await qq.emit("C2C_MESSAGE_CREATE", message, **to)
        await asyncio.sleep(gap)


def started(qq: LocalGateway) -> int:
    """Return how many lines got as far as READY or RESUMED."""
    return sum(client.started is not None for client in qq.clients)


async def _outcome(bot: Bot, sent: range) -> Outcome:
    return Outcome(sent, bot.handled, len(bot.qq.identifies), len(bot.qq.resumes), bot.said)


async def restart(build: Build, number: signal.Signals) -> Outcome:
    """End the bot with a signal in mid-stream, emit while it is dead, and start it again."""
    async with bot_at_qq(build) as (bot, qq):
        await bot.start()
        await bot.online()
        await emit(qq, range(1, 21), gap=0.03)
        await bot.until(lambda bot: len(bot.handled) >= 10)
        at = time.monotonic()
        status = await bot.stop(number)
        took = time.monotonic() - at
        await emit(qq, range(21, 29))
        await bot.start()
        await bot.online(2)
        await emit(qq, range(29, 41), gap=0.01)
        await bot.until(lambda bot: set(bot.handled) >= set(range(29, 41)))
        await bot.until(lambda bot: set(bot.handled) >= set(range(1, 41)), _MORE)
        last_status = await bot.stop(signal.SIGTERM)
        outcome = await _outcome(bot, range(1, 41))
        outcome.status, outcome.took = status or last_status, took
        return outcome


async def slow_handlers(build: Build) -> Outcome:
    """Kill a bot whose handlers run for up to 5 s, when every number received is on disk."""
    async with bot_at_qq(build) as (bot, qq):
        await bot.start(longest=5)
        await bot.online()
        await emit(qq, range(1, 21), gap=0.01)
        await asyncio.sleep(2.5)
        await bot.stop(signal.SIGKILL)
        await bot.start(longest=0.1)
        await bot.online(2)
        await bot.until(lambda bot: set(bot.handled) >= set(range(1, 21)), 5 + _MORE)
        await bot.stop(signal.SIGTERM)
        return await _outcome(bot, range(1, 21))


@dataclass(frozen=True)
class Blow:
    """What one misfortune did, with three events before it, three in it and three after it."""

    lost: list[int]  # of 1 to 9
    twice: int
    identifies: int
    resumes: int
    open_lines: int


_BLOWS: dict[str, Callable[[LocalGateway], Any]] = {
    "op 7, then 4009": lambda qq: qq.reconnect(),
    "4009": lambda qq: qq.close(4009),
    "the line drops": lambda qq: qq.drop(),
    "op 9": lambda qq: qq.invalid_session(),
    "4006": lambda qq: qq.close(4006),
}


async def misfortunes(build: Build) -> tuple[dict[str, Blow], list[dict[str, Any]]]:
    """Strike one bot again and again while events come; return what it said, too."""
    async with bot_at_qq(build) as (bot, qq):
        await bot.start(longest=0.05)
        await bot.online()
        blows = {}
        for position, name in enumerate(_BLOWS):
            if "agent" in build.program:  # which gives up after three lines of less than 5 s each
                await asyncio.sleep(5.2)
            blows[name] = await _strike(bot, qq, _BLOWS[name], 10 * position)
        await bot.stop(signal.SIGTERM)
        return blows, bot.said


async def _strike(
    bot: Bot, qq: LocalGateway, blow: Callable[[LocalGateway], Any], base: int
) -> Blow:
    identifies, resumes, lines = len(qq.identifies), len(qq.resumes), started(qq)
    await emit(qq, range(base + 1, base + 4))
    await bot.until(lambda bot: set(bot.handled) >= set(range(base + 1, base + 4)))
    await blow(qq)
    await emit(qq, range(base + 4, base + 7))
    await qq.wait_for(lambda qq: started(qq) > lines, _PATIENCE)
    await emit(qq, range(base + 7, base + 10))
    await bot.until(lambda bot: set(bot.handled) >= set(range(base + 7, base + 10)))
    await bot.until(lambda bot: set(bot.handled) >= set(range(base + 1, base + 10)), _MORE / 2)
    seen = {n - base: times for n, times in bot.handled.items() if base < n < base + 10}
    return Blow(
        lost=[n for n in range(1, 10) if n not in seen],
        twice=sum(times > 1 for times in seen.values()),
        identifies=len(qq.identifies) - identifies,
        resumes=len(qq.resumes) - resumes,
        open_lines=sum(client.closed_at is None for client in qq.clients),
    )


@dataclass(frozen=True)
class Refusal:
    """What became of a bot that QQ does not want.

    Attributes:
        status: of its process; `None` if it did not end within 20 s.
        tries: lines that it opened since.
    """

    status: int | None
    tries: int
    printed: str


async def refused(build: Build) -> Refusal:
    """Close the bot's line with 4914."""
    async with bot_at_qq(build) as (bot, qq):
        await bot.start()
        await bot.online()
        await qq.close(4914, "the bot is offline")
        status = await bot.ends(within=20.0)
        return Refusal(status, len(qq.clients) - 1, "\n".join(bot.printed))


async def replies(build: Build) -> tuple[Outcome, list[Any]]:
    """Let the bot answer one message, and raise at another."""
    async with bot_at_qq(build) as (bot, qq):
        await bot.start(longest=0.05)
        await bot.online()
        await emit(qq, [1], verb="reply")
        await emit(qq, [2], verb="raise")
        await emit(qq, [3])
        await bot.until(lambda bot: set(bot.handled) >= {1, 3})
        await bot.stop(signal.SIGTERM)
        await emit(qq, [4])
        await bot.start(longest=0.05)
        await bot.online(2)
        await bot.until(lambda bot: 4 in bot.handled, _MORE)
        await bot.stop(signal.SIGTERM)
        return await _outcome(bot, range(1, 5)), list(qq.sent)


async def two_shards(build: Build) -> tuple[Outcome, bool]:
    """Drop one shard of two, kill the bot, start it again; say whether the shard came back."""
    async with bot_at_qq(build, shards=2, heartbeat_interval=45.0) as (bot, qq):

        async def emit_to_both(numbers: range) -> None:
            for number in numbers:
                await emit(qq, [number], shard=(number % 2, 2))

        await bot.start(longest=0.1)
        await bot.online(2)
        await emit_to_both(range(1, 11))
        await bot.until(lambda bot: len(bot.handled) >= 5)
        await qq.drop(shard=(0, 2))
        await emit_to_both(range(11, 15))
        back = await bot.until(lambda bot: set(bot.handled) >= set(range(1, 15)), 5 + _MORE)
        await bot.stop(signal.SIGKILL)
        await emit_to_both(range(15, 21))
        lines = started(qq)
        await bot.start(longest=0.1)
        await bot.online(lines + 2)
        await bot.until(lambda bot: set(bot.handled) >= set(range(1, 21)), _MORE)
        await bot.stop(signal.SIGTERM)
        return await _outcome(bot, range(1, 21)), back


SCENARIOS: dict[str, Callable[[Build], Awaitable[Any]]] = {
    "killed": lambda build: restart(build, signal.SIGKILL),
    "terminated": lambda build: restart(build, signal.SIGTERM),
    "slow handlers": slow_handlers,
    "two shards": two_shards,
    "misfortunes": misfortunes,
    "refused": refused,
    "replies": replies,
}


async def run_all(builds: Iterable[tuple[Build, Iterable[str]]]) -> dict[tuple[Build, str], Any]:
    """Run scenarios side by side; what one of them raises stands where its outcome would."""
    wanted = [(build, name) for build, names in builds for name in names]
    places = asyncio.Semaphore(_AT_A_TIME)

    async def run(build: Build, name: str) -> Any:
        async with places:
            return await SCENARIOS[name](build)

    found = await asyncio.gather(*(run(*one) for one in wanted), return_exceptions=True)
    return dict(zip(wanted, found, strict=True))
