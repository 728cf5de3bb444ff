"""The documentation's code runs, says the same in both languages, and names what is there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qqbot_session import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if not path.name.endswith(".zh.md"))
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r'--8<-- "([^"]+)"')


def fences(page: Path) -> list[tuple[str, str]]:
    """Return each fenced block of a page: its language and its text."""
    return FENCE.findall(page.read_text("utf-8"))


def blocks(language: str) -> list[object]:
    """Return a parameter for each block of a language that is not the text of another file."""
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (kind, code) in enumerate(fences(page), 1)
        if kind == language and not INCLUDE.search(code)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_languages_show_the_same_code(page: Path) -> None:
    chinese = page.with_suffix(".zh.md")
    if page.stem == "reference" and not chinese.exists():
        return  # for who reads the code, which is in English
    assert fences(chinese) == fences(page)


@pytest.mark.parametrize("code", blocks("python"))
def test_a_program_of_the_documentation_runs(code: str, tmp_path: Path) -> None:
    """One that waits for a signal says that it runs, and ends in order when it gets it."""
    if "redis" in code:
        pytest.importorskip("redis")
    file = tmp_path / "program.py"
    file.write_text(code, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", file.name], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    if "SIGTERM" in code:
        assert first == "running\n"
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("code", blocks("sh"))
def test_a_command_of_the_documentation_is_one_of_ours(code: str) -> None:
    for line in code.splitlines():
        program, *arguments = shlex.split(line)
        if program == "qqbot-session":
            cli._parser().parse_args(arguments)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_names_only_files_that_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in INCLUDE.findall(text) + re.findall(
        r"`((?:examples|docs|benchmarks)/[\w./-]+)`", text
    ):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name
