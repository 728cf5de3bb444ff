"""The table of what is tried to break a promise: its numbers are counted again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONS = ["-p", "no:cacheprovider", "--assert=plain"]  # nothing is asserted, only counted
ROW = re.compile(r"^\| .+ \| ([\d,]+) \| `(test_\w+\.py)::(test_\w+)` \|$", re.MULTILINE)


def rows(page: str) -> dict[tuple[str, str], int]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    return {(file, test): int(count) for count, file, test in ROW.findall(text)}


@cache
def collected() -> Counter[tuple[str, str]]:
    """How many cases each test of the table's files has."""
    files = sorted({f"tests/{file}" for file, _ in rows("security.md")})
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *OPTIONS, *files],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return Counter(re.findall(r"^tests/(test_\w+\.py)::(test_\w+)", result.stdout, re.MULTILINE))


@pytest.mark.parametrize("page", ["security.md", "security.zh.md"])
def test_the_table_says_how_often_each_thing_is_tried(page: str) -> None:
    counts = rows(page)
    assert len(counts) > 15
    assert counts == {row: collected()[row] for row in counts}
