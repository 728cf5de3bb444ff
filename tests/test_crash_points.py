"""Kill, refuse or cut short every single call of the write path, and look at what is left.

The quick part does it between `qqbot_session.storages.files` and `os`, the slow part between the
process and the kernel, with strace. `SCENARIOS` in `crash.py` says what is done to which directory.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from crash import (
    ERRORS,
    KILLED,
    SCENARIOS,
    Do,
    ForkServer,
    Scenario,
    Tap,
    a_state,
    a_store,
    clean_up,
    left_overs,
    loaded,
    stand_in,
)

from qqbot_session import FileStorage

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

scenarios = pytest.mark.parametrize("name", SCENARIOS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("server") / "errors")
    yield server
    server.close()


class Bench:
    """Runs one scenario again and again, each time in a directory of its own."""

    def __init__(self, server: ForkServer, name: str, root: Path) -> None:
        self.scenario: Scenario = SCENARIOS[name]
        self.tried = 0
        self._server = server
        self._name = name
        self._root = root
        self._numbers = itertools.count()

    def run(self, **job: Any) -> tuple[Path, dict[str, Any]]:
        directory = self._root / str(next(self._numbers)) / "sessions"
        directory.parent.mkdir()
        self.scenario.prepare(directory)
        self.tried += 1
        return directory, self._server.run(self._name, directory, **job)

    def calls(self) -> list[str]:
        """Return the calls of the scenario when nothing goes wrong."""
        calls: list[str] = self.run()[1]["calls"]
        return calls

    async def assert_old_or_new(self, directory: Path) -> bool:
        """Fail unless each record is one or the other, before and after cleaning up.

        Returns:
            Whether all are new.
        """
        before, after = self.scenario.before, self.scenario.after
        old = before | dict.fromkeys(self.scenario.stale)
        found = await loaded(directory, after)
        for account_id, state in found.items():
            assert state in (old[account_id], after[account_id]), (account_id, state)
        await clean_up(directory)
        assert left_overs(directory) == []
        assert await loaded(directory, after) == found
        return found == after

    async def assert_new(self, directory: Path) -> None:
        assert await self.assert_old_or_new(directory), "something has not reached storage"


@pytest.fixture
def bench(server: ForkServer, name: str, tmp_path: Path) -> Bench:
    return Bench(server, name, tmp_path)


@scenarios
async def test_killed_before_any_call_a_record_is_the_old_or_the_new_one(bench: Bench) -> None:
    """Left-overs go with the next cleanup, and the later the kill the newer the records."""
    # promise 7
    calls = bench.calls()
    assert len(calls) > 8
    seen = []
    for at in range(len(calls)):
        directory, answer = bench.run(kind="kill", at=at)
        assert answer["status"] == KILLED
        seen.append(await bench.assert_old_or_new(directory))
    assert bench.scenario.clean or not seen[0]
    assert seen == sorted(seen), "what was new is old again"
    directory, answer = bench.run()
    assert answer["status"] == 0
    await bench.assert_new(directory)


@scenarios
async def test_one_refused_call_delays_the_newest_state_but_does_not_lose_it(bench: Bench) -> None:
    """Each call fails once, with one errno after the other; files are then half-written."""
    # promise 8
    for at in range(len(bench.calls())):
        directory, _ = bench.run(kind=ERRORS[at % 7], at=at)
        await bench.assert_new(directory)


@pytest.mark.parametrize("name", ["save", "batch"])
async def test_a_lasting_fault_is_over_when_it_is_over(bench: Bench) -> None:
    """From each call on nothing works until a failure was reported, and then all is written."""
    # promise 8
    for at in range(len(bench.calls())):
        directory, _ = bench.run(kind=ERRORS[at % 7], at=at, lasting=True)
        await bench.assert_new(directory)


@pytest.mark.parametrize("name", ["overwrite"])
async def test_a_write_may_be_short(bench: Bench) -> None:
    """The kernel takes one byte at a time: the record is complete all the same."""
    # promise 7
    directory, answer = bench.run(kind="short", at=0, lasting=True)
    assert answer["calls"].count("write") > 100
    await bench.assert_new(directory)


async def test_a_deletion_is_not_done_when_only_the_originals_record_is_deleted(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync between the two deletions fails, with whatever errno: the commit has failed."""
    # promise 4, 8
    Scenario({"c.d": a_state("c.d", 1)}, {}, originals=frozenset({"c.d"})).prepare(directory)
    Scenario({"c.d": a_state("c.d", 2)}, {}).prepare(directory)

    def refuse(name: str, do: Do, args: tuple[Any, ...]) -> Any:
        if name == "fsync":
            raise FileNotFoundError(errno.ENOENT, "no such file or directory")
        return do()

    storage = FileStorage(directory)
    with monkeypatch.context() as patch:
        stand_in(patch, Tap(refuse))
        try:
            failures = await storage.commit({"c.d": None})
        except OSError as error:
            failures = {"c.d": error}
    assert failures or await storage.read("c.d") is None


async def test_a_record_that_cannot_be_read_for_a_moment_is_not_forgotten(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left while `load_all` opens the record: the bot still has its session."""
    # promise 3, 10

    def refuse(name: str, do: Do, args: tuple[Any, ...]) -> Any:
        if name == "open":
            raise OSError(errno.EMFILE, "too many open files")
        return do()

    async with a_store(directory) as store:
        await store.save(a_state("bot", 1))
        await store.flush()
        with monkeypatch.context() as patch:
            stand_in(patch, Tap(refuse))
            assert await store.load_all() == []
        assert await store.update_last_seq("bot", 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@scenarios
async def test_every_error_at_every_call(bench: Bench, lasting: bool, late: bool) -> None:
    """`late` is the worst: the call takes effect and then reports that it failed."""
    # promise 8
    for at, kind in itertools.product(range(len(bench.calls())), ERRORS):
        directory, _ = bench.run(kind=kind, at=at, lasting=lasting, late=late)
        await bench.assert_new(directory)


# From here on: the same at the kernel's door.


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-f", "-e", "inject=chdir:error=EIO:when=9", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


_MISS_THEIR_DIRECTORY = {"mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"}
_TRACED_CALL = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)


def traced_calls(bench: Bench) -> list[tuple[str, int]]:
    """Return each system call of the scenario with its number, as `inject=CALL:when=N` counts.

    strace counts for each thread by itself, so that a number may name a call of two threads.
    """
    directory, _ = bench.run(trace=str(bench._root / "calls"))
    per_thread: Counter[tuple[str, str]] = Counter()
    found = {}
    for thread, call in _TRACED_CALL.findall((directory.parent.parent / "calls").read_text()):
        per_thread[thread, call] += 1
        found[call, per_thread[thread, call]] = None
    assert len(found) > 8
    return list(found)


class StraceBench(Bench):
    """Runs with a tracer are mostly waiting: several at a time."""

    def __init__(self, name: str, root: Path) -> None:
        self._servers = [ForkServer(root / f"errors-{number}") for number in range(3)]
        super().__init__(self._servers[0], name, root)

    def run_all(self, injects: list[str]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        free = list(self._servers)

        def run(inject: str) -> tuple[str, Path, dict[str, Any]]:
            server = free.pop()
            try:
                number = next(self._numbers)
                directory = self._root / str(number) / "sessions"
                directory.parent.mkdir()
                self.scenario.prepare(directory)
                answer = server.run(self._name, directory, trace=os.devnull, inject=inject)
                return inject, directory, answer
            finally:
                free.append(server)

        self.tried += len(injects)
        with ThreadPoolExecutor(len(self._servers)) as pool:
            yield from pool.map(run, injects)

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
def strace_bench(name: str, tmp_path: Path) -> Iterator[StraceBench]:
    bench = StraceBench(name, tmp_path)
    yield bench
    bench.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not strace_works(), reason="needs strace and the right to trace")
@scenarios
async def test_killed_at_any_system_call(strace_bench: StraceBench) -> None:
    """SIGKILL as the kernel is entered: the record is the old or the new one."""
    # promise 7
    injects = [f"{call}:signal=KILL:when={n}" for call, n in traced_calls(strace_bench)]
    killed = 0
    for inject, directory, answer in strace_bench.run_all(injects):
        killed += answer["status"] == KILLED
        new = await strace_bench.assert_old_or_new(directory)
        assert new or answer["status"] == KILLED, inject
    assert killed > 8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not strace_works(), reason="needs strace and the right to trace")
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@scenarios
async def test_any_system_call_may_fail(strace_bench: StraceBench, lasting: bool) -> None:
    """Once, or until the first reported failure: the newest state reaches storage by itself."""
    # promise 8
    plus = "+" if lasting else ""
    injects = [
        f"{call}:error={error}:when={n}{plus}"
        for (call, n), error in itertools.product(traced_calls(strace_bench), ERRORS)
        if error != "ENOENT" or call in _MISS_THEIR_DIRECTORY  # else an answer, or absurd
        if not (error == "EINTR" and lasting)  # Python repeats the call for ever
    ]
    for inject, directory, answer in strace_bench.run_all(injects):
        assert answer["status"] == 0, inject
        assert await strace_bench.assert_old_or_new(directory), inject
