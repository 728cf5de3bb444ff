"""The `Storage` contract, over every storage there is.

To add one, give `STORAGES` a function that returns an opener: each call of the opener makes
another storage object on the same records.
"""

# ruff: noqa: ASYNC240  the directory is looked at while nothing runs on the loop
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from qqbot_session import FileStorage, MemoryStorage, Storage
from qqbot_session.state import MAX_RECORD_BYTES
from qqbot_session.storages.base import READ_LIMIT

Opener = Callable[[], Storage]


def _memory(place: Path) -> Opener:
    records: dict[str, bytes] = {}
    return lambda: MemoryStorage(records)


STORAGES: dict[str, Callable[[Path], Opener]] = {
    "memory": _memory,
    "files": lambda place: lambda: FileStorage(place / "sessions"),
    "files-not-durable": lambda place: lambda: FileStorage(place / "sessions", durable=False),
}


@pytest.fixture(params=STORAGES)
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    """Open the storage again and again; everything is closed at the end."""
    opened: list[Storage] = []
    make = STORAGES[request.param](tmp_path)

    def open_another() -> Storage:
        opened.append(make())
        return opened[-1]

    yield open_another
    for storage in opened:
        await storage.aclose()


@pytest.fixture
def storage(opener: Opener) -> Storage:
    return opener()


async def contents(storage: Storage) -> list[bytes]:
    return sorted([data async for _, data in storage.scan()])


async def key_of(storage: Storage, data: bytes) -> str:
    (key,) = [key async for key, found in storage.scan() if found == data]
    return key


ODD_IDS = [
    *("default", "DEFAULT", "Default", "a.b", "a_b", "a-b", "a/b", "a\\b", "a b", "a:b", "a\nb"),
    *(".", "..", "...", "/", "../../escape", "/etc/passwd", "~", "-", "_", "__", "%00", "*", "?"),
    *("session-a.json", "session-a", ".json", "a.json", ".qqbot-session-0-0.tmp", "CON", "nul"),
    *(
        "é",
        "e\u0301",
        "中文",
        "机器人",
        "😀",
        "😀😀",
        "\U0010ffff",
        "\x01",
        "\x7f",
        "\u2028",
        "\ufeff",
    ),
    *(
        "x" * 241,
        "x" * 243,
        "x" * 10_000,
        "x" * 9_999 + "y",
        "x" * 9_999 + "Y",
        "中" * 10_000,
        "😀" * 10_000,
    ),
    *("$HOME", "{a}", "a*", "KEYS", "'; DROP TABLE", '"', "0", "00", "1e3", "null", "None"),
]


async def test_every_storage_is_a_storage(storage: Storage) -> None:
    assert isinstance(storage, Storage)


async def test_what_is_not_there_is_none_and_no_error(storage: Storage) -> None:
    """Reading, deleting, discarding and sweeping find nothing, also before the first write."""
    assert await storage.read("missing") is None
    assert await contents(storage) == []
    assert await storage.commit({"missing": None}) == {}
    assert await storage.discard("missing", b"x") is False
    assert await storage.sweep(0.0) == 0
    assert await storage.commit({}) == {}
    assert await contents(storage) == []


async def test_what_is_committed_is_read_replaced_and_deleted(
    storage: Storage, opener: Opener
) -> None:
    """By another storage object on the same records as well."""
    other = opener()
    for data in (b'{"a": 1}', b"", b"longer than before, then short", b"\0\xff", b"x"):
        assert await storage.commit({"a": data}) == {}
        assert await storage.read("a") == await other.read("a") == data
        assert await contents(storage) == await contents(other) == [data]
    assert await other.commit({"a": None}) == {}
    assert await storage.read("a") is None
    assert await contents(storage) == []


async def test_one_batch_writes_and_deletes(storage: Storage) -> None:
    await storage.commit({"a": b"a1", "b": b"b1", "c": b"c1"})
    assert await storage.commit({"a": None, "b": b"b2", "d": b"d1", "missing": None}) == {}
    assert await contents(storage) == [b"b2", b"c1", b"d1"]
    assert [await storage.read(name) for name in "abcd"] == [None, b"b2", b"c1", b"d1"]


async def test_no_two_ids_share_a_record(storage: Storage, opener: Opener) -> None:
    """Dots, slashes, case, Chinese, astral characters, ten thousand of them."""  # promise 12
    batch: dict[str, bytes | None] = {id_: id_.encode() for id_ in ODD_IDS}
    assert len(batch) == len(ODD_IDS)
    assert await storage.commit(batch) == {}
    again = opener()
    for id_, data in batch.items():
        assert await again.read(id_) == data
    assert await contents(again) == sorted(data for data in batch.values() if data is not None)
    kept = ODD_IDS[1::2]
    assert await storage.commit(dict.fromkeys(ODD_IDS[::2])) == {}
    assert await contents(storage) == sorted(id_.encode() for id_ in kept)
    for id_ in ODD_IDS:
        assert await storage.discard(id_, id_.encode()) is (id_ in kept)
    assert await contents(storage) == []


async def test_odd_ids_stay_within_the_place_of_the_storage(
    storage: Storage, tmp_path: Path
) -> None:  # promise 14
    await storage.commit(dict.fromkeys(ODD_IDS, b"x"))
    assert {path.name for path in tmp_path.iterdir()} <= {"sessions"}
    assert not [path for path in (tmp_path / "sessions").glob("*") if path.is_dir()]


@pytest.mark.parametrize("number", [1, 63, 64, 65, 300])
async def test_a_batch_of_any_length_is_written_whole(storage: Storage, number: int) -> None:
    batch = {f"account-{index}": f"{index}".encode() for index in range(number)}
    assert await storage.commit(batch) == {}
    assert await contents(storage) == sorted(batch.values())
    assert await storage.commit(dict.fromkeys(batch)) == {}
    assert await contents(storage) == []


@pytest.mark.parametrize("length", [READ_LIMIT - 1, READ_LIMIT, READ_LIMIT + 1, 3_000_000])
async def test_reading_is_bounded_to_one_byte_more_than_a_record(
    storage: Storage, length: int
) -> None:
    """So an oversize record shows, and can be discarded as what was read of it."""  # promise 14
    assert READ_LIMIT == MAX_RECORD_BYTES + 1
    await storage.commit({"large": b"x" * length})
    data = await storage.read("large")
    assert data == b"x" * min(length, READ_LIMIT)
    assert await contents(storage) == [data]
    assert await storage.discard("large", data[:-1]) is False
    assert await storage.discard("large", data) is True
    assert await storage.read("large") is None


@pytest.mark.parametrize("account_id", ["plain", "a.b", "../机器人", "x" * 10_000])
@pytest.mark.parametrize("by_scan_key", [True, False])
async def test_discard_deletes_only_what_was_judged(
    storage: Storage, opener: Opener, account_id: str, by_scan_key: bool
) -> None:
    """A compare-and-delete, by account id or by a key of `scan`."""  # promise 13
    await storage.commit({account_id: b"old", "bystander": b"bystander"})
    key = await key_of(storage, b"old") if by_scan_key else account_id
    for other in (b"ol", b"older", b"", b"OLD", b"bystander"):
        assert await storage.discard(key, other) is False
    await opener().commit({account_id: b"renewed"})
    assert await storage.discard(key, b"old") is False
    assert await storage.read(account_id) == b"renewed"
    assert await storage.discard(key, b"renewed") is True
    assert await storage.discard(key, b"renewed") is False
    assert await storage.read(account_id) is None
    assert await contents(storage) == [b"bystander"]


async def test_an_empty_record_is_one_and_can_be_discarded(storage: Storage) -> None:
    await storage.commit({"a": b""})
    assert await storage.read("a") == b""
    assert await storage.discard(await key_of(storage, b""), b"") is True
    assert await storage.read("a") is None


async def test_of_two_discards_at_once_one_deletes(storage: Storage, opener: Opener) -> None:
    other = opener()
    await storage.commit({"a": b"old"})
    deleted = await asyncio.gather(*[s.discard("a", b"old") for s in (storage, other) * 5])
    assert deleted.count(True) == 1
    assert await contents(storage) == []


async def test_commits_take_effect_in_the_order_of_their_calls(storage: Storage) -> None:
    for first, last in ((b"1", b"2"), (b"1", None), (None, b"2")):
        async with asyncio.TaskGroup() as group:
            for data in (first, last) * 10:
                group.create_task(storage.commit({"a": data, "b": data}))
        assert await storage.read("a") == await storage.read("b") == last


async def test_the_order_holds_when_callers_are_cancelled(storage: Storage) -> None:
    """A cancelled commit has taken effect before the next one or never does."""  # promise 9
    for steps in range(8):
        cancelled = []
        for index in range(8):
            batch = {f"{account}": b"stale-%d" % index for account in range(50)}
            cancelled.append(asyncio.ensure_future(storage.commit(batch)))
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled[-1].cancel()
        assert await storage.commit({"0": b"newest", "1": None}) == {}
        await asyncio.wait(cancelled)
        assert await storage.read("0") == b"newest"
        assert await storage.read("1") is None
        await storage.commit({"last": b"one more"})  # whatever is queued has run now
        assert await storage.read("0") == b"newest"
        assert await storage.read("1") is None


async def test_a_reader_meets_no_record_that_is_half_written(
    storage: Storage, opener: Opener
) -> None:
    """At every moment `read` and `scan` see an old or a newer complete one."""  # promise 7
    complete = [b"%d" % digit * 40_000 for digit in range(10)]
    await storage.commit({"a.b": complete[0]})
    other = opener()
    writes = [asyncio.ensure_future(storage.commit({"a.b": data})) for data in complete]
    while not all(write.done() for write in writes):
        await asyncio.sleep(0)
        assert await other.read("a.b") in complete
        assert all([data in complete async for _, data in other.scan()])
    assert await other.read("a.b") == complete[-1]


async def test_scanning_bears_with_records_that_come_and_go(
    storage: Storage, opener: Opener
) -> None:
    batch = {f"a{index}": b"%d" % index for index in range(200)}
    await storage.commit(batch)
    other = opener()
    seen = []
    async for _, data in storage.scan():
        if not seen:
            await other.commit(dict.fromkeys(batch) | {"late": b"late"})
        seen.append(data)
    assert set(seen) <= {*batch.values(), b"late"}
    assert await contents(storage) == [b"late"]


async def test_a_scan_that_is_broken_off_leaves_nothing_behind(storage: Storage) -> None:
    await storage.commit({f"a{index}": b"x" for index in range(200)})
    records = storage.scan()
    async for _ in records:
        break
    await records.aclose()  # type: ignore[attr-defined]
    assert await storage.commit({"a0": None}) == {}
    assert len(await contents(storage)) == 199


async def test_sweeping_takes_no_record(storage: Storage) -> None:
    await storage.commit({"a": b"a", "a.b": b"a.b"})
    assert await storage.sweep(0.0) == 0
    assert await contents(storage) == [b"a", b"a.b"]


async def test_closing_keeps_the_records_and_can_be_repeated(opener: Opener) -> None:
    storage = opener()
    await opener().aclose()  # never used
    await storage.commit({"a": b"a"})
    await storage.aclose()
    await storage.aclose()
    assert await opener().read("a") == b"a"


async def test_closing_lets_the_commits_under_way_end(opener: Opener) -> None:
    storage = opener()
    writes = [asyncio.ensure_future(storage.commit({f"{i}": b"x"})) for i in range(20)]
    await asyncio.sleep(0)
    await storage.aclose()
    assert await asyncio.gather(*writes) == [{}] * 20
    assert len(await contents(opener())) == 20
