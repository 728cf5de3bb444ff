"""Reads that wait for one another, and the threads of a storage."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping

import pytest

from qqbot_session.storages.threads import Threads, Together


class Reader:
    """Answers reads after a turn of the loop, or when its gate opens, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: Exception | None = None
        self.together = Together(self.read_many)

    async def read_many(self, account_ids: list[str]) -> Mapping[str, bytes | Exception | None]:
        self.calls.append(account_ids)
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        answers: dict[str, bytes | Exception | None] = {id_: id_.encode() for id_ in account_ids}
        return (
            answers
            | {id_: None for id_ in account_ids if id_ == "absent"}
            | ({"bad": OSError("bad")} if "bad" in account_ids else {})
        )


async def test_a_thousand_reads_at_once_are_a_few_calls() -> None:
    reader = Reader()
    ids = [f"{number}" for number in range(1000)]
    answers = await asyncio.gather(*[reader.together.read(id_) for id_ in ids])
    assert answers == [id_.encode() for id_ in ids]
    assert len(reader.calls) == 9
    assert max(map(len, reader.calls)) == 128


async def test_one_that_cannot_be_read_is_an_error_of_its_own() -> None:
    reader = Reader()
    ids = ["first", "a", "bad", "absent", "b"]
    answers = await asyncio.gather(*map(reader.together.read, ids), return_exceptions=True)
    assert [*answers[:2], *answers[3:]] == [b"first", b"a", None, b"b"]
    assert isinstance(answers[2], OSError)


async def test_a_failed_call_is_over_with_its_own_readers() -> None:
    reader = Reader()
    reader.broken = ConnectionError("away")
    answers = await asyncio.gather(*map(reader.together.read, "abc"), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away"] * 3
    reader.broken = None
    assert await reader.together.read("a") == b"a"


@pytest.mark.parametrize("number", range(6))
async def test_whoever_is_cancelled_keeps_nobody_from_an_answer(number: int) -> None:
    """The one whose call it is, one that is to make the next call, one that waits, two of them."""
    # promise 9
    reader = Reader()
    reader.gate.clear()
    tasks = [asyncio.ensure_future(reader.together.read(f"{index}")) for index in range(4)]
    for _ in range(3):
        await asyncio.sleep(0)
    cancelled = {number % 4, (number + number // 4) % 4}
    if number == 5:  # the second is told to lead and cancelled in the same turn
        cancelled = {1}
        reader.gate.set()
        while len(reader.calls) < 2 and not tasks[0].done():  # noqa: ASYNC110
            await asyncio.sleep(0)
    for index in cancelled:
        tasks[index].cancel()
    reader.gate.set()
    answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    for index, answer in enumerate(answers):
        if index in cancelled:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == f"{index}".encode()
    assert await reader.together.read("later") == b"later"


@pytest.mark.real_time
def test_another_loop_begins_anew() -> None:
    """Whatever the first left waiting; nobody of it would ever answer."""
    # promise 25
    reader = Reader()

    async def leave_one_waiting() -> None:
        reader.gate.clear()
        tasks = [asyncio.ensure_future(reader.together.read(name)) for name in "ab"]
        await asyncio.sleep(0)
        reader.gate = asyncio.Event()
        reader.gate.set()
        del tasks

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_one_waiting())
    assert asyncio.run(reader.together.read("c")) == b"c"
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def test_the_last_jobs_run_one_after_the_other_behind_all_others() -> None:
    threads = Threads("test")
    done: list[str] = []
    gate = threading.Event()
    jobs = [
        asyncio.ensure_future(threads.run("reader", lambda: done.append(f"read {gate.wait(5)}"))),
        asyncio.ensure_future(threads.run("writer", lambda: done.append("written"))),
    ]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(threads.aclose(done.append))
    await asyncio.sleep(0)
    closing.cancel()  # what has begun goes on
    gate.set()
    await asyncio.gather(*jobs)
    await threads.run("reader", lambda: None)  # begins when the thread before it has ended
    await threads.run("writer", lambda: None)
    assert sorted(done[:2]) == ["read True", "written"]
    assert done[2:] == ["reader", "writer"]
    await threads.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    afresh: list[bool] = []
    threads = Threads("test", lambda: afresh.append(True))
    before = await threads.run("reader", threading.get_ident)
    pid = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr("qqbot_session.storages.threads.os.getpid", lambda: pid + 1)
        assert await threads.run("reader", threading.get_ident) != before
        await threads.run("reader", threading.get_ident)
    assert afresh == [True]
