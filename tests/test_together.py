"""What is asked for at about the same time, and is one call."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import SqliteStorage
from qqbot_session.storages.together import Together


class Reader:
    """Answers after a turn of the loop, or when its gate opens, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: BaseException | None = None
        self.together = Together(self.read)
        self.ask = self.together.ask

    async def read(self, items: list[str]) -> list[bytes | Exception | None]:
        self.calls.append(items)
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        special = {"absent": None, "bad": OSError("bad")}
        return [special.get(item, item.encode()) for item in items]


async def test_a_thousand_at_once_are_a_few_calls() -> None:
    reader = Reader()
    ids = [f"{number}" for number in range(1000)]
    assert await asyncio.gather(*map(reader.ask, ids)) == [id_.encode() for id_ in ids]
    assert len(reader.calls) == 8
    assert max(map(len, reader.calls)) == 128


async def test_one_that_cannot_be_read_is_an_error_of_its_own() -> None:
    reader = Reader()
    ids = ["first", "a", "bad", "absent", "b"]
    answers = await asyncio.gather(*map(reader.ask, ids), return_exceptions=True)
    assert [*answers[:2], *answers[3:]] == [b"first", b"a", None, b"b"]
    assert isinstance(answers[2], OSError)


@pytest.mark.parametrize("broken", [ConnectionError("away"), asyncio.CancelledError()])
async def test_a_failed_call_fails_who_waits_and_nobody_later(broken: BaseException) -> None:
    # promise 27
    reader = Reader()
    reader.broken = broken
    reader.gate.clear()
    asked = [reader.ask("a"), reader.ask("b")]
    while not reader.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    asked.append(reader.ask("next"))
    await asyncio.sleep(0)
    reader.gate.set()
    answers = await asyncio.gather(*asked[:2], return_exceptions=True)
    assert all(isinstance(answer, OSError) for answer in answers)
    reader.broken = None
    if isinstance(broken, Exception):
        with pytest.raises(ConnectionError, match="away"):
            await asked[2]
    else:  # the next call is another's affair
        assert await asked[2] == b"next"
    assert await reader.ask("a") == b"a"


@pytest.mark.parametrize("cancelled", [{0}, {1}, {2}, {0, 1}, {0, 2}, {0, 1, 2}])
@pytest.mark.parametrize("turns", range(4))
async def test_whoever_is_cancelled_keeps_nobody_from_an_answer(
    cancelled: set[int], turns: int
) -> None:
    # promise 9
    reader = Reader()
    reader.gate.clear()
    asked = [reader.ask("0"), reader.ask("1")]
    for _ in range(turns):
        await asyncio.sleep(0)
    asked += [reader.ask("2"), reader.ask("3")]
    for index in cancelled:
        asked[index].cancel()
    reader.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    for index, answer in enumerate(answers):
        if index in cancelled:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == f"{index}".encode()
    assert await reader.ask("later") == b"later"


async def test_what_nobody_waits_for_is_not_asked() -> None:
    reader = Reader()
    reader.ask("a").cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await reader.ask("b") == b"b"
    assert reader.calls == [["b"]]


@pytest.mark.real_time
def test_another_loop_begins_anew() -> None:
    """Whatever the first left waiting; nobody of it would ever answer."""
    # promise 25
    reader = Reader()

    async def leave_one_waiting() -> None:
        reader.gate.clear()
        _ = [reader.ask(name) for name in "ab"]
        await asyncio.sleep(0)
        reader.gate = asyncio.Event()
        reader.gate.set()

    async def ask() -> object:
        return await reader.ask("c")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_one_waiting())
    assert asyncio.run(ask()) == b"c"
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.real_time
async def test_two_loops_share_one_without_sharing_a_call() -> None:
    # promise 25
    reader = Reader()

    async def ask(item: str) -> object:
        return await reader.ask(item)

    asked = [reader.ask("a")]
    with ThreadPoolExecutor() as other:
        assert other.submit(asyncio.run, ask("theirs")).result() == b"theirs"
    asked.append(reader.ask("b"))
    assert await asyncio.gather(*asked) == [b"a", b"b"]


# The store


class Known(FileStorage):
    """One whose `read` is its own."""

    async def read(self, account_id: str) -> bytes | None:
        return encode(SessionState(account_id=account_id, session_id="known", last_seq=1))


async def test_the_store_calls_a_read_that_somebody_has_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, patched = SqliteStorage(tmp_path / "a.db"), SqliteStorage(tmp_path / "b.db")
    known = Known(tmp_path)
    replaced.read = known.read  # type: ignore[method-assign]
    for storage in (known, replaced, patched):
        if storage is patched:
            monkeypatch.setattr(SqliteStorage, "read", Known.read)
        async with AsyncSessionStore(storage, max_age=None) as store:
            state = await store.load("a")
        assert state is not None
        assert state.session_id == "known"


async def test_a_thousand_loads_at_once_are_a_few_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(tmp_path)
    jobs: list[int] = []
    read = storage._read_many
    monkeypatch.setattr(storage, "_read_many", lambda ids: jobs.append(len(ids)) or read(ids))
    async with AsyncSessionStore(storage) as store:
        states = await asyncio.gather(*(store.load(f"{number}") for number in range(1000)))
    assert not any(states)
    assert len(jobs) == 8
