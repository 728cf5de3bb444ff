"""What all tests share: a loop with virtual time, and an alarm for blocking calls on the loop.

Time on the loop stands still while anything runs or is on a thread, and jumps to the next timer
when nothing is: `await asyncio.sleep(3600)` takes no time, and real files can be used beside it.
Tests that need real sockets or processes are marked `@pytest.mark.real_time`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from descriptors import targets

pytest_plugins = ["qqbot_session_pytest"]

# Files that wait more than they compute, or are long, the longest first.
WAITING = [
    *("test_beside", "test_storage_contract", "test_sockets", "test_readme", "test_redis"),
    *("test_foreign_processes", "test_failover", "test_stress", "test_lease", "test_bot"),
    "test_store_alone",
]


class VirtualSelector(selectors.DefaultSelector):
    """Add the time-out to `now` instead of waiting, unless a thread is at work."""

    now = 0.0
    threads = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or self.threads:
            return super().select(timeout if timeout is None else max(timeout, 0.001))
        ready = super().select(0)
        if not ready:
            self.now += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = VirtualSelector()
        super().__init__(self.clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.clock.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.clock.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.clock.threads += 1  # it waits for one, up to a time-out
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.clock.threads -= 1

    def _thread_ended(self, _: object) -> None:
        self.clock.threads -= 1


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # or no program gets a Ctrl-C
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as of one that `nohup` started
    config.addinivalue_line("markers", "real_time: run on an ordinary event loop")
    gc.disable()  # half of the time that collecting takes
    _leave_no_test_to_chance(explore=config.option.markexpr != "not slow")
    config.option.loadscopereorder = False  # xdist's: it would begin with what has most tests


def _leave_no_test_to_chance(explore: bool) -> None:
    """Hypothesis would judge by the time and, in the quick tests, by new examples in each run.

    Not at the top, for programs import this.
    """
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile(
        "steady", settings(), deadline=None, suppress_health_check=slow, derandomize=not explore
    )
    settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what waits between what computes: no core has nothing to do, and no file is last."""
    files = dict.fromkeys(item.path.stem for item in items)
    computing = [name for name in files if name not in WAITING]
    apart = len(computing) / len(WAITING)
    place = {name: number * apart for number, name in enumerate(WAITING)}
    place |= {name: float(number) for number, name in enumerate(computing)}
    items.sort(key=lambda item: place[item.path.stem])


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}


@functools.cache
def the_alarm() -> BlockBuster:
    """Return the alarm of all tests; it imports the package, which some programs must not."""
    parts = ["cli", "cli.doctor", "storages.foreign"]
    commands = [f"qqbot_session.{part}" for part in parts]  # no bot waits for their loop
    alarm = BlockBuster("qqbot_session", excluded_modules=commands)
    acquire = alarm.functions["threading.Lock.acquire"]
    acquire.can_block_in("coverage/collector.py", "lock_data")  # wherever a thread begins a file
    for name in ("os.stat", "os.path.abspath"):  # `doctor` asks, too
        alarm.functions[name].can_block_in("storages/places.py", {"open_to_others", "is_in_use"})
    return alarm


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[None]:
    """Promise 1, in every test: a blocking call of ours on the loop's thread fails it."""
    the_alarm().activate()
    yield
    the_alarm().deactivate()


def _loggers() -> dict[str, tuple[object, ...]]:
    """What a program can set on the package's loggers, where it is set."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("qqbot_session")]
    loggers = {name: logging.getLogger(name) for name in names}
    settings = {
        name: (log.level, log.propagate, log.disabled, list(log.filters), list(log.handlers))
        for name, log in loggers.items()
    }
    untouched = (logging.NOTSET, True, False, [], [])
    return {name: set_to for name, set_to in settings.items() if set_to != untouched}


def _process() -> tuple[object, ...]:
    """What a program can change for all that run in its process after it."""
    numbers = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    handlers = [signal.getsignal(number) for number in numbers]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    return _loggers(), logging.root.manager.disable, handlers, Path.cwd(), environment


@pytest.fixture(autouse=True)
def nothing_left_for_the_next_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that leaves a level, a handler or an open file behind fails, not one after it."""
    before = _process()
    yield
    assert _process() == before
    place = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    patience = time.monotonic() + 30.0
    while left := [target for target in targets() if target.startswith(place)]:
        assert time.monotonic() < patience, left
        time.sleep(0.01)  # a thread that was cancelled may be about to close it


@pytest.fixture
def every_signal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take none for an echo of the first: virtual time does not pass on the signals' clock."""
    monkeypatch.setattr("qqbot_session.lifetime._ECHO", 0.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for records that does not exist yet."""
    return tmp_path / "sessions"


class WallClock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> WallClock:
    return WallClock()
