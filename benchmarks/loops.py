"""What other event loops change: uvloop, and eager tasks on Python 3.12 and later.

Eager tasks need such a Python: the one that the environment variable `BENCHMARK_EAGER_PYTHON`
names, or the one that runs this, or the first of `python3.14`, `python3.13` and `python3.12` that
starts. It needs nothing installed: it is shown our packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiofiles

import qqbot_session

from ._measure import Row, Settings, main

Points = dict[int, dict[str, list[float]]]

_WHAT = {
    "update": "warm `update_last_seq`",
    "first": "first save",
    "write": "one write, loop time",
}


def loops(settings: Settings) -> list[Row]:
    """What do other event loops change?"""
    found = dict(workloads((1_000,), repeats=settings.repeats(10)))
    rows: list[Row] = []
    for loop, points in found.items():
        for name, what in _WHAT.items():
            values, base = points[1_000][name], points[1_000]["base"]
            rows.append(
                Row(
                    question=f"{what}, 1,000 accounts, {loop}",
                    against="awaiting a bare `async def` there",
                    values=[value / other for value, other in zip(values, base, strict=True)],
                )
            )
    for loop, why in (
        ("uvloop", "not installed"),
        ("eager tasks", "no Python 3.12 or later; name one in `BENCHMARK_EAGER_PYTHON`"),
    ):
        if not any(name.startswith(loop) for name in found):
            rows.append(Row(question=loop, note=why))
    return rows


def workloads(counts: Sequence[int], repeats: int) -> Iterator[tuple[str, Points]]:
    """Yield the name of every loop that is here, and its points; the loops take turns."""
    commands = {"asyncio": [sys.executable, "asyncio"], "uvloop": [sys.executable, "uvloop"]}
    if eager := _eager_python():
        commands["eager tasks"] = [eager, "eager"]
    seen: dict[str, Points] = {}
    for _ in range(repeats):
        for name, (python, loop) in list(commands.items()):
            result = _run(python, "-m", "benchmarks._workload", loop, *map(str, counts))
            if result is None:
                del commands[name]
                continue
            answer = json.loads(result)
            points = seen.setdefault(f"{name}, Python {answer['python']}", {})
            for count, values in answer["points"].items():
                for key, value in values.items():
                    points.setdefault(int(count), {}).setdefault(key, []).append(value)
    yield from seen.items()


def _eager_python() -> str | None:
    named = os.environ.get("BENCHMARK_EAGER_PYTHON")
    here = sys.executable if sys.version_info >= (3, 12) else None
    names = (named, here, "python3.14", "python3.13", "python3.12")
    for name in filter(None, names):
        python = shutil.which(name)
        if python and _run(python, "-c", "from asyncio import eager_task_factory") is not None:
            return python
    return None


def _run(*command: str) -> str | None:
    """Return what it printed, or `None` if it failed; pure Python packages of ours are there."""
    ours = [Path(module.__file__ or "").parents[1] for module in (qqbot_session, aiofiles)]
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], *ours))
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return result.stdout if result.returncode == 0 else None


if __name__ == "__main__":
    main(loops)
