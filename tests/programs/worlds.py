"""Other people's processes: what tracers, monitors and loops do to asyncio.

`worlds.py WORLD BOT[,BOT...] DIRECTORY` runs bots of `bots.py` and of this file, each on a loop of
its own and in a directory of its own, one after the other, in a process that is WORLD's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import bots
from bots import NEWEST, saved_but_not_written
from crash import a_state, turns_until

from qqbot_session import AsyncSessionStore

_NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@contextlib.contextmanager
def plain() -> Iterator[None]:
    yield


@contextlib.contextmanager
def sentry() -> Iterator[None]:
    """`AsyncioIntegration` puts every coroutine into one of its own, and renames the task."""
    import sentry_sdk
    from sentry_sdk.integrations.asyncio import AsyncioIntegration

    sentry_sdk.init(
        dsn=f"{_NOWHERE.replace('//', '//key@')}/1",
        integrations=[AsyncioIntegration()],
        traces_sample_rate=1.0,
        shutdown_timeout=0,
        transport=lambda _: None,
    )
    with sentry_sdk.start_transaction(name="bot"):
        yield


@contextlib.contextmanager
def ddtrace() -> Iterator[None]:
    """Its patch wraps every coroutine while a span is open in the context of `create_task`."""
    import ddtrace

    logging.getLogger("ddtrace").disabled = True
    ddtrace.patch(asyncio=True)
    with ddtrace.tracer.trace("bot"):
        yield


@contextlib.contextmanager
def monitored() -> Iterator[None]:
    """As aiomonitor does: a subclass of Task round a coroutine round ours."""

    class TracedTask(asyncio.Task[Any]):
        pass

    def factory(loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
        async def traced() -> Any:
            try:
                return await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                logging.getLogger("monitor").error("%r", error)
                raise

        return TracedTask(traced(), loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    yield


@contextlib.contextmanager
def old_factory() -> Iterator[None]:
    """A factory of the time before `context=` and `eager_start=`."""

    def factory(loop: Any, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.Task(work, loop=loop)

    asyncio.get_running_loop().set_task_factory(factory)
    yield


@contextlib.contextmanager
def eager() -> Iterator[None]:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    yield


@contextlib.contextmanager
def broken_logging() -> Iterator[None]:
    """An application whose log filter fails, and where it does not, its handler."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError("no request in this context")

    calls = itertools.count()

    def refuse(record: logging.LogRecord) -> bool:
        if next(calls) % 2:
            raise LookupError("no request in this context")
        return True

    log = logging.getLogger("qqbot_session")
    log.setLevel(logging.DEBUG)
    log.addHandler(Broken())
    log.addFilter(refuse)
    yield


uvloop = plain  # the loop itself is the world: see `bots.new_loop`


# Bots beside those of `bots.py`


def check(condition: bool) -> None:
    """Be an `assert` that `python -O` does not leave out."""
    if not condition:
        raise AssertionError


async def lives(directory: Path) -> None:
    """Whatever a bot does, in windows that end while it waits; every answer is checked."""

    async def on_disk(account_id: str) -> int | None:
        state = await AsyncSessionStore(directory, max_age=None).load(account_id)
        return None if state is None else state.last_seq

    store = AsyncSessionStore(directory, debounce=0.02)
    async with asyncio.timeout(30):
        for number in range(1, 4):
            await store.save(a_state("bot", number, session_id=f"s{number}"))
            await store.save(a_state("other", number))
            await store.flush()
            check((await on_disk("bot"), await on_disk("other")) == (number, number))
        check(await store.update_last_seq("bot", 4))
        await turns_until(lambda: "unsaved=0" in repr(store))  # by itself
        check(await on_disk("bot") == 4)
        await store.clear("other")
        check(await on_disk("other") is None)
        check(await store.touch("bot"))
        check(not await store.update_last_seq("other", 9))
        check(await store.update_last_seq("bot", NEWEST))
        check((loaded := await store.load("bot")) is not None)
        check(loaded.last_seq == NEWEST)
        await store.aclose()


def block(directory: Path) -> None:
    directory.write_text("in the way")


def unblock(directory: Path) -> None:
    directory.unlink()


async def fails_for_a_while(directory: Path) -> None:
    """The directory is a file first: the failures are logged, and heal."""
    block(directory)
    store = AsyncSessionStore(directory, debounce=0.02)
    async with asyncio.timeout(30):
        await store.save(a_state("bot", 1))
        with contextlib.suppress(OSError):
            await store.flush()
        unblock(directory)
        await store.update_last_seq("bot", NEWEST)
        await store.flush()
        await store.load("nobody")
        await store.aclose()


async def waits_in_a_with(directory: Path) -> None:
    async with bots.patient(directory) as store:
        await saved_but_not_written(store)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        await asyncio.Event().wait()


async def within(world: Callable[[], Any], work: Awaitable[None]) -> None:
    with world():
        await work


def keep_off_the_network() -> None:
    """Let no tracer talk to anybody."""
    os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="false", DD_TRACE_AGENT_URL=_NOWHERE)
    os.environ.update(DD_TRACE_STARTUP_LOGS="false", DD_REMOTE_CONFIGURATION_ENABLED="false")


def main(world: str, names: str, directory: str) -> None:
    keep_off_the_network()
    Path(directory).mkdir()
    for name in names.split(","):
        bot = globals().get(name) or getattr(bots, name)
        work = within(globals()[world], bot(Path(directory, name)))
        try:
            with asyncio.Runner(loop_factory=lambda: bots.new_loop(world)) as runner:
                runner.run(work)
            bots.say(f"{name} returned")
        except BaseException as error:  # noqa: BLE001 - it is the test that knows what is right
            bots.say(f"{name} {type(error).__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
