"""The threads of a storage."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from qqbot_session.storages.threads import Threads


async def test_the_last_jobs_run_one_after_the_other_behind_all_others() -> None:
    threads = Threads("test")
    done: list[str] = []
    gate = threading.Event()
    jobs = [
        asyncio.ensure_future(threads.run("reader", lambda: done.append(f"read {gate.wait(60)}"))),
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
