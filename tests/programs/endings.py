"""Bots that end by signals on a slow disk, from `atexit`, or with a loop that is just closed.

`endings.py NAME DIRECTORY [WORLD]`; `test_foreign_processes.py` looks at what they leave.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bots
import worlds
from bots import NEWEST, SlowDisk, patient, saved_but_not_written, say
from crash import a_state, tap, turns_until

from qqbot_session import AsyncSessionStore, MemoryStorage


def be_slow() -> None:
    """Take a third of a second for every sync from now on, and say when one begins."""
    said = []

    def slow(name: str, do: Callable[[], Any], _: Any) -> Any:
        if name == "fdatasync":
            if not said:
                said.append(True)
                say("writing")
            threading.Event().wait(0.3)
        return do()

    tap(slow)


# Ended by signals


async def handles_sigterm(directory: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await waits(directory)


async def handles_sigint(directory: Path) -> None:
    """Its own handler, as frameworks install it, in place of `asyncio.run`'s."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    await waits(directory)


async def handles_sigterm_in_anyio(directory: Path) -> None:
    import anyio

    async def listen(signals: Any, scope: Any) -> None:
        async for _ in signals:
            scope.cancel()

    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(listen, signals, scope)
                await waits(directory)
            group.cancel_scope.cancel()


async def waits(directory: Path) -> None:
    async with patient(directory) as store:
        await saved_but_not_written(store)
        be_slow()
        say("ready")
        await asyncio.Event().wait()


async def handles_sigterm_on_a_hung_disk(directory: Path) -> None:
    logging.basicConfig(format="%(message)s")
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    answers = threading.Event()

    def hang(name: str, do: Callable[[], Any], _: Any) -> Any:
        if name == "fdatasync":
            say("writing")
            answers.wait(30)
            raise OSError(5, "Input/output error")
        return do()

    try:
        async with patient(directory) as store:
            await saved_but_not_written(store)
            tap(hang)
            say("ready")
            await asyncio.Event().wait()
    finally:
        say("closed")
        answers.set()


# Ended without `asyncio.run`


def closes_from_atexit(directory: Path) -> None:
    loop = asyncio.new_event_loop()
    store = patient(directory)

    def close() -> None:
        loop.run_until_complete(store.aclose())
        loop.close()
        say("closed")

    atexit.register(close)
    loop.run_until_complete(saved_but_not_written(store))


def closes_from_atexit_after_its_loop_was_closed_by_nobody(directory: Path) -> None:
    """With several accounts, two of them unsaved, and one cleared."""
    loop = asyncio.new_event_loop()
    store = patient(directory)

    def close() -> None:
        loop.run_until_complete(store.aclose())
        assert sorted(path.name for path in directory.iterdir()) == [
            "session-bot.json",
            "session-other.json",
        ]
        say("closed")
        loop.close()

    async def work() -> None:
        await saved_but_not_written(store, "gone")
        await saved_but_not_written(store, "other")
        await saved_but_not_written(store)
        clear = asyncio.ensure_future(store.clear("gone"))
        await asyncio.sleep(0)
        del clear

    atexit.register(close)
    loop.run_until_complete(work())


def closes_from_atexit_while_a_write_is_in_flight(directory: Path) -> None:
    loop = asyncio.new_event_loop()
    disk = SlowDisk()
    store = patient(directory)

    async def begin() -> None:
        await store.save(a_state("bot", 1))
        await disk.wait_until_it_has_begun()
        await store.update_last_seq("bot", NEWEST)

    def close() -> None:
        loop.run_until_complete(store.aclose())
        say("closed")
        loop.close()

    atexit.register(close)
    loop.run_until_complete(begin())
    threading._register_atexit(disk.go.set)  # type: ignore[attr-defined]


def begins_in_atexit(directory: Path) -> None:
    """As a library does that keeps its last words for the end."""

    async def work() -> None:
        async with patient(directory) as store:
            assert await store.load("bot") is None
            await store.save(a_state("bot", NEWEST))
        say("closed")

    atexit.register(lambda: asyncio.run(work()))


def closes_a_memory_store_from_atexit(directory: Path) -> None:
    loop = asyncio.new_event_loop()
    storage = MemoryStorage()
    store = AsyncSessionStore(storage, debounce=3600, max_age=None)

    def close() -> None:
        loop.run_until_complete(store.aclose())
        assert f'"lastSeq": {NEWEST}'.encode() in storage.records["bot"]
        say("closed")
        loop.close()

    atexit.register(close)
    loop.run_until_complete(saved_but_not_written(store))


async def save_all(store: AsyncSessionStore) -> None:
    await saved_but_not_written(store)
    await store.flush()
    await turns_until(lambda: "unsaved=0" in repr(store))


def closes_its_loop_saved(directory: Path) -> None:
    """Within the window after the last write, in which the account's task waits."""
    loop = asyncio.new_event_loop()
    store = patient(directory)

    loop.run_until_complete(save_all(store))
    loop.close()
    del store
    say("closed")


def closes_its_loop_unsaved(directory: Path) -> None:
    logging.basicConfig(format="%(message)s")
    loop = asyncio.new_event_loop()
    store = patient(directory)
    loop.run_until_complete(saved_but_not_written(store))
    loop.close()
    del store
    say("closed")


async def within(world: str, bot: Callable[[Path], Awaitable[None]], directory: Path) -> None:
    with getattr(worlds, world)():
        await bot(directory)


def main(name: str, directory: str, world: str = "plain") -> None:
    bot = globals()[name]
    worlds.keep_off_the_network()
    if not inspect.iscoroutinefunction(bot):
        bot(Path(directory))
        return
    try:
        with asyncio.Runner(loop_factory=lambda: bots.new_loop(world)) as runner:
            runner.run(within(world, bot, Path(directory)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
