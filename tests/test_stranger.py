"""A stranger's first hour: a wheel, a Python, an empty home, and the lines of the pages as printed.

The slow part of the proof; `.ci/stranger` runs it. `WHEEL` may name a wheel that is built already.
PM2 comes from npm, and is skipped where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_time,
    pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell"),
]

ROOT = Path(__file__).parent.parent
PYTHON = Path(sys.base_prefix) / "bin" / "python3"
REGISTRIES = re.compile(r"(PIP|NPM|NODE|SSL|HTTPS?)_|npm_config|https?_proxy|REQUESTS_CA", re.I)
EVERY = 0.1  # seconds between the sample events
ENOUGH = 6  # answers before the kill, events while the bot is dead, answers after it


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def block(name: str, language: str, text: str) -> str:
    """Return the first block of that language on a page that has a text in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page(name), re.M | re.S)
    return next(block for block in blocks if text in block)


def changed(diff: str) -> str:
    """Return a program with the page's change made to it."""
    return re.sub(r"(?m)^[+ ]", "", re.sub(r"(?m)^-.*\n", "", diff))


def unchanged(diff: str) -> str:
    """Return a program as it was before the page's change."""
    return re.sub(r"(?m)^[- ]", "", re.sub(r"(?m)^\+.*\n", "", diff))


def install_line(name: str, extra: str) -> str:
    """Return the page's line that installs this extra."""
    line = f'pip install "qqbot_session[{extra}]"' if extra else "pip install qqbot_session"
    assert line in page(name)
    return line


@dataclass
class Home:
    """A home with a virtual environment, in which commands run that know nothing of this one."""

    directory: Path
    wheel: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        path = [self.directory / ".venv" / "bin", PYTHON.parent, "/usr/local/bin:/usr/bin:/bin"]
        return {"HOME": str(self.directory), "PATH": ":".join(map(str, path)), "LANG": "C.UTF-8"}

    def install(self, *commands: str) -> None:
        outside = {k: v for k, v in os.environ.items() if REGISTRIES.match(k)}
        links = f"{self.wheel.parent} {outside.get('PIP_FIND_LINKS', '')}"
        outside |= self.environment | {"PIP_FIND_LINKS": links, "PIP_QUIET": "1"}
        for command in ("python3 -m venv .venv", *commands):
            subprocess.run(["sh", "-ec", command], cwd=self.directory, env=outside, check=True)

    def start(self, command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(
                ["sh", "-ec", command], cwd=self.directory, env=self.environment,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=self.directory, env=self.environment, check=True,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    def write(self, name: str, text: str) -> None:
        (self.directory / name).parent.mkdir(exist_ok=True)
        (self.directory / name).write_text(text, "utf-8")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class LocalQQ:
    """`python -m qqbot_session.testing`, known by what it prints."""

    def __init__(self, home: Home) -> None:
        self._log = home.directory / "qq.log"
        (command,) = re.findall(
            r"^python -m qqbot_session\.testing$", page("docs/first-bot.md"), re.M
        )
        home.start(f"PYTHONUNBUFFERED=1 exec {command} --port 0 --every {EVERY}", self._log.name)
        self.until(lambda: "sample event" in self.said)
        self.pasted = "\n".join(re.findall(r"^export .*$", self.said, re.M))

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8")

    def sent(self, kinds: str) -> list[int]:
        return [int(n) for n in re.findall(rf"(?:{kinds}) ' ?sample (\d+)' is number", self.said)]

    def answered(self) -> list[int]:
        return [int(n) for n in re.findall(r"sample (\d+)', to answer [^:]*: 200", self.said)]

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, self.said
            time.sleep(0.05)


@dataclass(frozen=True)
class Way:
    """How a stranger comes to a bot that runs.

    Attributes:
        install: the lines that install it.
        prepare: writes the files of the bot, given where QQ is.
        command: what runs it.
        answers: the events that it answers.
    """

    install: tuple[str, ...]
    prepare: Callable[[Home, LocalQQ], None]
    command: str = "python bot.py"
    answers: str = "C2C_MESSAGE_CREATE"


BOTH = "C2C_MESSAGE_CREATE|GROUP_AT_MESSAGE_CREATE"
LEAD = 'import os\nlead_botpy_to(os.environ["QQBOT_API_URL"], os.environ["QQBOT_TOKEN_URL"])\n'
PLUGIN = """\
import nonebot

@nonebot.on_message().handle()
async def _(bot: nonebot.adapters.Bot, event: nonebot.adapters.Event):
    await bot.send(event, event.get_plaintext())
"""


def first_bot(home: Home, qq: LocalQQ) -> None:
    home.write("bot.py", block("README.md", "python", "run_bot"))


def botpy(home: Home, qq: LocalQQ, change: Callable[[str], str] = changed) -> None:
    leading = block("docs/testing.md", "python", "def lead_botpy_to")
    program = change(block("docs/frameworks.md", "diff", "class MyClient"))
    home.write("bot.py", f"{leading}\n\n{LEAD}{program}")


def not_our_own(home: Home, qq: LocalQQ) -> None:
    botpy(home, qq, unchanged)
    (home.directory / "bot.py").rename(home.directory / "main.py")


def nonebot(home: Home, qq: LocalQQ) -> None:
    home.write("bot.py", changed(block("docs/frameworks.md", "diff", "register_adapter")))
    home.write("plugins/repeat.py", PLUGIN)
    said = dict(re.findall(r"export (\w+)=(.*)", qq.pasted))
    bot = f'"id": "{said["QQBOT_APP_ID"]}", "secret": "{said["QQBOT_SECRET"]}", "token": ""'
    home.write(
        ".env",
        f"DRIVER=~none+~aiohttp\nQQ_API_BASE={said['QQBOT_API_URL']}/\n"
        f"QQ_AUTH_BASE={said['QQBOT_TOKEN_URL']}\nQQ_SESSIONS=sessions\n"
        f'QQ_BOTS=[{{{bot}, "intent": {{"c2c_group_at_messages": true}}}}]\n',
    )


BOTPY = 'pip install "qqbot_session[botpy]"'  # the page names the extras in a sentence
WAYS = {
    "README's bot": Way((install_line("README.md", "bot"),), first_bot, answers=BOTH),
    "botpy": Way((BOTPY,), botpy),
    "a bot that somebody else wrote": Way(
        (BOTPY, install_line("docs/launch.md", "")), not_our_own,
        block("docs/launch.md", "sh", "python main.py").splitlines()[0],
    ),
    "NoneBot": Way(('pip install "qqbot_session[nonebot]"',), nonebot, answers=BOTH),
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("WHEEL"):
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture
def home(tmp_path: Path, wheel: Path) -> Iterator[Home]:
    home = Home(tmp_path, wheel)
    yield home
    home.close()


def check(qq: LocalQQ, kinds: str) -> None:
    """All that was sent before the last answer was answered, upon one Identify."""
    answered = set(qq.answered())
    lost = [n for n in qq.sent(kinds) if n < max(answered) and n not in answered]
    assert lost == []
    assert len(re.findall(r": Identify,", qq.said)) == 1
    assert len(re.findall(r": Resume ", qq.said)) == 1


def until_answers_go_on(qq: LocalQQ, kinds: str) -> None:
    newest = qq.sent(kinds)[-1]
    qq.until(lambda: sum(number > newest for number in qq.answered()) >= ENOUGH)


def miss_some(qq: LocalQQ, kinds: str) -> None:
    before = len(qq.sent(kinds))
    qq.until(lambda: len(qq.sent(kinds)) >= before + ENOUGH)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_bot_that_a_stranger_kills_and_starts_again_lost_nothing(way: Way, home: Home) -> None:
    home.install(*way.install)
    qq = LocalQQ(home)
    way.prepare(home, qq)
    bot = home.start(f"{qq.pasted}\nexec {way.command}", "bot.log")
    qq.until(lambda: len(qq.answered()) >= ENOUGH)
    bot.kill()
    bot.wait()
    miss_some(qq, way.answers)
    bot = home.start(f"{qq.pasted}\nexec {way.command}", "bot.log")
    until_answers_go_on(qq, way.answers)
    bot.terminate()
    assert bot.wait(30) in (0, -signal.SIGTERM), (home.directory / "bot.log").read_text()
    check(qq, way.answers)


@pytest.mark.skipif(shutil.which(os.environ.get("PM2", "npm")) is None, reason="needs npm, or PM2")
def test_a_bot_under_pm2_that_is_killed_lost_nothing(home: Home) -> None:
    """PM2 as a stranger installs it, the page's file, and a kill that PM2 answers with a start."""
    npm = "npm install --silent --no-audit --no-fund --prefix . pm2"
    home.install(install_line("README.md", "bot"), *(() if os.environ.get("PM2") else (npm,)))
    pm2 = os.environ.get("PM2") or "node_modules/.bin/pm2"
    qq = LocalQQ(home)
    first_bot(home, qq)
    text = block("docs/stopping.md", "js", "kill_timeout")
    home.write("ecosystem.config.js", text.replace("/opt/bot", str(home.directory)))
    home.run(f"{qq.pasted}\n{pm2} start ecosystem.config.js")
    try:
        qq.until(lambda: len(qq.answered()) >= ENOUGH)
        os.kill(int(home.run(f"{pm2} pid bot")), signal.SIGKILL)
        until_answers_go_on(qq, BOTH)
        home.run(f"{pm2} stop bot")
        check(qq, BOTH)
    finally:
        home.run(f"{pm2} kill")
