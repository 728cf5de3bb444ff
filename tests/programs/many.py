"""One of many processes on one storage; `test_many_processes` starts, kills and judges them.

    python many.py ROLE NAME STORAGE FOLDER

What it sees it writes to FOLDER/NAME.jsonl, one JSON list a line: what it was, the account, the
number, and the system's monotonic time, which all processes share. SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from qqbot_session import AsyncSessionStore, LeaseLostError, LoadDetails, SessionState
from qqbot_session.state import decode, encode
from qqbot_session.storages import Storage, storage_of

ACCOUNTS = 4  # per writer
TTL = 1.5
ENDED = False


class Record:
    """The file that this process writes, and what its earlier lives wrote there."""

    def __init__(self, folder: str, name: str) -> None:
        path = Path(folder, f"{name}.jsonl")
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.before = [json.loads(line) for line in lines]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, *what: object) -> None:
        line = json.dumps([*what, time.monotonic()]) + "\n"
        os.write(self._file, line.encode())  # whole, also when this process is killed

    def highest(self, account_id: str) -> int:
        numbers = [each[2] for each in self.before if each[0] == "saved" and each[1] == account_id]
        return max(numbers, default=0)


async def load(store: AsyncSessionStore, record: Record, account_id: str) -> int:
    """Load an account, and say what came of it, as of the moment before."""
    began = time.monotonic()
    state = await store.load(account_id)
    number = None if state is None else state.last_seq
    record.say("loaded", account_id, number, began, reasons.get(account_id))
    return number or 0


reasons: dict[str, str] = {}  # of the latest load


def note_reason(details: LoadDetails) -> None:
    reasons[details.account_id] = details.reason.name


async def save(store: AsyncSessionStore, record: Record, account_id: str, number: int) -> None:
    record.say("saved", account_id, number)
    await store.save(SessionState(account_id=account_id, session_id="session", last_seq=number))


async def flush(store: AsyncSessionStore, record: Record, numbers: dict[str, int]) -> None:
    """Say which numbers are acknowledged."""
    failed: set[str] = set()
    try:
        await store.flush()
    except OSError as error:
        failed = set(getattr(error, "failures", numbers))
        record.say("failed", sorted(failed), str(error))
    for account_id in numbers.keys() - failed:
        record.say("acknowledged", account_id, numbers[account_id])


async def write(storage: Storage | str, record: Record, name: str) -> None:
    """Be a bot of a few accounts that are always busy."""
    ids = [f"{name}-{index}" for index in range(ACCOUNTS)]
    async with AsyncSessionStore(storage, debounce=0.05, on_load=note_reason) as store:
        loaded = await asyncio.gather(*[load(store, record, id_) for id_ in ids])
        highest = [
            max(number, record.highest(id_)) for id_, number in zip(ids, loaded, strict=True)
        ]
        numbers = dict(zip(ids, highest, strict=True))
        while not ENDED:
            for account_id in ids:
                numbers[account_id] += 1
                await save(store, record, account_id, numbers[account_id])
            await flush(store, record, numbers)
            if isinstance(storage, str) and random.random() < 0.1:  # beside what it has open
                async with AsyncSessionStore(storage, on_load=note_reason) as another:
                    await load(another, record, random.choice(ids))
            await asyncio.sleep(random.uniform(0, 0.05))


async def look(storage: str, record: Record, name: str) -> None:
    """List everything, again and again, with a storage that is opened and closed each time."""
    while not ENDED:
        began = time.monotonic()
        looking = storage_of(storage)
        try:
            found = {key: decode(data).last_seq async for key, data in looking.scan()}
            record.say("listed", found, None, began)
        except (OSError, sqlite3.Error) as error:
            record.say("not listed", None, str(error))
        finally:
            await looking.aclose()
        await asyncio.sleep(random.uniform(0, 0.2))


async def read(storage: str, record: Record, name: str) -> None:
    """Read many accounts at once, again and again, with one storage for all of it."""
    reading = storage_of(storage)
    await leave_a_record(reading, name)
    ids = [f"writer-{writer}-{index}" for writer in range(3) for index in range(ACCOUNTS)]

    async def one(account_id: str) -> None:
        await asyncio.sleep(random.uniform(0, 0.05))
        try:
            _ = await reading.read(account_id)
        except (OSError, sqlite3.Error) as error:
            record.say("not read", account_id, str(error))
        else:
            record.say("read", account_id, None)

    while not ENDED:
        await asyncio.gather(*map(one, ids))
        await asyncio.sleep(0.1)
    await reading.aclose()


async def leave_a_record(storage: Storage, name: str) -> None:
    """Write and read, as a process that has one connection only guards SQLite's files for all."""
    with contextlib.suppress(OSError, sqlite3.Error):
        await storage.commit({name: encode(SessionState(account_id=name))})
        _ = await storage.read(name)


async def hold(storage: str, record: Record, name: str) -> None:
    """Take the lease, be the bot for a while, give it up, and again."""
    async with AsyncSessionStore(storage, debounce=0.05, on_load=note_reason) as store:
        for turn in itertools.count():
            if ENDED:
                break
            holding = f"{name}, process {os.getpid()}, turn {turn}"
            with contextlib.suppress(LeaseLostError, OSError):
                async with store.lease("leased", ttl=TTL):
                    record.say("holds", holding, None)
                    number = await load(store, record, "leased")
                    until = time.monotonic() + random.uniform(0.3, 4)
                    while not ENDED and time.monotonic() < until:
                        record.say("holds", holding, None)
                        number += 1
                        await save(store, record, "leased", number)
                        await flush(store, record, {"leased": number})
                        await asyncio.sleep(0.02)
            await asyncio.sleep(random.uniform(0, 0.1))


async def fork(storage: str, record: Record, folder: str, name: str) -> None:
    """Use a storage, and fork workers that go on with the very object."""
    shared = storage_of(storage)
    await leave_a_record(shared, name)
    children = []
    for index in range(2):
        if not (child := os.fork()):
            asyncio.set_event_loop(None)
            worker = f"{name}-{index}"
            status = 1
            try:
                end_on_sigterm()
                asyncio.run(write(shared, Record(folder, worker), worker))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    try:
        while not ENDED:
            try:
                _ = await shared.read(f"{name}-0-0")
            except (OSError, sqlite3.Error) as error:
                record.say("not read", "in the parent", str(error))
            else:
                record.say("read", "in the parent", None)
            await asyncio.sleep(0.2)
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
        statuses = [await asyncio.to_thread(os.waitpid, child, 0) for child in children]
        record.say("workers ended", [status for _, status in statuses], None)
    await shared.aclose()


def end_on_sigterm() -> None:
    def end(*_: object) -> None:
        global ENDED
        ENDED = True

    signal.signal(signal.SIGTERM, end)


def main() -> None:
    role, name, storage, folder = sys.argv[1:]
    end_on_sigterm()
    record = Record(folder, name)
    record.say("started", name, None)
    roles: dict[str, Callable[[], Awaitable[None]]] = {
        "writer": lambda: write(storage, record, name),
        "looker": lambda: look(storage, record, name),
        "reader": lambda: read(storage, record, name),
        "holder": lambda: hold(storage, record, name),
        "forker": lambda: fork(storage, record, folder, name),
    }
    asyncio.run(roles[role]())  # type: ignore[arg-type]
    record.say("ended", name, None)


if __name__ == "__main__":
    main()
