"""The documentation's code runs, says the same in both languages, and names what is there."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qqbot_session.cli.arguments import parse

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if not path.name.endswith(".zh.md"))
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(
    r"^<!-- (examples/\w+\.py) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def fences(page: Path) -> list[tuple[str, str]]:
    """Return each fenced block of a page: its language and its text."""
    return FENCE.findall(page.read_text("utf-8"))


def blocks(language: str) -> list[object]:
    """Return a parameter for each block of a language, but for examples: they have own tests."""
    examples = {code for page in PAGES for _, code in EXAMPLE.findall(page.read_text("utf-8"))}
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (kind, code) in enumerate(fences(page), 1)
        if kind == language and code not in examples
    ]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_an_example_on_a_page_is_the_file_without_its_docstring(page: Path) -> None:
    for name, code in EXAMPLE.findall(page.read_text("utf-8")):
        assert code == without_docstring(name)


def test_the_bot_of_the_readme_is_the_example() -> None:
    assert without_docstring("examples/bot.py") in (ROOT / "README.md").read_text("utf-8")


def without_docstring(name: str) -> str:
    _, _, body = (ROOT / name).read_text("utf-8").split('"""', 2)
    return body.lstrip("\n")


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
            parse(arguments)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_names_only_files_that_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "--8<--" not in text  # the code host shows it as it is
    assert "\n::: " not in text
    for name in re.findall(r"`((?:examples|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name


def said(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the structured fields of a module's log lines, and what each is set to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_say":
            yield from ((f"qqbot_{word.arg}", word.value) for word in node.keywords if word.arg)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                name = key.value if isinstance(key, ast.Constant) else None
                if isinstance(name, str) and re.fullmatch("qqbot_(?!session)[a-z]+", name):
                    yield name, value
                elif name in {"code", "event", "next", "reason", "seqs", "wait"}:
                    yield f"qqbot_{name}", value


@pytest.mark.parametrize("page", ["operating.md", "operating.zh.md"])
def test_every_field_of_a_log_line_is_in_the_table(page: str) -> None:
    fields = {"qqbot_account"}
    values = {"identify", "resume", "ready", "resumed"}  # made of names of the gateway's
    for name in (
        "loop/log",
        "shard",
        "web/api",
        "web/entrance",
        "bot",
        "lifetime",
        "pace",
        "store",
    ):
        tree = ast.parse((ROOT / "qqbot_session" / f"{name}.py").read_text("utf-8"))
        for field, value in said(tree):
            fields.add(field)
            if field == "qqbot_reason" and isinstance(value, ast.Constant):
                values.add(str(value.value))
    assert len(fields) > 8
    shown = set(re.findall(r"`(\w+)`", (DOCS / page).read_text("utf-8")))
    assert not fields - {"qqbot_exc_info"} - shown
    assert not values - shown


def test_the_reference_has_every_public_name() -> None:
    """Each by itself, or with the module that it is defined in."""
    text = "".join(path.read_text("utf-8") for path in (DOCS / "reference").glob("*.md"))
    entries = re.findall(r"^\* `(\S+)`$", text, re.MULTILINE)
    shown = {entry.rpartition(".")[2] for entry in entries}
    for entry in entries:
        if (ROOT / entry.replace(".", "/")).with_suffix(".py").exists() and "integr" not in entry:
            module = importlib.import_module(entry)
            shown |= {
                name
                for name, value in vars(module).items()
                if getattr(value, "__module__", entry) in {entry, "typing", "types"}
            }
    missing = [
        f"qqbot_session{path}.{name}"
        for path in ["", ".gateway", ".bot", ".storages", ".storages.sqlite"]
        for name in importlib.import_module(f"qqbot_session{path}").__all__
        if name not in shown
    ]
    assert not missing
