"""Where the integrations keep sessions, and when an event of a framework has ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, MemoryStorage, SessionState
from qqbot_session.answers import end_of
from qqbot_session.integrations._sessions import kept_in
from qqbot_session.state import decode


async def test_an_event_ends_with_the_last_task_that_was_started_for_it() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        await asyncio.sleep(1)
        if len(tasks) < 3:
            tasks.append(asyncio.create_task(work()))

    tasks.append(asyncio.create_task(work()))
    await end_of(tasks)
    assert [task.done() for task in tasks] == [True] * 3


async def test_a_cancelled_event_cancels_its_tasks_even_if_they_do_not_show_it() -> None:
    # promise 18
    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(swallow())]
    event = asyncio.create_task(end_of(tasks))
    await asyncio.sleep(1)
    event.cancel()
    with pytest.raises(asyncio.CancelledError):
        await event
    await asyncio.sleep(1)
    assert tasks[0].done()


async def test_a_task_that_was_cancelled_leaves_its_event_unhandled() -> None:
    # promise 18
    task = asyncio.create_task(asyncio.sleep(3600))
    event = asyncio.create_task(end_of([task]))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await event


async def test_a_client_that_ends_writes_its_own_accounts_and_leaves_others_their_windows() -> None:
    """A thousand that end together would otherwise look a thousand times for each other's."""
    storage = MemoryStorage()
    async with AsyncSessionStore(storage, debounce=60) as given:
        async with kept_in(given, account_ids=["mine"]) as store:
            for last_seq in (1, 2, 3):
                for account_id in ("mine", "another's"):
                    await store.save(
                        SessionState(account_id=account_id, session_id="s", last_seq=last_seq)
                    )
                await asyncio.sleep(10)
        found = {key: decode(data).last_seq for key, data in storage.records.items()}
    assert found == {"mine": 3, "another's": 2}


async def test_a_store_that_was_given_is_not_closed_and_one_that_was_made_is() -> None:
    async with AsyncSessionStore(MemoryStorage()) as given, kept_in(given) as store:
        assert store is given
    async with kept_in(MemoryStorage()) as made:
        pass
    with pytest.raises(RuntimeError):
        await made.load("a")
