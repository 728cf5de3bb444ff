"""Run every question, print the tables, and write `RESULTS.md` and the plot beside this file.

    python -m benchmarks [--quick] [--disk DIRECTORY] [QUESTION ...]

Every question runs in a process of its own. With some questions named nothing is written but the
plots, by `growth` and `lines`, and with `--quick` not even those. Where the disk has no journal,
root measures on an ext4 with a journal that is made in a file on it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ._measure import Row, Settings, journaled, machine, table

QUESTIONS = (
    "hot_path",
    "event",
    "runner",
    "first_save",
    "batch",
    "fleet",
    "storages",
    "load_all",
    "cold_load",
    "import_time",
    "loops",
    "growth",
    "lines",
    "peers",
    "frameworks",
)
RESULTS = Path(__file__).with_name("RESULTS.md")

_PLOTS = {
    "growth": "\n![Cost per account from 1 to 100,000 accounts](growth.svg)\n",
    "lines": "\n![Cost per line from 100 to 3,000 lines](lines.svg)\n",
}

_HEAD = """\
# Measured

`python -m benchmarks` wrote this file; `pip install --group benchmarks -e .` installs the peers.
Each line compares two things that took turns in one run. A ratio is formed turn by turn; the table
has the median of the ratios, the lowest and the highest. Figures in seconds are this machine's and
only there to give the ratios a size. Disks differ widely: read file figures as ratios, and run
with `--disk DIRECTORY` on a disk of your own. Lag is how late the loop calls back a 2 ms timer.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="a minute: fewer repeats")
    parser.add_argument("--disk", type=Path, help="directory on the disk to measure")
    options = parser.parse_args()
    if unknown := set(options.questions).difference(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    with journaled(options.disk or Path(tempfile.gettempdir())) as disk:
        text = _measure(options.questions or QUESTIONS, Settings(quick=options.quick, disk=disk))
        if not options.quick and not options.questions:
            RESULTS.write_text(text)
    return 0


def _measure(questions: Sequence[str], settings: Settings) -> str:
    started = time.perf_counter()
    parts = [_HEAD, _machine(settings)]
    print(parts[-1], flush=True)
    rows: list[Row] = []
    for question in questions:
        found = _ask(question, settings)
        rows += found
        parts.append(_section(question, found))
        print(parts[-1], flush=True)
    parts.append(_summary(rows, time.perf_counter() - started))
    print(parts[-1])
    return "\n".join(parts)


def _ask(question: str, settings: Settings) -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory, "rows.json")
        command = [sys.executable, "-m", f"benchmarks.{question}", "--json", str(answer)]
        command += ["--disk", str(settings.disk)] + ["--quick"] * settings.quick
        if subprocess.run(command, check=False, cwd=Path(__file__).parents[1]).returncode:
            return [Row(question=question, note="failed; see the terminal")]
        return [Row(**row) for row in json.loads(answer.read_text())]


def _section(question: str, rows: list[Row]) -> str:
    module = importlib.import_module(f"benchmarks.{question}")
    show = getattr(module, "table", table)
    return (
        f"## {question}.py\n\n{(module.__doc__ or '').strip()}\n\n{show(rows)}\n"
        f"{_PLOTS.get(question, '')}"
    )


def _machine(settings: Settings) -> str:
    lines = [f"| {name} | {value} |" for name, value in machine(settings)]
    return "\n".join(["| machine | |", "| --- | --- |", *lines, ""])


def _summary(rows: list[Row], seconds: float) -> str:
    judged = [row for row in rows if row.met is not None]
    missed = [
        f"- {row.question}{f' against {row.against}' if row.against else ''}"
        f"{f': {row.bound}' if row.bound else ''}"
        for row in judged
        if not row.met
    ]
    head = f"{len(judged) - len(missed)} of {len(judged)} targets met, in {seconds:.0f} s."
    return "\n".join(
        ["## Targets", "", head, *(["", "Missed:", "", *missed] if missed else []), ""]
    )


if __name__ == "__main__":
    sys.exit(main())
