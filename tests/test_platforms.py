"""Systems and volumes that lack something: what `FileStorage` does instead, and says.

Windows, macOS and a system without anything optional are simulated (`platforms`); what a volume
refuses is refused by a spy between `storages.files` and `os`.
"""

# ruff: noqa: ASYNC240  the directory is looked at while nothing runs on the loop
from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WallClock
from crash import stand_in
from platforms import PLATFORMS, simulate
from test_files import SpiedOs, failing, listing

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import files
from qqbot_session.storages.base import NotRegularError
from qqbot_session.storages.names import file_name, original_name
from qqbot_session.testing.storage_contract import CHECKS, ODD_IDS, Check

on_every_platform = pytest.mark.parametrize("platform", PLATFORMS, indirect=True)
on = {name: pytest.mark.parametrize("platform", [name], indirect=True) for name in PLATFORMS}


@pytest.fixture(autouse=True)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    platform: str = getattr(request, "param", "linux")
    simulate(monkeypatch, platform)
    return platform


@pytest.fixture
def spy(platform: str, monkeypatch: pytest.MonkeyPatch) -> SpiedOs:
    spied = SpiedOs(files.os)  # type: ignore[attr-defined]
    stand_in(monkeypatch, spied)
    return spied


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """How long `storages.files` would have slept, instead of sleeping; seconds."""
    taken: list[float] = []
    monkeypatch.setattr(files, "time", _Time(taken))
    yield taken
    monkeypatch.undo()


class _Time:
    def __init__(self, taken: list[float]) -> None:
        self._taken = taken
        self.time = __import__("time").time

    def sleep(self, seconds: float) -> None:
        if seconds > 1e-4:  # less only lets the loop in
            self._taken.append(seconds)


@pytest.fixture
async def storage(platform: str, directory: Path) -> Any:
    storage = FileStorage(directory)
    yield storage
    await storage.aclose()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("platform", ["windows", "macos", "bare"], indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds_on_other_systems(check: Check, directory: Path) -> None:
    """Without O_NOFOLLOW and its like, links or `fdatasync`; and where an open file is fast."""
    asyncio.run(check(lambda: FileStorage(directory)))


# --- directories that cannot be synced --------------------------------------------------------


@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "EBADF"])
@pytest.mark.parametrize("whose", ["own", "parent", "both"])
async def test_a_directory_that_cannot_be_synced_is_said_once_and_is_no_failure(
    storage: FileStorage, spy: SpiedOs, caplog: pytest.LogCaptureFixture, code: str, whose: str
) -> None:
    """Shared folders, some FUSE and network volumes, WSL."""  # promise 7
    own = storage.directory
    parent = os.path.dirname(own)  # noqa: PTH120
    refused = {"own": {own}, "parent": {parent}, "both": {own, parent}}[whose]
    spy.before["fsync"] = failing(
        getattr(errno, code), lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink()) in refused
    )
    for number in range(3):
        assert await storage.commit({"a": b"%d" % number, "b": None, "c.d": b"1"}) == {}
    assert await storage.read("a") == b"2"
    (line,) = lines(caplog)
    assert any(f"directory {path} cannot be synced" in line for path in refused)


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EROFS"])
async def test_other_errors_of_a_directory_s_sync_are_failures_that_name_it(
    storage: FileStorage, spy: SpiedOs, code: str
) -> None:  # promises 7, 8
    await storage.commit({"a": b"1"})
    spy.before["fsync"] = failing(getattr(errno, code))
    with pytest.raises(OSError, match=re.escape(storage.directory)) as caught:
        await storage.commit({"a": b"2"})
    assert caught.value.errno == getattr(errno, code)


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "EROFS"])
async def test_a_parent_that_may_not_be_opened_or_written_is_no_failure(
    directory: Path, spy: SpiedOs, code: str
) -> None:
    """A volume that was mounted into a container has such a parent."""  # promise 7
    directory.mkdir()
    storage = FileStorage(directory)
    spy.before["open"] = failing(
        getattr(errno, code), lambda path, *_: path == str(directory.parent)
    )
    assert await storage.commit({"a": b"1"}) == {}
    await storage.aclose()


async def test_a_log_handler_that_fails_is_no_failed_write(
    storage: FileStorage, spy: SpiedOs, monkeypatch: pytest.MonkeyPatch
) -> None:  # promise 1
    spy.before["fsync"] = failing(errno.EINVAL)

    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of somebody's")

    monkeypatch.setattr(logging.getLogger(files.__name__), "filters", [refuse])
    assert await storage.commit({"a": b"1"}) == {}


# --- macOS ------------------------------------------------------------------------------------


@on["macos"]
async def test_macos_syncs_files_down_to_the_drive(storage: FileStorage, spy: SpiedOs) -> None:
    # promise 7
    assert await storage.commit({"a": b"1", "b": b"2"}) == {}
    assert files.fcntl.full_syncs == 2  # type: ignore[attr-defined]


@on["macos"]
@pytest.mark.parametrize("code", ["ENOTSUP", "EINVAL", "ENOTTY"])
async def test_where_a_full_sync_is_refused_an_ordinary_one_does(
    storage: FileStorage, spy: SpiedOs, code: str
) -> None:
    """SMB, WebDAV, exFAT and virtiofs volumes."""  # promise 7
    files.fcntl.refuses = getattr(errno, code)  # type: ignore[attr-defined]
    await storage.commit({"warm-up": b""})
    spy.calls.clear()
    assert await storage.commit({"a": b"1", "b": b"2"}) == {}
    assert spy.names("fsync", "replace") == ["fsync", "fsync", "replace", "replace", "fsync"]


@on["macos"]
async def test_a_full_sync_that_fails_is_a_failure(storage: FileStorage) -> None:  # promise 8
    files.fcntl.refuses = errno.EIO  # type: ignore[attr-defined]
    failures = await storage.commit({"a": b"1"})
    assert [error.errno for error in failures.values()] == [errno.EIO]  # type: ignore[attr-defined]


# --- Windows: files that another program has open ---------------------------------------------


@on["windows"]
async def test_a_record_that_is_held_for_a_moment_is_written_in_the_same_hop(
    storage: FileStorage, directory: Path, pauses: list[float]
) -> None:
    """An antivirus, an indexer, a backup, an editor; also when the store closes."""  # promise 8
    await storage.commit({"a": b"1"})
    held = directory / "session-a.json"
    files.os.hold(held, 5)  # type: ignore[attr-defined]
    assert await storage.commit({"a": b"2"}) == {}
    assert files.os.refusals == 5  # type: ignore[attr-defined]
    assert held.read_bytes() == b"2"
    files.os.hold(held, 5)  # type: ignore[attr-defined]
    assert await storage.read("a") == b"2"
    files.os.hold(held, 5)  # type: ignore[attr-defined]
    assert await storage.discard("a", b"2") is True
    assert 0 < sum(pauses) < 0.2
    assert listing(directory) == []


@on["windows"]
async def test_the_newest_state_is_written_by_a_close_that_meets_a_held_file(
    directory: Path, clock: WallClock, pauses: list[float]
) -> None:  # promises 5, 8
    store = AsyncSessionStore(directory, clock=clock)
    await store.save(SessionState(account_id="bot", session_id="s", last_seq=1))
    await store.flush()
    await store.update_last_seq("bot", 50)
    files.os.hold(directory / "session-bot.json", 6)  # type: ignore[attr-defined]
    await store.aclose()
    assert json.loads((directory / "session-bot.json").read_bytes())["lastSeq"] == 50
    assert pauses


@on["windows"]
async def test_a_hop_waits_200_ms_in_all_however_many_files_are_held(
    storage: FileStorage, directory: Path, pauses: list[float]
) -> None:  # promise 8
    batch: dict[str, bytes | None] = {f"a{index}": b"1" for index in range(20)}
    await storage.commit(batch | {"free": b"1"})
    for account_id in batch:
        files.os.hold(directory / file_name(account_id), 10**6)  # type: ignore[attr-defined]
    failures = await storage.commit(dict.fromkeys(batch, b"2") | {"free": b"2"})
    assert failures.keys() == batch.keys()
    assert sum(pauses) == pytest.approx(0.2)
    assert await storage.read("free") == b"2"
    pauses.clear()
    with pytest.raises(PermissionError):
        await storage.read("a1")
    assert sum(pauses) == pytest.approx(0.2)  # every hop has its own
    assert not [name for name in listing(directory) if name.endswith(".tmp")]


async def test_a_share_that_passes_windows_refusals_on_is_met_with_the_same_patience(
    storage: FileStorage, spy: SpiedOs, pauses: list[float]
) -> None:
    """CIFS, and WSL's view of Windows' drives: `rename` fails with EACCES or EBUSY."""
    for code in (errno.EACCES, errno.EBUSY, errno.ETXTBSY):
        count = iter(range(100))
        spy.before["replace"] = failing(code, lambda *_, count=count: next(count) < 3)
        assert await storage.commit({"a": b"%d" % code}) == {}
    assert 0 < sum(pauses) < 0.2


async def test_no_other_refusal_is_waited_for(
    storage: FileStorage, spy: SpiedOs, pauses: list[float]
) -> None:
    await storage.commit({"a": b"1"})
    for call, code in (("open", errno.EACCES), ("replace", errno.EPERM), ("unlink", errno.EACCES)):
        spy.before = {call: failing(code, lambda path, *_: path.endswith(".json") or "tmp" in path)}
        for changes in ({"a": b"2"}, {"a": None}):
            with contextlib.suppress(OSError):
                await storage.commit(changes)  # type: ignore[arg-type]
    assert pauses == []


# --- links where the system cannot be told not to follow them ---------------------------------


@pytest.mark.parametrize("platform", ["windows", "bare"], indirect=True)
async def test_without_o_nofollow_a_link_swapped_in_is_refused(
    storage: FileStorage, directory: Path, tmp_path: Path, spy: SpiedOs
) -> None:  # promise 14
    await storage.commit({"a": b"1"})
    outside = tmp_path / "outside.json"
    outside.write_bytes(b"somebody else's")
    path = directory / "session-a.json"

    def swap(*_: object) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(outside)

    spy.before["open"] = swap
    with pytest.raises(NotRegularError, match=re.escape(str(path))):
        await storage.read("a")
    assert outside.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("platform", ["windows", "bare"], indirect=True)
async def test_without_o_nofollow_a_record_renewed_in_between_is_read(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    """And one that is renewed before every look is an error that may heal, not a link."""
    await storage.commit({"a": b"0"})
    path = directory / "session-a.json"
    turns = iter(range(100))

    def renew(*_: object) -> None:
        if next(turns) < 2:
            path.with_name("newer").write_bytes(b"newest")
            path.with_name("newer").replace(path)

    spy.before["open"] = renew
    assert await storage.read("a") == b"newest"
    turns = iter([0] * 100)
    with pytest.raises(BlockingIOError):
        await storage.read("a")


@on_every_platform
async def test_a_link_that_takes_a_judged_record_s_place_is_put_back_and_never_followed(
    storage: FileStorage, directory: Path, tmp_path: Path, spy: SpiedOs
) -> None:
    """Python 3.14's `os.link` follows links unless it is told not to."""  # promise 14
    outside = tmp_path / "outside.json"
    outside.write_bytes(b"expired")
    await storage.commit({"a": b"expired"})
    path = directory / "session-a.json"

    def swap(*_: object) -> None:
        path.unlink()
        path.symlink_to(outside)

    followed: list[object] = []
    spy.before["rename"] = swap
    spy.__dict__["link"] = lambda source, target, *, follow_symlinks=True: (
        followed.append(follow_symlinks) or os.link(source, target, follow_symlinks=False)
    )
    assert await storage.discard("a", b"expired") is False
    assert followed == [False]
    assert path.is_symlink()
    assert outside.stat().st_nlink == 1


# --- names ------------------------------------------------------------------------------------

LONG_IDS = ["机" * 200, "x" * 243, "https://bots.example.org/" + "t" * 200, "😀" * 100, "x" * 1024]


@pytest.mark.parametrize("account_id", [*ODD_IDS, *LONG_IDS], ids=lambda id_: ascii(id_[:20]))
def test_names_that_we_shorten_fit_in_143_bytes_and_plain_ids_keep_theirs(account_id: str) -> None:
    # promise 12
    name = file_name(account_id)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,242}", account_id):
        assert name == original_name(account_id)
    else:
        assert len(name.encode()) <= 143
        assert re.fullmatch(r"session-[A-Za-z0-9_-]+\.[0-9a-f]{32}\.json", name)


def test_a_plain_id_of_242_characters_keeps_its_name() -> None:
    assert file_name("x" * 242) == f"session-{'x' * 242}.json"


async def test_an_encrypted_home_keeps_every_id_whose_own_name_is_short(
    storage: FileStorage, spy: SpiedOs
) -> None:
    """eCryptfs, also on a Synology: a name has 143 bytes at most."""  # promise 12

    def limit(*paths: object) -> None:
        for path in paths:
            if isinstance(path, str) and len(os.path.basename(path).encode()) > 143:  # noqa: PTH119
                raise OSError(errno.ENAMETOOLONG, "File name too long", path)

    spy.before = dict.fromkeys(("open", "replace", "unlink", "rename", "lstat"), limit)
    ids = ["102005927-0-1", "机器人" * 7, "https://bots.example.org/tenants/0123456789", *LONG_IDS]
    records = {id_: encode(SessionState(account_id=id_, last_seq=1)) for id_ in ids}
    assert await storage.commit(dict(records)) == {}
    for account_id, data in records.items():
        assert await storage.read(account_id) == data
    assert await storage.commit(dict.fromkeys(records)) == {}
    assert [await storage.read(account_id) for account_id in ids] == [None] * len(ids)
    too_long = "x" * 200
    assert await storage.read(too_long) is None
    assert list(await storage.commit({too_long: b"1"})) == [too_long]
    assert await storage.commit({too_long: None}) == {}


# --- what is a record -------------------------------------------------------------------------


async def test_load_list_update_and_cleanup_agree_on_what_is_a_record(
    directory: Path, clock: WallClock
) -> None:  # promises 3, 13
    def record(account_id: str) -> bytes:
        saved_at = clock.now
        return encode(
            SessionState(account_id=account_id, session_id="s", last_seq=1, saved_at=saved_at)
        )

    nobodys = {
        "session-bot-backup.json": record("bot"),  # cp session-bot.json session-bot-backup.json
        "session-bot.bak.json": record("bot"),
        "session-bot (1).json": record("bot"),
        "session-bot.bak2.json": b"corrupt",
        "session-.json": record("bot"),
        f"session-bot.{'0' * 32}.json": record("bot"),
        f"session-x_y.{'0' * 32}.json": record("x.y"),
        "session-bot.00000000.json": b"corrupt",
    }
    corrupt = {"session-broken.json": b"{", f"session-a_b.{'1' * 32}.json": b""}
    directory.mkdir()
    for name, data in (nobodys | corrupt).items():
        (directory / name).write_bytes(data)
    (directory / "session-a_b.json").write_bytes(record("a.b"))  # the original's
    async with AsyncSessionStore(directory, debounce=0, clock=clock) as store:
        assert [state.account_id for state in await store.load_all()] == ["a.b"]
        for account_id in ("bot", "bot-backup", "bot.bak", "x.y", "a_b"):
            assert await store.load(account_id) is None
            assert await store.update_last_seq(account_id, 9) is False
        assert await store.load("a.b") is not None
        assert await store.update_last_seq("a.b", 9) is True
        await store.flush()
        assert await store.cleanup() == len(corrupt)
        clock.now += 1000
        assert await store.cleanup() == 1  # a.b's
    assert listing(directory) == sorted(nobodys)


# --- files of somebody else -------------------------------------------------------------------

FOREIGN = """
import asyncio, os, sys
from qqbot_session import AsyncSessionStore, SessionState

async def main():
    directory = sys.argv[1]
    store = AsyncSessionStore(directory)
    await store.load("warm-up")
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    await store.save(SessionState(account_id="a.b", session_id="s", last_seq=1))
    await store.flush()
    assert (await store.load("a.b")).last_seq == 1
    await store.clear("a.b")
    await store.flush()
    assert await store.load("a.b") is None
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.real_time
@pytest.mark.skipif(os.name == "nt", reason="POSIX only")
def test_another_user_s_file_in_the_original_s_place_fails_no_commit(tmp_path: Path) -> None:
    """`a.b` and the plain `a_b` of somebody else, who lets nobody read it."""  # promise 8
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="qqbot-session-") as name:
        Path(name).chmod(0o777)  # pytest's own are closed to others
        foreign = Path(name, "session-a_b.json")
        foreign.write_bytes(b"theirs")
        foreign.chmod(0)
        arguments = [sys.executable, "-c", textwrap.dedent(FOREIGN), name]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert foreign.read_bytes() == b"theirs"
        assert listing(Path(name)) == ["session-a_b.json"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE])
async def test_an_original_s_record_that_cannot_be_read_now_holds_up_only_its_deletion(
    storage: FileStorage, directory: Path, spy: SpiedOs, code: int
) -> None:
    """Ours counts once it is written; nothing cleared comes back."""  # promises 4, 8
    record = encode(SessionState(account_id="a.b", session_id="s", last_seq=1))
    directory.mkdir()
    (directory / "session-a_b.json").write_bytes(record)
    spy.before["open"] = failing(code, lambda path, *_: path.endswith("session-a_b.json"))
    assert await storage.commit({"a.b": record}) == {}
    assert list(await storage.commit({"a.b": None})) == ["a.b"]
    spy.before.clear()
    assert await storage.commit({"a.b": None}) == {}
    assert await storage.read("a.b") is None


async def test_ours_that_has_expired_is_discarded_while_the_original_s_cannot_be_read(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promise 13
    record = encode(SessionState(account_id="a.b", session_id="s", last_seq=1))
    await storage.commit({"a.b": record})
    (directory / "session-a_b.json").write_bytes(b"theirs")
    spy.before["open"] = failing(errno.EACCES, lambda path, *_: path.endswith("session-a_b.json"))
    assert await storage.discard("a.b", record) is True
    assert listing(directory) == ["session-a_b.json"]


# --- faults: whose they are, and where --------------------------------------------------------


@pytest.mark.parametrize("code", ["EACCES", "EROFS", "ENOENT", "EIO", "ESTALE", "ETIMEDOUT"])
async def test_a_directory_in_which_nothing_can_be_made_is_the_whole_storage_s_failure(
    storage: FileStorage, spy: SpiedOs, code: str
) -> None:
    """So nobody tries the other accounts one by one; only one was tried."""  # promise 8
    await storage.commit({"a": b"1"})
    spy.calls.clear()
    spy.before["open"] = failing(getattr(errno, code), lambda _, flags, *__: flags & os.O_CREAT)
    with pytest.raises(OSError, match=re.escape(storage.directory)):
        await storage.commit({f"a{index}": b"2" for index in range(50)})
    assert spy.names("open") == ["open"]


async def test_on_a_full_disk_deletions_still_go(storage: FileStorage, spy: SpiedOs) -> None:
    await storage.commit({"a": b"1", "b": b"1"})
    spy.before["open"] = failing(errno.ENOSPC, lambda _, flags, *__: flags & os.O_CREAT)
    assert list(await storage.commit({"a": b"2", "b": None})) == ["a"]
    assert await storage.read("b") is None


@pytest.mark.parametrize("call", ["open", "write", "fdatasync", "close", "replace"])
async def test_the_failure_of_an_account_shows_its_path(
    storage: FileStorage, spy: SpiedOs, directory: Path, call: str
) -> None:
    await storage.commit({"warm-up": b""})
    count = iter(range(100))
    where = spy.after if call == "close" else spy.before
    where[call] = failing(errno.EIO, lambda *_: next(count) == 1)
    failures = await storage.commit({"a": b"1", "b": b"1"})
    assert [str(error) for error in failures.values()] == [
        f"[Errno 5] Input/output error: '{directory}/session-b.json'"
    ]


async def test_the_failure_of_a_read_shows_its_path(
    storage: FileStorage, spy: SpiedOs, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await storage.commit({"a": b"1", "b": b"2"})
    spy.before["read"] = failing(errno.EIO)
    for call in (storage.read("a"), storage.discard("a", b"1")):
        with pytest.raises(OSError, match=re.escape(str(directory))):
            await call
    assert [item async for item in storage.scan()] == []
    (line,) = lines(caplog)  # one for all
    assert "2 record(s)" in line
    assert f"{directory}/session-a.json" in line
    assert "\0" not in line


# --- cleaning up ------------------------------------------------------------------------------


async def test_one_left_over_that_cannot_be_removed_keeps_no_other_from_going(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promise 13
    directory.mkdir()
    for index in range(5):
        path = directory / f".qqbot-session-0123456789abcdef-{index}.tmp"
        path.touch()
        os.utime(path, (0, 0))
    spy.before["unlink"] = failing(errno.EPERM, lambda path: path.endswith("-2.tmp"))
    assert await storage.sweep(3600) == 4
    assert listing(directory) == [".qqbot-session-0123456789abcdef-2.tmp"]


async def test_a_judged_record_whose_private_copy_cannot_be_removed_is_removed_all_the_same(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    """What stays is a left-over."""  # promise 13
    await storage.commit({"a": b"expired"})
    spy.before["unlink"] = failing(errno.EACCES)
    assert await storage.discard("a", b"expired") is True
    assert await storage.read("a") is None
    spy.before.clear()
    assert await storage.sweep(-1.0) == 1


# --- the end of the process -------------------------------------------------------------------

AT_EXIT = """
import asyncio, atexit, sys
from qqbot_session import AsyncSessionStore, FileStorage, SessionState

loop = asyncio.new_event_loop()
store = AsyncSessionStore(FileStorage(sys.argv[1]), debounce=60)

async def main():
    for number in range(int(sys.argv[2])):
        state = SessionState(account_id=f"bot-{number}", session_id="s", last_seq=1)
        await store.save(state)
    if sys.argv[3] == "warm":
        await store.flush()
        for number in range(int(sys.argv[2])):
            await store.update_last_seq(f"bot-{number}", 5)

atexit.register(lambda: loop.run_until_complete(store.aclose()))
loop.run_until_complete(main())
"""


@pytest.mark.real_time
@pytest.mark.parametrize("number", [1, 40])
@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_closing_from_atexit_writes_although_no_thread_can_be_started(
    directory: Path, number: int, temperature: str
) -> None:  # promise 9
    arguments = [sys.executable, "-c", AT_EXIT, str(directory), str(number), temperature]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(path.read_bytes()) for path in directory.iterdir()]
    assert [record["lastSeq"] for record in records] == [5 if temperature == "warm" else 1] * number


async def test_two_first_uses_at_once_settle_on_one_place(
    tmp_path: Path, spy: SpiedOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's and a writer's, while the process changes its directory."""
    places = iter([tmp_path / "one", tmp_path / "two"])
    both = threading.Barrier(2, timeout=30)

    def getcwd() -> str:
        place = str(next(places))
        both.wait()
        return place

    spy.__dict__["getcwd"] = getcwd
    storage = FileStorage("sessions")
    await asyncio.gather(storage.read("a"), storage.commit({"a": b"1"}))
    assert await storage.read("a") == b"1"
    assert len(listing(tmp_path)) == 1
    await storage.aclose()


async def test_threads_are_used_while_they_can_be_had(storage: FileStorage, spy: SpiedOs) -> None:
    await storage.commit({"a": b"1"})
    assert threading.current_thread().name not in spy.threads
