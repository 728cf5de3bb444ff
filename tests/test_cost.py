"""What the calls on the hot path may cost, as counts: `benchmarks/` has the times."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, SessionState
from qqbot_session.state import encode

WINDOW = 30.0  # seconds


def a_state(account_id: str, last_seq: int = 1) -> SessionState:
    return SessionState(account_id=account_id, session_id="s", last_seq=last_seq)


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what the loop was asked to make; a task is one `call_soon`."""
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def note(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object, **kwargs: object) -> object:
            made.append(name)
            return real(*args, **kwargs)

        return noted

    futures, timers = ("create_task", "create_future"), ("call_soon", "call_later", "call_at")
    for name in (*futures, *timers, "run_in_executor"):
        monkeypatch.setattr(loop, name, note(name, getattr(loop, name)), raising=False)
    return made


async def test_a_call_for_an_account_that_is_due_makes_nothing(made: list[str]) -> None:
    """No task, timer, future or hop, and no object that stays."""
    async with AsyncSessionStore(MemoryStorage(), debounce=WINDOW) as store:
        states = [a_state("bot", number) for number in range(1000, 2000)]
        await store.save(states[0])
        made.clear()

        async def use() -> None:
            for state in states:
                await store.save(state)
                store.save_nowait(state)
                await store.update_last_seq("bot", state.last_seq + 10_000)  # type: ignore[operator]
                await store.touch("bot")

        await use()
        gc.collect()
        before = sys.getallocatedblocks()
        await use()
        kept = sys.getallocatedblocks() - before
        assert kept < len(states) / 2  # some are another thread's: one for each state would be ours
        assert made == []


async def test_the_first_save_of_a_quiet_account_makes_one_task(made: list[str]) -> None:
    async with AsyncSessionStore(MemoryStorage(), debounce=WINDOW) as store:
        made.clear()
        await store.save(a_state("bot"))
        assert made == ["call_soon"]


@pytest.mark.real_time
def test_what_an_account_takes_beyond_its_state() -> None:
    """A task and what it is parked on while unsaved, next to nothing once it is quiet."""
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    program = Path(__file__).parent / "programs" / "weigh.py"
    output = subprocess.run(
        [sys.executable, program], check=True, capture_output=True, env=environment
    ).stdout
    unsaved, in_its_window, quiet = json.loads(output)
    assert unsaved <= 1500
    assert in_its_window <= 1500
    assert quiet <= 250


async def test_a_load_is_one_hop_and_all_records_are_few(directory: Path, made: list[str]) -> None:
    ids = [f"bot-{number}" for number in range(1000)]
    storage = FileStorage(directory, durable=False)
    await storage.commit({account_id: encode(a_state(account_id)) for account_id in ids})
    async with AsyncSessionStore(storage, max_age=None) as store:
        made.clear()
        assert await store.load("bot-7") is not None
        assert made.count("run_in_executor") == 1
        assert "create_task" not in made
        made.clear()
        assert len(await store.load_all()) == 1000
        assert made.count("run_in_executor") == 1 + 8  # the names, and 128 records each
    await storage.aclose()


async def test_a_listing_of_thousands_lets_the_loop_in() -> None:
    ids = [f"bot-{number}" for number in range(5000)]
    storage = MemoryStorage({account_id: encode(a_state(account_id)) for account_id in ids})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with AsyncSessionStore(storage, max_age=None) as store:
        counting = asyncio.create_task(count())
        sessions = await store.load_all()
        counting.cancel()
    assert [state.account_id for state in sessions] == sorted(ids)
    assert turns >= 8
