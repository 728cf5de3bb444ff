"""Random misfortune on real sockets and real processes: no event is lost, no session wasted.

The bot is `programs/gateway_bot.py`. Nobody waits for time here: a moment is so many lines that the
bot printed, or so many events that the gateway delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qqbot_session import AsyncSessionStore, GatewayProtocolError, SessionState
from qqbot_session.gateway import Dispatch, GatewaySession, HeartbeatAck, Hello, Ready, Unknown
from qqbot_session.state import decode
from qqbot_session.storages.files import FileStorage
from qqbot_session.testing import LocalGateway

pytestmark = pytest.mark.real_time

PROGRAM = Path(__file__).parent / "programs" / "gateway_bot.py"
DEADLINE = 60.0  # seconds, for anything that must come, on a machine that is busy elsewhere
AHEAD = 12  # events the feed is ahead of the handlers
ACCOUNT = "bot-0-1"
C2C = "C2C_MESSAGE_CREATE"

RESUMABLE = (1000, 1001, 1011, 4000, 4003, 4004, 4005, 4008, 4009, 4015)
ENDING = (4006, 4007, *range(4900, 4914))

HANDSHAKES = (
    "start",
    "identify",
    "ready",
    "resume",
    "resumed",
    "closed",
    "end",
)  # lines of the bot

CYCLES = [
    pytest.param(12, id="12 cycles"),
    pytest.param(200, id="200 cycles", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


class Life:
    """A bot, the gateway it lives on, and what was seen of both.

    Attributes:
        said: everything the bot printed, processes one after the other.
        sent: the content of each event, by its sequence number.
        waiting: contents that were sent and neither handled nor failed.
        owed: contents that have to be handled in the end.
    """

    def __init__(self, gateway: LocalGateway, directory: Path, seed: int, **options: object):
        self.gateway, self.directory = gateway, directory
        self.random = random.Random(seed)
        self.options = options
        self.said: list[dict[str, Any]] = []
        self.sent: dict[int, str] = {}
        self.waiting: set[str] = set()
        self.owed: set[str] = set()
        self.is_fed = True
        self.owes = True
        self._numbers = count()
        self._news = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._spare: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None]
        self._started: list[asyncio.subprocess.Process] = []

    # The process

    async def start(self) -> None:
        """Let the process that is ready run, and make the next one ready."""
        self._process = self._spare or await self._spawn()
        assert self._process.stdin is not None
        self._process.stdin.write(b"run\n")
        self._reader = asyncio.create_task(self._read(self._process))
        self._spare = await self._spawn()

    async def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        await self._wait()

    async def end_all(self) -> None:
        for process in self._started:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await asyncio.wait([self._reader])
        for process in self._started:
            await process.communicate()

    async def _wait(self) -> None:
        """Wait for the end of the process and of what it said."""
        async with asyncio.timeout(DEADLINE):
            await self._process.wait()
            await self._reader

    async def _spawn(self) -> asyncio.subprocess.Process:
        gateway = self.gateway
        options = {
            "api-url": gateway.api_url,
            "token-url": gateway.token_url,
            "app-id": gateway.app_id,
            "secret": gateway.client_secret,
            "account": ACCOUNT,
            "directory": self.directory,
            "seed": self.random.getrandbits(32),
            **self.options,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            *(f"--{name}={value}" for name, value in options.items()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._started.append(process)
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            with contextlib.suppress(ValueError):  # SIGKILL may cut the last one
                self.said.append(said := json.loads(line))
                if said["what"] in ("handled", "failed", "let go"):
                    self.waiting.discard(said["content"])
                if said["what"] == "let go":  # three processes died while they handled it
                    assert said["deaths"] == 3
                    self.owed.discard(said["content"])
                self.wake()

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # What is known

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it is true; it is asked again after every line of the bot."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(self.story()) from None

    async def until_gateway(self, condition: Callable[[LocalGateway], object]) -> None:
        try:
            await self.gateway.wait_for(condition, DEADLINE)
        except TimeoutError:
            raise AssertionError(self.story()) from None

    def story(self) -> str:
        """What a failure needs to be understood."""
        steps = [line for line in self.said if line["what"] in HANDSHAKES]
        return (
            f"at {time.monotonic():.3f}, exit code {self._process.returncode}, waiting for"
            f" {len(self.waiting)}: {self.gateway!r}, newest {self.gateway.clients[-1:]},"
            f" bot's last steps {steps[-8:]}, last lines {self.said[-4:]}"
        )

    def all_said(self, what: str) -> list[dict[str, Any]]:
        return [line for line in self.said if line["what"] == what]

    def on_storage(self) -> SessionState | None:
        """Return what is stored, `None` without a session."""
        try:
            state = decode((self.directory / f"session-{ACCOUNT}.json").read_bytes())
        except FileNotFoundError:
            return None
        return state if state.resumable else None

    def failed_resumes(self) -> int:
        state = self.on_storage()
        return 0 if state is None else state.failed_resumes

    def handled(self) -> Counter[str]:
        return Counter(line["content"] for line in self.all_said("handled"))

    def is_steady(self) -> bool:
        """Whether the newest connection's handshake was answered, and storage knows."""
        newest, state = self.gateway.clients[-1], self.on_storage()
        last = next((line for line in reversed(self.said) if line["what"] in HANDSHAKES), None)
        return (
            newest.closed_at is None
            and last is not None
            and last["what"] in ("ready", "resumed")
            and last["at"] > newest.connected_at
            and state is not None
            and state.last_connected_at == last["connected_at"]
            and state.failed_resumes == 0
        )

    # Feeding

    async def feed(self) -> None:
        while True:
            await self.until(lambda: self.is_fed and len(self.waiting) < AHEAD)
            await self.emit()

    async def emit(self) -> None:
        content = str(next(self._numbers))
        self.waiting.add(content)
        if self.owes:
            self.owed.add(content)
        for seq in await self.gateway.emit(C2C, self.gateway.c2c_message(content)):
            self.sent[seq] = content

    async def moment(self) -> None:
        """Wait for a random moment: for what the bot says, or for what the gateway does."""
        more = self.random.randrange(12)
        if self.random.random() < 0.5:
            enough = len(self.said) + more
            await self.until(lambda: len(self.said) >= enough)
        else:
            enough = len(self.gateway.delivered) + more
            await self.until_gateway(lambda qq: len(qq.delivered) >= enough)

    # Misfortune

    async def suffer(self, hows: list[signal.Signals], *, duplicates: bool) -> None:
        """Strike up to three times at random moments, so that at most two Resumes fail."""
        budget = 3
        while budget > 0:
            await self.moment()
            kind = self.random.choice(["line", "line", "process", "tokens", "refused", "twice"])
            if kind == "line":
                await self.strike_line()
            elif kind == "process":
                await self.end(self.random.choice(hows))
                await self.start()
            elif kind == "tokens" and budget > 1:  # the first Resume may get 4004
                self.gateway.revoke_tokens()
                await self.strike_line()
                budget -= 1
            elif kind == "refused" and budget > 1:
                times = self.random.randrange(1, budget)
                self.gateway.refuse_resumes(times, None)
                await self.strike_line()
                budget -= times
            elif kind == "twice" and duplicates:
                await self.gateway.duplicate()
                continue
            budget -= 1
        await self.until(self.is_steady)

    async def strike_line(self) -> None:
        gateway = self.gateway
        strikes: list[Callable[[], Any]] = [
            gateway.drop,
            lambda: gateway.close(self.random.choice(RESUMABLE)),
            gateway.reconnect,
            lambda: gateway.invalid_session(True),
        ]
        gateway.rate_limit(self.random.choice([0, 0, 1, 2]))
        struck = [client for client in gateway.clients if client.closed_at is None]
        await self.random.choice(strikes)()
        await self.until_gateway(lambda _: all(client.closed_at for client in struck))


@contextlib.asynccontextmanager
async def living(directory: Path, seed: int, **options: object) -> AsyncIterator[Life]:
    async with LocalGateway(heartbeat_interval=300.0) as gateway:
        life = Life(gateway, directory, seed, **options)
        await life.start()
        try:
            await life.until(lambda: life.all_said("ready") and life.on_storage())
            yield life
        finally:
            await life.end_all()


async def live_through(life: Life, cycle: Callable[[], Any], cycles: int) -> None:
    """Feed all the time; in the end handle what is left and stop in order."""
    feeding = asyncio.create_task(life.feed())
    try:
        for _ in range(cycles):
            await cycle()
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])
    while missing := life.owed - life.handled().keys():
        await life.until(lambda: not life.waiting)
        if missing - life.handled().keys():  # a handler failed; it has its next chance after Resume
            life.waiting = missing - life.handled().keys()
            await life.gateway.drop()
    await life.end(signal.SIGTERM)
    assert life.said[-1]["what"] == "end"


def resumed_only_from_what_was_handled(life: Life) -> Iterator[tuple[int, set[str]]]:
    """Yield each Resume that asked from beyond an unhandled event, with those events."""
    pending = sorted(life.sent.items())
    handled: set[str] = set()
    for line in life.said:
        if line["what"] in ("handled", "let go"):
            handled.add(line["content"])
        elif line["what"] == "resume":
            passed = {content for seq, content in pending if seq <= line["seq"]}
            if passed - handled:
                yield line["seq"], passed - handled


def check_handshakes(life: Life) -> None:
    """Every Resume is due, every Identify is justified by what the bot was told."""
    has_session, unanswered = False, 0
    for number, line in enumerate(life.said):
        around = life.said[max(0, number - 5) : number + 1]
        match line["what"]:
            case "identify":
                assert not has_session or unanswered == 3, around
                has_session, unanswered = False, 0
            case "resume":
                assert has_session, around
                unanswered += 1
                assert unanswered <= 3, around
            case "ready":
                has_session, unanswered = True, 0
            case "resumed":
                unanswered = 0
            case "closed" if line["code"] in ENDING:
                has_session = False
            case "invalid session" if line["d"] is not True:
                has_session = False


def most_resumes_without_resumed(gateway: LocalGateway) -> int:
    most = row = 0
    for client in gateway.clients:
        row += len(client.resumes)
        most = max(most, row)
        if client.started is not None:
            row = 0
    return most


# Misfortune that lets the session live


@pytest.mark.parametrize("cycles", CYCLES)
async def test_no_event_is_lost_though_the_bot_is_killed_at_random_moments(
    directory: Path, cycles: int
) -> None:
    # promises 9, 16, 17 and 18
    async with living(directory, 1, remember=128, fail=0.01, debounce=0, longest=0.04) as life:
        await live_through(life, lambda: life.suffer([signal.SIGKILL], duplicates=True), cycles)
        assert life.owed <= life.handled().keys()
        assert list(resumed_only_from_what_was_handled(life)) == []
        assert most_resumes_without_resumed(life.gateway) <= 3
        assert len(life.gateway.identifies) == 1
        check_handshakes(life)


@pytest.mark.parametrize("cycles", CYCLES)
async def test_every_event_is_handled_exactly_once_when_the_bot_is_stopped_in_order(
    directory: Path, cycles: int
) -> None:
    # promises 9, 16, 17 and 18
    async with living(directory, 2, longest=0.1, grace=0.05, fail=0.01) as life:
        await live_through(life, lambda: life.suffer([signal.SIGTERM], duplicates=False), cycles)
        assert life.handled() == Counter(life.owed)
        assert list(resumed_only_from_what_was_handled(life)) == []
        assert most_resumes_without_resumed(life.gateway) <= 3
        assert len(life.gateway.identifies) == 1
        check_handshakes(life)


# Misfortune that ends the session


async def end_session(life: Life) -> None:
    """End the session in a random way, right away or at the next Resume."""
    gateway = life.gateway
    code = life.random.choice(ENDING)
    kind = life.random.choice(["close", "op 9", "expire", "exhaust", "refuse", "silence"])
    if kind == "close":
        gateway.expire_sessions()  # should a slow bot be cut off before it reads the code
        await gateway.close(code)
    elif kind == "op 9":
        await gateway.invalid_session(False)
    elif kind == "expire":
        gateway.expire_sessions()
        await gateway.drop()
    elif kind == "exhaust":
        await gateway.drop()
        for _ in range(3):  # the bot has no chance to come back before they are forgotten
            await life.emit()
        gateway.exhaust_replay()
    elif kind == "refuse":
        gateway.refuse_resumes(1, life.random.choice([code, "op9"]))
        await gateway.drop()
    else:
        gateway.refuse_resumes(3, None)
        await gateway.drop()


async def test_a_bot_whose_session_ended_gets_a_new_one_by_itself_and_none_without_need(
    directory: Path,
) -> None:
    # promises 16 and 17
    cycles = 12  # the budget has 20 Identifies at once
    async with living(directory, 3) as life:

        async def cycle() -> None:
            if life.random.random() < 0.5:
                await life.suffer([signal.SIGTERM], duplicates=False)
            life.is_fed = False
            await life.until(lambda: not life.waiting)
            life.is_fed, life.owes = True, False  # what is sent now may end with the session
            life.wake()
            await life.moment()
            known = len(life.gateway.identifies)
            await end_session(life)
            await life.until_gateway(lambda qq: len(qq.identifies) > known)
            await life.until(life.is_steady)
            life.waiting &= life.owed
            life.owes = True
            life.wake()

        await live_through(life, cycle, cycles)
        assert life.owed <= life.handled().keys()
        assert max(life.handled().values()) == 1
        assert len(life.gateway.identifies) == 1 + cycles
        assert most_resumes_without_resumed(life.gateway) <= 3
        check_handshakes(life)


# The number of failed Resumes outlives the process


async def test_a_bot_killed_between_refused_resumes_tries_three_in_all_and_then_identifies(
    directory: Path,
) -> None:
    # promises 9 and 17
    async with living(directory, 4, debounce=0, scale=0.1) as life:
        old = life.gateway.clients[0].session_id
        life.gateway.refuse_resumes(20, None)
        await life.gateway.drop()
        for times in (1, 2):
            await life.until(lambda times=times: life.failed_resumes() >= times)
            await life.end(signal.SIGKILL)
            await life.start()
        await life.until_gateway(lambda qq: len(qq.identifies) == 2)
        await life.until(life.is_steady)
        assert [resume.session_id for resume in life.gateway.resumes] == [old] * 3


async def test_a_resume_is_counted_on_storage_at_once_however_long_the_window(
    directory: Path,
) -> None:
    # promise 17
    async with living(directory, 5, debounce=60, scale=0.05) as life:
        life.gateway.refuse_resumes(20, None)
        await life.gateway.drop()
        await life.until(lambda: len(life.all_said("closed")) == 3)  # two Resumes were refused
        await life.end(signal.SIGKILL)
        assert life.failed_resumes() >= 1


async def test_an_answered_resume_is_known_to_storage_at_once_however_long_the_window(
    directory: Path,
) -> None:
    # promise 17
    async with living(directory, 6, debounce=60, scale=0.05) as life:
        await life.end(signal.SIGKILL)
        life.gateway.refuse_resumes(1, None)
        await life.start()
        await life.until(lambda: life.all_said("resumed"))
        for _ in range(20):  # a while, on any machine
            await life.emit()
            await life.until(lambda: not life.waiting)
        await life.end(signal.SIGKILL)
        assert life.failed_resumes() == 0


# Frames that no gateway should send


class ReadingBot:
    """A driver that reads on after a malformed frame, and reports what became of each one."""

    def __init__(self, gateway: GatewaySession, store: AsyncSessionStore) -> None:
        self.gateway, self.store = gateway, store
        self.outcomes: asyncio.Queue[object] = asyncio.Queue()

    async def run(self, url: str, token: str) -> None:
        async with aiohttp.ClientSession() as http, http.ws_connect(url) as ws:
            connection = self.gateway.connect()
            connection.opened(token, time.time())
            async for message in ws:
                try:
                    event = connection.receive(message.data, time.time())
                except GatewayProtocolError as error:
                    self.outcomes.put_nowait(error)
                    continue
                if isinstance(event, Dispatch):
                    self.gateway.settle(event)
                for frame in connection.frames_to_send():
                    await ws.send_str(frame)
                await self.store.record(self.gateway)
                self.outcomes.put_nowait(event)

    async def outcome(self) -> object:
        return await asyncio.wait_for(self.outcomes.get(), DEADLINE)

    def knows(self) -> tuple[object, ...]:
        gateway = self.gateway
        return gateway.state, gateway.received, gateway.settled


JUNK: list[Any] = [None, True, False, 0, -1, 1.5, "", "1", "\0", [], [1], {}, {"op": 1}]


def malformed(rng: random.Random) -> object:
    """Return a frame that has not the documented shape."""

    def without(*kinds: type) -> Any:
        return rng.choice([value for value in JUNK if type(value) not in kinds])

    bad_number = rng.choice([without(int, type(None)), -1, 2**53, 10**400, 1e400, float("nan")])
    bad_text = without(str, type(None))
    bad_session_id = rng.choice([without(str), "", "x" * 513, "a\0b", "\ud800"])
    good = {"op": 0, "s": 7, "t": C2C, "id": "x", "d": {"content": "no"}}
    return rng.choice(
        [
            without(dict),
            {"d": {}, "s": 5, "t": "READY"},
            {"op": without(int)},
            {"op": rng.choice([float("nan"), 1e400, 0.0, "0", "10"])},
            good | {"s": bad_number},
            good | {"t": bad_text},
            good | {"id": bad_text},
            good | {"t": "READY", "d": without(dict)},
            good | {"t": "READY", "d": {"session_id": bad_session_id}},
            good | {"t": "READY", "d": {"session_id": "fine"}, "s": bad_number},
            good | {"t": "RESUMED", "d": "", "s": bad_number},
            {"op": 10, "d": without(dict)},
            {"op": 10, "d": {}},
            {"op": 10, "d": {"heartbeat_interval": without(int, float)}},
            {"op": 10, "d": {"heartbeat_interval": rng.choice([0, -1, float("nan"), 1e400])}},
        ]
    )


def unknown(rng: random.Random) -> object:
    """Return a frame with an op that no document names, and something hostile beside it."""
    frame: dict[str, Any] = {"op": rng.choice([-1, 3, 4, 5, 8, 12, 13, 99, 2**63, 10**400])}
    for name in ("s", "t", "d", "id", "session_id", "__proto__", "\ud800"):
        if rng.random() < 0.5:
            frame[name] = rng.choice([*JUNK, "x" * 100_000, 10**400, {"session_id": "mine"}])
    return frame


def no_json(rng: random.Random) -> str:
    return rng.choice(["", "{", '{"op":', "\0", "[" * 100_000, "9" * 5000, "nul", '{"op":1}}'])


@pytest.mark.parametrize("seed", range(3))
async def test_malformed_and_hostile_frames_change_nothing_and_the_next_event_is_handled(
    directory: Path, seed: int
) -> None:
    # promise 19
    rng = random.Random(seed)
    storage = FileStorage(directory)
    async with LocalGateway() as qq, AsyncSessionStore(storage, debounce=0) as store:
        gateway = GatewaySession(ACCOUNT, app_id=qq.app_id, intents=1 << 25, remember_events=8)
        bot = ReadingBot(gateway, store)
        running = asyncio.create_task(bot.run(qq.ws_url, await fetch_token(qq)))
        try:
            assert isinstance(await bot.outcome(), Hello)
            assert isinstance(await bot.outcome(), Ready)
            assert isinstance(await bot.outcome(), HeartbeatAck)
            await qq.emit(C2C, qq.c2c_message("before"))
            assert isinstance(await bot.outcome(), Dispatch)
            await store.flush()
            kept, known = await storage.read(ACCOUNT), bot.knows()
            assert kept is not None
            for _ in range(200):
                make: Any = rng.choice([malformed] * 5 + [unknown, no_json])
                kind = Unknown if make is unknown else GatewayProtocolError
                frame = make(rng)
                text = frame if make is no_json else json.dumps(frame)
                assert isinstance(text, str)
                await qq.send(text)
                outcome = await bot.outcome()
                assert isinstance(outcome, kind), text[:200]
                assert len(str(outcome)) < 500 or kind is Unknown
                assert bot.knows() == known, text[:200]
            await store.flush()
            assert without_stamp(await storage.read(ACCOUNT)) == without_stamp(kept)

            await qq.emit(C2C, qq.c2c_message("after"))
            event = await bot.outcome()
            assert isinstance(event, Dispatch)
            assert (event.seq, event.data["content"]) == (3, "after")
            await store.flush()
            state = await store.load(ACCOUNT)
            assert state is not None
            assert (state.last_seq, state.session_id) == (3, qq.clients[0].session_id)
            assert len(qq.clients) == 1
        finally:
            running.cancel()
            await asyncio.wait([running])
    await storage.aclose()


def without_stamp(data: bytes | None) -> dict[str, Any]:
    assert data is not None
    record: dict[str, Any] = json.loads(data)
    del record["savedAt"]
    return record


async def fetch_token(qq: LocalGateway) -> str:
    body = {"appId": qq.app_id, "clientSecret": qq.client_secret}
    async with aiohttp.ClientSession() as http, http.post(qq.token_url, json=body) as answer:
        return str((await answer.json())["access_token"])
