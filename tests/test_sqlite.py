"""`SqliteStorage` where things go wrong: other programs, other processes, disks, and decay.

What it shares with every storage is in `test_storage_contract`.
"""

# ruff: noqa: ASYNC220, ASYNC222, ASYNC240  nothing runs on the loop meanwhile
from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, FileStorage, MemoryStorage, SessionState
from qqbot_session.cli.doctor import examine
from qqbot_session.storages import SqliteStorage, copy, database, foreign, storage_of
from qqbot_session.storages.base import NotRegularError
from qqbot_session.storages.sqlite import NotOurDatabaseError

SQLITE = "qqbot_session.storages.sqlite"
MANY: dict[str, bytes | None] = {f"account-{number}": b"x" * 300 for number in range(250)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path)
    yield storage
    await storage.aclose()


async def records(storage: SqliteStorage) -> dict[str, bytes]:
    return {key: data async for key, data in storage.scan()}


def asides(path: Path) -> list[str]:
    return [other.name for other in path.parent.glob("*.corrupt-*") if other.suffix[-3:].isdigit()]


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


# What a path may be


async def test_the_store_makes_one_from_a_string_and_closes_it(path: Path) -> None:
    async with AsyncSessionStore(f"sqlite:{path}") as store:
        await store.save(SessionState(account_id="a", session_id="s", last_seq=7))
    assert [other.name for other in path.parent.iterdir()] == ["sessions.db"]
    async with AsyncSessionStore(f"sqlite:{path}") as store:
        state = await store.load("a")
    assert state is not None
    assert state.last_seq == 7


def test_a_path_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-bot")
    assert SqliteStorage("~/sessions.db").path == "/home/of-the-bot/sessions.db"
    for bad in ("", "a\0b", ":memory:", "~nobody-has-this-name/x"):
        with pytest.raises(ValueError, match="path"):
            SqliteStorage(bad)
    for wrong in (b"x", 7, None):
        with pytest.raises(TypeError):
            SqliteStorage(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="durable"):
        SqliteStorage("x", durable=1)  # type: ignore[arg-type]
    for bad in ("sqlite:", "sqlite:///x.db", "sqlite::memory:", "mysql://x/path"):
        with pytest.raises(ValueError, match=r"sqlite|path"):
            storage_of(bad)


async def test_a_relative_path_is_resolved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = SqliteStorage("data/sessions.db")
    await storage.commit({"a": b"1"})
    monkeypatch.chdir("elsewhere")
    await storage.commit({"a": b"2"})
    assert await storage.read("a") == b"2"
    await storage.aclose()
    assert (tmp_path / "data" / "sessions.db").exists()
    assert not list(Path().iterdir())


async def test_what_is_made_is_its_owners_alone(tmp_path: Path) -> None:  # promise 15
    storage = SqliteStorage(tmp_path / "new" / "deep" / "sessions.db")
    await storage.commit({"a": b"a"})
    modes = {
        other.name: stat.S_IMODE(other.stat().st_mode) for other in (tmp_path / "new").rglob("*")
    }
    assert modes == {
        "deep": 0o700,
        "sessions.db": 0o600,
        "sessions.db-wal": 0o600,
        "sessions.db-shm": 0o600,
    }
    await storage.aclose()


async def test_reading_makes_nothing(storage: SqliteStorage, tmp_path: Path) -> None:
    assert await storage.read("a") is None
    assert await records(storage) == {}
    assert await storage.commit({"a": None}) == {}
    assert await storage.discard("a", b"") is False
    assert list(tmp_path.iterdir()) == []


# What is not ours


def another_programs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sessions (account_id TEXT PRIMARY KEY, record BLOB)")
        connection.execute("INSERT INTO sessions VALUES ('a', 'theirs')")
        connection.commit()


def another_programs_in_wal(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE t (x)")


FOREIGN = {
    "text": lambda path: path.write_text("not a database\n" * 100),
    "short": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "encrypted": lambda path: path.write_bytes(os.urandom(8192)),
    "another program's": another_programs,
    "another program's log": another_programs_in_wal,
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
async def test_what_is_not_ours_is_never_touched(make, storage, path, tmp_path) -> None:  # type: ignore[no-untyped-def]
    # promise 14
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(NotOurDatabaseError, match="sessions"):
            await storage.read("a")
        with pytest.raises(NotOurDatabaseError):
            await storage.commit({"a": b"a"})
        with pytest.raises(NotOurDatabaseError):
            await storage.discard("a", b"a")
    assert (path.read_bytes() if path.is_file() else None) == before
    assert list(tmp_path.iterdir()) == [path]


async def test_a_database_of_a_later_version_is_left_alone(
    storage: SqliteStorage, path: Path
) -> None:
    await storage.commit({"a": b"a"})
    await storage.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(NotOurDatabaseError, match="later version"):
        await storage.commit({"a": b"b"})
    assert path.read_bytes() == before


async def test_an_empty_file_becomes_a_database(storage: SqliteStorage, path: Path) -> None:
    path.touch()
    assert await storage.read("a") is None
    await storage.commit({"a": b"a"})
    assert await storage.read("a") == b"a"


# What decays


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(3 * 4096))


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\xff" * 12)


DAMAGE = {"truncated": truncated, "zeroed": zeroed, "header overwritten": overwritten}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_corrupt_database_is_set_aside_and_the_batch_written(
    damage, storage, path, caplog
) -> None:  # type: ignore[no-untyped-def]
    """The very batch that found it; the name of what was set aside is logged."""
    # promise 8
    await storage.commit(MANY)
    await storage.aclose()
    damage(path)
    with caplog.at_level(logging.ERROR, SQLITE):
        assert await storage.commit(dict.fromkeys(MANY, b"new")) == {}
    assert await records(storage) == dict.fromkeys(MANY, b"new")
    (line,) = [record.getMessage() for record in caplog.records]
    (aside,) = asides(path)
    assert aside in line
    assert str(path) in line


async def test_a_log_filter_that_raises_keeps_no_batch_from_a_new_database(
    storage: SqliteStorage, path: Path
) -> None:
    # promise 1
    def broken(record: logging.LogRecord) -> bool:
        raise KeyError(record.msg)

    await storage.commit(MANY)
    await storage.aclose()
    overwritten(path)
    log = logging.getLogger(SQLITE)
    log.addFilter(broken)
    try:
        assert await storage.commit(MANY) == {}
    finally:
        log.removeFilter(broken)
    assert len(asides(path)) == 1


def one_page(path: Path) -> None:
    """Damage a page in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4096 // 2 * 4096)
        file.write(random.Random(1).randbytes(64))


def resumable(number: int) -> SessionState:
    return SessionState(account_id=f"a{number}", session_id="s" * 36, last_seq=number, app_id="1")


async def make_400(path: Path) -> None:
    async with AsyncSessionStore(f"sqlite:{path}") as store:
        for number in range(400):
            await store.save(resumable(number))


def everything_in(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        other.name: (other.read_bytes(), other.stat().st_mtime_ns) for other in directory.iterdir()
    }


async def test_looking_at_a_damaged_database_changes_nothing_and_finds_what_can_be_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A listing reports the damage and goes on; each account is judged by its own page."""
    # promises 26, 27
    await make_400(path)
    one_page(path)
    before = everything_in(path.parent)
    async with AsyncSessionStore(f"sqlite:{path}") as store:
        listed = {state.account_id for state in await store.load_all()}
        loaded = {f"a{n}" for n in range(400) if await store.load(f"a{n}") is not None}
    assert 300 < len(listed) < 400
    assert listed == loaded
    assert everything_in(path.parent) == before
    assert "is damaged" in caplog.text


async def test_what_can_still_be_read_is_carried_over_when_a_write_finds_the_damage(
    storage: SqliteStorage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 27
    await make_400(path)
    one_page(path)
    assert await storage.acquire("a1", "token", 60.0)
    before = await records(storage)
    await storage.aclose()
    changes: dict[str, bytes | None] = {f"a{n}": b"new" for n in range(200)}
    assert await storage.commit(changes) == {}
    assert len(asides(path)) == 1
    assert await records(storage) == before | changes
    other = SqliteStorage(path)
    assert set(await other.commit({"a1": b"stolen"})) == {"a1"}, "its lease was carried over, too"
    await other.aclose()
    assert not list(path.parent.glob(".qqbot-session-*"))


async def test_reading_a_corrupt_database_moves_nothing(
    storage: SqliteStorage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await storage.commit(MANY)
    await storage.aclose()
    truncated(path)
    async with AsyncSessionStore(storage) as store:
        assert await store.load("account-0") is None
    assert "account-0" in caplog.text
    assert asides(path) == []


async def test_a_record_that_another_tool_broke_harms_no_other(
    storage: SqliteStorage, path: Path
) -> None:
    await storage.commit({"a": b"a", "b": b"b"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE sessions SET record = 'text' WHERE account_id = 'a'")
        connection.execute("INSERT INTO sessions VALUES (CAST(x'ff' AS TEXT), 7)")
    assert await storage.read("a") == b"text"
    assert await records(storage) == {"a": b"text", "b": b"b", "\ufffd": b"7"}


# What happens to the file under the bot


@pytest.mark.parametrize("name", ["sessions.db", "sessions.db-wal", "sessions.db*"])
async def test_what_is_deleted_under_the_bot_is_made_again(
    storage: SqliteStorage, path: Path, name: str
) -> None:
    """No commit reports success into a file that nobody finds."""
    # promise 8
    await storage.commit({"a": b"1"})
    assert await storage.read("a") == b"1"
    for other in path.parent.glob(name):
        other.unlink()
    for data in (b"2", b"3"):
        assert await storage.commit({"a": data, "b": data}) == {}
        again = SqliteStorage(path)
        assert await again.read("a") == await again.read("b") == data
        assert await storage.read("a") == data
        await again.aclose()


async def test_a_database_that_was_moved_or_put_in_place_is_noticed(
    storage: SqliteStorage, path: Path
) -> None:
    await storage.commit({"a": b"old"})
    assert await storage.read("a") == b"old"
    path.rename(path.with_name("moved.db"))
    assert await storage.read("a") is None
    other = SqliteStorage(path.with_name("other.db"))
    await other.commit({"a": b"other"})
    await other.aclose()
    moved = SqliteStorage(path.with_name("moved.db"))
    assert await moved.read("a") == b"old"
    await moved.aclose()
    path.with_name("other.db").rename(path)
    assert await storage.read("a") == b"other"
    assert await storage.commit({"b": b"b"}) == {}
    assert await records(storage) == {"a": b"other", "b": b"b"}


async def test_a_locked_database_is_a_failed_write_and_no_stall(
    storage: SqliteStorage, path: Path
) -> None:
    """Reading goes on; what was written while it was locked is written when it is not."""
    # promise 8
    await storage.commit({"a": b"1"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await storage.commit({"a": b"2"})
        assert await storage.read("a") == b"1"
        connection.execute("ROLLBACK")
    assert await storage.commit({"a": b"3"}) == {}
    assert await storage.read("a") == b"3"


async def test_a_failed_batch_is_rolled_back_whole(storage: SqliteStorage, path: Path) -> None:
    await storage.commit({"a": b"1"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        with pytest.raises(sqlite3.IntegrityError):
            await storage.commit({"a": None, "b": b"b"})
        connection.execute("DROP TRIGGER no")
    assert await records(storage) == {"a": b"1"}
    assert await storage.commit({"a": None, "b": b"b"}) == {}
    assert await records(storage) == {"b": b"b"}


async def test_a_listing_that_stands_still_holds_no_log_open(
    storage: SqliteStorage, path: Path
) -> None:
    await storage.commit(MANY | {f"more-{number}": b"x" for number in range(300)})
    listing = storage.scan()
    await anext(listing)
    for _ in range(60):
        await storage.commit(MANY)
    assert path.with_name("sessions.db-wal").stat().st_size < 6 << 20
    await listing.aclose()  # type: ignore[attr-defined]


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    try:
        run("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no mount here: {error.stderr!r}")
    yield place
    run("umount", "-l", place)


async def test_a_full_disk_fails_whole_batches_and_heals_by_itself(small_disk: Path) -> None:
    # promise 8
    storage = SqliteStorage(small_disk / "sessions.db")
    await storage.commit({"first": b"first"})
    filler = small_disk / "filler"
    written = []
    with filler.open("wb") as file:
        file.write(bytes(300 << 10))
    for number in range(40):
        try:
            await storage.commit({f"{number}-{half}": b"x" * 8000 for half in "ab"})
        except sqlite3.OperationalError:
            break
        written += [f"{number}-a", f"{number}-b"]
    else:
        pytest.fail("the disk never got full")
    assert set(await records(storage)) == {"first", *written}
    filler.unlink()
    assert await storage.commit({"last": b"last"}) == {}
    assert set(await records(storage)) == {"first", "last", *written}
    await storage.aclose()


async def test_a_read_only_disk_is_an_error_until_it_is_not(small_disk: Path) -> None:
    storage = SqliteStorage(small_disk / "sessions.db")
    await storage.commit({"a": b"a"})
    await storage.aclose()
    run("mount", "-o", "remount,ro", small_disk)
    for _ in range(2):
        with pytest.raises((sqlite3.OperationalError, OSError)):
            await storage.commit({"a": b"b"})
    run("mount", "-o", "remount,rw", small_disk)
    assert await storage.commit({"a": b"b"}) == {}
    assert await storage.read("a") == b"b"
    await storage.aclose()


# Processes

PROGRAM = """
import asyncio, sys
from qqbot_session.storages.sqlite import SqliteStorage

async def main(path, who):
    storage = SqliteStorage(path)
    for number in range({batches}):
        batch = {{f"{{who}}-{{i}}": b"%d" % number for i in range(50)}}
        for _ in range(3):
            if await storage.commit(batch): sys.exit("refused")
        print(number, flush=True)
    await storage.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.real_time
async def test_several_processes_begin_and_use_one_database(path: Path) -> None:
    """All at once, also in making it: no batch fails, and none is lost."""
    command = [sys.executable, "-c", PROGRAM.format(batches=10), str(path)]
    processes = [
        await asyncio.create_subprocess_exec(
            *command, name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for name in "abcd"
    ]
    answers = await asyncio.gather(*[process.communicate() for process in processes])
    assert [process.returncode for process in processes] == [0] * 4, answers
    storage = SqliteStorage(path)
    found = await records(storage)
    assert found == {f"{name}-{i}": b"9" for name in "abcd" for i in range(50)}
    await storage.aclose()
    assert [other.name for other in path.parent.iterdir()] == ["sessions.db"]


@pytest.mark.real_time
async def test_what_was_acknowledged_outlives_kill_9(path: Path) -> None:
    """Each batch is there whole or not at all."""  # promise 7
    for durable in (True, False):
        program = PROGRAM.format(batches=10_000).replace("(path)", f"(path, durable={durable})")
        for wait_for in (1, 5, 20):
            with subprocess.Popen(
                [sys.executable, "-c", program, str(path), "a"], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                said = next(int(line) for line in process.stdout if int(line) >= wait_for)
                process.send_signal(signal.SIGKILL)
                said = max([said, *map(int, process.stdout)])
            storage = SqliteStorage(path)
            (number,) = {int(data) for data in (await records(storage)).values()}
            assert number in (said, said + 1)
            await storage.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_writes_with_connections_of_its_own(
    storage: SqliteStorage, path: Path
) -> None:
    await storage.commit({"a": b"parent"})
    await storage.read("a")
    child = os.fork()
    if child == 0:
        status = 1
        try:

            async def in_the_child() -> bool:
                await storage.aclose()  # the parent's: nothing to do
                await storage.commit({"a": b"child", "b": b"child"})
                return await storage.read("a") == b"child"

            loop = asyncio.SelectorEventLoop()
            asyncio.events._set_running_loop(None)
            status = 0 if loop.run_until_complete(in_the_child()) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert await storage.read("a") == b"child"
    await storage.commit({"a": b"parent again"})
    assert await records(storage) == {"a": b"parent again", "b": b"child"}


@pytest.mark.real_time
def test_closing_from_atexit_writes_what_is_unsaved(path: Path) -> None:  # promise 9
    program = f"""
import asyncio, atexit
from qqbot_session.storages.sqlite import SqliteStorage
storage = SqliteStorage({str(path)!r})
async def last():
    await storage.commit({{"a": b"last"}})
    await storage.aclose()
loop = asyncio.new_event_loop()
loop.run_until_complete(storage.commit({{"a": b"first"}}))
atexit.register(lambda: loop.run_until_complete(last()))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    storage = SqliteStorage(path)
    assert asyncio.run(storage.read("a")) == b"last"
    asyncio.run(storage.aclose())


# Leases that the database knows and forgets


async def test_a_lease_of_an_earlier_boot_is_over(storage: SqliteStorage, path: Path) -> None:
    """The monotonic clock begins again; what was to end later than ever is over."""
    await storage.commit({"a": b"a"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO leases VALUES ('a', 'earlier', 1e9, 15.0)")
    assert await storage.commit({"a": b"b"}) == {}
    assert await storage.acquire("a", "now", 15.0) is True


PROGRAM_OF_A_CANDIDATE = """
import asyncio, sys
from qqbot_session.storages.sqlite import SqliteStorage
async def main(path):
    storage = SqliteStorage(path)
    await storage.read("a")
    await storage.commit({"opened": b""})
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(await storage.acquire("a", "candidate", 0.5), flush=True)
    except Exception as error:
        print(error)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.real_time
async def test_a_candidate_that_is_stopped_while_it_waits_takes_nothing_from_the_holder(
    storage: SqliteStorage, path: Path
) -> None:
    """It judges the lease by the time when it has the database, not when it asked for it."""
    # promise 28
    await storage.commit({"a": b"a"})
    command = [sys.executable, "-c", PROGRAM_OF_A_CANDIDATE, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as candidate:
        assert candidate.stdin is not None
        assert candidate.stdout is not None
        assert candidate.stdout.readline() == "ready\n"
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            print(file=candidate.stdin, flush=True)
            await asyncio.sleep(0.1)
            candidate.send_signal(signal.SIGSTOP)
            lock.execute("ROLLBACK")
        assert await storage.acquire("a", "holder", 2.0)
        for _ in range(3):
            await asyncio.sleep(0.8)
            assert await storage.renew({"a": "holder"}, 2.0) == {}
        candidate.send_signal(signal.SIGCONT)
        assert candidate.stdout.readline() != "True\n"
    assert await storage.commit({"a": b"mine"}) == {}


async def test_a_database_that_forgot_a_lease_gives_it_back_to_its_holder(
    storage: SqliteStorage, path: Path
) -> None:
    """A candidate that saw it held waits it out; nobody can have had it since."""  # promise 23
    assert await storage.acquire("a", "holder", 60.0)
    other = SqliteStorage(path)
    assert await other.acquire("a", "candidate", 60.0) is False
    for file in path.parent.glob("sessions.db*"):
        file.unlink()
    assert await other.acquire("a", "candidate", 60.0) is False
    assert set(await storage.commit({"a": b"not yet"})) == {"a"}
    assert await storage.renew({"a": "holder"}, 60.0) == {}
    assert await storage.commit({"a": b"mine"}) == {}
    assert await other.acquire("a", "candidate", 60.0) is False
    await storage.release("a", "holder")
    assert await other.acquire("a", "candidate", 60.0) is True
    await other.aclose()


# Crash points

COMMIT = """
import asyncio, sys
from qqbot_session.storages.sqlite import SqliteStorage

async def main(path):
    storage = SqliteStorage(path)
    batch = {f"account-{number}": b"new" * 100 for number in range(200)}
    assert await storage.commit(batch | {"gone": None}) == {}
    await storage.aclose()

asyncio.run(main(sys.argv[1]))
"""
NEW = {f"account-{number}": b"new" * 100 for number in range(200)}
OLD = dict.fromkeys(NEW, b"old" * 100) | {"gone": b"gone"}
CALLS = ("openat", "pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "fcntl")


def traced(path: Path, *options: str) -> tuple[int, str]:
    """Run the commit under strace, for what it does with the database and its log."""
    trace = path.with_name("trace")
    paths = [f"--trace-path={path}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]
    command = ["strace", "-f", "-o", str(trace), *paths, *options]
    result = subprocess.run(
        [*command, sys.executable, "-c", COMMIT, str(path)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return result.returncode, trace.read_text() if trace.exists() else ""


async def prepare(path: Path, *, fresh: bool) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    if not fresh:
        storage = SqliteStorage(path)
        await storage.commit(dict(OLD))
        await storage.aclose()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("fresh", [False, True], ids=["there already", "made by it"])
@pytest.mark.parametrize("how", ["signal=KILL", "error=EIO", "error=ENOSPC"])
async def test_any_system_call_may_be_the_last_or_fail(
    tmp_path: Path, fresh: bool, how: str
) -> None:
    """The whole batch is there, or all that was before; and the next one is written."""
    # promises 7, 8
    path = tmp_path / "place" / "sessions.db"
    await prepare(path, fresh=fresh)
    status, trace = traced(path, f"--trace={','.join(CALLS)}")
    if status != 0:
        pytest.skip("may not trace here")
    before: dict[str, bytes] = {} if fresh else OLD
    tried = 0
    for call in CALLS:
        for number in range(1, min(trace.count(f" {call}("), 40) + 1):
            await prepare(path, fresh=fresh)
            traced(path, f"--inject={call}:{how}:when={number}")
            tried += 1
            storage = SqliteStorage(path)
            assert await records(storage) in (before, NEW), (call, number)
            assert await storage.commit({**NEW, "gone": None}) == {}
            assert await records(storage) == NEW
            assert asides(path) == []
            await storage.aclose()
    assert tried > 8


# Where many meet

linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")


def locks_on(path: Path) -> int:
    """How many locks this process holds on the database itself."""
    inode, own = str(path.stat().st_ino), str(os.getpid())
    lines = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    return sum(line[4] == own and line[5].endswith(f":{inode}") for line in lines if len(line) > 6)


async def look_with_doctor(path: Path) -> None:
    storage = SqliteStorage(path)
    _ = [finding async for finding in examine(storage, max_age=None)]
    await storage.aclose()


async def look_through_a_link(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    storage = SqliteStorage(link)
    assert await storage.read("a") == b"a"
    await storage.aclose()


async def look_through_a_hard_link(path: Path) -> None:
    """SQLite would keep a second log for it: the second name is refused, in words."""
    link = path.with_name("hard.db")
    link.hardlink_to(path)
    storage = SqliteStorage(link)
    with pytest.raises(NotOurDatabaseError, match="second name"):
        await storage.read("a")
    await storage.aclose()
    link.unlink()


async def look_through_a_hard_link_elsewhere(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "hard.db").hardlink_to(path)
    storage = SqliteStorage(elsewhere / "hard.db")
    with pytest.raises(NotOurDatabaseError, match="second name"):
        await storage.commit({"c": b"c"})
    await storage.aclose()


async def take_it_for_a_record(path: Path) -> None:
    """A hard link that is named like a session is read by whoever looks into the directory."""
    link = path.with_name("session-a.json")
    link.hardlink_to(path)
    storage = FileStorage(path.parent)
    with pytest.raises(NotRegularError, match="in use"):
        await storage.read("a")
    assert [item async for item in storage.scan()] == []
    assert not await storage.discard("session-a.json", b"")
    assert await asyncio.to_thread(foreign.in_directory, str(path.parent), alone=True) == []
    await storage.aclose()


async def copy_from_it(path: Path) -> None:
    source = SqliteStorage(path)
    await copy(source, MemoryStorage())
    await source.aclose()


async def fork(path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    storage = SqliteStorage(path)
    await storage.read("a")
    await storage.aclose()


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "look",
    [
        look_with_doctor,
        look_through_a_link,
        look_through_a_hard_link,
        look_through_a_hard_link_elsewhere,
        take_it_for_a_record,
        copy_from_it,
        fork,
    ],
)
async def test_nothing_that_looks_drops_the_locks_of_this_process(
    look: Callable[[Path], Awaitable[None]], storage: SqliteStorage, path: Path
) -> None:
    """On POSIX any close of a file drops all locks of the process on it."""
    # promise 26
    await storage.commit({"a": b"a"})
    assert locks_on(path) > 0
    await look(path)
    assert await storage.commit({"b": b"b"}) == {}
    assert locks_on(path) > 0


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_holds_locks_of_its_own(storage: SqliteStorage, path: Path) -> None:
    """What SQLite copied into it says that it has them; then the parent would end its log."""
    # promise 25
    await storage.commit({"a": b"a"})
    child = os.fork()
    if child == 0:
        try:
            loop = asyncio.SelectorEventLoop()
            asyncio.events._set_running_loop(None)
            loop.run_until_complete(storage.commit({"b": b"b"}))
            os._exit(0 if locks_on(path) else 3)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_a_child_does_not_write_with_its_parents_lease(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 28
    monkeypatch.setattr(database, "IN_USE", Counter())  # the child's forgets the parent's for ever
    assert await storage.acquire("a", "parent", 60.0)
    pid = os.getpid()
    monkeypatch.setattr("qqbot_session.storages.threads.os.getpid", lambda: pid + 1)
    assert set(await storage.commit({"a": b"child"})) == {"a"}
    await storage.aclose()
    while database._inherited:
        database._inherited.pop().close()


REOPENING = PROGRAM.replace(
    "    for number in",
    """    for number in range({batches}):
        again = SqliteStorage(path)
        await again.read("x")
        await again.aclose()
        batch = {{f"{{who}}-{{i}}": b"%d" % number for i in range(50)}}
        if await storage.commit(batch): sys.exit("refused")
        if await again.read(f"{{who}}-7") != b"%d" % number: sys.exit("older")
        await again.aclose()
    for number in""",
)
LOOKER = """
import asyncio, sys
from qqbot_session.storages import SqliteStorage
async def main(path):
    while True:
        storage = SqliteStorage(path)
        _ = [item async for item in storage.scan()]
        await storage.read("a-0")
        await storage.aclose()
        print(".", flush=True)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.real_time
async def test_writers_lose_nothing_to_whoever_looks_again_and_again(path: Path) -> None:
    """Each reopens the database beside its own connection, as `list` in a bot would."""
    # promises 25, 26
    writer = REOPENING.format(batches=40)
    with subprocess.Popen([sys.executable, "-c", LOOKER, str(path)], stdout=-3) as looker:
        writers = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", writer, str(path), name, stdout=-3, stderr=subprocess.PIPE
            )
            for name in "ab"
        ]
        answers = await asyncio.gather(*[writer.communicate() for writer in writers])
        looker.kill()
    assert [writer.returncode for writer in writers] == [0, 0], answers
    assert asides(path) == []
    storage = SqliteStorage(path)
    assert set((await records(storage)).values()) == {b"39"}
    await storage.aclose()


# What looking meets


@pytest.fixture
async def crashed(path: Path) -> Path:
    """A database whose bot was killed: its newest records are in the log."""
    program = PROGRAM.format(batches=1).replace("await storage.aclose()", "import os; os._exit(0)")
    await asyncio.to_thread(run, sys.executable, "-c", program, path, "a")
    assert path.with_name("sessions.db-wal").stat().st_size > 0
    return path


@pytest.mark.real_time
async def test_looking_at_what_a_killed_bot_left_moves_none_of_it(crashed: Path) -> None:
    # promise 26
    before = everything_in(crashed.parent)
    del before["sessions.db-shm"]  # where SQLite notes who reads
    storage = SqliteStorage(crashed)
    assert len(await records(storage)) == 50
    assert await storage.read("a-1") == b"0"
    await storage.aclose()
    after = everything_in(crashed.parent)
    del after["sessions.db-shm"]
    assert after == before


async def test_looking_where_nobody_writes_leaves_nothing_beside(
    storage: SqliteStorage, path: Path
) -> None:
    """So another user who looks cannot keep the bot from its own log."""
    # promise 26
    await storage.commit({"a": b"a"})
    await storage.aclose()
    before = everything_in(path.parent)
    assert await storage.read("a") == b"a"
    assert everything_in(path.parent) == before
    other = SqliteStorage(path)
    await other.commit({"a": b"b"})
    assert await storage.read("a") == b"b"
    await other.aclose()
    await other.commit({"a": b"c"})
    await other.aclose()
    assert await storage.read("a") == b"c"


async def test_a_bot_that_reads_and_writes_in_turn_keeps_its_connections(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.commit({"a": b"a"})
    await storage.aclose()
    opened: list[object] = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kwargs: opened.append(args) or connect(*args, **kwargs)
    )
    counts = []
    for number in range(5):
        assert await storage.read("a") is not None
        assert await storage.commit({"a": b"%d" % number}) == {}
        counts.append(len(opened))
    assert counts[1:] == [counts[1]] * 4


async def test_one_bad_row_empties_no_listing(storage: SqliteStorage, path: Path) -> None:
    # promise 27
    await storage.commit({"a": b"a"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO sessions VALUES (x'61', 'its key is a blob')")
        connection.execute("INSERT INTO sessions VALUES (zeroblob(9), zeroblob(9))")
    await storage.commit({"z": b"z"})
    assert await records(storage) == {"a": b"a", "z": b"z"}
    async with AsyncSessionStore(storage) as store:
        assert await store.load_all() == []


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT"
VIEWS = {
    "sessions": f"{ENDLESS} 'a' AS account_id, x AS record FROM n WHERE x < 0",
    "leases": f"{ENDLESS} 'a' AS account_id, 't' AS token, x AS ends, 1 AS ttl FROM n WHERE x < 0",
}


@pytest.mark.parametrize("table", VIEWS)
async def test_a_view_in_a_tables_place_is_an_error_at_once(
    table: str, storage: SqliteStorage, path: Path
) -> None:
    # promise 27
    await storage.commit({"a": b"a"})
    await storage.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"CREATE VIEW {table} AS {VIEWS[table]}")
    for call in (storage.read("a"), storage.commit({"a": b"b"}), records(storage)):
        with pytest.raises(NotOurDatabaseError, match="view"):
            await call


async def test_a_statement_that_never_ends_is_ended(
    storage: SqliteStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger of somebody's; it fails the write."""
    # promise 27
    await storage.commit({"a": b"a"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER t AFTER UPDATE ON sessions WHEN (SELECT count(*) FROM"
            f" ({ENDLESS} x FROM n WHERE x < 0)) BEGIN SELECT 1; END"
        )
    with monkeypatch.context() as hurried:  # no other statement, on however busy a machine
        hurried.setattr("qqbot_session.storages.database._LONGEST", 0.2)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await storage.commit({"a": b"b"})
    assert await storage.read("a") == b"a"


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
async def test_a_pipe_beside_the_database_hangs_nothing(
    suffix: str, storage: SqliteStorage, path: Path
) -> None:
    # promises 14, 27
    await storage.commit({"a": b"a"})
    await storage.aclose()
    os.mkfifo(f"{path}{suffix}")
    for call in (storage.read("a"), storage.commit({"a": b"b"})):
        with pytest.raises(NotOurDatabaseError, match="no regular file"):
            await call


async def test_a_database_restored_from_a_dump_says_what_mends_it(
    storage: SqliteStorage, path: Path
) -> None:
    """Its application id is lost; the sentence holds the command that gives it back."""
    await storage.commit({"a": b"a"})
    with closing(sqlite3.connect(path)) as connection:
        dump = "\n".join(connection.iterdump())
    restored = path.with_name("restored.db")
    with closing(sqlite3.connect(restored)) as connection:
        connection.executescript(dump)
    other = SqliteStorage(restored)
    with pytest.raises(NotOurDatabaseError, match="application_id = 1364284243") as caught:
        await other.read("a")
    (mends,) = re.findall(r"PRAGMA application_id = \d+", str(caught.value))
    with closing(sqlite3.connect(restored)) as connection:
        connection.execute(mends)
    assert await other.read("a") == b"a"
    assert await other.commit({"a": b"b"}) == {}
    await other.aclose()


async def test_where_processes_share_no_memory_it_works_without_a_log(
    storage: SqliteStorage, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """With one warning; such are FUSE volumes with direct_io, Docker Desktop's, WSL's."""
    monkeypatch.setattr("qqbot_session.storages.database.shares_memory", lambda _: False)
    other = SqliteStorage(path)
    for data in (b"1", b"2"):
        assert await storage.commit({"a": data, "b": data}) == {}
        assert await other.commit({"b": b"other"}) == {}
        assert await storage.read("a") == await other.read("a") == data
        assert await records(other) == {"a": data, "b": b"other"}
        await storage.aclose()
    await other.aclose()
    assert [other.name for other in path.parent.iterdir()] == ["sessions.db"]
    assert caplog.text.count("without shared memory") == 2  # of two storages


@pytest.fixture
def without_shared_memory(tmp_path: Path) -> Iterator[Path]:
    """A FUSE volume on which no file can be mapped into several processes."""
    if not Path("/dev/fuse").exists() or not shutil.which("bindfs") or os.getuid() != 0:
        pytest.skip("needs bindfs, FUSE and root")
    place, real = tmp_path / "fuse", tmp_path / "real"
    place.mkdir()
    real.mkdir()
    try:
        run("bindfs", "-o", "direct_io", real, place)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no FUSE here: {error.stderr!r}")
    yield place
    run("umount", "-l", place)


async def test_a_database_that_comes_to_such_a_volume_goes_on_there(
    without_shared_memory: Path, tmp_path: Path
) -> None:
    made = SqliteStorage(tmp_path / "sessions.db")
    await made.commit({"a": b"a"})
    await made.aclose()
    shutil.copy(tmp_path / "sessions.db", without_shared_memory)
    for name in ("sessions.db", "new.db"):
        storage = SqliteStorage(without_shared_memory / name)
        assert await storage.read("a") == (b"a" if name == "sessions.db" else None)
        assert await storage.commit({"a": b"b"}) == {}
        assert await storage.read("a") == b"b"
        found = await storage.examine()
        assert found is not None
        assert (found.journal, found.damage, found.shares_memory) == ("delete", "", False)
        await storage.aclose()


# Owners and modes


@pytest.mark.parametrize("how", ["through a dangling link", "over an empty file"])
async def test_what_is_made_is_0600_whatever_was_there(how: str, tmp_path: Path) -> None:
    # promise 15
    path, real = tmp_path / "sessions.db", tmp_path / "sessions.db"
    if how == "over an empty file":
        path.touch()
        path.chmod(0o644)
    else:
        real = tmp_path / "elsewhere" / "real.db"
        path.symlink_to(real)
    storage = SqliteStorage(path)
    await storage.commit(MANY)
    assert await storage.read("account-1") == b"x" * 300
    modes = {other.name: stat.S_IMODE(other.stat().st_mode) for other in real.parent.glob("*db*")}
    assert modes == {real.name + suffix: 0o600 for suffix in ("", "-wal", "-shm")}
    await storage.aclose()
    truncated(real)
    await storage.commit(MANY)
    modes = {other.name: stat.S_IMODE(other.stat().st_mode) for other in real.parent.glob("*db*")}
    assert set(modes.values()) == {0o600}
    assert len(asides(real)) == 1
    await storage.aclose()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
async def test_whoever_else_may_write_there_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "open"
    place.mkdir()
    storage = SqliteStorage(place / "sessions.db")
    await storage.commit({"a": b"a"})
    assert caplog.records == []
    await storage.aclose()
    place.chmod(0o777)
    for _ in range(2):
        await storage.commit({"a": b"a"})
        await storage.aclose()
    (line,) = caplog.records
    assert f"{place} can be written by others (mode 777)" in line.getMessage()
    findings = [each async for each in examine(storage, max_age=None)]
    assert [each.level for each in findings if each.subject == "owner"] == ["problem"]
    await storage.aclose()
