"""KeyboardInterrupt or SystemExit at any line of ours, as a Ctrl-C or a handler's exit may come.

`interrupted.py ERROR[,ERROR...] STORAGE AFTER EVERY OFFSET` lives a short life again and again, and
raises each error at the first line that it runs of ours, then at the second and so on: at each
whose number leaves OFFSET when divided by EVERY. Afterwards either the same loop goes on (AFTER is
`goes-on`), or `asyncio.Runner` cancels all tasks and closes it (`runner`). Prints what is wrong.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import probes
from conftest import VirtualTimeLoop


class Interruption:
    """Raises at statement number `at` of ours that the main thread comes to while under way."""

    def __init__(self) -> None:
        self.error: type[BaseException] = KeyboardInterrupt
        self.at = self.count = 0
        self.where = ""
        self.is_under_way = False

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        self.is_under_way = True
        try:
            yield
        finally:
            self.is_under_way = False

    def begin(self, at: int) -> None:
        self.at, self.count, self.where = at, 0, ""

    def __call__(self, where: str) -> None:
        if self.is_under_way:
            self.count += 1
            if self.count == self.at:
                self.where = where
                raise self.error


interruption = Interruption()
probes.install(interruption)

from crash import a_state  # noqa: E402 - the library is imported with its probes
from faults import FaultyStorage  # noqa: E402

from qqbot_session import (  # noqa: E402
    AsyncSessionStore,
    FileStorage,
    SessionWriteError,
    Storage,
)
from qqbot_session.state import decode  # noqa: E402

ENDS = 500.0  # virtual seconds: what takes longer hangs


class Life:
    """Attributes: noted: numbers whose call has returned, `under_way` the one whose has not."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.storage: Storage = FaultyStorage() if kind == "memory" else FileStorage(directory)
        self.store = AsyncSessionStore(self.storage)
        self.directory = directory
        self.noted = 0
        self.under_way = 0

    async def save(self, session_id: str) -> None:
        self.under_way = self.noted + 1
        await self.store.save(a_state("bot", self.under_way, session_id=session_id))
        self.noted = self.under_way

    async def update(self) -> None:
        self.under_way = self.noted + 1
        assert await self.store.update_last_seq("bot", self.under_way)
        self.noted = self.under_way

    def phases(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self.begins()
        yield self.goes_on()
        yield self.begins_anew()
        yield self.has_others()
        if isinstance(self.storage, FaultyStorage):
            yield self.fails()
        yield self.is_left_within_a_window()

    async def begins(self) -> None:
        await self.save("s1")
        await asyncio.sleep(0.1)

    async def goes_on(self) -> None:
        await self.update()
        await self.update()
        await asyncio.sleep(1.5)

    async def begins_anew(self) -> None:
        await self.save("s2")
        await self.store.save(a_state("other", 1))
        await self.store.flush()

    async def has_others(self) -> None:
        await self.store.clear("other")
        await self.store.load("nobody")
        await self.store.load("bot")
        await self.store.load_all()
        await self.store.touch("bot")

    async def fails(self) -> None:
        assert isinstance(self.storage, FaultyStorage)
        self.storage.failing = True
        await self.update()
        with contextlib.suppress(SessionWriteError):
            await self.store.flush()
        self.storage.failing = False
        await asyncio.sleep(5)

    async def is_left_within_a_window(self) -> None:
        await self.save("s3")
        await self.update()

    def on_storage(self) -> int:
        if isinstance(self.storage, FaultyStorage):
            data = self.storage.records.get("bot")
            return 0 if data is None else decode(data).last_seq or 0
        with contextlib.suppress(FileNotFoundError):
            return decode((self.directory / "session-bot.json").read_bytes()).last_seq or 0
        return 0


def complete(loop: VirtualTimeLoop, work: Coroutine[Any, Any, Any]) -> Any:
    async def guarded() -> Any:
        async with asyncio.timeout(ENDS):
            return await work

    return loop.run_until_complete(guarded())


async def within_limits(work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(ENDS):
        await work


def interrupt(life: Life, loop: VirtualTimeLoop) -> bool:
    """Run the life; return whether it was interrupted."""
    for phase in life.phases():
        task = loop.create_task(within_limits(phase))
        try:
            with interruption.under_way():
                loop.run_until_complete(task)
        except interruption.error:
            with contextlib.suppress(RuntimeError):  # the end of the phase may have stopped it
                loop.run_until_complete(asyncio.sleep(0))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, SessionWriteError, interruption.error):
                complete(loop, asyncio.wait([task]))
                task.result()
            return True
        except Exception as error:
            if not interruption.where or isinstance(error, TimeoutError):
                raise
        if interruption.where:
            return True  # it was raised where nobody could see it
    return False


def go_on(life: Life, loop: VirtualTimeLoop) -> None:
    """Flush, save once more, and close, on the same loop."""
    if isinstance(life.storage, FaultyStorage):
        life.storage.failing = False
    with contextlib.suppress(SessionWriteError):
        complete(loop, life.store.flush())
    complete(loop, life.store.flush())
    assert life.on_storage() in (life.noted, life.under_way), "flushed, and not on storage"
    complete(loop, life.save("last"))
    complete(loop, asyncio.sleep(40))
    assert life.on_storage() == life.noted, "saved, and not written by itself"
    complete(loop, life.update())
    complete(loop, life.store.aclose())
    assert life.on_storage() == life.noted, "closed, and not on storage"
    left = [task for task in asyncio.all_tasks(loop) if "qqbot" in repr(task)]
    assert not left, left


def end_with_runner(life: Life, loop: VirtualTimeLoop) -> None:
    """Do what `asyncio.Runner` does after an interrupt: cancel all tasks, `async with`'s too."""
    if isinstance(life.storage, FaultyStorage):
        life.storage.failing = False
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    complete(loop, life.store.aclose())
    if tasks:
        complete(loop, asyncio.wait(tasks))
    assert life.on_storage() in (life.noted, life.under_way), "ended, and not on storage"


def say(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def main(errors: str, kind: str, after: str, every: str, offset: str) -> None:
    logging.disable(logging.CRITICAL)
    for error in errors.split(","):
        interruption.error = getattr(builtins, error)
        live_again_and_again(kind, after, every, offset)


def live_again_and_again(kind: str, after: str, every: str, offset: str) -> None:
    problems = {}
    end = go_on if after == "goes-on" else end_with_runner
    at, lived = int(offset) or int(every), 0
    while True:
        loop = VirtualTimeLoop()
        loop.set_exception_handler(lambda *_: None)  # it says what was raised where
        with tempfile.TemporaryDirectory() as directory:
            life = Life(kind, Path(directory))
            interruption.begin(at)
            asyncio.set_event_loop(loop)
            try:
                if not interrupt(life, loop):
                    break
                lived += 1
                end(life, loop)
            except BaseException as found:  # noqa: BLE001 - collected
                last = traceback.extract_tb(found.__traceback__)[-1]
                problems.setdefault(interruption.where, f"{at} {found!r} in {last.name}")
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        at += int(every)
    interruption.at = 0
    for where, problem in problems.items():
        say(where, problem)
    say(lived, "lives")


if __name__ == "__main__":
    main(*sys.argv[1:])
