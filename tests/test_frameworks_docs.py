"""The changes that its page shows for each framework, run as shown, before and after."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import frameworks
import pytest
from framework_runs import Build, restart

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize(
    ("environment", "module"),
    [
        ("botpy", "botpy"),
        ("botpy", "botpy-remember"),
        ("nonebot", "nonebot"),
        ("agent-sdk", "agent-sdk"),
    ],
)
async def test_a_bot_with_the_change_that_is_shown_loses_nothing(
    environment: str, module: str
) -> None:
    if not frameworks.python_of(environment).exists():
        pytest.skip(f"no environment: python tests/frameworks.py {environment}")
    before, after = await asyncio.gather(
        *(
            restart(Build(environment, "framework_readme", f"{module} {when}"), signal.SIGKILL)
            for when in ("before", "after")
        )
    )
    assert before.lost
    assert (before.identifies, before.resumes) == (2, 0)
    assert after.lost == []
    assert (after.identifies, after.resumes) == (1, 1)


@pytest.mark.parametrize(
    ("environment", "example"),
    [("botpy", "botpy_bot"), ("nonebot", "nonebot_bot"), ("agent-sdk", "agent_sdk_bot")],
)
def test_an_example_is_killed_and_loses_nothing(environment: str, example: str) -> None:
    python = frameworks.python_of(environment)
    if not python.exists():
        pytest.skip(f"no environment: python tests/frameworks.py {environment}")
    result = subprocess.run(
        [python, ROOT / "examples" / f"{example}.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"-- 40 messages, 0 lost, \d+ answered twice, 1 Identify, 1 Resume", last)


def test_both_languages_show_the_same_changes() -> None:
    def changes(name: str) -> list[str]:
        return re.findall(r"^```diff\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.M | re.S)

    assert changes("docs/frameworks.zh.md") == changes("docs/frameworks.md")
    assert len(changes("docs/frameworks.md")) == 4
