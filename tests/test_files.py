"""`FileStorage`: the steps of a write, faults in the middle of them, and hostile directories."""

# ruff: noqa: ASYNC240, PTH104, PTH108, PTH115, PTH118, PTH119, PTH120
# These tests are about system calls, and look at the disk while nothing runs on the loop.
from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import WallClock
from crash import stand_in
from platforms import PLATFORMS, simulate

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import files
from qqbot_session.storages.names import file_name

pytestmark = pytest.mark.timeout(60)  # for what would hang on a FIFO
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX only")

LEFT_OVER = ".qqbot-session-0123456789abcdef-0.tmp"


class SpiedOs:
    """Stands for `os` inside `storages.files`: takes notes, and does what a test says.

    Attributes:
        calls: `(name, arguments)` of every system call, in order.
        before, after: per name, called with the arguments around the real call; may raise.
        each: called before and after every system call.
    """

    NAMES = frozenset(
        {
            *("open", "close", "read", "write", "fdatasync", "fsync", "posix_fadvise", "mkdir"),
            *("replace", "rename", "link", "unlink", "lstat", "fstat", "listdir"),
        }
    )

    def __init__(self, real: Any = os) -> None:
        self._real = real
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.threads: set[str] = set()
        self.before: dict[str, Callable[..., object]] = {}
        self.after: dict[str, Callable[..., object]] = {}
        self.each: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name not in self.NAMES:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args))
            self.threads.add(threading.current_thread().name)
            self.each()
            self.before.get(name, _nothing)(*args)
            result = real(*args, **kwargs)
            self.after.get(name, _nothing)(*args)
            self.each()
            return result

        return call

    def names(self, *only: str) -> list[str]:
        return [name for name, _ in self.calls if name in only]


def _nothing(*_: object) -> None:
    pass


def failing(code: int, when: Callable[..., bool] = lambda *_: True) -> Callable[..., None]:
    def fail(*args: Any) -> None:
        if when(*args):
            raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture(autouse=True)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The system that `FileStorage` finds itself on."""
    platform: str = getattr(request, "param", "linux")
    simulate(monkeypatch, platform)
    return platform


on_every_platform = pytest.mark.parametrize("platform", PLATFORMS, indirect=True)


@pytest.fixture
def spy(platform: str, monkeypatch: pytest.MonkeyPatch) -> SpiedOs:
    spied = SpiedOs(files.os)  # type: ignore[attr-defined]
    stand_in(monkeypatch, spied)
    return spied


@pytest.fixture
async def storage(directory: Path) -> Any:
    storage = FileStorage(directory)
    yield storage
    await storage.aclose()


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# --- the steps of a write --------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 20, 64])
async def test_a_durable_batch_goes_in_phases_and_syncs_the_directory_once(
    storage: FileStorage, spy: SpiedOs, number: int
) -> None:
    """All written, all written back, all synced, all renamed, then one sync for all names."""
    batch = {f"a{index}": b"x" * 1000 for index in range(number)}
    await storage.commit(batch)
    spy.calls.clear()
    assert await storage.commit(batch) == {}  # promise 7
    steps = spy.names("write", "posix_fadvise", "fdatasync", "replace", "fsync")
    in_order = ["write", "posix_fadvise", "fdatasync", "replace"]
    assert steps == [name for name in in_order for _ in range(number)] + ["fsync"]
    synced = [args[0] for name, args in spy.calls if name == "fdatasync"]
    assert len(set(synced)) == number


async def test_a_long_batch_syncs_every_file_before_its_rename_and_the_directory_once(
    storage: FileStorage, spy: SpiedOs
) -> None:
    """It is taken in pieces, so that it does not run out of descriptors."""
    synced: set[str] = set()
    opened: list[int] = []
    spy.before["fdatasync"] = lambda fd: synced.add(os.readlink(f"/proc/self/fd/{fd}"))
    spy.before["replace"] = lambda source, _: synced.remove(os.path.realpath(source))
    spy.each = lambda: opened.append(len(spy.names("write")) - len(spy.names("close")))
    await storage.commit({"warm-up": b""})
    spy.calls.clear()
    assert await storage.commit({f"a{index}": b"x" for index in range(300)}) == {}
    assert spy.names("fsync") == ["fsync"]
    assert spy.calls[-2][0] == "fsync"
    assert len(spy.names("fdatasync")) == 300
    assert max(opened) <= 128
    assert not synced


async def test_a_file_costs_four_system_calls_and_two_more_if_durable(
    directory: Path, spy: SpiedOs
) -> None:
    """Each is a moment in which another thread may win the interpreter lock. And one `fsync`."""
    records: dict[str, bytes | None] = {f"a{index}": b"x" for index in range(100)}
    four = ["close", "open", "replace", "write"]
    for durable, calls in ((False, four), (True, [*four, "fdatasync", "posix_fadvise"])):
        storage = FileStorage(directory, durable=durable)
        await storage.commit(records)
        spy.calls.clear()
        assert await storage.commit(records) == {}
        extra = ["open", "fsync", "close"] if durable else []
        assert sorted(name for name, _ in spy.calls) == sorted([*calls * 100, *extra])
        spy.calls.clear()
        assert await storage.read("a1") == b"x"
        assert [name for name, _ in spy.calls] == ["open", "fstat", "read", "close"]
        await storage.aclose()


async def test_the_syncs_of_a_long_batch_take_place_together_and_one_may_fail(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    """One emptying of the disk's cache can serve them all: they wait for each other here."""
    # promises 7, 8
    together = threading.Barrier(4, timeout=30)
    threads: set[int] = set()

    def meet(file: int) -> None:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            together.wait()
        if os.readlink(f"/proc/self/fd/{file}").endswith("-7.tmp"):
            raise OSError(errno.EIO, "decoy")

    spy.before["fdatasync"] = meet
    failures = await storage.commit({f"a{index}": b"x" for index in range(40)})
    assert list(failures) == ["a7"]
    assert len(threads) == 4
    assert spy.names("fdatasync", "replace") == ["fdatasync"] * 40 + ["replace"] * 39
    assert len(listing(directory)) == 39
    assert not [t for t in threading.enumerate() if "syncer" in t.name]


async def test_where_no_thread_can_be_started_every_file_is_synced_all_the_same(
    storage: FileStorage, spy: SpiedOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the interpreter ends, or a container has no process numbers left."""  # promise 7
    await storage.commit({"a": b"1"})

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    spy.calls.clear()
    assert await storage.commit({f"a{index}": b"x" for index in range(40)}) == {}
    assert spy.names("fdatasync", "replace") == ["fdatasync"] * 40 + ["replace"] * 40


@pytest.mark.parametrize(("limit", "at_once"), [(-1, 128), (10**6, 128), (256, 32), (4, 1)])
def test_a_batch_leaves_most_descriptors_to_the_bot(
    monkeypatch: pytest.MonkeyPatch, limit: int, at_once: int
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: limit, raising=False)
    assert files._files_at_once() == at_once


FEW_DESCRIPTORS = """
import asyncio, resource, sys
from qqbot_session import FileStorage

async def main():
    storage = FileStorage(sys.argv[1])
    await storage.commit({"a": b"1"})
    resource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))
    print(await storage.commit({f"a{index}": b"x" for index in range(300)}))
    await storage.aclose()

asyncio.run(main())
"""


@posix
@pytest.mark.real_time
async def test_a_batch_goes_to_the_disk_in_as_many_pieces_as_there_are_descriptors(
    directory: Path,
) -> None:
    """Fewer free ones than files in the batch fail nobody."""  # promise 8
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FEW_DESCRIPTORS, str(directory)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output.decode().strip() == "{}"
    assert len(listing(directory)) == 301


async def test_without_durable_nothing_is_synced(directory: Path, spy: SpiedOs) -> None:
    storage = FileStorage(directory / "deep" / "down", durable=False)
    await storage.commit({"a": b"1", "a.b": b"2"})
    assert await storage.commit({"a": None, "a.b": b"3"}) == {}
    assert spy.names("fdatasync", "fsync", "posix_fadvise") == []
    assert "replace" in spy.names("replace")
    await storage.aclose()


async def test_a_deletion_is_synced_too_and_so_are_directories_that_were_made(
    directory: Path, spy: SpiedOs
) -> None:
    """Every directory that got a new name in it."""  # promise 7
    synced: list[str] = []
    spy.before["fsync"] = lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    storage = FileStorage(directory / "deep" / "down")
    await storage.commit({"a": b"1"})
    down = os.path.realpath(storage.directory)
    deep, top = os.path.dirname(down), os.path.realpath(directory)
    assert synced == [os.path.dirname(top), top, deep, down]
    synced.clear()
    assert await storage.commit({"a": None}) == {}
    assert synced == [down]
    assert spy.names("unlink", "fsync")[-2:] == ["unlink", "fsync"]
    await storage.aclose()


async def test_at_every_step_the_record_is_the_old_or_the_new_complete_one(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promise 7
    old, new = b"old" * 1000, b"new" * 20_000
    paths = {name: directory / file_name(name) for name in ("a", "a.b", "c")}
    await storage.commit(dict.fromkeys(paths, old))
    seen: set[tuple[bytes | None, ...]] = set()
    spy.each = lambda: seen.add(
        tuple([p.read_bytes() if p.exists() else None for p in paths.values()])
    )
    assert await storage.commit({"a": new, "a.b": new, "c": None}) == {}
    assert seen == {(old, old, old), (new, old, old), (new, new, old), (new, new, None)}


@on_every_platform
async def test_a_short_write_is_continued(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = SpiedOs()
    spied.__dict__["write"] = lambda fd, data: os.write(fd, data[:7])
    stand_in(monkeypatch, spied)
    data = os.urandom(1000)
    assert await storage.commit({"a": data}) == {}
    assert await storage.read("a") == data


async def test_a_short_read_is_continued(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(70_000)
    await storage.commit({"a": data})
    spied = SpiedOs()
    spied.__dict__["read"] = lambda fd, length: os.read(fd, min(length, 1000))
    stand_in(monkeypatch, spied)
    assert await storage.read("a") == data[:65_537]


async def test_temporary_names_are_new_each_time_and_never_look_like_records(
    directory: Path, spy: SpiedOs
) -> None:
    """Made exclusively, in the same directory, and known to `sweep`."""
    storages = [FileStorage(directory, durable=False) for _ in range(2)]
    for _ in range(3):
        for storage in storages:
            await storage.commit({"a": b"1", "a.b": b"2"})
    made = [args for name, args in spy.calls if name == "open" and args[1] & os.O_CREAT]
    names = [os.path.basename(args[0]) for args in made]
    assert len(set(names)) == len(names) == 12
    for path, flags, permissions in made:
        assert os.path.dirname(path) == str(directory)
        assert flags & os.O_EXCL
        assert permissions == 0o600
        assert not re.match(r"session-.*\.json$", os.path.basename(path))
        (directory / os.path.basename(path)).write_bytes(b"")
        os.utime(path, (0, 0))
    assert await storages[0].sweep(3600) == 12
    for storage in storages:
        await storage.aclose()


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_directories_we_make_are_0700_and_files_0600(
    directory: Path, spy: SpiedOs, umask: int
) -> None:
    """Whatever the umask allows; temporary files too."""  # promise 15
    modes: list[int] = []
    spy.before["replace"] = lambda source, _: modes.append(mode(source))
    storage = FileStorage(directory / "b" / "c")
    before = os.umask(umask)
    try:
        await storage.commit({"a": b"1", "a.b": b"2"})
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    for path in (directory, directory / "b", directory / "b" / "c"):
        assert mode(path) == 0o700
    for path in (directory / "b" / "c").iterdir():
        assert mode(path) == 0o600
    await storage.aclose()


@posix
async def test_what_was_there_keeps_its_mode_and_a_rewritten_record_becomes_0600(
    storage: FileStorage, directory: Path
) -> None:  # promise 15
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    (directory / "session-a.json").write_bytes(b"theirs")
    (directory / "session-a.json").chmod(0o644)
    await storage.commit({"a": b"1"})
    assert (mode(directory), mode(directory / "session-a.json")) == (0o755, 0o600)


# --- threads ---------------------------------------------------------------------------------


async def test_a_batch_is_one_hop_whatever_its_length(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = []
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor
    monkeypatch.setattr(
        loop, "run_in_executor", lambda *args: hops.append(args[1]) or run(*args), raising=False
    )
    batch: dict[str, bytes | None] = {f"a.{index}": b"x" for index in range(300)}
    await storage.commit(batch)
    assert len(hops) == 1
    await storage.commit(dict.fromkeys(batch))
    await storage.read("a")
    await storage.discard("a", b"x")
    await storage.sweep(0)
    assert len(hops) == 5


async def test_everything_that_changes_the_directory_runs_on_one_thread_of_its_own(
    storage: FileStorage, spy: SpiedOs
) -> None:
    """And cold reads on another."""  # promise 9
    await asyncio.gather(*[storage.commit({f"a{index}": b"x"}) for index in range(20)])
    await storage.discard("a0", b"x")
    await storage.sweep(0)
    assert len(spy.threads) == 1
    writers, spy.threads = spy.threads, set()
    await asyncio.gather(*[storage.read(f"a{index}") for index in range(20)])
    assert len([data async for _, data in storage.scan()]) == 19
    assert len(spy.threads) == 1
    assert not spy.threads & writers
    assert threading.current_thread().name not in spy.threads | writers


async def test_a_busy_default_executor_delays_nothing(storage: FileStorage) -> None:
    jam = threading.Event()
    executor = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    executor.submit(jam.wait)
    try:
        assert await storage.commit({"a": b"1"}) == {}
        assert await storage.read("a") == b"1"
        assert [data async for _, data in storage.scan()] == [b"1"]
        assert await storage.discard("a", b"1")
    finally:
        jam.set()


async def test_a_cold_read_does_not_wait_for_a_write(storage: FileStorage, spy: SpiedOs) -> None:
    await storage.commit({"a": b"old"})
    gate, reached = threading.Event(), threading.Event()
    spy.before["replace"] = lambda *_: reached.set() or gate.wait()
    write = asyncio.ensure_future(storage.commit({"a": b"new"}))
    try:
        while not reached.is_set():
            await storage.read("a")
        assert await storage.read("a") == b"old"
        assert not write.done()
    finally:
        gate.set()
    assert await write == {}
    assert await storage.read("a") == b"new"


async def test_commits_keep_their_order_across_a_close(storage: FileStorage, spy: SpiedOs) -> None:
    """Used again after `aclose`, the storage does not overtake what is still under way."""
    gate, reached = threading.Event(), threading.Event()
    spy.before["replace"] = lambda *_: reached.set() or (gate.wait() if not gate.is_set() else None)
    first = asyncio.ensure_future(storage.commit({"a": b"first"}))
    while not reached.is_set():
        await storage.read("a")
    await storage.aclose()
    reached.clear()
    second = asyncio.ensure_future(storage.commit({"a": b"second"}))
    for _ in range(50):
        await storage.read("a")
    overtaking = reached.is_set()
    gate.set()
    await asyncio.gather(first, second)
    assert not overtaking


async def test_the_threads_end_with_aclose(directory: Path) -> None:
    storage = FileStorage(directory)
    await storage.commit({"a": b"1"})
    await storage.read("a")
    executors = list(storage._threads._executors.values())
    assert len(executors) >= 2
    await storage.aclose()
    for executor in executors:
        executor.shutdown(wait=True)
    assert not any(thread.is_alive() for e in executors for thread in e._threads)


# --- faults ----------------------------------------------------------------------------------


async def test_a_disk_that_is_full_for_one_account_fails_only_that_one(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promise 8
    batch = {name: f"{name} 1".encode() for name in ("a", "b", "c", "d")}
    await storage.commit(batch)
    spy.before["write"] = failing(errno.ENOSPC, lambda _, data: bytes(data).startswith(b"b"))
    failures = await storage.commit({name: f"{name} 2".encode() for name in batch})
    assert {name: error.errno for name, error in failures.items()} == {"b": errno.ENOSPC}  # type: ignore[attr-defined]
    found = [await storage.read(name) for name in batch]
    assert found == [b"a 2", b"b 1", b"c 2", b"d 2"]
    assert len(listing(directory)) == 4


async def test_an_error_of_a_full_disk_keeps_no_record_in_memory(
    storage: FileStorage, spy: SpiedOs
) -> None:
    """A store keeps the latest error of each account, and a frame in it holds a whole batch."""
    spy.before["write"] = failing(errno.ENOSPC)
    failures = await storage.commit(dict.fromkeys("abc", b"record"))
    assert [error.__traceback__ for error in failures.values()] == [None] * 3


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("open", errno.EACCES),
        ("write", errno.EIO),
        ("fdatasync", errno.EIO),
        ("close", errno.EIO),
        ("replace", errno.EPERM),
    ],
)
async def test_a_step_that_fails_for_one_file_names_its_account_and_leaves_nothing(
    storage: FileStorage, directory: Path, spy: SpiedOs, call: str, code: int
) -> None:
    """The second of three, new to the directory: no record, no temporary file."""  # promise 8
    await storage.commit({"old": b"old"})
    count = iter(range(1000))
    where = spy.after if call == "close" else spy.before  # the descriptor is gone either way
    where[call] = failing(code, lambda *_: next(count) == 1)
    failures = await storage.commit({"a": b"a", "b": b"b", "c": b"c", "old": None})
    assert {name: error.errno for name, error in failures.items()} == {"b": code}  # type: ignore[attr-defined]
    assert listing(directory) == ["session-a.json", "session-c.json"]


async def test_a_directory_that_cannot_be_synced_fails_the_whole_batch(
    storage: FileStorage, spy: SpiedOs
) -> None:
    """Nobody knows which of the names are on the disk."""  # promise 8
    await storage.commit({"a": b"a", "gone": b"x"})
    spy.before["fsync"] = failing(errno.EIO)
    with pytest.raises(OSError, match=re.escape(f": '{storage.directory}'")):
        await storage.commit({"a": b"new", "b": b"b", "gone": None})
    del spy.before["fsync"]
    assert await storage.commit({"a": b"new", "b": b"b", "gone": None}) == {}


async def test_a_deletion_that_fails_is_named(storage: FileStorage, spy: SpiedOs) -> None:
    """So it stays pending and is tried again."""  # promise 8
    await storage.commit({"a": b"a", "b": b"b"})
    spy.before["unlink"] = failing(errno.EACCES, lambda path: path.endswith("session-a.json"))
    failures = await storage.commit({"a": None, "b": None})
    assert list(failures) == ["a"]
    assert [await storage.read(name) for name in "ab"] == [b"a", None]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
async def test_whichever_call_fails_a_record_stays_whole_and_the_next_commit_succeeds(
    storage: FileStorage, directory: Path, spy: SpiedOs, code: int
) -> None:
    """Each system call of an overwrite with a deletion, one after the other."""  # promises 7, 8
    await storage.commit({"a": b"old", "a.b": b"old", "c": b"old"})
    spy.calls.clear()
    await storage.commit({"a": b"old", "a.b": b"old", "c": None})
    total = len(spy.calls)
    assert total > 15
    for turn in range(total):
        await storage.commit({"a": b"old", "a.b": b"old", "c": b"old"})
        count = iter(range(1000))
        hook = failing(code, lambda *_, turn=turn, count=count: next(count) == turn)
        spy.before = dict.fromkeys(SpiedOs.NAMES - {"close"}, hook)
        spy.after = {"close": hook}
        try:
            failures = await storage.commit({"a": b"new", "a.b": b"new", "c": None})
        except OSError:
            failures = dict.fromkeys(("a", "a.b", "c"), OSError())
        spy.before, spy.after = {}, {}
        found = {name: await storage.read(name) for name in ("a", "a.b", "c")}
        for name, wanted in (("a", b"new"), ("a.b", b"new"), ("c", None)):
            assert found[name] in (b"old", wanted)
            assert name in failures or found[name] == wanted, (turn, name)
        assert await storage.commit({"a": b"new", "a.b": b"new", "c": None}) == {}
        left = [name for name in listing(directory) if name.endswith(".tmp")]
        assert left == []


async def test_a_directory_that_vanishes_is_made_again(
    storage: FileStorage, directory: Path
) -> None:  # promise 8
    await storage.commit({"a": b"1"})
    (directory / "session-a.json").unlink()
    directory.rmdir()
    assert await storage.read("a") is None
    assert await storage.commit({"a": None}) == {}
    assert not directory.exists()
    assert await storage.commit({"a": b"2"}) == {}
    assert await storage.read("a") == b"2"


async def test_a_file_in_the_directory_s_place_is_an_error_and_not_an_absence(
    storage: FileStorage, directory: Path
) -> None:
    directory.write_bytes(b"decoy")
    for function, arguments in (
        (storage.read, ("a",)),
        (storage.discard, ("a", b"decoy")),
        (storage.sweep, (0.0,)),
        (storage.commit, ({"a": b"1"},)),
        (storage.commit, ({"a": None},)),
    ):
        with pytest.raises(NotADirectoryError):
            await function(*arguments)  # type: ignore[operator]
    assert directory.read_bytes() == b"decoy"


async def test_looking_for_a_directory_to_begin_with_ends_at_the_root(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows the drive may be missing: no ancestor is a directory, the root its own parent."""
    looks = iter(range(1000))

    def is_directory(_: str) -> bool:
        assert next(looks, None) is not None, "never ends"
        return False

    monkeypatch.setattr(os.path, "isdir", is_directory)
    assert await storage.commit({"a": b"1"}) == {}


@pytest.mark.parametrize("deleted", [False, True])
async def test_the_directory_is_synced_between_the_two_names_of_one_account(
    storage: FileStorage, directory: Path, spy: SpiedOs, deleted: bool
) -> None:
    """A crash of the machine may undo un-synced changes of names in any order: ours must be on
    the disk before the original's goes, and the original's gone before ours goes."""  # promise 7
    record = encode(SessionState(account_id="a.b"))
    await storage.commit({"a.b": record})
    (directory / "session-a_b.json").write_bytes(record)
    spy.calls.clear()
    assert await storage.commit({"a.b": None if deleted else record}) == {}
    steps = spy.names("replace", "unlink", "fsync")
    first = "unlink" if deleted else "replace"
    assert steps == [first, "fsync", "unlink", "fsync"]


async def test_a_record_that_moves_while_it_is_read_is_not_taken_for_absent(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    """Another process takes the original's record over between our two looks."""  # promise 7
    record = encode(SessionState(account_id="a.b", session_id="s", last_seq=1))
    directory.mkdir()
    original = directory / "session-a_b.json"
    original.write_bytes(record)

    def take_over(path: str, *_: object) -> None:
        if path.endswith("session-a_b.json") and original.exists():
            (directory / file_name("a.b")).write_bytes(record)
            original.unlink()

    spy.before["open"] = take_over
    assert await storage.read("a.b") == record


# --- discard ---------------------------------------------------------------------------------


def renew(path: Path, data: bytes) -> None:
    """Put a newer record in place, as another process would."""
    newer = path.with_name("newer")
    newer.write_bytes(data)
    newer.replace(path)


@on_every_platform
@pytest.mark.parametrize("hard_links", [True, False])
async def test_a_record_renewed_in_between_is_put_back(
    storage: FileStorage, directory: Path, spy: SpiedOs, hard_links: bool
) -> None:  # promise 13
    await storage.commit({"a": b"expired"})
    path = directory / "session-a.json"
    spy.before["rename"] = lambda *_: renew(path, b"renewed")
    if not hard_links:
        spy.before["link"] = failing(errno.EPERM)
    assert await storage.discard("a", b"expired") is False
    assert listing(directory) == ["session-a.json"]
    assert path.read_bytes() == b"renewed"


async def test_what_is_put_back_is_on_the_disk_before_its_private_name_goes(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promises 7, 13
    await storage.commit({"a": b"expired"})
    spy.before["rename"] = lambda *_: renew(directory / "session-a.json", b"renewed")
    spy.calls.clear()
    assert await storage.discard("a", b"expired") is False
    assert spy.names("rename", "link", "fsync", "unlink") == ["rename", "link", "fsync", "unlink"]


@on_every_platform
@pytest.mark.parametrize("hard_links", [True, False])
async def test_putting_back_never_overwrites_a_newer_record(
    storage: FileStorage, directory: Path, spy: SpiedOs, hard_links: bool
) -> None:  # promise 13
    await storage.commit({"a": b"expired"})
    path = directory / "session-a.json"
    spy.before["rename"] = lambda *_: renew(path, b"renewed")
    spy.after["rename"] = lambda *_: renew(path, b"newest")
    if not hard_links:
        spy.before["link"] = failing(errno.EPERM)
    assert await storage.discard("a", b"expired") is False
    assert listing(directory) == ["session-a.json"]
    assert path.read_bytes() == b"newest"


async def test_a_record_written_after_the_rename_is_not_the_one_discarded(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:  # promise 13
    await storage.commit({"a": b"expired"})
    path = directory / "session-a.json"
    spy.after["rename"] = lambda *_: renew(path, b"newest")
    assert await storage.discard("a", b"expired") is True
    assert listing(directory) == ["session-a.json"]
    assert path.read_bytes() == b"newest"


@on_every_platform
async def test_a_record_gone_in_between_is_no_error(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    await storage.commit({"a": b"expired"})
    spy.before["rename"] = lambda path, _: os.unlink(path)
    assert await storage.discard("a", b"expired") is False
    assert listing(directory) == []


async def test_a_record_that_cannot_be_compared_is_put_back(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    """What cannot be read is never removed."""  # promise 13
    await storage.commit({"a": b"expired"})
    spy.before["open"] = failing(errno.EIO, lambda path, *_: path.endswith(".tmp"))
    assert await storage.discard("a", b"expired") is False
    assert listing(directory) == ["session-a.json"]
    assert (directory / "session-a.json").read_bytes() == b"expired"


@on_every_platform
@posix
@pytest.mark.parametrize("kind", ["link", "directory"])
async def test_what_takes_the_record_s_place_in_between_is_put_back_as_it_is(
    storage: FileStorage, directory: Path, spy: SpiedOs, tmp_path: Path, kind: str
) -> None:  # promises 13, 14
    await storage.commit({"a": b"expired"})
    decoy = tmp_path / "decoy"
    decoy.write_bytes(b"expired")
    path = directory / "session-a.json"

    def swap(*_: object) -> None:
        path.unlink()
        if kind == "link":
            path.symlink_to(decoy)
        else:
            path.mkdir()

    spy.before["rename"] = swap
    assert await storage.discard("a", b"expired") is False
    assert path.is_symlink() is (kind == "link")
    assert path.is_dir() is (kind == "directory")
    assert listing(directory) == ["session-a.json"]
    assert (decoy.read_bytes(), decoy.stat().st_nlink) == (b"expired", 1)


# --- hostile directories ---------------------------------------------------------------------

RECORD = encode(SessionState(account_id="a", session_id="s", last_seq=1, saved_at=1_700_000_000))


def _fifo(path: Path, decoy: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, decoy: Path) -> None:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def _full_directory(path: Path, decoy: Path) -> None:
    path.mkdir()
    (path / "session-a.json").write_bytes(RECORD)


HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "link to a record": lambda path, decoy: path.symlink_to(decoy),
    "link to nothing": lambda path, decoy: path.symlink_to(decoy.with_name("missing")),
    "link to itself": lambda path, decoy: path.symlink_to(path),
    "link to a directory": lambda path, decoy: path.symlink_to(decoy.parent),
    "link to a device": lambda path, decoy: path.symlink_to("/dev/null"),
    "fifo": _fifo,
    "socket": _socket,
    "directory": lambda path, decoy: path.mkdir(),
    "directory with a record": _full_directory,
}


def snapshot(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    return (path.name, *status[:8], status.st_mtime_ns)


@pytest.fixture
def decoy(tmp_path: Path) -> Iterator[Path]:
    """A tempting record outside the directory, which nobody may read, change or remove."""
    outside = tmp_path / "outside"
    outside.mkdir()
    path = outside / "session-a.json"
    path.write_bytes(RECORD)
    os.utime(path, (1_000, 2_000))  # a read would move the first of the two
    before = snapshot(path)
    yield path
    assert snapshot(path) == before
    assert listing(outside) == ["session-a.json"]


@pytest.fixture(params=HOSTILE)
def entry(request: pytest.FixtureRequest, directory: Path, decoy: Path) -> Path:
    """Something that is no file in the place of account a's record."""
    directory.mkdir()
    path = directory / "session-a.json"
    HOSTILE[request.param](path, decoy)
    return path


@on_every_platform
@posix
async def test_what_is_no_file_is_an_error_to_read_and_is_never_removed(
    storage: FileStorage, entry: Path
) -> None:
    """No read follows or blocks; scanning skips it, discarding and sweeping leave it."""
    before = snapshot(entry)
    with pytest.raises(OSError, match=r"regular|link"):  # promise 14
        await storage.read("a")
    assert [item async for item in storage.scan()] == []
    for key in ("a", "\0session-a.json"):
        for expected in (RECORD, b""):
            with pytest.raises(OSError, match=r"regular|link"):
                await storage.discard(key, expected)  # promise 13
    assert await storage.sweep(-1e9) == 0
    assert snapshot(entry) == before


@on_every_platform
@posix
async def test_the_store_takes_what_is_no_file_for_no_session_with_one_warning(
    entry: Path, clock: WallClock, caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(entry)
    async with AsyncSessionStore(entry.parent, clock=clock) as store:
        assert await store.load("a") is None  # promise 14
        assert len(caplog.records) == 1
        assert await store.load_all() == []
        clock.now += 1e6
        assert await store.cleanup() == 0  # promise 13
    assert snapshot(entry) == before


@on_every_platform
@posix
async def test_writing_and_deleting_where_something_else_stands_touches_only_the_name(
    storage: FileStorage, entry: Path
) -> None:
    """A link is replaced and not followed; a directory is an error, and stays."""  # promise 14
    is_directory = entry.is_dir() and not entry.is_symlink()
    failures = await storage.commit({"a": b"new", "b": b"b"})
    assert list(failures) == (["a"] if is_directory else [])
    assert await storage.read("b") == b"b"
    assert list(await storage.commit({"a": None})) == list(failures)
    assert entry.is_dir() is is_directory
    assert not [name for name in listing(entry.parent) if name.endswith(".tmp")]


@posix
@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_things_under_other_names_disturb_nobody(
    storage: FileStorage, directory: Path, decoy: Path, kind: str
) -> None:
    """As the original's record of `a.b`, and as left-overs."""  # promise 14
    directory.mkdir()
    paths = [directory / "session-a_b.json", directory / LEFT_OVER]
    for path in paths:
        HOSTILE[kind](path, decoy)
    before = [snapshot(path) for path in paths]
    assert await storage.read("a.b") is None
    assert await storage.commit({"a.b": b"ours", "c": b"c"}) == {}
    assert await storage.read("a.b") == b"ours"
    assert sorted([data async for _, data in storage.scan()]) == [b"c", b"ours"]
    assert await storage.discard("a.b", b"ours")
    assert await storage.commit({"a.b": None}) == {}
    assert await storage.sweep(-1e9) == 0
    assert [snapshot(path)[:2] for path in paths] == [taken[:2] for taken in before]


@posix
@pytest.mark.parametrize("kind", ["link to a record", "fifo"])
async def test_a_file_swapped_just_before_it_is_opened_is_neither_followed_nor_waited_for(
    storage: FileStorage, directory: Path, decoy: Path, spy: SpiedOs, kind: str
) -> None:  # promise 14
    await storage.commit({"a": RECORD})
    path = directory / "session-a.json"

    def swap(*_: object) -> None:
        path.unlink()
        HOSTILE[kind](path, decoy)

    spy.before["open"] = swap
    with pytest.raises(OSError, match=r"regular|link"):
        await storage.read("a")


@posix
async def test_a_temporary_name_that_somebody_has_taken_is_not_written_through(
    storage: FileStorage, directory: Path, decoy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # promise 14
    directory.mkdir()
    monkeypatch.setattr(files, "private_names", lambda prefix: prefix + LEFT_OVER[:-5])
    (directory / LEFT_OVER).symlink_to(decoy)
    with pytest.raises(FileExistsError):
        await storage.commit({"a": b"new"})


async def test_a_hundred_megabytes_are_corrupt_and_never_were_a_record(
    storage: FileStorage, directory: Path, spy: SpiedOs, clock: WallClock
) -> None:
    """Only the bound and one byte are ever read."""  # promises 13, 14
    directory.mkdir()
    with (directory / "session-a.json").open("wb") as file:
        file.truncate(100_000_000)
    async with AsyncSessionStore(storage, clock=clock) as store:
        assert await store.load("a") is None
        assert max(args[1] for name, args in spy.calls if name == "read") == 65_537
        assert await store.cleanup() == 0
    assert listing(directory) == ["session-a.json"]


@posix
async def test_names_that_are_not_utf8_are_nobody_s_records(
    storage: FileStorage, directory: Path, clock: WallClock
) -> None:
    directory.mkdir()
    path = os.path.join(os.fsencode(directory), b"session-\xff\n.json")
    Path(os.fsdecode(path)).write_bytes(b"garbage")
    async with AsyncSessionStore(storage, clock=clock) as store:
        assert await store.load_all() == []
        assert await store.cleanup() == 0
    assert Path(os.fsdecode(path)).exists()


async def test_only_files_named_like_records_are_scanned_or_removed(
    storage: FileStorage, directory: Path, clock: WallClock
) -> None:
    """Other people's files in the directory are none of our business."""  # promise 13
    torn = b'{\n  "sessionId": "torn'
    await storage.commit({"a": torn, "b": b"garbage"})
    others = ["README", "session-.txt", "xsession-a.json", "session-a.json.bak", "session-a.json~"]
    others += [
        ".session-a.json",
        ".qqbot-session-xyz-0.tmp",
        "a.tmp",
        LEFT_OVER + "x",
        "x" + LEFT_OVER,
    ]
    for name in others:
        (directory / name).write_bytes(torn)
        os.utime(directory / name, (0, 0))
    assert sorted([data async for _, data in storage.scan()]) == [b"garbage", torn]
    async with AsyncSessionStore(storage, clock=clock) as store:
        assert await store.cleanup() == 1
    assert listing(directory) == sorted([*others, "session-b.json"]), "which never was a record"


async def test_sweeping_takes_only_left_overs_that_are_old_enough(
    storage: FileStorage, directory: Path
) -> None:
    """A younger one may belong to a write that is under way."""  # promise 13
    directory.mkdir()
    now = time.time()
    for index, age in enumerate((0, 3500, 3700, 1e6, -1e6)):
        path = directory / f".qqbot-session-0123456789abcdef-{index}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (now - age, now - age))
    assert await storage.sweep(3600) == 2
    assert [name[-5] for name in listing(directory)] == ["0", "1", "4"]


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"directory": 5}, TypeError),
        ({"directory": None}, TypeError),
        ({"directory": b"sessions"}, TypeError),
        ({"directory": ""}, ValueError),
        ({"directory": "a\0b"}, ValueError),
        ({"directory": "a", "durable": 1}, TypeError),
        ({"directory": "a", "durable": None}, TypeError),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(
    arguments: dict[str, Any], error: type[Exception]
) -> None:  # promise 10
    with pytest.raises(error):
        FileStorage(**arguments)


def test_making_one_touches_nothing_and_its_repr_says_what_it_is(directory: Path) -> None:
    storage = FileStorage(directory)
    assert repr(storage) == f"<FileStorage directory={str(directory)!r} durable=True>"
    assert not directory.exists()
    assert FileStorage(str(directory), durable=False).durable is False


async def test_a_relative_directory_is_where_the_process_was_at_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that changes its directory later does not leave its records behind."""
    for name in ("made", "first", "later"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "made")
    storage = FileStorage("some/where")
    assert repr(storage) == "<FileStorage directory='some/where' durable=True>"
    monkeypatch.chdir(tmp_path / "first")
    assert await storage.read("a") is None
    monkeypatch.chdir(tmp_path / "later")
    assert await storage.commit({"a": b"1"}) == {}
    assert await storage.read("a") == b"1"
    assert [path.name async for path in _walk(tmp_path)] == ["session-a.json"]
    assert (tmp_path / "first" / "some" / "where" / "session-a.json").exists()
    assert storage.directory == str(tmp_path / "first" / "some" / "where")
    await storage.aclose()


async def _walk(top: Path) -> Any:
    for path in top.rglob("*.json"):
        yield path


async def test_a_directory_that_is_gone_beneath_a_relative_one_is_an_error_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    storage = FileStorage("sessions")
    with pytest.raises(FileNotFoundError, match="'sessions'"):
        await storage.read("a")
    with pytest.raises(FileNotFoundError, match="'sessions'"):
        await storage.commit({"a": b"1"})
    await storage.aclose()


@posix
async def test_a_tilde_at_the_start_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/bot/sessions", Path("~/bot/sessions")):
        storage = FileStorage(given)
        assert storage.directory == f"{tmp_path}/bot/sessions"
    assert await storage.commit({"a": b"1"}) == {}
    assert (tmp_path / "bot" / "sessions" / "session-a.json").exists()
    await storage.aclose()
    assert FileStorage("~").directory == str(tmp_path)
    assert FileStorage("./~").directory == "./~"
    with pytest.raises(ValueError, match="'~nobody-we-know/sessions'"):
        FileStorage("~nobody-we-know/sessions")
    async with AsyncSessionStore("~/elsewhere") as store:
        await store.save(SessionState(account_id="a"))
    assert (tmp_path / "elsewhere" / "session-a.json").exists()


# --- FUSE ---------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from qqbot_session import FileStorage
async def main():
    storage = FileStorage(sys.argv[1], durable=False)
    while True:
        await storage.commit({"bot": b"x" * 300})
        await asyncio.sleep(0.005)
asyncio.run(main())
"""


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    place, real = tmp_path / "fuse", tmp_path / "real"
    place.mkdir()
    real.mkdir()
    if not shutil.which("bindfs") or os.getuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs bindfs, FUSE and root")
    if subprocess.run(["bindfs", real, place], check=False, capture_output=True).returncode:
        pytest.skip("no FUSE here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.real_time
async def test_on_fuse_a_record_that_is_being_replaced_is_never_absent(fuse: Path) -> None:
    """Such a volume does not find it for a moment; absent is what several looks did not find."""
    # promise 25
    storage = FileStorage(fuse / "records")
    await storage.commit({"bot": b"x" * 300})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(fuse / "records")
    )
    try:
        for _ in range(400):
            assert await storage.read("bot") == b"x" * 300
            assert [data async for _, data in storage.scan()] == [b"x" * 300]
    finally:
        process.kill()
        await process.wait()
    assert await storage.read("nobody") is None


async def test_what_is_absent_once_is_looked_for_again(
    storage: FileStorage, directory: Path, spy: SpiedOs
) -> None:
    await storage.commit({"bot": b"x", "other": b"y"})
    hidden = {"session-bot.json", "session-other.json"}

    def hide(path: str, *_: object) -> None:
        if (name := os.path.basename(path)) in hidden:
            hidden.discard(name)
            raise FileNotFoundError(errno.ENOENT, "is just being replaced", path)

    spy.before["open"] = hide
    assert await storage.read("bot") == b"x"
    assert sorted([data async for _, data in storage.scan()]) == [b"x", b"y"]
    assert not hidden
