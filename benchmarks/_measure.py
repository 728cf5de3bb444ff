"""What the questions share: rows with a target, interleaved timing, the loop's lag, the machine.

Rules:

* Two things are compared in one run, taking turns (`take_turns`), and the ratio is formed turn by
  turn. Whatever else the machine does then hits both, and a median over turns drops the rest.
* Garbage collection is off while something is timed, for both sides, as in `timeit`.
* Every row keeps its values, so that a table can show the median and how far they went apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from qqbot_session import SessionState

PEERS = (
    *("aiofiles", "qq-botpy-sdk", "qqbot-agent-sdk", "aiosqlite", "diskcache", "redis", "uvloop"),
    *("aiohttp", "websockets"),
)

TIMES = "\N{MULTIPLICATION SIGN}"
NOTHING = "\N{EN DASH}"  # in an empty cell

RAM = Path("/dev/shm")  # where Linux has a RAM file system, whoever owns the machine


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Args:
        question: what was measured.
        against: what it was compared with; empty if with nothing.
        values: one per repeat.
        unit: of the values; `TIMES` is a ratio.
        target: such as `<= 1.5`; empty for a figure that is only reported.
        note: what a reader must know; alone, why there are no values.
        bound: what keeps the target from being met where it is missed.
    """

    question: str
    against: str = ""
    values: Sequence[float] = ()
    unit: str = TIMES
    target: str = ""
    note: str = ""
    bound: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; `None` if there is no target or no value."""
        if not self.target or not self.values:
            return None
        sign, limit = self.target.split()
        return self.median <= float(limit) if sign == "<=" else self.median >= float(limit)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to measure, and where the files go.

    Args:
        quick: fewer repeats and smaller fleets.
        disk: a directory on the file system to measure.
    """

    quick: bool
    disk: Path

    def repeats(self, usual: int) -> int:
        return max(3, usual // 5) if self.quick else usual

    def places(self) -> Iterator[tuple[str, Path]]:
        """Yield the name of each file system to measure and an empty directory on it."""
        for parent in (self.disk, RAM):
            if parent.is_dir():
                with temporary_directory(parent) as directory:
                    yield file_system(directory), directory


@contextlib.contextmanager
def temporary_directory(parent: Path) -> Iterator[Path]:
    directory = tempfile.mkdtemp(prefix="qqbot-session-benchmark-", dir=parent)
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def journaled(disk: Path) -> Iterator[Path]:
    """Give a directory on a journaled file system: the disk's own if that is known to be one.

    Else, where it may be mounted (by root, on Linux), an ext4 with a journal in a file on the disk,
    and where not, the disk as it is. The tables name the file system either way.
    """
    if file_system(disk) != "ext4, without a journal" or not shutil.which("mkfs.ext4"):
        yield disk
        return
    with temporary_directory(disk) as directory:
        image, place = directory / "image", directory / "mounted"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(4 << 30)  # sparse
        # All its tables now, so that nothing makes them while something is measured.
        tables = "lazy_itable_init=0,lazy_journal_init=0"
        try:
            _run("mkfs.ext4", "-q", "-N", "400000", "-O", "has_journal", "-E", tables, image)
            _run("mount", "-o", "loop", image, place)
        except subprocess.CalledProcessError:
            yield disk
            return
        try:
            yield place
        finally:
            _run("umount", place)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


Question = Callable[[Settings], list[Row]]


def main(question: Question, show: Callable[[Iterable[Row]], str] | None = None) -> None:
    """Be the command of one question: print its table; with `--json`, write its rows instead.

    Args:
        show: makes the table, if not as for all the others.
    """
    parser = argparse.ArgumentParser(description=question.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller fleets")
    parser.add_argument("--disk", type=Path, help="directory on the disk to measure")
    parser.add_argument("--json", type=Path, help="write the rows there instead of printing them")
    options = parser.parse_args()
    disk = options.disk or Path(tempfile.gettempdir())
    rows = question(Settings(quick=options.quick, disk=disk))
    if options.json is None:
        print((show or table)(rows))
    else:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| question | against | target | median | min to max | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        question = f"{row.question} ({row.note})" if row.note else row.question
        cells = [question, row.against, _target(row), "", "", ""]
        if row.values:
            space = "" if row.unit == TIMES else " "
            cells[3] = f"{_digits(row.median)}{space}{row.unit}"
            cells[4] = f"{_digits(min(row.values))} to {_digits(max(row.values))}"
            cells[5] = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(f"| {' | '.join(cell or NOTHING for cell in cells)} |")
    return "\n".join(lines)


def _target(row: Row) -> str:
    target = row.target.replace("<=", "≤").replace(">=", "≥")
    return target + ("" if row.unit == TIMES else " ") + row.unit if target else ""


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# Timing


def ratios(values: Sequence[float], base: Sequence[float], group: int = 1) -> list[float]:
    """Return the ratio of each turn, or of the medians of so many turns in a row."""
    starts = range(0, len(values), group)
    return [
        statistics.median(values[start : start + group])
        / statistics.median(base[start : start + group])
        for start in starts
    ]


async def take_turns(
    sides: Mapping[str, Callable[[], Awaitable[float]]], repeats: int
) -> dict[str, list[float]]:
    """Run every side once per turn, one after the other; return what each one gave.

    The first turn only warms up. Sides time themselves, so that what they need to set up is not
    counted.
    """
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            value = await side()
            if turn:
                seen[name].append(value)
    return seen


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@contextlib.asynccontextmanager
async def lag_probe(every: float = 0.002) -> AsyncIterator[list[float]]:
    """Note how late, in seconds, the loop calls back a timer that is due `every` seconds.

    The selector's own rounding of a time-out, up to a millisecond, is part of it.
    """
    late: list[float] = []

    async def probe() -> None:
        while True:
            due = time.perf_counter() + every
            await asyncio.sleep(every)
            late.append(time.perf_counter() - due)

    task = asyncio.create_task(probe())
    try:
        yield late
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# States


def account_ids(count: int) -> list[str]:
    return [f"bot-{index}-{count}" for index in range(count)]


def state(account_id: str, last_seq: int = 1) -> SessionState:
    """Return a state as a bot has it, all but the rare fields set."""
    return SessionState(
        account_id=account_id,
        session_id="0f3b9a52-7c1e-4d6a-9d7e-3f0c1a2b4c5d",
        last_seq=last_seq,
        last_connected_at=1_700_000_000.0,
        app_id="102000000",
        intents=1_107_300_352,
        established_at=1_700_000_000.0,
    )


# The machine, without its names and paths


def file_system(directory: Path) -> str:
    """Return the type of file system a directory is on, such as `ext4, journaled`."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return platform.system()
    best, device, kind = "", "", "unknown"
    for line in mounts:
        name, point, kind_here = line.split()[:3]
        point = point.encode().decode("unicode_escape")
        if directory.resolve().is_relative_to(point) and len(point) >= len(best):
            best, device, kind = point, name, kind_here
    if kind != "ext4":
        return kind
    journals = [entry.name.rpartition("-")[0] for entry in _entries("/proc/fs/jbd2")]
    if Path(device).name not in journals:
        return "ext4, without a journal"
    return f"ext4, journaled{', on a loop device' if device.startswith('/dev/loop') else ''}"


def _entries(directory: str) -> list[Path]:
    try:
        return list(Path(directory).iterdir())
    except OSError:
        return []


def machine(settings: Settings) -> list[tuple[str, str]]:
    """Return what a reader needs to judge the numbers."""
    places = [name for name, _ in settings.places()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    installed = []
    for name in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed.append(f"{name} {metadata.version(name)}")
    return [
        ("cores", str(os.cpu_count())),
        ("memory", f"{memory:.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("load before the start", f"{os.getloadavg()[0]:.2f}"),
        ("file systems", "; ".join(places)),
        ("packages", ", ".join(installed)),
        ("switch interval", f"{sys.getswitchinterval() * 1000:g} ms"),
    ]
