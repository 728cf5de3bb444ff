"""`copy` between any two storages: checked, and no harm when repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import Copied, SqliteStorage, copy


def record(account_id: str, last_seq: int = 1, saved_at: float = 1000.0) -> bytes:
    state = SessionState(account_id=account_id, session_id="s", last_seq=last_seq)
    return encode(state, last_seq, saved_at)


RECORDS = {account_id: record(account_id) for account_id in ["a", "a.b", "机器人", "x" * 300]}
RECORDS |= {f"account-{number}": record(f"account-{number}") for number in range(300)}


async def contents(storage: MemoryStorage | FileStorage | SqliteStorage) -> list[bytes]:
    return sorted([data async for _, data in storage.scan()])


async def test_a_bot_that_moves_from_files_to_a_database_goes_on(tmp_path: Path) -> None:
    files, database = FileStorage(tmp_path / "sessions"), SqliteStorage(tmp_path / "sessions.db")
    await files.commit(RECORDS)
    said: list[Copied] = []
    done = await copy(files, database, progress=said.append)
    assert done == Copied(copied=len(RECORDS)) == said[-1]
    assert [part.copied for part in said] == [128, 256, len(RECORDS)]
    assert await contents(database) == await contents(files) == sorted(RECORDS.values())
    assert await copy(files, database) == Copied(same=len(RECORDS))
    async with AsyncSessionStore(database, max_age=None) as store:
        state = await store.load("a.b")
    assert state is not None
    back = MemoryStorage()
    assert await copy(database, back) == Copied(copied=len(RECORDS))
    assert back.records == RECORDS
    await database.aclose()
    await files.aclose()


async def test_the_newer_record_stays_unless_told_otherwise() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    for account_id, theirs in (("older", 900.0), ("newer", 1100.0), ("none", None)):
        source.records[account_id] = record(account_id, 1)
        if theirs is not None:
            target.records[account_id] = record(account_id, 2, saved_at=theirs)
    target.records["theirs alone"] = record("theirs alone")
    target.records["corrupt"] = b"corrupt"
    source.records["corrupt"] = record("corrupt")
    assert await copy(source, target) == Copied(copied=3, kept=1)
    assert target.records["newer"] == record("newer", 2, saved_at=1100.0)
    assert await copy(source, target, overwrite=True) == Copied(copied=1, same=3)
    assert target.records == source.records | {"theirs alone": record("theirs alone")}


async def test_what_is_no_record_is_counted_and_left(tmp_path: Path) -> None:
    """What stands under a name that its own account id does not give is not even listed."""
    source = FileStorage(tmp_path / "sessions")
    await source.commit({"a": record("a"), "b": record("b"), "c": b"{", "d": b""})
    (tmp_path / "sessions" / "session-b.json").rename(tmp_path / "sessions" / "session-e.json")
    target = MemoryStorage()
    assert await copy(source, target) == Copied(copied=1, unreadable=2)
    assert target.records == {"a": record("a")}
    await source.aclose()


async def test_what_is_not_on_the_target_is_a_failure_by_name() -> None:
    class Refuses(MemoryStorage):
        exchange = None  # type: ignore[assignment]  # nor can it compare and write in one step

        async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
            if "account-200" in changes:
                raise OSError("the disk is full")
            await super().commit({k: v for k, v in changes.items() if k not in ("a", "a.b")})
            return {"a": OSError("no")} if "a" in changes else {}

    target = Refuses()
    done = await copy(MemoryStorage({**RECORDS}), target)
    assert {"a", "a.b", "account-200"} <= done.failures.keys()
    assert done.copied == len(RECORDS) - len(done.failures) == len(target.records)
    assert "account-200" not in target.records


@pytest.mark.parametrize("kind", ["memory", "files", "sqlite"])
async def test_a_bot_that_runs_on_the_target_loses_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes between the look of `copy` and its write: its newer record stays."""
    # promise 25
    target: Any = {
        "memory": MemoryStorage,
        "files": lambda: FileStorage(tmp_path / "sessions"),
        "sqlite": lambda: SqliteStorage(tmp_path / "sessions.db"),
    }[kind]()
    await target.commit({"there": record("there", 1, 900.0)})
    newer = {name: record(name, 9, 2000.0) for name in ("there", "new")}
    exchange = target.exchange
    busy = [True]

    async def exchange_beside_a_bot(changes: Any) -> Any:
        if busy.pop():
            busy.append(False)
            await target.commit(newer)
        return await exchange(changes)

    monkeypatch.setattr(target, "exchange", exchange_beside_a_bot)
    source = MemoryStorage({name: record(name) for name in ("there", "new", "quiet")})
    assert await copy(source, target) == Copied(copied=1, kept=2)
    assert await contents(target) == sorted([*newer.values(), record("quiet")])
    await target.aclose()


async def test_a_record_that_never_stands_still_is_a_failure_by_name() -> None:
    class Busy(MemoryStorage):
        async def exchange(self, changes: Any) -> Any:
            self.records["a"] = record("a", len(self.records["a"]), 900.0 + next(self.ages))
            return await super().exchange(changes)

        ages = iter(range(100))

    target = Busy({"a": record("a", 1, 900.0)})
    done = await copy(MemoryStorage({"a": record("a"), "b": record("b")}), target)
    assert done.copied == 1
    assert list(done.failures) == ["a"]


async def test_a_source_that_cannot_be_listed_is_an_error() -> None:
    class Broken(MemoryStorage):
        async def scan(self):  # type: ignore[no-untyped-def]
            yield "a", record("a")
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await copy(Broken(), MemoryStorage())


async def test_a_copy_that_is_cancelled_can_be_repeated() -> None:
    source, target = MemoryStorage({**RECORDS}), MemoryStorage()
    task = asyncio.ensure_future(copy(source, target))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    done = await copy(source, target)
    assert done.copied + done.same == len(RECORDS)
    assert target.records == RECORDS
