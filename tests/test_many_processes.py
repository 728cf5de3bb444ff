"""Many processes on one storage, with kills and outages at random: promises 25 to 28.

Writers, lookers, readers, forked workers and candidates for one lease run for minutes on one
database or one server. The programs say what they see; what they said is judged at the end.
`QQBOT_MANY_SECONDS` is how long each part lasts, `QQBOT_MANY_SEED` what chance begins with.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "programs" / "many.py"
SECONDS = float(os.environ.get("QQBOT_MANY_SECONDS", "90"))
SEED = int(os.environ.get("QQBOT_MANY_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
PATIENCE = 15.0  # seconds that anything may take on these machines after what disturbed it
GRACE = 60.0  # seconds until all have ended

ROLES = {
    **{f"writer-{number}": "writer" for number in range(3)},
    **{f"looker-{number}": "looker" for number in range(2)},
    **{f"holder-{number}": "holder" for number in range(3)},
    "reader-0": "reader",
    "forker-0": "forker",
}


class Place:
    """A storage that many share, and what may happen to it."""

    url = ""
    outages: list[tuple[float, float]]

    def __init__(self) -> None:
        self.outages = []

    def disturb(self, chance: random.Random) -> None:
        """Let something happen to the storage itself."""

    def complaints(self) -> list[str]:
        """Return what is wrong with what is left."""
        return []

    def was_disturbed(self, at: float) -> bool:
        return any(begin <= at <= end + PATIENCE for begin, end in self.outages)


class Database(Place):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.url = f"sqlite:{folder / 'sessions.db'}"

    def complaints(self) -> list[str]:
        return [f"set aside: {path.name}" for path in self._folder.glob("*corrupt*")]


class Server(Place):
    """A Redis that keeps what it acknowledged, and is stopped or killed now and then."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self._server = server
        self.url = server.url

    def disturb(self, chance: random.Random) -> None:
        began = time.monotonic()
        if chance.random() < 0.5:
            self._server.stop()
            time.sleep(chance.choice([0.2, 1.0, 3.0]))
            self._server.go_on()
        else:
            self._server.kill()
            time.sleep(chance.choice([0.0, 1.0]))
            self._server.start()
        self.outages.append((began, time.monotonic()))


@contextlib.contextmanager
def database(folder: Path) -> Iterator[Place]:
    yield Database(folder)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Place]:
    pytest.importorskip("redis.asyncio")
    with RedisServer(appendonly="yes", appendfsync="always") as running:
        yield Server(running)


@pytest.mark.timeout(SECONDS + GRACE + 120)
@pytest.mark.parametrize("kind", [database, server])
def test_what_was_acknowledged_stays_and_nobody_is_in_anybodys_way(
    kind: Any, tmp_path: Path
) -> None:
    """Not one acknowledged number is read back older, and no two hold the lease."""
    (tmp_path / "said").mkdir()
    with kind(tmp_path) as place:
        hung = live(place, tmp_path / "said", random.Random(SEED))
        said = [
            json.loads(line)
            for path in sorted((tmp_path / "said").glob("*.jsonl"))
            for line in path.read_text("utf-8").splitlines()
        ]
        said.sort(key=lambda each: each[-1])
        complaints = [*hung, *place.complaints(), *judge(said, place)]
    counts = {what: sum(each[0] == what for each in said) for what in sorted({e[0] for e in said})}
    print(f"seed {SEED}, {len(place.outages)} outages, {counts}")  # noqa: T201 - to run it again
    assert counts.get("acknowledged", 0) > 100
    assert counts.get("holds", 0) > 10
    assert not complaints, f"seed {SEED}: {len(complaints)}, such as {complaints[:10]}"


def live(place: Place, folder: Path, chance: random.Random) -> list[str]:
    """Let all live, be killed and come back; return who did not end."""
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    errors = (folder / "errors.txt").open("wb")

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(PROGRAM), ROLES[name], name, place.url, str(folder)]
        return subprocess.Popen(words, stderr=errors, env=environment, start_new_session=True)

    running = {name: start(name) for name in ROLES}
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end - PATIENCE:
            time.sleep(chance.uniform(0.2, 2))
            if chance.random() < 0.25:
                place.disturb(chance)
                continue
            name = chance.choice([name for name in ROLES if name != "forker-0"])
            running[name].kill()
            running[name].wait()
            running[name] = start(name)
        time.sleep(max(0.0, end - time.monotonic()))
        return _end(running)
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has forked
            process.wait()
        errors.close()


def _end(running: dict[str, subprocess.Popen[bytes]]) -> list[str]:
    for process in running.values():
        process.terminate()
    hung = []
    deadline = time.monotonic() + GRACE
    for name, process in running.items():
        try:
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            hung.append(f"{name} hangs")
        else:
            if status:
                hung.append(f"{name} ended with {status}")
    return hung


def judge(said: list[list[Any]], place: Place) -> Iterator[str]:
    """Yield what breaks a promise; what was said is in order of time."""
    yield from judge_numbers(said, place)
    yield from judge_leases(said)
    yield from judge_progress(said, place)


def judge_numbers(said: list[list[Any]], place: Place) -> Iterator[str]:
    """What was acknowledged before a look began is seen by it, or something newer."""
    acknowledged: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for what, account_id, number, *_, at in said:
        if what == "acknowledged":
            acknowledged[account_id].append((at, number))

    def known(account_id: str, before: float) -> int:
        # An acknowledgement is said a little after it was given, never before.
        return max((number for at, number in acknowledged[account_id] if at < before), default=0)

    for what, subject, number, *more, at in said:
        if what == "loaded":
            least = known(subject, more[0])
            unreadable = number is None and more[1] == "UNREADABLE" and place.was_disturbed(at)
            if (number or 0) < least and not unreadable:
                yield f"{subject}: {least} acknowledged, {number} loaded ({more[1]})"
        elif what == "listed":
            for account_id in acknowledged:
                least = known(account_id, more[0])
                if subject.get(account_id, 0) < least:
                    yield f"{account_id}: {least} acknowledged, {subject.get(account_id)} listed"


def judge_leases(said: list[list[Any]]) -> Iterator[str]:
    """Between two signs of life of one holder nobody else gives one."""
    spans: dict[str, list[float]] = defaultdict(list)
    for what, holder, *_, at in said:
        if what == "holds":
            spans[holder].append(at)
    ordered = sorted((min(signs), max(signs), holder) for holder, signs in spans.items())
    for (_, end, first), (begin, _, second) in itertools.pairwise(ordered):
        if begin < end:
            yield f"{first} and {second} hold the lease at once, for {end - begin:.2f} s"


def judge_progress(said: list[list[Any]], place: Place) -> Iterator[str]:
    """Reading and writing work again soon after what disturbed them."""
    written = sum(each[0] == "acknowledged" for each in said)
    failed = [each for each in said if each[0] == "failed" and not place.was_disturbed(each[-1])]
    if len(failed) > 2 + written / 1000:  # with so many writers a lock may once not be had in time
        yield f"{len(failed)} of {written} writes failed, such as {failed[0]}"
    for what, subject, text, *_, at in said:
        if what in ("not read", "not listed") and not place.was_disturbed(at):
            yield f"{what}: {subject}: {text}"
        elif what == "workers ended" and any(subject):
            yield f"forked workers ended with {subject}"
