"""Real supervisors, terminals and init processes that stop a bot, with the lines of the page.

The slow part of the proof; what is not installed is skipped. PM2 is npm's (`PM2` may name it),
supervisord and watchfiles are PyPI's, tini and tmux the system's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from qqbot_session.testing import LocalGateway

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_time,
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "stopping.md").read_text("utf-8")
PROGRAM = ROOT / "tests" / "programs" / "beside.py"
ROUNDS = 3  # stops, each while handlers are at work


def block(language: str, text: str) -> str:
    """Return the page's only block of a language that has a text in it."""
    (found,) = [
        b for b in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S) if text in b
    ]
    return found


@dataclass
class Host:
    """A folder in which a supervisor finds its bot, as `/opt/bot` on the page."""

    qq: LocalGateway
    directory: Path
    work: float
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.directory / "bot.py").write_text(
            f"import sys, runpy\nsys.argv = ['beside.py', 'alone']\n"
            f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
        )
        (python := self.directory / ".venv" / "bin" / "python").parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "URLS": f"{self.qq.api_url} {self.qq.token_url}",
            "WORK": str(self.work),
            "OUT": str(self.directory / "out"),
            "PM2_HOME": str(self.directory / "pm2"),
        }
        return os.environ | ours

    def page(self, text: str) -> str:
        return text.replace("/opt/bot", str(self.directory))

    async def run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.directory, env=self.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return output.decode()

    def said(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "out").read_text().splitlines()
        return []

    async def until(self, word: str, times: int) -> None:
        async with asyncio.timeout(30):
            while sum(line.startswith(word) for line in self.said()) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


Stop = Callable[[], Awaitable[object]]


def one_after_the_other(stop: Stop, start: Stop) -> Stop:
    async def restart() -> None:
        await stop()
        await start()

    return restart


@contextlib.asynccontextmanager
async def pm2(host: Host, as_on_the_page: bool = True) -> AsyncIterator[tuple[Stop, Stop]]:
    command = os.environ.get("PM2") or shutil.which("pm2")
    if command is None:
        pytest.skip("needs PM2")
    text = host.page(block("js", "kill_timeout"))
    if not as_on_the_page:
        text = re.sub(r".*kill_timeout.*\n", "", text)
    (host.directory / "ecosystem.config.js").write_text(text)
    await host.run(command, "start", "ecosystem.config.js")
    try:
        yield (
            partial(host.run, command, "restart", "bot"),
            partial(host.run, command, "stop", "bot"),
        )
    finally:
        await host.run(command, "kill")


@contextlib.asynccontextmanager
async def supervisord(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    pytest.importorskip("supervisor")
    here = host.directory
    config = here / "supervisord.conf"
    config.write_text(
        f"[unix_http_server]\nfile={here}/s\n[supervisord]\nnodaemon=true\n"
        f"logfile={here}/log\npidfile={here}/pid\n[supervisorctl]\nserverurl=unix://{here}/s\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        + host.page(block("ini", "[program:bot]"))
    )
    ours = ["-m", "supervisor.supervisord", "-c", str(config)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *ours, cwd=here, env=host.environment,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    control = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(config)]
    try:
        yield (
            lambda: host.run(*control, "restart", "bot"),
            lambda: host.run(*control, "stop", "bot"),
        )
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def tini(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    command = os.environ.get("TINI") or shutil.which("tini")
    if command is None:
        pytest.skip("needs tini")
    processes: list[asyncio.subprocess.Process] = []

    async def start() -> None:
        processes.append(
            await asyncio.create_subprocess_exec(
                command, "-s", "--", ".venv/bin/python", "bot.py",
                cwd=host.directory, env=host.environment, stdout=asyncio.subprocess.DEVNULL,
            )
        )  # fmt: skip

    async def stop() -> None:
        processes[-1].terminate()
        assert await processes[-1].wait() == 0

    await start()
    yield one_after_the_other(stop, start), stop


@contextlib.asynccontextmanager
async def tmux(host: Host, how: str) -> AsyncIterator[tuple[Stop, Stop]]:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    lines = dict(re.findall(r"^(tmux \S+)(.*?)(?:  #.*)?$", block("sh", "tmux"), re.M))
    tmux_here = ["tmux", "-L", host.directory.name]  # a server of our own

    async def call(verb: str) -> None:
        words = shlex.split(host.page(verb + lines[verb]))
        await host.run(*tmux_here, *words[1:])

    async def stop() -> None:
        ended = sum(line == "returned" for line in host.said())
        await call(how)
        await host.until("returned", ended + 1)
        await asyncio.sleep(0.5)

    async def restart() -> None:
        await stop()
        await call("tmux new-session")

    await call("tmux new-session")
    try:
        yield restart, stop
    finally:
        await host.run(*tmux_here, "kill-server")


@contextlib.asynccontextmanager
async def terminal(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    """Bash in a terminal that is closed, as ssh's is when the line drops."""
    terminals: list[tuple[int, subprocess.Popen[bytes]]] = []

    async def start() -> None:
        ours, theirs = pty.openpty()
        bash = subprocess.Popen(  # noqa: ASYNC220
            ["bash", "--norc", "-i"], cwd=host.directory, env=host.environment,
            stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )  # fmt: skip
        os.close(theirs)
        os.write(ours, b".venv/bin/python bot.py > log 2>&1\n")
        terminals.append((ours, bash))

    async def stop() -> None:
        ours, bash = terminals[-1]
        ended = sum(line == "returned" for line in host.said())
        os.close(ours)
        await asyncio.to_thread(bash.wait)
        await host.until("returned", ended + 1)

    await start()
    yield one_after_the_other(stop, start), stop


@contextlib.asynccontextmanager
async def nohup(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    start, stop_line = block("sh", "nohup").splitlines()[-2:]

    async def stop() -> None:
        pid = int((host.directory / "bot.pid").read_text())
        await host.run("sh", "-c", host.page(stop_line))
        await host.until("returned", sum(line == "returned" for line in host.said()) + 1)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(100):
                os.kill(pid, 0)
                await asyncio.sleep(0.05)

    async def restart() -> None:
        await stop()
        await host.run("sh", "-c", host.page(start))

    await host.run("sh", "-c", host.page(start))
    yield restart, stop


@contextlib.asynccontextmanager
async def watchfiles(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    pytest.importorskip("watchfiles")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "watchfiles", "--filter", "python",
        ".venv/bin/python bot.py", ".", cwd=host.directory, env=host.environment,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip

    async def restart() -> None:
        ended = sum(line == "returned" for line in host.said())
        (host.directory / "bot.py").touch()
        await host.until("returned", ended + 1)

    async def stop() -> None:
        process.send_signal(signal.SIGINT)
        await process.wait()

    try:
        yield restart, stop
    finally:
        if process.returncode is None:
            process.kill()


@contextlib.asynccontextmanager
async def a_panel(host: Host) -> AsyncIterator[tuple[Stop, Stop]]:
    """As the BaoTa panel stops its Python projects: SIGTERM, and SIGKILL at once."""
    processes: list[asyncio.subprocess.Process] = []

    async def start() -> None:
        processes.append(
            await asyncio.create_subprocess_exec(
                ".venv/bin/python", "bot.py", cwd=host.directory, env=host.environment,
                stdout=asyncio.subprocess.DEVNULL,
            )
        )  # fmt: skip

    async def stop() -> None:
        processes[-1].terminate()
        processes[-1].kill()
        await processes[-1].wait()

    await start()
    yield one_after_the_other(stop, start), stop


def started(times: int, qq: LocalGateway) -> bool:
    return sum(client.started is not None for client in qq.clients) >= times


@pytest.mark.parametrize(
    ("supervisor", "work", "orderly"),
    [
        (pm2, 3.0, True),
        (lambda host: pm2(host, False), 1.0, True),
        (lambda host: pm2(host, False), 3.0, False),
        (supervisord, 3.0, True),
        (tini, 3.0, True),
        (lambda host: tmux(host, "tmux send-keys"), 2.0, True),
        (lambda host: tmux(host, "tmux kill-session"), 2.0, True),
        (terminal, 2.0, True),
        (nohup, 2.0, True),
        (watchfiles, 2.0, True),
        (a_panel, 1.0, False),
    ],
    ids=[
        "PM2 as on the page", "PM2, quick handlers", "PM2, slow handlers", "supervisord", "tini",
        "tmux, Ctrl-C", "tmux, closed", "a closed terminal", "nohup", "watchfiles", "BaoTa",
    ],
)  # fmt: skip
async def test_it_stops_the_bot_and_nothing_is_lost(
    supervisor: Callable[[Host], contextlib.AbstractAsyncContextManager[tuple[Stop, Stop]]],
    work: float, orderly: bool, tmp_path: Path,
) -> None:  # fmt: skip
    """Orderly: each life returns, and nothing comes twice; in any case nothing is handled twice."""
    # promises 22, 29 and 31
    async with LocalGateway(heartbeat_interval=5) as qq:
        qq.add_app("100001", "s")
        host = Host(qq, tmp_path, work)
        async with supervisor(host) as (restart, stop):
            for number in range(ROUNDS):
                await qq.wait_for(
                    lambda qq, n=number: sum(bool(c.started) for c in qq.clients) > n, 30
                )
                for part in range(6):
                    host.names.append(f"{number}.{part}")
                    await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(host.names[-1]))
                    await asyncio.sleep(0.1)
                await host.until(f"begun {host.names[-1]}", 1)
                await restart()
            await qq.wait_for(partial(started, ROUNDS + 1), 30)
            await host.until("handled", len(host.names))
            await asyncio.sleep(1.5)
            await stop()
        handled = Counter(line.split()[1] for line in host.said() if line.startswith("handled"))
        begun = Counter(line.split()[1] for line in host.said() if line.startswith("begun"))
        assert set(handled) == set(host.names)
        assert len(qq.identifies) == 1
        assert max(handled.values()) == 1
        if orderly:
            assert max(begun.values()) == 1
            assert host.said().count("returned") == ROUNDS + 1
