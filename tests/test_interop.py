"""Both programs, one directory: the TypeScript original reads our records, and we its.

`fixtures/original/` holds what the original wrote when it was run under node with its clock at
1700000000123 ms. `Original` models what it does with a record it finds.
"""

# ruff: noqa: ASYNC240  the directory is looked at while nothing runs on the loop
from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WallClock

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.state import decode, encode
from qqbot_session.storages.names import file_name, original_name

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "original").glob("*.json"))
UUID = "5f1c9e0d-7a3b-4c22-9a51-0d3e8f6b2c11"


class Original:
    """What the original does with its directory, as its source says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, account_id: str) -> Path:
        units = account_id.encode("utf-16-le")
        text = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
        safe = re.sub(r"[^a-zA-Z0-9_-]", "_", text)
        return self.directory / f"session-{safe}.json"

    def load(self, account_id: str, now: float) -> dict[str, Any] | None:
        state: dict[str, Any] = json.loads(self.path(account_id).read_text("utf-8"))
        if now * 1000 - state["savedAt"] > 5 * 60 * 1000:
            return None
        if not state.get("sessionId") or state.get("lastSeq") is None:
            return None
        return state

    def save(self, account_id: str, **fields: Any) -> bytes:
        """Write a record as the original would, and return its bytes."""
        state = {
            "sessionId": UUID,
            "lastSeq": 41,
            "lastConnectedAt": 1_699_999_990_007,
            "intentLevelIndex": 0,
            "accountId": account_id,
            "savedAt": 1_700_000_000_123,
            **fields,
        }
        data = json.dumps(state, indent=2, ensure_ascii=False).encode()
        self.directory.mkdir(exist_ok=True)
        self.path(account_id).write_bytes(data)
        return data


@pytest.fixture
def original(directory: Path) -> Original:
    return Original(directory)


def open_store(directory: Path, clock: WallClock) -> AsyncSessionStore:
    return AsyncSessionStore(directory, debounce=0, clock=clock)


# --- what the original wrote -----------------------------------------------------------------


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
async def test_a_record_of_the_original_loads(
    fixture: Path, directory: Path, clock: WallClock
) -> None:
    """Every field arrives, and one without a session is `None`, as in the original."""
    directory.mkdir()
    shutil.copy(fixture, directory)
    wire = json.loads(fixture.read_bytes())
    async with open_store(directory, clock) as store:
        state = await store.load(wire["accountId"])
        everything = await store.load_all()
    if not wire["sessionId"] or wire["lastSeq"] is None:
        assert state is None
        assert everything == []
        return
    assert state is not None
    assert everything == [state]
    assert (state.account_id, state.session_id) == (wire["accountId"], wire["sessionId"])
    assert state.last_seq == wire["lastSeq"]
    assert state.last_connected_at == wire.get("lastConnectedAt", 0) / 1000
    assert state.saved_at == 1_700_000_000.123
    assert state.intent_level_index == wire.get("intentLevelIndex", 0)
    assert state.app_id == wire.get("appId")


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_the_original_chose_the_file_name_we_look_under(fixture: Path) -> None:
    """Also for Chinese, and for astral characters, which are two units to it."""  # promise 12
    account_id = json.loads(fixture.read_bytes())["accountId"]
    assert original_name(account_id) == fixture.name
    assert (file_name(account_id) == fixture.name) is bool(
        re.fullmatch(r"[A-Za-z0-9_-]+", account_id)
    )


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
async def test_unknown_fields_of_the_original_survive_a_rewrite(
    fixture: Path, directory: Path, clock: WallClock
) -> None:
    """Nothing but the number and the stamp changes; even lone surrogates stay."""
    directory.mkdir()
    shutil.copy(fixture, directory)
    wire = json.loads(fixture.read_bytes())
    clock.now += 7.25
    async with open_store(directory, clock) as store:
        has_session = await store.update_last_seq(wire["accountId"], 9_007_199_254_740_991)
    (path,) = directory.iterdir()
    after = json.loads(path.read_bytes())
    if has_session:
        defaults = {"lastConnectedAt": 0, "intentLevelIndex": 0}
        stamped = {"lastSeq": 9_007_199_254_740_991, "savedAt": 1_700_000_007_250}
        assert after == defaults | wire | stamped
        assert path.name == file_name(wire["accountId"])
    else:
        assert after == wire


@pytest.mark.parametrize("name", ["default", "a_b", "__bot", "null-session", "zero-seq"])
def test_an_ordinary_record_of_the_original_is_rewritten_byte_by_byte(name: str) -> None:
    path = next(path for path in FIXTURES if path.name == f"session-{name}.json")
    assert encode(decode(path.read_bytes())) == path.read_bytes()


async def test_the_bot_moves_on_from_the_original_s_record_in_its_place(
    directory: Path, clock: WallClock, original: Original
) -> None:
    """For a plain id both use one file, which stays the only one."""
    original.save("default", vendor=[1])
    async with open_store(directory, clock) as store:
        state = await store.load("default")
        assert state is not None
        await store.save(replace(state, session_id="new", last_seq=1))
    assert [path.name for path in directory.iterdir()] == ["session-default.json"]
    found = original.load("default", clock.now)
    assert found is not None
    assert (found["sessionId"], found["vendor"]) == ("new", [1])


# --- what we write ---------------------------------------------------------------------------


@pytest.mark.parametrize("account_id", ["default", "102005927-0_B", "x" * 242, "-", "_"])
async def test_the_original_reads_what_we_write(
    account_id: str, directory: Path, clock: WallClock, original: Original
) -> None:
    """Its file name, its field names, whole milliseconds, its layout, its idea of fresh."""
    state = SessionState(
        account_id=account_id,
        session_id="会话",
        last_seq=7,
        last_connected_at=1_699_999_990.007,
        intent_level_index=1,
        app_id="102005927",
        intents=513,
        shard=(0, 2),
        established_at=1_699_999_980.001,
    )
    async with open_store(directory, clock) as store:
        await store.save(state)
    found = original.load(account_id, clock.now + 299)
    assert found == {
        "sessionId": "会话",
        "lastSeq": 7,
        "lastConnectedAt": 1_699_999_990_007,
        "intentLevelIndex": 1,
        "accountId": account_id,
        "savedAt": 1_700_000_000_000,
        "appId": "102005927",
        "intents": 513,
        "shard": [0, 2],
        "establishedAt": 1_699_999_980_001,
    }
    assert all(type(value) is not float for value in found.values())
    text = original.path(account_id).read_text("utf-8")
    assert text == json.dumps(found, indent=2, ensure_ascii=False)
    assert original.load(account_id, clock.now + 301) is None


async def test_a_state_without_a_session_is_one_to_the_original_too(
    directory: Path, clock: WallClock, original: Original
) -> None:
    async with open_store(directory, clock) as store:
        await store.save(SessionState(account_id="default", intent_level_index=2))
    assert original.load("default", clock.now) is None
    assert json.loads(original.path("default").read_bytes())["intentLevelIndex"] == 2


async def test_a_left_over_of_ours_is_no_session_to_the_original(directory: Path) -> None:
    """It lists `session-*.json`; everything we leave there is a record."""
    storage = FileStorage(directory)
    record = encode(SessionState(account_id="a.b"))
    await storage.commit({"a.b": record, "ab": record})
    await storage.aclose()
    (directory / ".qqbot-session-0123456789abcdef-0.tmp").write_bytes(b"half")
    listed = [p for p in directory.iterdir() if re.match(r"session-.*\.json$", p.name)]
    assert len(listed) == 2
    assert all(json.loads(path.read_bytes()) for path in listed)


# --- ids the original mixes up: a.b and a_b share its session-a_b.json -------------------------


async def test_the_original_s_file_is_read_if_it_is_that_account_s(
    directory: Path, clock: WallClock, original: Original
) -> None:
    original.save("a.b")
    async with open_store(directory, clock) as store:
        assert await store.load("a_b") is None  # promise 12
        assert await store.load("a:b") is None
        state = await store.load("a.b")
    assert state is not None
    assert state.account_id == "a.b"
    assert original.path("a.b").exists()  # to read is to change nothing


async def test_our_own_file_wins_over_the_original_s(
    directory: Path, clock: WallClock, original: Original
) -> None:
    async with open_store(directory, clock) as store:
        await store.save(SessionState(account_id="a.b", session_id="ours", last_seq=1))
    original.save("a.b", sessionId="its")
    async with open_store(directory, clock) as store:
        state = await store.load("a.b")
    assert state is not None
    assert state.session_id == "ours"


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("ours_too", [True, False])
async def test_a_commit_removes_the_original_s_file_if_it_is_the_account_s(
    durable: bool, delete: bool, ours_too: bool, directory: Path, original: Original
) -> None:
    """A deletion as well: nothing cleared comes back from it."""  # promise 4
    storage = FileStorage(directory, durable=durable)
    record = encode(SessionState(account_id="a.b", session_id="ours", last_seq=1))
    if ours_too:
        await storage.commit({"a.b": record})
    original.save("a.b")
    assert await storage.commit({"a.b": None if delete else record}) == {}
    assert not original.path("a.b").exists()
    assert await storage.read("a.b") == (None if delete else record)
    await storage.aclose()


@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("theirs", ["a_b", "a:b", "corrupt", "nobody"])
async def test_a_commit_never_removes_the_original_s_file_of_somebody_else(
    delete: bool, theirs: str, directory: Path, original: Original
) -> None:  # promise 12
    data = original.save("a_b", accountId=theirs)
    if theirs in ("corrupt", "nobody"):
        data = b"{" if theirs == "corrupt" else b"{}"
        original.path("a_b").write_bytes(data)
    storage = FileStorage(directory)
    record = encode(SessionState(account_id="a.b", session_id="ours", last_seq=1))
    assert await storage.read("a.b") is None
    assert await storage.commit({"a.b": None if delete else record}) == {}
    assert not await storage.discard("a.b", data)
    assert original.path("a_b").read_bytes() == data
    assert await storage.read("a.b") == (None if delete else record)
    await storage.aclose()


async def test_clearing_a_b_does_not_delete_the_original_s_record_of_a_dot_b(
    directory: Path, clock: WallClock, original: Original
) -> None:
    """Saving `a_b` may replace it, as documented; nothing says that clearing may."""  # promise 12
    original.save("a.b")
    async with open_store(directory, clock) as store:
        await store.clear("a_b")
        assert await store.load("a.b") is not None


@pytest.mark.parametrize("first", ["a.b", "a_b"])
async def test_in_one_batch_both_ids_get_their_own_record(
    first: str, directory: Path, original: Original
) -> None:
    original.save("a.b")
    ids = [first, "a_b" if first == "a.b" else "a.b"]
    batch = {id_: encode(SessionState(account_id=id_, last_seq=1)) for id_ in ids}
    storage = FileStorage(directory)
    assert await storage.commit(batch) == {}
    assert {id_: await storage.read(id_) for id_ in ids} == batch
    await storage.aclose()


async def test_clear_through_the_store_leaves_nothing_of_the_original_s(
    directory: Path, clock: WallClock, original: Original
) -> None:  # promise 4
    original.save("a.b")
    async with open_store(directory, clock) as store:
        await store.clear("a.b")
        assert await store.load("a.b") is None
    assert list(directory.iterdir()) == []


async def test_an_expired_record_of_the_original_is_removed_if_it_is_the_account_s(
    directory: Path, clock: WallClock, original: Original
) -> None:  # promise 13
    original.save("a.b")
    clock.now += 301
    async with open_store(directory, clock) as store:
        assert await store.load("a_b") is None
        assert original.path("a.b").exists()
        assert await store.load("a.b") is None
        assert not original.path("a.b").exists()


async def test_an_id_too_long_for_the_original_s_file_name_has_one_of_ours(directory: Path) -> None:
    """The original cannot save it at all; there is nothing of its to look for."""  # promise 12
    storage = FileStorage(directory)
    for account_id in ("x" * 243, "é" * 243):
        await storage.commit({account_id: account_id.encode()})
        assert await storage.read(account_id) == account_id.encode()
        assert re.fullmatch(r"session-[x_]{97}\.[0-9a-f]{32}\.json", file_name(account_id))
    await storage.aclose()
