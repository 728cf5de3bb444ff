"""Bots in processes of their own, on real sockets, through everything; what came of it, as a table.

    python tests/programs/stress.py            # the full counts, about half an hour
    python tests/programs/stress.py --share 0.05 --library aiohttp kill sigterm

Columns: events that the gateway took (`sent`), those that no handler ended (`lost`), those that
more than one did (`twice`), and the handshakes. What a session that the gateway ended could not
keep is not counted: before such an end the bot is left to handle what it has. Nor is what three
processes died with (promise 30): it is let go, and noted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from qqbot_session.testing import LocalGateway

PROGRAM = Path(__file__).parent / "runner_bot.py"
LIBRARIES = ("aiohttp", "websockets", "run_bot")
C2C = "C2C_MESSAGE_CREATE"
PATIENCE = 120.0  # seconds, for anything that must come


@dataclass
class Row:
    """What one scenario came to."""

    scenario: str
    library: str
    sent: int
    lost: int
    twice: int
    identifies: int
    resumes: int
    handled: int
    notes: dict[str, object] = field(default_factory=dict)


class Trial:
    """A gateway, a bot in the process of the day, and a feed."""

    def __init__(self, qq: LocalGateway, directory: str, library: str, seed: int) -> None:
        self.qq, self.directory, self.library = qq, directory, library
        self.random = random.Random(seed)
        self.options: dict[str, object] = {}
        self.sent: set[str] = set()
        self.let_go: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.last: dict[str, Any] = {}
        self.unexpected: list[int] = []
        self._numbers = count()
        self._news = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._spare: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._all: list[asyncio.subprocess.Process] = []

    # The process

    async def start(self) -> None:
        """Let the process that is ready run, and make the next one ready."""
        self._process = self._spare or await self._spawn()
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(b"run\n")
        self._reader = asyncio.create_task(self._read(self._process))
        self._spare = await self._spawn()

    async def first_start(self) -> None:
        """Start, and wait until the session is on storage: before that, none can be kept."""
        await self.start()
        await self.until(lambda: self.said["ready"])
        while not any(Path(self.directory).glob("session-*.json")):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)

    async def start_again(self) -> None:
        """Start, and wait until it runs."""
        started = self.said["start"]
        await self.start()
        await self.until(lambda: self.said["start"] > started)
        await asyncio.sleep(0.05)  # its handlers of signals stand

    async def end(self, number: signal.Signals, *, again: float | None = None) -> None:
        """Send a signal, perhaps once more, and wait until all that was said is read."""
        assert self._process is not None
        assert self._reader is not None
        self._process.send_signal(number)
        if again is not None:
            await asyncio.sleep(again)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            await self._reader
        # A second signal may come when the bot has ended and its process is about to.
        allowed = {0} if again is None else {0, -number}
        if number is not signal.SIGKILL and code not in allowed:
            self.unexpected.append(code)

    async def _spawn(self) -> asyncio.subprocess.Process:
        qq = self.qq
        options = {
            "api-url": qq.api_url,
            "token-url": qq.token_url,
            "app-id": qq.app_id,
            "secret": qq.client_secret,
            "directory": self.directory,
            "library": self.library,
            "seed": self.random.getrandbits(32),
            **self.options,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            *(f"--{name}={value}" for name, value in options.items()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._all.append(process)
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            self.last = said
            self.said[said["what"]] += 1
            if said["what"] in ("handled", "failed"):  # both count as handled (promise 18)
                self.handled[said["content"]] += 1
            elif said["what"] == "let go":
                self.let_go.add(said["content"])
            self._news.set()

    async def end_all(self) -> None:
        for process in self._all:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    # The feed

    async def emit(self) -> None:
        content = str(next(self._numbers))
        self.sent.add(content)
        if not await self.qq.emit(C2C, self.qq.c2c_message(content), event_id=content):
            self.sent.discard(content)  # there was no session to keep it

    @contextlib.asynccontextmanager
    async def fed(self, rate: Callable[[], float]) -> AsyncIterator[None]:
        """Emit events while the block runs, `rate()` a second."""

        async def feed() -> None:
            while True:
                await self.emit()
                await asyncio.sleep(1 / rate())

        feeding = asyncio.create_task(feed())
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])

    @property
    def missing(self) -> set[str]:
        return self.sent - self.handled.keys() - self.let_go

    async def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
        """Wait until it is true, or until patience ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        return bool(condition())

    def row(self, scenario: str, **notes: object) -> Row:
        if self.unexpected:
            notes["exit codes"] = sorted(set(self.unexpected))
        if self.let_go:
            notes["let go"] = len(self.let_go)
        twice = sum(times > 1 for times in self.handled.values())
        return Row(
            scenario,
            self.library,
            len(self.sent),
            len(self.missing),
            twice,
            len(self.qq.identifies),
            len(self.qq.resumes),
            len(self.handled),
            notes,
        )


@contextlib.asynccontextmanager
async def a_trial(
    library: str, seed: int, beat: float = 5.0, **options: object
) -> AsyncIterator[Trial]:
    with tempfile.TemporaryDirectory() as directory:
        async with LocalGateway(heartbeat_interval=beat, replay_limit=100_000) as qq:
            trial = Trial(qq, directory, library, seed)
            trial.options = options
            try:
                yield trial
            finally:
                await trial.end_all()


# Ends of the process


def any_rate(trial: Trial) -> Callable[[], float]:
    return lambda: trial.random.uniform(20, 100)


async def killed(library: str, seed: int, share: float) -> Row:
    """SIGKILL at random moments, also during the start; handlers of 0 to 0.3 s, 2 % raise."""
    async with a_trial(library, seed, longest=0.3, fail=0.02) as trial:
        await trial.first_start()
        times, resumed = max(3, round(100 * share)), -1
        async with trial.fed(any_rate(trial)):
            for _ in range(times):
                if trial.random.random() < 0.6:  # else during the start, as like as not
                    await trial.until(lambda n=resumed: trial.said["resumed"] > n, 10)
                await asyncio.sleep(trial.random.random())
                await trial.end(signal.SIGKILL)
                resumed = trial.said["resumed"]
                await trial.start()
        await trial.until(lambda: not trial.missing)
        await trial.end(signal.SIGTERM)
        return trial.row("kill", kills=times)


async def stopped(library: str, seed: int, share: float, number: signal.Signals) -> Row:
    """A signal at random moments, every third time another one behind it."""
    async with a_trial(library, seed, longest=0.3, fail=0.02) as trial:
        await trial.first_start()
        times = max(3, round(50 * share))
        async with trial.fed(any_rate(trial)):
            for turn in range(times):
                await asyncio.sleep(trial.random.random())
                again = trial.random.random() * 0.2 if turn % 3 == 2 else None
                await trial.end(number, again=again)
                await trial.start_again()
        await trial.until(lambda: not trial.missing)
        await trial.end(number)
        return trial.row(number.name, signals=times)


async def terminated(library: str, seed: int, share: float) -> Row:
    return await stopped(library, seed, share, signal.SIGTERM)


async def interrupted(library: str, seed: int, share: float) -> Row:
    return await stopped(library, seed, share, signal.SIGINT)


async def backlog(library: str, seed: int, share: float) -> Row:
    """3,000 events missed, handlers of 2.5 s, killed 2.5 s after RESUMED."""
    async with a_trial(library, seed, shortest=2.5, longest=2.5) as trial:
        await trial.first_start()
        await trial.end(signal.SIGTERM)
        for _ in range(max(300, round(3000 * share))):
            await trial.emit()
        resumed = trial.said["resumed"]
        await trial.start()
        await trial.until(lambda: trial.said["resumed"] > resumed)
        await asyncio.sleep(2.5)
        await trial.end(signal.SIGKILL)
        await trial.start()
        await trial.until(lambda: not trial.missing)
        await trial.end(signal.SIGTERM)
        return trial.row("backlog, killed")


async def crash_loop(library: str, seed: int, share: float) -> Row:
    """Lives of 0.8 s, each ended by SIGKILL, at 50 events a second."""
    async with a_trial(library, seed, longest=0.3) as trial:
        await trial.first_start()
        lives = max(4, round(40 * share))
        marks = []
        async with trial.fed(lambda: 50.0):
            for _ in range(lives):
                await asyncio.sleep(0.8)
                await trial.end(signal.SIGKILL)
                await trial.start()
                marks.append(trial.qq.resumes[-1].seq if trial.qq.resumes else 1)
        moved = len(set(marks))
        await trial.until(lambda: not trial.missing)
        await trial.end(signal.SIGTERM)
        return trial.row("crash loop", lives=lives, marks=moved)


# Ends of the line


async def slow_handlers(library: str, seed: int, share: float) -> Row:
    """60 events missed, handlers of 0.2 s, beats of 1 s."""
    async with a_trial(library, seed, beat=1.0, shortest=0.2, longest=0.2) as trial:
        await trial.first_start()
        await trial.end(signal.SIGTERM)
        for _ in range(60):
            await trial.emit()
        await trial.start()
        await trial.until(lambda: not trial.missing)
        lines = len(trial.qq.clients)
        await trial.end(signal.SIGTERM)
        return trial.row("60 missed", lines=lines)


async def own_errors(library: str, seed: int, share: float) -> Row:
    """Handlers that raise ClientError, OSError, ValueError, TimeoutError and CancelledError."""
    async with a_trial(library, seed, beat=0.5, fail=0.5, cancelled=0.1, scale=0.05) as trial:
        await trial.first_start()
        async with trial.fed(lambda: 100.0):
            await asyncio.sleep(max(2.0, 10 * share))
        lines = len(trial.qq.clients)
        while trial.missing:  # those that were cancelled come again with the next Resume
            handled = len(trial.handled)
            await trial.until(lambda n=handled: len(trial.handled) > n, 1.0)
            if trial.missing:
                resumed = trial.said["resumed"]
                await trial.qq.drop()
                await trial.until(lambda n=resumed: trial.said["resumed"] > n)
        await trial.end(signal.SIGTERM)
        return trial.row("own errors", lines=lines, cancelled=trial.said["cancelled"])


Strike = Callable[[Trial], Awaitable[object]]


async def quiet(trial: Trial) -> None:
    """Let the bot handle what it has, for its session is about to end."""
    await trial.until(lambda: not trial.missing, 20)


async def refuse_with(trial: Trial, code: Any) -> None:
    trial.qq.refuse_resumes(1, code)
    await trial.qq.drop()


async def withhold(trial: Trial, frame: Any) -> None:
    trial.qq.withhold(frame)
    await trial.qq.drop()


async def open_half(trial: Trial) -> None:
    trial.qq.open_half()
    await trial.qq.drop()


async def muted(trial: Trial) -> None:
    """The line ends, unless events come on it: any frame is a sign of life."""
    lines, beats = len(trial.qq.clients), len(trial.qq.heartbeats)
    trial.qq.mute_acks()
    await trial.qq.wait_for(
        lambda qq: len(qq.clients) > lines or len(qq.heartbeats) > beats + 3, 30
    )
    trial.qq.mute_acks(False)


async def token_trouble(trial: Trial, trouble: Callable[[LocalGateway], object]) -> None:
    trouble(trial.qq)
    trial.qq.revoke_tokens()
    await trial.qq.drop()


async def refused_upgrade(trial: Trial, code: int | None) -> None:
    trial.qq.refuse_upgrades(2, code)
    await trial.qq.drop()


async def late(trial: Trial) -> None:
    trial.qq.latency = 0.1
    await trial.qq.drop()
    await asyncio.sleep(1)
    trial.qq.latency = 0.0


async def disorder(trial: Trial) -> None:
    trial.qq.reorder(3)
    trial.qq.skip_numbers(5)
    await trial.qq.repeat()
    await trial.qq.duplicate()


STRIKES: dict[str, Strike] = {
    "drop": lambda t: t.qq.drop(),
    "4009": lambda t: t.qq.close(4009),
    "4008": lambda t: t.qq.close(4008),
    "1000": lambda t: t.qq.close(1000),
    "op 7": lambda t: t.qq.reconnect(),
    "op 9 true": lambda t: t.qq.invalid_session(True),
    "op 1": lambda t: t.qq.ask_heartbeat(),
    "half-open": lambda t: t.qq.freeze(),
    "half-open at once": open_half,
    "no acks": muted,
    "no Hello": lambda t: withhold(t, "HELLO"),
    "no RESUMED": lambda t: withhold(t, "RESUMED"),
    "Resume dropped": lambda t: refuse_with(t, None),
    "Resume 4009": lambda t: refuse_with(t, 4009),
    "tokens gone": lambda t: token_trouble(t, lambda qq: None),
    "token 502": lambda t: token_trouble(
        t, lambda qq: qq.respond("POST", qq.TOKEN, "<html>", status=502, times=2)
    ),
    "token junk": lambda t: token_trouble(t, lambda qq: qq.respond("POST", qq.TOKEN, [], times=2)),
    "token cut": lambda t: token_trouble(t, lambda qq: qq.cut("POST", qq.TOKEN, times=2)),
    "upgrade 503": lambda t: refused_upgrade(t, 503),
    "upgrade cut": lambda t: refused_upgrade(t, None),
    "late": late,
    "disorder": disorder,
    "not JSON": lambda t: t.qq.send("hello"),
    "binary": lambda t: t.qq.send_malformed("binary"),
    "5 MB": lambda t: t.qq.send_malformed("huge"),
}
ENDS: dict[str, Strike] = {  # of the session
    "4006": lambda t: t.qq.close(4006),
    "4903": lambda t: t.qq.close(4903),
    "op 9 false": lambda t: t.qq.invalid_session(False),
    "Resume 4007": lambda t: refuse_with(t, 4007),
    "Resume op 9": lambda t: refuse_with(t, "op9"),
}


async def strike(trial: Trial, name: str) -> None:
    if name in ENDS:
        await quiet(trial)
        known = len(trial.qq.identifies)
        await ENDS[name](trial)
        await trial.qq.wait_for(lambda qq: len(qq.identifies) > known, PATIENCE)
    else:
        await STRIKES[name](trial)
    await trial.qq.wait_for(lambda qq: is_up(qq), PATIENCE)


def is_up(qq: LocalGateway) -> bool:
    """Whether there is a line that events come on, be it that RESUMED was kept from it."""
    newest = qq.clients[-1]
    return newest.closed_at is None and bool(newest.started or newest.delivered)


HURRIED: dict[str, object] = {"scale": 0.05, "patience": 1.0, "longest": 0.1}


async def each_alone(library: str, seed: int, share: float) -> Row:
    """Every misfortune by itself, three times, in one life of the bot."""
    async with a_trial(library, seed, beat=0.5, **HURRIED) as trial:
        await trial.first_start()
        failed = []
        for name in (*STRIKES, *ENDS):
            for _ in range(3 if share == 1 else 1):
                if name not in ENDS:
                    for _ in range(5):
                        await trial.emit()
                await strike(trial, name)
                for _ in range(5):
                    await trial.emit()
                if not await trial.until(lambda: not trial.missing, 20):
                    failed.append(name)
        await trial.end(signal.SIGTERM)
        due = 1 + len(ENDS) * (3 if share == 1 else 1)
        return trial.row("each misfortune", due=due, **({"failed": failed} if failed else {}))


async def at_random(library: str, seed: int, share: float) -> Row:
    """Misfortunes drawn at random for ten minutes, at 50 events a second, in one process."""
    async with a_trial(library, seed, beat=0.5, fail=0.02, **HURRIED) as trial:
        await trial.first_start()
        end = time.monotonic() + max(5.0, 600 * share)
        strikes: Counter[str] = Counter()
        before: tuple[int, int] | None = None
        async with trial.fed(lambda: 50.0):
            while time.monotonic() < end:
                await asyncio.sleep(trial.random.random())
                name = trial.random.choice(list(STRIKES))
                strikes[name] += 1
                await strike(trial, name)
                if before is None and strikes.total() >= 20:
                    before = usage(trial)
        await trial.until(lambda: not trial.missing)
        await asyncio.sleep(1.0)
        after = usage(trial)
        await trial.end(signal.SIGTERM)
        notes: dict[str, object] = {"strikes": strikes.total(), "tasks at end": trial.last["tasks"]}
        if before is not None:
            notes["descriptors"] = f"{before[0]} -> {after[0]}"
            notes["MB"] = f"{before[1] // 1024} -> {after[1] // 1024}"
        return trial.row("random misfortune", **notes)


def usage(trial: Trial) -> tuple[int, int]:
    """Return the bot's open descriptors and its memory in KiB."""
    assert trial._process is not None
    home = Path(f"/proc/{trial._process.pid}")
    status = (home / "status").read_text()
    (memory,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return len(list((home / "fd").iterdir())), int(memory)


SCENARIOS: dict[str, Callable[[str, int, float], Awaitable[Row]]] = {
    "kill": killed,
    "sigterm": terminated,
    "sigint": interrupted,
    "backlog": backlog,
    "crash-loop": crash_loop,
    "slow": slow_handlers,
    "own-errors": own_errors,
    "each": each_alone,
    "random": at_random,
}


def show(row: Row) -> str:
    notes = ", ".join(f"{name}: {value}" for name, value in row.notes.items())
    numbers = (row.sent, row.handled, row.lost, row.twice, row.identifies, row.resumes)
    return (
        f"{row.scenario:<18}{row.library:<11}" + "".join(f"{n:>9}" for n in numbers) + f"  {notes}"
    )


HEAD = f"{'scenario':<18}{'library':<11}" + "".join(
    f"{name:>9}" for name in ("sent", "handled", "lost", "twice", "Identify", "Resume")
)


async def run(names: list[str], libraries: list[str], share: float, seed: int) -> list[Row]:
    print(HEAD, flush=True)
    rows = []
    for name in names:
        for library in libraries:
            rows.append(await SCENARIOS[name](library, seed, share))
            print(show(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", help=", ".join(SCENARIOS))
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = options.scenarios or list(SCENARIOS)
    rows = asyncio.run(run(names, options.library or [*LIBRARIES], options.share, options.seed))
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
