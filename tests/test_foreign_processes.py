"""The store in other people's processes: tracers, monitors, loops, threads, signals, `atexit`.

The programs are `programs/worlds.py`, `programs/endings.py` and `programs/interrupted.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash import PROGRAMS, a_state, end_programs, environment, finish, left_overs, start
from faults import FaultyStorage

from qqbot_session import AsyncSessionStore, MemoryStorage, WrongEventLoopError
from qqbot_session.state import decode

NEWEST = 7
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def world(name: str) -> Any:
    packages = {"sentry": "sentry_sdk", "ddtrace": "ddtrace", "uvloop": "uvloop"}
    package = packages.get(name)
    marks = []
    if package is not None:
        there = importlib.util.find_spec(package) is not None
        marks.append(pytest.mark.skipif(not there, reason=f"needs {package}"))
    if name == "eager":
        old = sys.version_info < (3, 12)
        marks.append(pytest.mark.skipif(old, reason="needs Python 3.12"))
    return pytest.param(name, marks=marks)


WORLDS = [
    world(name)
    for name in (
        *("plain", "sentry", "ddtrace", "monitored", "old_factory", "uvloop", "eager"),
        "broken_logging",
    )
]
ENDINGS = {
    "lives": "returned",
    "fails_for_a_while": "returned",
    "returns_at_once": "returned",
    "returns_within_the_window": "returned",
    "returns_while_a_write_is_in_flight": "returned",
    "raises": "SystemExit",
    "is_cancelled": "CancelledError",
    "is_cancelled_without_a_with": "CancelledError",
    "waits_in_a_with": "CancelledError",
    "cancels_all_before_their_first_step": "returned",
}


@pytest.fixture(autouse=True)
def no_program_outlives_its_test() -> Iterator[None]:
    yield
    end_programs()


def last_seq(directory: Path, account_id: str = "bot") -> int | None:
    path = directory / f"session-{account_id}.json"
    return decode(path.read_bytes()).last_seq if path.exists() else None


def run_python(options: list[str], program: str, *args: object) -> tuple[str, str]:
    """Run a program to its end; return what it printed, and what it complained about."""
    command = [sys.executable, *options, str(PROGRAMS / f"{program}.py"), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def check_ended_well(root: Path, output: str, errors: str) -> None:
    assert dict(line.split() for line in output.splitlines()) == ENDINGS, errors
    for word in ("Task", "never awaited", "Error:", "Event loop is closed"):
        assert word not in errors  # of stores that nobody closed, a ResourceWarning may be there
    for name in ENDINGS:
        assert last_seq(root / name) == NEWEST, name
        assert left_overs(root / name) == []


@pytest.mark.parametrize("name", WORLDS)
def test_a_bot_lives_and_ends_in_anyones_process(tmp_path: Path, name: str) -> None:
    # promises 1, 2, 3, 4, 5, 8, 9
    root = tmp_path / "bots"
    bots = ",".join(ENDINGS)
    check_ended_well(root, *run_python(["-W", "always"], "worlds", name, bots, root))


@pytest.mark.parametrize("options", [["-X", "dev"], ["-W", "error"], ["-O"], ["-X", "dev", "-bb"]])
def test_a_bot_lives_and_ends_under_any_option(tmp_path: Path, options: list[str]) -> None:
    # promises 1, 9
    root = tmp_path / "bots"
    bots = ",".join(ENDINGS)
    check_ended_well(root, *run_python(options, "worlds", "plain", bots, root))


# Signals


def said(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@posix
@pytest.mark.parametrize(
    ("bot", "number", "signals", "name"),
    [
        ("handles_sigterm", signal.SIGTERM, 1, "plain"),
        ("handles_sigterm", signal.SIGTERM, 2, "plain"),
        ("handles_sigterm", signal.SIGTERM, 4, "plain"),
        ("handles_sigterm_in_anyio", signal.SIGTERM, 2, "plain"),
        ("waits", signal.SIGINT, 1, "plain"),
        ("waits", signal.SIGINT, 2, "plain"),
        ("handles_sigint", signal.SIGINT, 3, "plain"),
        pytest.param("handles_sigterm", signal.SIGTERM, 2, "sentry", marks=pytest.mark.slow),
        pytest.param("waits", signal.SIGINT, 2, "ddtrace", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_signals_loses_nothing(
    directory: Path, bot: str, number: signal.Signals, signals: int, name: str
) -> None:
    """The disk is slow: every signal but the first comes while the last write is under way."""
    # promise 9
    process = start("endings", bot, directory, name)
    said(process, "ready")
    process.send_signal(number)
    said(process, "writing")
    for _ in range(signals - 1):
        process.send_signal(number)
    _, _, errors = finish(process)
    assert last_seq(directory) == NEWEST
    assert left_overs(directory) == []
    for word in ("Task", "coroutine", "unsaved"):
        assert word not in errors, errors


@posix
def test_two_signals_on_a_hung_disk_end_it_and_say_what_is_lost(directory: Path) -> None:
    # promise 5
    process = start("endings", "handles_sigterm_on_a_hung_disk", directory)
    said(process, "ready")
    process.send_signal(signal.SIGTERM)
    said(process, "writing")
    process.send_signal(signal.SIGTERM)
    said(process, "closed")
    _, _, errors = finish(process)
    assert "bot" in errors
    assert len([line for line in errors.splitlines() if "unsaved" in line or "not on" in line]) == 1


# Without `asyncio.run`, and after everything


@pytest.mark.parametrize(
    "ending",
    [
        "closes_from_atexit",
        "closes_from_atexit_after_its_loop_was_closed_by_nobody",
        "closes_from_atexit_while_a_write_is_in_flight",
        "begins_in_atexit",
        "closes_a_memory_store_from_atexit",
    ],
)
def test_what_is_closed_from_atexit_is_written(directory: Path, ending: str) -> None:
    # promise 9
    output, errors = run_python(["-W", "always"], "endings", ending, directory)
    assert output.splitlines()[-1] == "closed"
    assert errors == ""
    if ending != "closes_a_memory_store_from_atexit":
        assert last_seq(directory) == NEWEST
        assert left_overs(directory) == []


@pytest.mark.parametrize("options", [["-W", "always"], ["-X", "dev"], ["-W", "error"]])
def test_a_loop_that_is_closed_within_the_window_makes_no_noise_when_all_is_saved(
    directory: Path, options: list[str]
) -> None:
    # promise 9
    output, errors = run_python(options, "endings", "closes_its_loop_saved", directory)
    assert output == "closed\n"
    assert errors == ""
    assert last_seq(directory) == NEWEST


@pytest.mark.parametrize("options", [["-W", "always"], ["-X", "dev"]])
def test_a_loop_that_is_closed_within_the_window_says_what_is_lost(
    directory: Path, options: list[str]
) -> None:
    # promise 9
    output, errors = run_python(options, "endings", "closes_its_loop_unsaved", directory)
    assert output == "closed\n"
    assert "unsaved" in errors
    assert "bot" in errors
    for word in ("destroyed", "coroutine", "Traceback"):
        assert word not in errors, errors
    assert last_seq(directory) == 1


# Interruptions


INTERRUPTIONS = ["KeyboardInterrupt", "SystemExit", "RecursionError", "MemoryError"]


def check_interrupted(errors: list[str], kind: str, after: str, every: int, least: int) -> None:
    output, complaints = run_python(
        ["-W", "ignore"], "interrupted", ",".join(errors), kind, after, every, 0
    )
    counts = re.findall(r"^(\d+) lives$", output, re.MULTILINE)
    assert len(output.splitlines()) == len(counts) == len(errors), output + complaints
    assert min(map(int, counts)) >= least


@pytest.mark.parametrize(("after", "every"), [("goes-on", 9), ("runner", 21)])
def test_an_interruption_at_a_line_of_ours_leaves_a_store_that_writes_and_ends(
    after: str, every: int
) -> None:
    # promise 8, 9
    check_interrupted(INTERRUPTIONS, "memory", after, every, least=10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("after", ["goes-on", "runner"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_interruption_at_every_line_of_ours_leaves_a_store_that_writes_and_ends(
    error: str, kind: str, after: str
) -> None:
    # promise 8, 9
    check_interrupted([error], kind, after, every=1, least=500)


# Whose loop it is, in this process


class Wrapped:
    """A task factory that fails `times` times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times = error, times

    def __call__(self, loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
        if self.times:
            self.times -= 1
            work.close()
            raise self.error
        return asyncio.Task(work, loop=loop, **options)


@pytest.mark.parametrize("times", [1, 2, 3, 1000])
@pytest.mark.parametrize("error", [TypeError("no context="), RuntimeError("shutting down")])
async def test_a_task_factory_that_fails_stops_no_write(error: Exception, times: int) -> None:
    # promise 1
    storage = MemoryStorage()
    store = AsyncSessionStore(storage)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(Wrapped(error, times))
    await store.save(a_state("bot", 1))
    await store.save(a_state("bot", 2))
    await store.update_last_seq("bot", 3)
    await asyncio.sleep(40)
    assert decode(storage.records["bot"]).last_seq == 3
    await store.update_last_seq("bot", NEWEST)
    await store.flush()
    assert decode(storage.records["bot"]).last_seq == NEWEST
    await store.aclose()
    loop.set_task_factory(None)


async def test_a_create_task_that_fails_once_stops_no_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # promise 1
    storage = MemoryStorage()
    store = AsyncSessionStore(storage)
    loop = asyncio.get_running_loop()
    create_task = loop.create_task
    calls = iter([True])

    def once(work: Any, **options: Any) -> Any:
        if next(calls, False):
            work.close()
            raise RuntimeError("patched")
        return create_task(work, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_task", once)
        await store.save(a_state("bot", 1))
        await store.update_last_seq("bot", NEWEST)
        async with asyncio.timeout(60):
            await store.flush()
            await store.aclose()
    assert decode(storage.records["bot"]).last_seq == NEWEST


request: contextvars.ContextVar[Any] = contextvars.ContextVar("request", default=None)


class Request:
    pass


async def test_the_context_of_who_saves_is_neither_seen_nor_kept() -> None:
    # promise 1
    seen = []
    store = AsyncSessionStore(MemoryStorage(), on_write=lambda _: seen.append(request.get()))

    async def handler() -> weakref.ref[Request]:
        request.set(Request())
        await store.save(a_state("bot", 1))
        return weakref.ref(request.get())

    kept = await asyncio.create_task(handler())
    for number in range(2, 10):
        await store.update_last_seq("bot", number)
        await asyncio.sleep(0.7)
    request.set(Request())
    await store.flush()
    gc.collect()
    assert seen
    assert set(seen) == {None}
    assert kept() is None
    await store.aclose()


Calls = dict[str, Callable[[AsyncSessionStore], Any]]
ALWAYS: Calls = {
    "load": lambda store: store.load("bot"),
    "flush": lambda store: store.flush(),
    "clear": lambda store: store.clear("bot"),
    "aclose": lambda store: store.aclose(),
    "first save": lambda store: store.save(a_state("other", 1)),
    "first touch": lambda store: store.touch("bot"),
    "first update": lambda store: store.update_last_seq("bot", 9),
    "load_all": lambda store: store.load_all(),
    "cleanup": lambda store: store.cleanup(),
}
WARM: Calls = {
    "save": lambda store: store.save(a_state("bot", 9)),
    "update": lambda store: store.update_last_seq("bot", 9),
    "touch": lambda store: store.touch("bot"),
}


def error_of(work: Callable[[], object]) -> BaseException | None:
    """Run it on a thread of its own."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed back
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(40)
    assert not thread.is_alive(), "it hangs"
    return caught[0] if caught else None


def step(work: Coroutine[Any, Any, Any]) -> None:
    """Run it without a loop, as far as it goes."""
    try:
        work.send(None)
    except StopIteration:
        return
    finally:
        work.close()


@pytest.mark.real_time
@pytest.mark.parametrize("call", ALWAYS.values(), ids=list(ALWAYS))
@pytest.mark.parametrize("how", ["another loop", "no loop"])
async def test_a_call_from_another_thread_is_an_error_and_changes_nothing(
    how: str, call: Callable[[AsyncSessionStore], Any]
) -> None:
    # promise 1
    storage = FaultyStorage()
    store = AsyncSessionStore(storage)
    await store.save(a_state("bot", NEWEST))
    await store.flush()

    def elsewhere() -> None:
        if how == "no loop":
            step(call(store))
        else:
            asyncio.run(asyncio.wait_for(call(store), 30))

    assert isinstance(error_of(elsewhere), WrongEventLoopError)
    assert "unsaved=0" in repr(store)
    await store.update_last_seq("bot", 10)
    await store.aclose()
    assert decode(storage.records["bot"]).last_seq == 10


@pytest.mark.real_time
@pytest.mark.parametrize("call", WARM.values(), ids=list(WARM))
async def test_in_debug_mode_a_warm_call_from_another_thread_is_an_error_too(
    call: Callable[[AsyncSessionStore], Any],
) -> None:
    # promise 1
    asyncio.get_running_loop().set_debug(True)
    storage = FaultyStorage()
    store = AsyncSessionStore(storage, debounce=3600)
    await store.save(a_state("bot", 1))
    await store.flush()
    await store.update_last_seq("bot", NEWEST)  # warm: a write is due
    assert isinstance(error_of(lambda: step(call(store))), WrongEventLoopError)
    await store.aclose()
    assert decode(storage.records["bot"]).last_seq == NEWEST


@pytest.mark.parametrize("call", ALWAYS.values(), ids=list(ALWAYS))
def test_a_second_loop_after_the_first_is_an_error_and_hangs_nobody(
    directory: Path, call: Callable[[AsyncSessionStore], Any]
) -> None:
    # promise 1
    store = AsyncSessionStore(directory)

    async def begin() -> None:
        await store.save(a_state("bot", NEWEST))
        await store.flush()

    asyncio.run(begin())
    with pytest.raises(WrongEventLoopError):
        asyncio.run(asyncio.wait_for(call(store), 30))
    assert last_seq(directory) == NEWEST
