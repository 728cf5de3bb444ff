"""What others run because of us: the workflows, the packages we allow, the addresses we name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

if not WORKFLOWS:
    pytest.skip("not in a source distribution", allow_module_level=True)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_a_checkout_keeps_no_credentials(workflow: Path) -> None:
    text = workflow.read_text("utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    for step in re.split(r"\n +- ", text):
        if "actions/checkout@" in step:
            assert "persist-credentials: false" in step


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_its_jobs_end(workflow: Path) -> None:
    text = workflow.read_text("utf-8")
    top, jobs = text.split("\njobs:\n")
    assert "permissions:\n  contents: read\n" in top
    assert jobs.count("timeout-minutes:") == len(re.findall(r"^  [\w-]+:$", jobs, re.MULTILINE))


def test_one_action_has_one_version() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)", path.read_text())}
    assert len(used) == len({line.partition("@")[0] for line in used})


@pytest.mark.parametrize("extra", ["aiohttp", "bot", "botpy", "nonebot", "testing", "examples"])
def test_an_extra_that_brings_aiohttp_brings_one_without_known_advisories(extra: str) -> None:
    needs = PROJECT["project"]["optional-dependencies"][extra]
    floor = next(need for need in needs if need.startswith("aiohttp>="))
    assert [int(part) for part in floor.removeprefix("aiohttp>=").split(".")] >= [3, 14, 4]


def test_every_address_of_the_project_agrees_with_its_one_constant(tmp_path: Path) -> None:
    def check(root: Path) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / ".ci" / "check_release.py"), "addresses", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    other = "https://github.com/" + "somebody/qqbot_session"
    assert check(ROOT) == (0, "")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "page.md").write_text(f"{other}/issues")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    assert check(tmp_path) == (1, f"page.md: {other}\n")


def test_the_source_distribution_is_a_list_of_what_belongs_in_it() -> None:
    sdist = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert list(sdist) == ["include"]
    assert all(re.search(r"\.\w+$", pattern) for pattern in sdist["include"])
    always = {"pyproject.toml", "LICENSE"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        left_out = name.startswith((".", "findings/")) or name in always
        assert left_out or any(matches(name, pattern) for pattern in sdist["include"]), name


def matches(name: str, pattern: str) -> bool:
    parts = {"**/": "(?:.*/)?", "*": "[^/]*"}
    words = re.split(r"(\*\*/|\*)", pattern.removeprefix("/"))
    return bool(re.fullmatch("".join(parts.get(word, re.escape(word)) for word in words), name))
