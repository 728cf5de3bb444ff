"""Every release of the frameworks of two years, with us and alone, killed and terminated.

    python tests/framework_versions.py [NAME ...]     run them all, or those whose name begins so,
                                                      and write the tables of docs/frameworks.*

What was found lies in `fixtures/framework_versions.json`; `test_frameworks_versions.py` repeats it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import frameworks
from framework_runs import Build, Outcome, restart

FOUND = Path(__file__).parent / "fixtures" / "framework_versions.json"
PAGES = {"en": "frameworks.md", "zh": "frameworks.zh.md"}
BEGIN, END = "<!-- versions -->", "<!-- /versions -->"
_HOSTS = ("api.sgroup.qq.com", "api.bot.qq.com")


@dataclass(frozen=True)
class Framework:
    """A kind of program, and what it needs of the package index.

    Attributes:
        beside: what is installed beside a release.
        package: where it lies among the installed packages.
    """

    program: str
    integration: str
    package: str
    ours: str
    beside: tuple[str, ...] = ()


_BOTPY = Framework("framework_botpy", "botpy", "botpy", "mixin")
_DRIVERS = "nonebot2[aiohttp]"
_NONEBOT = ("framework_nonebot", "nonebot", "nonebot/adapters/qq", "adapter ~none+~aiohttp")
RELEASES: dict[str, tuple[Framework, str]] = {
    "qq-botpy": (_BOTPY, "1.1.5 1.1.6 1.2.0 1.2.1"),  # the newest is from 2024
    "qq-botpy-rc": (_BOTPY, "1.2.1.5 1.2.1.6"),
    "qq-botpy-community": (_BOTPY, "2.0.0 2.0.1 2.0.2 2.0.3"),
    "qq-botpy-v2": (_BOTPY, "1.0.0 1.0.1 1.0.2"),
    "b-botpy": (_BOTPY, "1.0.0 1.0.2 1.0.3"),
    "qq-botpy-sdk": (
        _BOTPY,
        "2.0.0 2.0.1 2.0.2 2.0.3 2.0.4 2.0.5 2.0.6 2.0.7 2.0.8 2.1.0 2.1.1 2.1.2 2.2.0 2.2.1",
    ),
    "nonebot-adapter-qq": (
        Framework(*_NONEBOT, beside=(_DRIVERS,)),
        "1.5.3 1.6.0 1.6.1 1.6.2 1.6.3 1.6.4 1.6.5 1.6.6 1.6.7 1.7.0 1.7.1 1.7.2 1.7.3",
    ),
    "nonebot2": (
        Framework(*_NONEBOT, beside=("nonebot-adapter-qq",)),
        "2.4.0 2.4.1 2.4.2 2.4.3 2.4.4 2.5.0",
    ),
    "qqbot-agent-sdk": (
        Framework("framework_agent_sdk", "agent_sdk", "qqbot_agent_sdk", "remembered"),
        "1.2.1 1.2.2",
    ),
}
NAMES = [f"{name} {version}" for name, (_, all_) in RELEASES.items() for version in all_.split()]


@dataclass(frozen=True)
class Found:
    """What became of 40 events with one release.

    Attributes:
        python: the version that it ran on.
        beside: what else of the framework was installed, by name and version.
        host: of QQ's, that it asks by itself.
        alone: lost at a SIGKILL without us; `None` if it did not run.
        killed: lost, twice and Identifies at a SIGKILL, with us.
        terminated: the same at SIGTERM.
        sentence: why it did not run, instead of all these.
    """

    python: str
    beside: str = ""
    host: str = ""
    alone: int | None = None
    killed: tuple[int, int, int] | None = None
    terminated: tuple[int, int, int] | None = None
    sentence: str = ""


def find(name: str) -> Found:
    """Run one release, in an environment that is made for it and removed."""
    distribution, version = name.split()
    framework, _ = RELEASES[distribution]
    environment = name.replace(" ", "-")
    for python in ((3, 11), (3, 12)):
        requirement = f"{distribution}=={version}"
        if distribution == "nonebot2":
            requirement = f"{_DRIVERS}=={version}"
        requirements = (requirement, *framework.beside)
        frameworks.make(environment, frameworks.Environment(requirements, python))
        try:
            error = _import(environment, framework.package.replace("/", "."))
            if "SyntaxError" not in error:
                return asyncio.run(_run(environment, framework, error))
        finally:
            shutil.rmtree(frameworks.DIRECTORY / environment, ignore_errors=True)
    return Found(python="3.11, 3.12", sentence=error)


async def _run(environment: str, framework: Framework, error: str) -> Found:
    common = _common(environment, framework)
    sentence = error or _import(environment, f"qqbot_session.integrations.{framework.integration}")
    if sentence:
        return Found(**common, sentence=sentence.partition("Error: ")[2] or sentence)
    stock = framework.ours.replace(framework.ours.split()[0], "stock", 1)
    ours = Build(environment, framework.program, framework.ours)
    alone, killed, terminated = await asyncio.gather(
        restart(Build(environment, framework.program, stock), signal.SIGKILL),
        restart(ours, signal.SIGKILL),
        restart(ours, signal.SIGTERM),
        return_exceptions=True,
    )
    for outcome in (killed, terminated):
        if isinstance(outcome, BaseException):
            return Found(**common, sentence=f"does not run: {outcome}")
    assert isinstance(killed, Outcome)
    assert isinstance(terminated, Outcome)
    lost = None if isinstance(alone, BaseException) else len(alone.lost)
    return Found(**common, alone=lost, killed=_told(killed), terminated=_told(terminated))


def _told(outcome: Outcome) -> tuple[int, int, int]:
    return len(outcome.lost), len(outcome.twice), outcome.identifies


def _import(environment: str, module: str) -> str:
    """Return the last line of what importing it says, empty if that works."""
    command = [frameworks.python_of(environment), "-c", f"import {module}"]
    result = subprocess.run(
        command,
        env={"PYTHONPATH": str(frameworks.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stderr.strip().splitlines()[-1] if result.returncode else ""


def _common(environment: str, framework: Framework) -> dict[str, Any]:
    program = (
        "import sys, json; from importlib import metadata as m\n"
        "names = [n for n in ('nonebot2', 'nonebot-adapter-qq') if list(m.Distribution.discover("
        "name=n))]\n"
        "print(json.dumps(['%d.%d' % sys.version_info[:2], {n: m.version(n) for n in names}]))"
    )
    command = [frameworks.python_of(environment), "-c", program]
    python, versions = json.loads(subprocess.check_output(command, text=True))
    beside = ", ".join(
        f"{name} {version}"
        for name, version in versions.items()
        if not environment.startswith(f"{name}-{version}")
    )
    site = frameworks.DIRECTORY / environment / "lib" / f"python{python}" / "site-packages"
    text = "".join(path.read_text("utf-8") for path in (site / framework.package).rglob("*.py"))
    host = next((host for host in reversed(_HOSTS) if host in text), "")
    return {"python": python, "beside": beside, "host": host}


_HEADS = {
    "en": "| release | on | QQ's host | SIGKILL, alone: lost | SIGKILL, with us: lost (twice),"
    " Identifies | SIGTERM, with us: lost (twice), Identifies |",
    "zh": "| 版本 | 环境 | 请求的 QQ 域名 | SIGKILL，单独：丢失 | SIGKILL，用本库：丢失（重复）、"
    "Identify 次数 | SIGTERM，用本库：丢失（重复）、Identify 次数 |",
}
_REFUSED = {"en": "refused: ", "zh": "不支持："}


def table(language: str, found: dict[str, Found]) -> str:
    """Return the table for a page."""
    rows = [_HEADS[language], "| --- " * 6 + "|"]
    for name, each in found.items():
        on = ", ".join(filter(None, [f"Python {each.python}", each.beside]))
        if each.killed is None or each.terminated is None:
            cells = [each.host, "", f"{_REFUSED[language]}{each.sentence}", ""]
        else:
            alone = "–" if each.alone is None else str(each.alone)
            shown = ["{} ({}), {}".format(*told) for told in (each.killed, each.terminated)]
            cells = [each.host, alone, *shown]
        rows.append(f"| {name} | {on} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def load() -> dict[str, Found]:
    """Return what was found, in the order of `NAMES`."""
    kept = json.loads(FOUND.read_text("utf-8")) if FOUND.exists() else {}
    found = {}
    for name in NAMES:
        if name in kept:
            fields = kept[name]
            for each in ("killed", "terminated"):
                fields[each] = fields[each] and tuple(fields[each])
            found[name] = Found(**fields)
    return found


def save(found: dict[str, Found]) -> None:
    """Keep what was found, and write the pages' tables."""
    kept = {name: asdict(found[name]) for name in NAMES if name in found}
    FOUND.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for language, page in PAGES.items():
        path = frameworks.ROOT / "docs" / page
        before, _, rest = path.read_text("utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        text = f"{before}{BEGIN}\n\n{table(language, load())}\n\n{END}{after}"
        path.write_text(text, "utf-8")


def main(wanted: list[str]) -> None:
    found = load()
    for name in NAMES:
        if not wanted or name.startswith(tuple(wanted)):
            found[name] = find(name)
            print(name, found[name], flush=True)  # noqa: T201
            save(found)


if __name__ == "__main__":
    main(sys.argv[1:])
