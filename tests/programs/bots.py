"""Small bots that end in every way a process can; `test_shutdown.py` looks at what they leave.

`bots.py NAME DIRECTORY [LOOP]`. Each saves `last_seq=1` first and `NEWEST` last.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from crash import a_state, tap, turns_until

from qqbot_session import AsyncSessionStore, FileStorage, commit

NEWEST = 7
Bot = Callable[[Path], Awaitable[None]]


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def patient(directory: Path, **options: Any) -> AsyncSessionStore:
    """Return a store that writes no second time of its own accord while a test lasts."""
    commit._YOUNG = 0.0  # a young account's window is short, and a busy machine may overrun it
    return AsyncSessionStore(directory, debounce=3600, max_age=None, **options)


async def saved_but_not_written(store: AsyncSessionStore, account_id: str = "bot") -> None:
    """Leave the newest state unsaved, in the middle of a window."""
    await store.save(a_state(account_id, 1))
    await store.flush()
    await store.update_last_seq(account_id, NEWEST)


class SlowDisk:
    """Makes the next sync of a file wait until `go` is set; `begun` tells that it waits."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        tap(self._around)

    def _around(self, name: str, do: Callable[[], Any], _: Any) -> Any:
        if name == "fdatasync":
            self.begun.set()
            self.go.wait()
        return do()

    async def wait_until_it_has_begun(self) -> None:
        await turns_until(self.begun.is_set)


async def go_when_cancelled(disk: SlowDisk) -> None:
    """Let the disk go on only after everything was cancelled, by being cancelled as well."""
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)
        disk.go.set()


# Ended by `asyncio.run`, which cancels every task that is left.


async def returns_at_once(directory: Path) -> None:
    await patient(directory).save(a_state("bot", NEWEST))


async def cancels_all_before_their_first_step(directory: Path) -> None:
    await patient(directory).save(a_state("bot", NEWEST))
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


async def returns_within_the_window(directory: Path) -> None:
    await saved_but_not_written(patient(directory))


async def returns_while_a_write_is_in_flight(directory: Path) -> None:
    disk = SlowDisk()
    store = patient(directory)
    await store.save(a_state("bot", 1))
    await disk.wait_until_it_has_begun()
    await store.update_last_seq("bot", NEWEST)
    _held.append(asyncio.create_task(go_when_cancelled(disk)))
    await asyncio.sleep(0)


_held: list[asyncio.Task[None]] = []


async def raises(directory: Path) -> None:
    async with patient(directory) as store:
        await saved_but_not_written(store)
        raise SystemExit(3)


async def is_cancelled(directory: Path) -> None:
    async with patient(directory) as store:
        await saved_but_not_written(store)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)


async def is_cancelled_without_a_with(directory: Path) -> None:
    await saved_but_not_written(patient(directory))
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancels_some_of_its_tasks(directory: Path) -> None:
    """The loop goes on after each; at the end the disk is looked at without any closing."""
    store = AsyncSessionStore(directory, debounce=0)
    number = 0
    for prefix in ("qqbot_session:bot", "qqbot_session:commit", "qqbot_session"):
        for moment in range(4):  # turns of the loop between the save and the cancellation
            number += 1
            await store.save(a_state("bot", number))
            for _ in range(moment):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                if task.get_name().startswith(prefix):
                    task.cancel()
            await store.update_last_seq("bot", number + 100)
            await turns_until(lambda: "unsaved=0" in repr(store))
            on_disk = await AsyncSessionStore(directory, max_age=None).load("bot")
            assert on_disk is not None
            assert on_disk.last_seq == number + 100, (prefix, moment, on_disk)
    await store.save(a_state("bot", NEWEST))


async def has_a_full_disk(directory: Path) -> None:
    """Cancellation makes one attempt and does not wait for better times."""

    def full(name: str, do: Callable[[], Any], _: Any) -> Any:
        if name == "write":
            raise OSError(28, "No space left on device")
        return do()

    tap(full)
    await patient(directory).save(a_state("bot", NEWEST))


# Ended by a signal.


async def waits(directory: Path) -> None:
    await saved_but_not_written(patient(directory))
    say("ready")
    await asyncio.Event().wait()


async def handles_sigterm(directory: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with patient(directory) as store:
        await saved_but_not_written(store)
        say("ready")
        await asyncio.Event().wait()


async def streams(directory: Path) -> None:
    store = AsyncSessionStore(directory, debounce=0.01)
    await store.save(a_state("bot", 0))
    await store.flush()
    for number in range(1, 1_000_000):
        await store.update_last_seq("bot", number)
        say(str(number))
        await asyncio.sleep(0)


# Ended without `asyncio.run`.


def closes_its_loop(directory: Path) -> None:
    loop = asyncio.new_event_loop()
    store = patient(directory)
    loop.run_until_complete(saved_but_not_written(store))
    loop.close()
    del store
    say("closed")


def exits_with_a_write_in_flight(directory: Path) -> None:
    loop = asyncio.new_event_loop()
    disk = SlowDisk()
    store = patient(directory)

    async def begin() -> None:
        await store.save(a_state("bot", NEWEST))
        await disk.wait_until_it_has_begun()

    loop.run_until_complete(begin())
    # The interpreter calls this before it waits for the threads of executors.
    threading._register_atexit(disk.go.set)  # type: ignore[attr-defined]
    loop.close()


def forks(directory: Path) -> None:
    """Within a running loop, after use: the storage's threads are not in the child."""
    storage = FileStorage(directory)

    async def use(account_id: str, number: int) -> None:
        async with AsyncSessionStore(storage) as store:
            await store.save(a_state(account_id, number))
            await store.flush()
            found = await AsyncSessionStore(storage, max_age=None).load(account_id)
            assert found is not None
            assert found.last_seq == number

    async def parent() -> None:
        async with AsyncSessionStore(storage) as store:
            await store.save(a_state("bot", 1))
            await store.flush()
            if (child := os.fork()) == 0:
                try:
                    asyncio.run(use("child", NEWEST))
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222
            assert status == 0
            await store.update_last_seq("bot", NEWEST)

    asyncio.run(parent())
    asyncio.run(use("again", NEWEST))


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    loop = asyncio.new_event_loop()
    if kind == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def main(name: str, directory: str, kind: str = "plain") -> None:
    bot = globals()[name]
    if not inspect.iscoroutinefunction(bot):
        bot(Path(directory))
        return
    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        runner.run(bot(Path(directory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
