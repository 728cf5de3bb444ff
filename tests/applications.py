"""Applications that people run, as they are installed, against `LocalGateway` and a made-up LLM.

    python tests/applications.py NAME [run|line|alone] [SIGKILL|SIGTERM|SIGINT|SIGUSR1|restart]

`run` starts it by `qqbot-session run`; `line` as the documentation says for its own code or its
plugins; `restart` is its own restart, in place. Each gets an environment of its own below
`.venv-frameworks`, or where QQBOT_FRAMEWORKS says. An application that asks an LLM is given one on
localhost, which answers each message by its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import frameworks
from aiohttp import web
from frameworks import PROGRAMS, ROOT

from qqbot_session.testing import LocalGateway

Way: TypeAlias = Literal["run", "line", "alone"]
End: TypeAlias = signal.Signals | Literal["restart"]
_PATIENCE = 120.0  # seconds for an application to start, and to answer everything


@dataclass(frozen=True)
class Setting:
    """What an application is set up with: its folder, QQ, and where its LLM is."""

    root: Path
    qq: LocalGateway
    llm: str


@dataclass(frozen=True)
class Application:
    """One that people run.

    Attributes:
        requirements: what is installed.
        command: its program, below the environment's `bin`, and the arguments.
        set_up: writes its configuration; returns variables for its environment.
        write_line: does what the documentation says, where there is such a line.
        restart: has it restart itself in place, where it can; is given its process id.
    """

    requirements: tuple[str, ...]
    command: tuple[str, ...]
    set_up: Callable[[Setting], dict[str, str]]
    write_line: Callable[[Setting], object] | None = None
    restart: Callable[[Setting, int], Awaitable[object]] | None = None


def _set_up_astrbot(setting: Setting) -> dict[str, str]:
    plugin = setting.root / "data" / "plugins" / "answer"
    plugin.mkdir(parents=True)
    (setting.root / "data" / "config").mkdir()
    (setting.root / ".astrbot").touch()
    shutil.copy(PROGRAMS / "application_astrbot.py", plugin / "main.py")
    fields = {"name": "answer", "desc": "answers", "version": "v1.0.0", "author": "tests"}
    metadata = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (plugin / "metadata.yaml").write_text(metadata + "repo: https://example.invalid/answer\n")
    platform = {
        "id": "qq",
        "type": "qq_official",
        "enable": True,
        "appid": setting.qq.app_id,
        "secret": setting.qq.client_secret,
        "enable_group_c2c": True,
        "enable_guild_direct_message": True,
    }
    dashboard = setting.root / "data" / "dist" / "assets" / "version"
    dashboard.parent.mkdir(parents=True)
    dashboard.write_text("v99.0.0")  # before 4.6 it asks whether to download one
    limits = {"rate_limit": {"time": 60, "count": 9000, "strategy": "stall"}}
    config = {"dashboard": {"enable": False}, "platform": [platform], "platform_settings": limits}
    (setting.root / "data" / "cmd_config.json").write_text(json.dumps(config))
    return {}


def _install_plugin(setting: Setting) -> None:
    name = "astrbot_plugin_qqbot_session"
    shutil.copytree(ROOT / "plugins" / name, setting.root / "data" / "plugins" / name)


async def _ask_astrbot(_: Setting, process_id: int) -> None:
    os.kill(process_id, signal.SIGUSR1)  # for which its test plugin does what the dashboard does


def _set_up_nanobot(setting: Setting) -> dict[str, str]:
    config = {
        "agents": {"defaults": {"model": "m", "provider": "vllm"}},
        "providers": {"vllm": {"apiKey": "k", "apiBase": setting.llm}},
        "channels": {
            "qq": {
                "enabled": True,
                "appId": setting.qq.app_id,
                "secret": setting.qq.client_secret,
                "allowFrom": ["*"],
            }
        },
        "gateway": {"port": 0},
    }
    (setting.root / ".nanobot").mkdir()
    (setting.root / ".nanobot" / "config.json").write_text(json.dumps(config))
    return {}


async def _ask_nanobot(setting: Setting, _: int) -> None:
    message = setting.qq.c2c_message("/restart", user_openid="U99")
    await setting.qq.emit("C2C_MESSAGE_CREATE", message)


def _set_up_hermes(setting: Setting) -> dict[str, str]:
    home = setting.root / ".hermes"
    home.mkdir()
    (home / "config.yaml").write_text(
        "model:\n  default: m\n  provider: custom\n"
        f"  base_url: {setting.llm}\n  api_key: k\n  context_length: 100000\n"
    )
    return {
        "HERMES_HOME": str(home),
        "QQ_APP_ID": setting.qq.app_id,
        "QQ_CLIENT_SECRET": setting.qq.client_secret,
        "QQ_ALLOW_ALL_USERS": "true",
    }


def _set_up_langbot(setting: Setting) -> dict[str, str]:
    return {
        "QQ_APP": setting.qq.app_id,
        "QQ_SECRET": setting.qq.client_secret,
        "QQ_TOKEN_URL": setting.qq.token_url,
    }


def _set_up_nb(setting: Setting) -> dict[str, str]:
    shutil.copy(PROGRAMS / "application_nb.py", setting.root / "bot.py")
    bot = {"id": setting.qq.app_id, "secret": setting.qq.client_secret, "token": "t"}
    bots = json.dumps([{**bot, "intent": {"c2c_group_at_messages": True}}])
    (setting.root / ".env").write_text(f"DRIVER=~none+~aiohttp\nQQ_BOTS='{bots}'\n")
    (setting.root / "pyproject.toml").write_text(
        '[project]\nname = "bot"\nversion = "0"\n[tool.nonebot]\nplugins = []\n'
    )
    return {}


def _change_import(setting: Setting) -> None:
    bot = setting.root / "bot.py"
    text = bot.read_text()
    ours = "from nonebot.adapters.qq import Bot, C2CMessageCreateEvent\n\n"
    ours += "from qqbot_session.integrations.nonebot import Adapter\n"
    bot.write_text(
        text.replace("from nonebot.adapters.qq import Adapter, Bot, C2CMessageCreateEvent\n", ours)
    )


_NB = "nonebot2[aiohttp]>=2.4.3"
_ASTRBOT = Application(
    ("AstrBot==4.29.3",),
    ("astrbot", "run"),
    _set_up_astrbot,
    write_line=_install_plugin,
    restart=_ask_astrbot,
)
APPLICATIONS = {
    "astrbot": _ASTRBOT,
    "astrbot-4.5.8": replace(_ASTRBOT, requirements=("AstrBot==4.5.8",)),  # the plugin's oldest
    "astrbot-3.5.27": replace(_ASTRBOT, requirements=("AstrBot==3.5.27",), write_line=None),
    "nanobot": Application(
        ("nanobot-ai==0.3.5", "qq-botpy==1.2.1"),
        ("nanobot", "gateway"),
        _set_up_nanobot,
        restart=_ask_nanobot,
    ),
    "hermes": Application(
        ("hermes-agent==0.19.0", "aiohttp"), ("hermes", "gateway", "run"), _set_up_hermes
    ),
    # LangBot as a whole wants a plugin runtime; this is its client for QQ, with a queue behind it.
    "langbot": Application(
        ("langbot==4.11.2",),
        ("python", str(PROGRAMS / "application_langbot.py")),
        _set_up_langbot,
    ),
    "nb": Application(
        ("nb-cli", "nonebot-adapter-qq", _NB),
        ("nb", "run"),
        _set_up_nb,
        write_line=_change_import,
    ),
}


def make(name: str) -> Path:
    """Make an application's environment from the package index; return where its programs are.

    Raises:
        LookupError: if there is no Python that is new enough for it.
    """
    folder = frameworks.DIRECTORY / f"application-{name}"
    if not (complete := folder / "complete").exists():
        environment = frameworks.Environment(APPLICATIONS[name].requirements, python=(3, 12))
        frameworks.fill(folder, environment)
        complete.touch()
    return folder / "bin"


@dataclass
class Result:
    """What became of 40 messages: 20, the end in mid-stream, 8 while it was dead, 12 after."""

    lost: list[int]
    answers: int
    identifies: int
    resumes: int
    status: int | None
    printed: str


async def restart(name: str, end: End, *, way: Way = "run", longest: float = 0.3) -> Result:
    """End an application in mid-stream and start it again.

    Args:
        name: a key of `APPLICATIONS`.
        end: the signal by which it is ended, or its own restart.
        way: how it comes to resume, if it does.
        longest: seconds that an answer takes at most.
    """
    programs = make(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with LocalGateway(heartbeat_interval=3.0) as qq, _llm(longest) as llm:
            life = _Life(name, programs, Setting(Path(folder), qq, llm), way, longest)
            try:
                return await life.run(end)
            finally:
                await life.end(signal.SIGKILL)


class _Life:
    def __init__(
        self, name: str, programs: Path, setting: Setting, way: Way, longest: float
    ) -> None:
        self._application = APPLICATIONS[name]
        program, *arguments = self._application.command
        self._command = [str(programs / program), *arguments]
        sessions = str(setting.root / "sessions")
        if way == "run":
            launcher = [str(programs / "python"), "-m", "qqbot_session", "--storage", sessions]
            self._command = [*launcher, "run", "--", *self._command]
        paths = [str(PROGRAMS / "to_localhost"), str(ROOT), str(PROGRAMS)]
        self._environ = {
            **os.environ,
            "HOME": str(setting.root),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "QQ_API": setting.qq.api_url,
            "LONGEST": str(longest),
            **self._application.set_up(setting),
        }
        if way == "line":
            assert self._application.write_line is not None
            self._application.write_line(setting)
        self._setting = setting
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, end: End) -> Result:
        qq = self._setting.qq
        await self._start()
        await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started, _PATIENCE)
        await self._say(range(1, 21), gap=0.03)
        with contextlib.suppress(TimeoutError):
            await qq.wait_for(lambda _: len(self._answered()) >= 10, 10.0)
        status = await (self._restart() if end == "restart" else self.end(end))
        await self._say(range(21, 29))
        if end != "restart":
            await self._start()
        await qq.wait_for(lambda qq: len(qq.identifies) + len(qq.resumes) >= 2, _PATIENCE)
        await self._say(range(29, 41))
        with contextlib.suppress(TimeoutError):
            await qq.wait_for(lambda _: len(self._answered()) == 40, _PATIENCE)
        await self.end(signal.SIGTERM)
        lost = sorted(set(range(1, 41)) - self._answered())
        printed = (self._setting.root / "printed").read_text(errors="replace")
        return Result(lost, len(qq.sent), len(qq.identifies), len(qq.resumes), status, printed)

    async def _restart(self) -> None:
        """Have it restart itself; return when its line is gone."""
        assert self._application.restart is not None
        assert self._process is not None
        line = self._setting.qq.clients[-1]
        await self._application.restart(self._setting, self._process.pid)
        await self._setting.qq.wait_for(lambda _: line.closed_at is not None, _PATIENCE)

    def _answered(self) -> set[int]:
        texts = [str(answer.body) for answer in self._setting.qq.sent if answer.ok]
        return {int(number) for text in texts for number in re.findall(r"answer (\d+)", text)}

    async def _say(self, numbers: range, gap: float = 0.0) -> None:
        qq = self._setting.qq
        for number in numbers:
            message = qq.c2c_message(f"m {number}", user_openid=f"U{number}")
            await qq.emit("C2C_MESSAGE_CREATE", message)
            await asyncio.sleep(gap)

    async def _start(self) -> None:
        with (self._setting.root / "printed").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._setting.root,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def end(self, number: signal.Signals) -> int | None:
        """End it with a signal, by force if it takes more than 30 s; return its status.

        SIGTERM goes to the program alone, as from a supervisor; the others to its children, too, as
        from a terminal or a container that ends.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
        try:
            return await asyncio.wait_for(process.wait(), 30.0)
        except TimeoutError:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def _llm(longest: float) -> AsyncIterator[str]:
    """Give the base of an API in the shape of OpenAI's, whose answer to `m 7` is `answer 7`."""

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked = [message for message in body["messages"] if message["role"] == "user"]
        texts = json.dumps(asked).replace("\\n", " ")
        numbers = re.findall(r"\bm (\d+)\b", texts)  # of one chat, so all the same
        text = f"answer {numbers[-1]}" if numbers else "hello"
        await asyncio.sleep(random.uniform(0, longest))
        return await _stream(request, text) if body.get("stream") else _whole(text)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


_COMPLETION: dict[str, Any] = {"id": "c", "created": 0, "model": "m"}


def _whole(text: str) -> web.Response:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    fields = {"object": "chat.completion", "choices": [choice], "usage": usage}
    return web.json_response(_COMPLETION | fields)


async def _stream(request: web.Request, text: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    deltas = [({"role": "assistant", "content": text}, None), ({}, "stop")]
    with contextlib.suppress(ConnectionResetError):  # of an application that was killed
        await response.prepare(request)
        for delta, reason in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            part = _COMPLETION | {"object": "chat.completion.chunk", "choices": [choice]}
            await response.write(f"data: {json.dumps(part)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
    return response


def _main(name: str, way: Way = "run", end: str = "SIGKILL") -> None:
    ending: End = "restart" if end == "restart" else signal.Signals[end]
    result = asyncio.run(restart(name, ending, way=way))
    sys.stdout.write(f"{result.printed}\n")
    result.printed = ""
    sys.stdout.write(f"{name} {way} {end}: {result}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])  # type: ignore[arg-type]
