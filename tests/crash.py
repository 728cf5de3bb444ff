"""Crashes and faults at every step of the write path, for the tests that prove promise 7 to 9.

`Tap` stands between `qqbot_session.storages.files` and `os`, so that a test can record each
system call, refuse it, or end the process there. `ForkServer` runs one scenario of the write path
after the other, each in a fresh process, within milliseconds.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import files, places
from qqbot_session.storages.names import file_name, original_name

if TYPE_CHECKING:  # programs import this without it
    import pytest

PROGRAMS = Path(__file__).parent / "programs"
NOW = 1_700_000_000.0  # the wall clock of every scenario; seconds
KILLED = 137  # how a process ends that a fault killed
ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE", "EINTR", "ENOENT")
_DEADLINE = 60.0  # seconds until a program counts as hanging

Do = Callable[[], Any]
Around = Callable[[str, Do, tuple[Any, ...]], Any]


def a_state(account_id: str, last_seq: int, **values: Any) -> SessionState:
    known = {"session_id": "s", "last_seq": last_seq, "saved_at": NOW}
    return SessionState(account_id=account_id, **known | values)


class Tap:
    """A stand-in for the module `os` whose system calls go through `around(name, do, args)`."""

    _CALLS = frozenset(
        {"open", "read", "write", "fstat", "lstat", "fdatasync", "fsync", "close", "replace"}
        | {"rename", "link", "unlink", "mkdir", "listdir", "posix_fadvise"}
    )

    def __init__(self, around: Around) -> None:
        self._around = around

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        return functools.partial(self._call, name, value) if name in self._CALLS else value

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._around(name, functools.partial(call, *args, **kwargs), args)


def tap(around: Around) -> None:
    """Put a tap on the library for the rest of this process; see `stand_in` otherwise."""
    files.os = places.os = Tap(around)  # type: ignore[attr-defined]


def stand_in(monkeypatch: pytest.MonkeyPatch, other: object) -> None:
    """Let another `os` stand in what writes files, for the rest of a test."""
    for module in (files, places):
        monkeypatch.setattr(module, "os", other)


@dataclass
class Fault:
    """What happens to the calls from number `at` on, until `heal`.

    Args:
        kind: `kill`; the name of an errno; or `short`, a write of one byte.
        at: counted from 0; -1 is never.
        lasting: beyond the one call.
        late: the call takes effect first.
    """

    kind: str = "kill"
    at: int = -1
    lasting: bool = False
    late: bool = False
    calls: list[str] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=itertools.count)

    def heal(self) -> None:
        self.lasting = False

    def __call__(self, name: str, do: Do, args: tuple[Any, ...]) -> Any:
        number = next(self._count)
        self.calls.append(name)
        if number != self.at and not (self.lasting and 0 <= self.at <= number):
            return do()
        if self.kind == "ENOENT" and not _may_miss_its_directory(name, args):
            return do()
        if name == "write":
            done = os.write(args[0], args[1][: 1 if self.kind == "short" else len(args[1]) // 2])
            if self.kind == "short":
                return done
        elif self.late or self.kind == "short":
            result = do()
            if self.kind == "short":
                return result
        if self.kind == "kill":
            os._exit(KILLED)
        code = getattr(errno, self.kind)
        raise OSError(code, os.strerror(code))


def _may_miss_its_directory(name: str, args: tuple[Any, ...]) -> bool:
    """Whether ENOENT is a fault; of others it is the plain answer "there is none", or absurd."""
    return name in ("mkdir", "replace", "rename", "link") or (
        name == "open" and bool(args[1] & os.O_CREAT)
    )


@dataclass(frozen=True)
class Scenario:
    """One way through the write path: what is in the directory, and what is done to it.

    Args:
        before: what each account's record is, `None` for no record; `old` in the tests.
        after: what each account's record is in the end; the scenario saves or clears what differs.
        originals: accounts whose first record is in the original's file.
        stale: accounts whose record has expired.
        clean: run `cleanup` at the end.
    """

    before: Mapping[str, SessionState | None]
    after: Mapping[str, SessionState | None]
    originals: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    clean: bool = False

    def changes(self) -> dict[str, SessionState | None]:
        return {} if self.clean else dict(self.after)

    def prepare(self, directory: Path) -> None:
        """Lay out the directory as it is before."""
        for account_id, state in self.before.items():
            if state is not None:
                directory.mkdir(mode=0o700, exist_ok=True)
                named = original_name if account_id in self.originals else file_name
                stamp = NOW - 1e6 if account_id in self.stale else NOW
                (directory / named(account_id)).write_bytes(encode(state, saved_at=stamp))
        if self.clean:
            left_over = directory / ".qqbot-session-0123456789abcdef-0.tmp"
            left_over.write_bytes(b'{"acc')
            age(left_over)
            (directory / "session-corrupt.json").write_bytes(b'{"accountId": "corr')


SCENARIOS = {
    "save": Scenario({"bot": None}, {"bot": a_state("bot", 2)}),
    "overwrite": Scenario({"bot": a_state("bot", 1)}, {"bot": a_state("bot", 2)}),
    "batch": Scenario(
        {"a": None, "b": a_state("b", 1), "c.d": a_state("c.d", 1), "e": a_state("e", 1)},
        {"a": a_state("a", 2), "b": a_state("b", 2), "c.d": a_state("c.d", 2), "e": None},
        originals=frozenset({"c.d"}),
    ),
    "clear": Scenario(
        {"bot": a_state("bot", 1), "c.d": a_state("c.d", 1)},
        {"bot": None, "c.d": None},
        originals=frozenset({"c.d"}),
    ),
    "cleanup": Scenario(
        {"live": a_state("live", 1), "stale": a_state("stale", 1)},
        {"live": a_state("live", 1), "stale": None},
        stale=frozenset({"stale"}),
        clean=True,
    ),
}


def a_store(storage: Any, **options: Any) -> AsyncSessionStore:
    return AsyncSessionStore(storage, debounce=0, clock=lambda: NOW, **options)


async def loaded(directory: Path, account_ids: Mapping[str, Any]) -> dict[str, SessionState | None]:
    """Return what a process that starts now would resume."""
    async with a_store(directory) as store:
        return {account_id: await store.load(account_id) for account_id in account_ids}


def age(path: Path) -> None:
    """Make a file as old as a left-over has to be."""
    long_ago = time.time() - 7200
    os.utime(path, (long_ago, long_ago))


def left_overs(directory: Path) -> list[Path]:
    return sorted(directory.glob(".*"))


async def clean_up(directory: Path) -> None:
    """Do what an operator would do an hour after a crash."""
    for path in left_overs(directory):
        age(path)
    async with a_store(directory) as store:
        await store.cleanup()


class ForkServer:
    """`programs/crash_points.py` as a process that forks once per job.

    A fresh interpreter takes a third of a second, a fork of one some milliseconds; and a process
    without threads is the only one to fork safely.
    """

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "crash_points.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment(),
                text=True,
            )

    def run(self, name: str, directory: Path, **job: Any) -> dict[str, Any]:
        """Run a scenario in a process; return its exit status and what it reports."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message = {"name": name, "directory": str(directory)} | job
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["status"] in (0, KILLED), (message, answer, self._errors.read_text())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=_DEADLINE)


def environment() -> dict[str, str]:
    """Return the environment of a program: it can import what the tests can."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def start(program: str, *args: object) -> subprocess.Popen[str]:
    """Start `programs/<program>.py`; its output is read line by line."""
    process = subprocess.Popen(
        [sys.executable, "-W", "always", str(PROGRAMS / f"{program}.py"), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        start_new_session=True,
    )
    _started.append(process)
    return process


def end_programs() -> None:
    """End what a failed test has left running."""
    while _started:
        process = _started.pop()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


_started: list[subprocess.Popen[str]] = []


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; return the exit code and what is left of output and errors."""
    try:
        output, errors = process.communicate(timeout=_DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it forked holds its output open
        output, errors = process.communicate()
        raise AssertionError(f"{process.args} hangs:\n{output}\n{errors}") from None
    return process.returncode, output, errors


async def turns_until(condition: Callable[[], Any]) -> None:
    """Let the loop turn until it is true: for what happens on threads or in other tasks."""
    async with asyncio.timeout(3600):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Look until it is true, for as long as no sane machine needs."""
    deadline = time.monotonic() + _DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)
    return value
