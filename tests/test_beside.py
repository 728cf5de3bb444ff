"""Real processes in which a bot is not alone, and the signals that end them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from ports import free_port

from qqbot_session import AsyncSessionStore
from qqbot_session.testing import LocalGateway

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]

PROGRAM = Path(__file__).parent / "programs" / "beside.py"
EXAMPLES = Path(__file__).parent.parent / "examples"
slow = pytest.mark.slow
TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway(heartbeat_interval=5) as local:
        for number in (1, 2, 3):
            local.add_app(f"10000{number}", "s")
        yield local


@dataclass
class Program:
    """A process that runs one scenario of `programs/beside.py`."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)

    async def until(self, word: str, times: int = 1) -> None:
        """Read until a line began so, so many times."""
        assert self.process.stdout is not None
        while sum(line.startswith(word) for line in self.said) < times:
            line = await asyncio.wait_for(self.process.stdout.readline(), 60)
            assert line, self.said
            self.said.append(line.decode().rstrip())

    async def end(self) -> int:
        """Return the status with which it ends."""
        output, _ = await asyncio.wait_for(self.process.communicate(), 60)
        self.said += output.decode().splitlines()
        assert self.process.returncode is not None
        return self.process.returncode

    def words(self) -> list[str]:
        """Return what it said but for the log."""
        return [line for line in self.said if not line.startswith(("log ", "["))]


@contextlib.asynccontextmanager
async def running(
    qq: LocalGateway, directory: Path, *words: str, bots: int = 1, work: float = 0.3
) -> AsyncIterator[Program]:
    """Start it, and wait until so many of its bots work on a message each.

    What takes the signals after a bot did has time for that, and to be noticed; and a session
    is written before a handler blocks the loop.
    """
    lines = len(qq.clients)
    environment = os.environ | {"URLS": f"{qq.api_url} {qq.token_url}", "WORK": str(work)}
    program = Program(
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", str(PROGRAM), *words, cwd=directory, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
    )  # fmt: skip
    try:
        await qq.wait_for(
            lambda qq: sum(c.started is not None for c in qq.clients[lines:]) >= bots, 60
        )
        await asyncio.sleep(1.5 if re.search("later|corn|blocks", words[0]) else 0.0)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        await program.until("begun", bots)
        yield program
    finally:
        if program.process.returncode is None:
            program.process.kill()
            await program.process.wait()


@pytest.mark.parametrize(
    ("scenario", "bots", "number", "words"),
    [
        ("two_bots", 2, TERM, ["returned"]),
        pytest.param("two_bots", 2, INT, ["returned"], marks=slow),
        pytest.param("three_bots_in_a_group", 3, TERM, ["returned"], marks=slow),
        ("three_bots_in_a_group", 3, HUP, ["returned"]),
        ("a_refused_bot_beside_two", 2, TERM, ["returned NoneType GatewayRefusedError NoneType"]),
        pytest.param("one_in_a_thread", 2, TERM, ["returned"], marks=slow),
        pytest.param("handler_of_the_loop", 1, TERM, ["own", "own", "returned"], marks=slow),
        ("handler_of_the_loop_that_comes_later", 1, TERM, ["own", "own", "returned"]),
        ("handler_of_the_process", 1, TERM, ["own", "own", "returned"]),
        pytest.param("handler_that_cancels_the_bot", 1, TERM, ["returned cancelled"], marks=slow),
        ("a_child_that_was_forked", 1, TERM, ["child 15", "returned"]),
        pytest.param("aiohttp_app", 1, TERM, ["returned"], marks=slow),
        ("aiohttp_app", 1, INT, ["returned"]),
    ],
)
async def test_the_first_signal_ends_every_bot_of_the_process_in_order(
    scenario: str, bots: int, number: signal.Signals, words: list[str], qq: LocalGateway,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Handlers get their grace, the program's own handlers run, and the status is 0."""
    # promise 29, 22
    async with running(qq, tmp_path, scenario, bots=bots) as program:
        program.process.send_signal(number)
        assert await program.end() == 0, program.said
    begun, rest = program.words()[:bots], program.words()[bots:]
    assert begun == ["begun hello"] * bots
    assert sorted(rest) == sorted(words + ["handled hello"] * bots)
    if scenario == "handler_of_the_process":  # what it closes stays open for handlers at work
        assert rest == ["handled hello", "own", "own", "returned"]
    assert {client.close_code for client in qq.clients} == {4000}


@pytest.mark.parametrize("loop", ["uvloop", "rloop"])
@pytest.mark.parametrize("scenario", ["two_bots", "handler_of_the_loop"])
async def test_on_another_loop_signals_do_the_same(
    loop: str, scenario: str, qq: LocalGateway, tmp_path: Path
) -> None:
    # promise 29
    if importlib.util.find_spec(loop) is None:
        pytest.skip(f"needs {loop}")
    async with running(qq, tmp_path, scenario, loop) as program:
        program.process.send_signal(TERM)
        assert await program.end() == 0, program.said
    assert "returned" in program.words()  # rloop warns of sockets of its own behind that
    assert program.words().count("own") == 2 * (scenario == "handler_of_the_loop")


@pytest.mark.parametrize(
    ("scenario", "number", "status"),
    [
        ("uvicorn_lifespan", TERM, -TERM),
        pytest.param("uvicorn_lifespan", INT, 0, marks=slow),
        pytest.param("uvicorn_before_the_bot", TERM, -TERM, marks=slow),
        pytest.param("uvicorn_after_the_bot", TERM, -TERM, marks=slow),
        pytest.param("hypercorn_lifespan", TERM, 0, marks=slow),
        pytest.param("hypercorn_before_the_bot", INT, 0, marks=slow),
        ("hypercorn_after_the_bot", TERM, 0),
    ],
)
async def test_beside_a_web_server_one_signal_ends_both(
    scenario: str, number: signal.Signals, status: int, qq: LocalGateway, tmp_path: Path
) -> None:
    """The status is the server's: uvicorn raises the signal again once it has ended."""
    # promise 29
    pytest.importorskip(scenario.partition("_")[0])
    async with running(qq, tmp_path, scenario) as program:
        program.process.send_signal(number)
        assert await program.end() == status, program.said
    assert "handled hello" in program.words()
    assert "Traceback" not in "".join(program.said)


async def test_a_handler_of_the_program_that_exits_does_so_when_the_bot_has_ended(
    qq: LocalGateway, tmp_path: Path
) -> None:
    # promise 29
    async with running(qq, tmp_path, "handler_that_exits") as program:
        program.process.send_signal(TERM)
        assert await program.end() == 7, program.said
    assert program.words() == ["begun hello", "handled hello", "own"]


async def test_a_bot_that_starts_while_the_process_is_ending_ends_at_once(
    qq: LocalGateway, tmp_path: Path
) -> None:
    # promise 29
    async with running(qq, tmp_path, "bots_that_start_one_after_the_other") as program:
        program.process.send_signal(TERM)
        assert await program.end() == 0, program.said
    assert program.words()[-2:] == ["handled hello", "returned"]
    assert "the second returned" in program.words()


async def test_a_signal_counts_for_what_runs_then_and_not_for_what_is_started_later(
    qq: LocalGateway, tmp_path: Path
) -> None:
    async with running(qq, tmp_path, "one_after_the_other") as program:
        program.process.send_signal(TERM)
        await program.until("returned")
        await qq.wait_for(lambda qq: len([c for c in qq.clients if c.started]) >= 2)
        program.process.send_signal(TERM)
        assert await program.end() == 0, program.said
    assert program.words() == ["begun hello", "handled hello", "returned", "returned"]


@pytest.mark.parametrize("ignored", [INT, HUP])
async def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    ignored: signal.Signals, qq: LocalGateway, tmp_path: Path
) -> None:
    """As `nohup` ignores SIGHUP, and a script SIGINT for what it starts in the background."""
    # promise 29
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        async with running(qq, tmp_path, "two_bots", bots=2) as program:
            program.process.send_signal(ignored)
            await program.until("handled", 2)
            assert [client.closed_at for client in qq.clients] == [None, None]
            program.process.send_signal(TERM)
            assert await program.end() == 0, program.said
    finally:
        signal.signal(ignored, before)


async def test_hang_ups_that_follow_each_other_are_one(qq: LocalGateway, tmp_path: Path) -> None:
    """The terminal that is closed sends SIGHUP, and its shell another one: the grace goes on."""
    # promise 29
    async with running(qq, tmp_path, "two_bots", bots=2, work=0.5) as program:
        for _ in range(3):
            program.process.send_signal(HUP)
            await asyncio.sleep(0.05)
        assert await program.end() == 0, program.said
    assert program.words().count("handled hello") == 2


@pytest.mark.parametrize("pause", [0.5, 1.0])
async def test_the_second_signal_ends_a_process_whose_loop_is_blocked(
    pause: float, qq: LocalGateway, tmp_path: Path
) -> None:
    """By a handler that swallows whatever it meets; what it worked on comes again."""
    # promise 29
    async with running(qq, tmp_path, "a_handler_that_blocks", work=60) as program:
        for _ in range(2):
            program.process.send_signal(INT)
            await asyncio.sleep(pause)
        assert await program.end() == 128 + INT, program.said
    assert "log SIGINT again, and the event loop is blocked: ending the process at once" in (
        program.said
    )
    async with running(qq, tmp_path, "two_bots", bots=2) as program:
        await program.until("handled", 3)
        program.process.send_signal(TERM)
        assert await program.end() == 0
    assert program.words().count("handled hello") == 3  # the old message, and the new one for two


# Odd ends


async def test_a_name_that_cannot_be_looked_up_does_not_hold_up_the_end(
    qq: LocalGateway, tmp_path: Path
) -> None:
    answer = {"url": f"ws://gateway.example:{qq.port}/websocket", "shards": 1}
    qq.respond("GET", "/gateway/bot", answer)
    async with running(qq, tmp_path, "a_name_that_hangs", bots=0) as program:
        await program.until("begun")
        program.process.send_signal(TERM)
        assert await program.end() == 0, program.said


async def test_a_program_that_starts_itself_anew_in_place_resumes_and_has_signals_again(
    qq: LocalGateway, tmp_path: Path
) -> None:
    async with running(qq, tmp_path, "a_bot_that_starts_anew_in_place") as program:
        await qq.wait_for(lambda qq: sum(c.started is not None for c in qq.clients) >= 2, 60)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("again"))
        await program.until("handled", 2)
        program.process.send_signal(TERM)
        assert await program.end() == 0, program.said
    assert program.words()[-1] == "returned"
    assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


# The programs of the page on web applications


def at(qq: LocalGateway) -> dict[str, str]:
    """Return the variables that lead a bot to QQ on this machine."""
    here = {"QQBOT_APP_ID": qq.app_id, "QQBOT_SECRET": qq.client_secret}
    return os.environ | here | {"QQBOT_API_URL": qq.api_url, "QQBOT_TOKEN_URL": qq.token_url}


@contextlib.asynccontextmanager
async def an_example(
    qq: LocalGateway, directory: Path, *command: str, **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=directory, env=at(qq) | variables,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("framework", ["fastapi", "aiohttp"])
async def test_the_bot_in_a_web_application_answers_and_ends_in_order(
    framework: str, qq: LocalGateway, tmp_path: Path
) -> None:
    # promise 29
    port = str(free_port())
    if framework == "fastapi":
        pytest.importorskip("fastapi")
        pytest.importorskip("uvicorn")
        command = ["-m", "uvicorn", "--app-dir", str(EXAMPLES), "web_fastapi:app", "--port", port]
    else:
        command = [str(EXAMPLES / "web_aiohttp.py")]
    async with an_example(qq, tmp_path, *command, PORT=port) as program:
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started, 60)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("ping"))
        await qq.wait_for(lambda qq: qq.sent)
        if framework == "fastapi":
            health = f"http://127.0.0.1:{port}/health"
            async with aiohttp.ClientSession() as http, http.get(health) as answer:
                assert (answer.status, await answer.json()) == (200, {"0": True})
        program.terminate()
        output, _ = await asyncio.wait_for(program.communicate(), 60)
    assert (program.returncode, b"Traceback" in output) == (
        -TERM if framework == "fastapi" else 0,
        False,
    ), output.decode()
    assert qq.clients[-1].close_code == 4000


async def test_ten_bots_run_in_one_process_with_one_store(qq: LocalGateway, tmp_path: Path) -> None:
    """One of them is refused, and the nine others go on."""
    accounts = [(f"20000{number}", "s") for number in range(10)]
    for app_id, secret in accounts[:-1]:
        qq.add_app(app_id, secret)
    words = [word for account in accounts for word in account]
    async with an_example(qq, tmp_path, str(EXAMPLES / "many_bots.py"), *words) as program:
        output = b""
        while output.count(b"READY") < 9:
            output += await asyncio.wait_for(program.stdout.readline(), 60)  # type: ignore
        program.terminate()
        output += (await asyncio.wait_for(program.communicate(), 60))[0]
    assert program.returncode == 0, output.decode()
    assert b"The app id or the secret is wrong" in output
    assert {client.close_code for client in qq.clients} == {4000}
    async with AsyncSessionStore(tmp_path / "sessions") as store:
        assert len(await store.load_all()) == 9
