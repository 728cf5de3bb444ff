"""Promise 14: whatever stands in a record's place, nothing breaks, blocks or leaves the place."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import VirtualTimeLoop, WallClock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qqbot_session import AsyncSessionStore, FileStorage, InvalidRecordError, SessionState
from qqbot_session.judging import is_stranger
from qqbot_session.state import MAX_RECORD_BYTES, decode, encode
from qqbot_session.storages.names import file_name

pytestmark = pytest.mark.timeout(120)  # a guard against blocking for ever; nothing is timed

NOW = WallClock().now
STATE = SessionState(
    account_id="bot",
    session_id="s1",
    last_seq=7,
    saved_at=NOW,
    app_id="102",
    intents=513,
    shard=(0, 2),
    established_at=NOW,
    failed_resumes=1,
    extra={"note": ["ü", 1.5, None, True]},
)
VALID = encode(STATE)


def a_record(**fields: Any) -> bytes:
    values = json.loads(VALID) | fields
    return json.dumps(values).encode()


def a_literal(field: str, literal: str) -> bytes:
    """A record with a value that no JSON library would write."""
    return a_record(**{field: "LITERAL"}).replace(b'"LITERAL"', literal.encode())


def blown_up(depth: int) -> bytes:
    """A record of 64 KiB that takes tens of megabytes when it is indented."""
    head = b'{"accountId":"bot","x":' + b"[" * depth + b"0"
    tail = b"]" * depth + b"}"
    return head + b",0" * ((MAX_RECORD_BYTES - len(head) - len(tail)) // 2) + tail


WRONG = [True, False, "1", "", 1.5, -1, 2**53, 10**300, [], {}, [1], {"a": 1}]
FITS = {  # by type and value, so not wrong there
    "sessionId": ("1", ""),
    "accountId": ("1",),  # another account's
    "appId": ("1",),
    "lastConnectedAt": (1.5, 2**53),
    "savedAt": (1.5, 2**53),
    "establishedAt": (1.5, 2**53),
}
NAMES = json.loads(VALID).keys() - {"note"}

CORPUS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t ",
    "zeros": bytes(4096),
    "not UTF-8": b"\xff\xfe" + VALID,
    "UTF-16": VALID.decode().encode("utf-16"),
    "overlong UTF-8": VALID.replace(b"s1", b"\xc0\xae"),
    "a surrogate in UTF-8": VALID.replace(b"s1", b"\xed\xa0\x80"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + VALID,
    "a byte order mark": b"\xef\xbb\xbf",
    "two records": VALID + VALID,
    "null": b"null",
    "a string": b'"bot"',
    "a number": b"1",
    "an array": b"[" + VALID + b"]",
    "an empty object": b"{}",
    "no account": a_record(accountId=None),
    "another account": a_record(accountId="other"),
    "an account with NUL": a_record(accountId="a\0b"),
    "an account that is a lone surrogate": a_record(accountId="\ud800"),
    "a session that is a lone surrogate": a_record(sessionId="\udfff"),
    "arrays 100,000 deep": b"[" * 100_000,
    "arrays 60,000 deep": b"[" * 30_000 + b"]" * 30_000,
    "objects 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "extra 900 deep": a_literal("x", "[" * 900 + "]" * 900),
    "extra 400 deep": a_literal("x", "[" * 400 + "]" * 400),
    "extra too long": a_record(x="y" * 40_000),
    "one byte too long": VALID + b" " * (MAX_RECORD_BYTES + 1 - len(VALID)),
    "duplicate keys, the last one wrong": VALID[:-2] + b',\n  "lastSeq": true\n}',
    "a shard of three": a_record(shard=[0, 1, 2]),
    "a shard beyond its count": a_record(shard=[2, 2]),
    "a shard of floats": a_record(shard=[0.0, 2.0]),
    "a comment": b"// a record\n" + VALID,
    "a trailing comma": VALID[:-2] + b",\n}",
    "single quotes": VALID.replace(b'"', b"'"),
    "an integer of 5,000 digits": a_literal("x", "1" * 5000),
}
for _name in ("lastSeq", "savedAt", "lastConnectedAt", "establishedAt", "x"):
    for _literal in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        CORPUS[f"{_name} is {_literal}"] = a_literal(_name, _literal)
for _name in sorted(NAMES):
    for _value in WRONG:
        if not any(type(_value) is type(fit) and _value == fit for fit in FITS.get(_name, ())):
            CORPUS[f"{_name} is {json.dumps(_value)[:12]}"] = a_record(**{_name: _value})

SOMEBODY_ELSES = ("another account", 'accountId is "1"')
EXPLODES = {f"{depth} deep and wide": blown_up(depth) for depth in (60, 450)}
BELOW_FLOATS = {
    f"{name} is minus ten to the 400": a_literal(name, "-1" + "0" * 400)
    for name in ("savedAt", "lastConnectedAt", "establishedAt")
}
EVERYTHING = CORPUS | EXPLODES | BELOW_FLOATS
NO_RECORDS = {name: data for name, data in EVERYTHING.items() if name not in SOMEBODY_ELSES}


def path_of(directory: Path, account_id: str = "bot") -> Path:
    directory.mkdir(exist_ok=True)
    return directory / file_name(account_id)


def a_store(directory: Path) -> AsyncSessionStore:
    return AsyncSessionStore(FileStorage(directory, durable=False), debounce=0, clock=WallClock())


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def save_and_load(store: AsyncSessionStore) -> None:
    state = replace(STATE, last_seq=8)
    await store.save(state)
    await store.flush()
    assert await store.load("bot") == state


@pytest.fixture
def decoy(tmp_path: Path) -> Any:
    """A file outside the directory that nobody may read, write, replace or remove."""
    outside = tmp_path / "outside"
    outside.mkdir()
    decoy = outside / "decoy.json"
    decoy.write_bytes(VALID)
    os.utime(decoy, ns=(1, 1))
    yield decoy
    status = decoy.lstat()
    assert decoy.read_bytes() == VALID
    assert (status.st_mtime_ns, status.st_nlink) == (1, 1)
    assert os.listdir(outside) == ["decoy.json"]  # noqa: PTH208


# Bytes


async def test_bytes_that_are_no_record_are_one_warning_and_can_be_replaced(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 14
    path = path_of(directory)
    for name, data in EVERYTHING.items():
        path.write_bytes(data)
        caplog.clear()
        async with a_store(directory) as store:
            assert await store.load("bot") is None, name
            assert len(warnings_in(caplog)) == 1, name
            assert await store.update_last_seq("bot", 9) is False
            assert path.read_bytes() == data  # `load` removes the expired, not the corrupt
            await save_and_load(store)


async def test_bytes_that_are_no_record_are_skipped_in_lists_and_cleaned_up(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # promises 13, 14
    good = replace(STATE, account_id="good")
    path_of(directory, "good").write_bytes(encode(good))
    for name, data in NO_RECORDS.items():
        path_of(directory).write_bytes(data)
        caplog.clear()
        async with a_store(directory) as store:
            assert await store.load_all() == [good], name
            assert len(warnings_in(caplog)) == 1, name
            was_ours = not is_stranger("\0session-bot.json", data)
            assert await store.cleanup() == was_ours, name
            assert path_of(directory).exists() is not was_ours
        assert len(warnings_in(caplog)) == 1, name


async def test_bytes_in_the_originals_file_do_not_stop_an_account(directory: Path) -> None:
    # promises 12, 14
    original = path_of(directory, "a_b")
    state = replace(STATE, account_id="a.b")
    async with a_store(directory) as store:
        for name, data in EVERYTHING.items():
            original.write_bytes(data)
            assert await store.load("a.b") is None, name
            await store.save(state)
            await store.flush()
            assert await store.load("a.b") == state, name
            await store.clear("a.b")
            assert await store.load("a.b") is None, name
            assert original.read_bytes() == data


async def test_a_byte_order_mark_is_no_damage(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Notepad and PowerShell put one in front of what they save."""
    path_of(directory).write_bytes(b"\xef\xbb\xbf" + VALID)
    async with a_store(directory) as store:
        assert await store.load("bot") == STATE
        assert await store.load_all() == [STATE]
        assert await store.cleanup() == 0
        assert warnings_in(caplog) == []
        await save_and_load(store)
    assert path_of(directory).read_bytes().startswith(b"{")


async def test_a_record_cut_off_at_any_byte_is_one_warning(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 14
    path = path_of(directory)
    async with a_store(directory) as store:
        for length in range(len(VALID)):
            path.write_bytes(VALID[:length])
            caplog.clear()
            assert await store.load("bot") is None, VALID[:length]
            assert len(warnings_in(caplog)) == 1, VALID[:length]
        await save_and_load(store)


@pytest.mark.parametrize("depth", [60, 450])
def test_decoding_takes_no_more_memory_than_a_record_may_cost(depth: int) -> None:
    # promise 14
    data = blown_up(depth)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRecordError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()


IN_LITTLE_MEMORY = """
import asyncio, logging, resource, sys
from qqbot_session import AsyncSessionStore, FileStorage

logging.disable(logging.CRITICAL)

async def main():
    store = AsyncSessionStore(FileStorage(sys.argv[1], durable=False))
    await store.load("nobody")
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert await store.load("bot") is None
    assert await store.load_all() == []
    assert await store.cleanup() == 0
    assert await store.load("bot") is None
    await store.aclose()

asyncio.run(main())
"""


@pytest.mark.real_time
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_record_of_100_megabytes_is_read_in_little_memory(directory: Path) -> None:
    # promise 14
    path = path_of(directory)
    path.write_bytes(VALID)
    os.truncate(path, 100 * 1024 * 1024)
    arguments = [sys.executable, "-c", IN_LITTLE_MEMORY, str(directory), str(90 * 1024 * 1024)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size == 100 * 1024 * 1024  # none of ours is so long


async def test_a_record_of_100_megabytes_is_one_warning(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 14
    path_of(directory).write_bytes(VALID)
    os.truncate(path_of(directory), 100 * 1024 * 1024)
    async with a_store(directory) as store:
        assert await store.load("bot") is None
        assert len(warnings_in(caplog)) == 1
        await save_and_load(store)
    assert path_of(directory).stat().st_size < MAX_RECORD_BYTES


# What is no regular file


def a_link(path: Path, decoy: Path) -> None:
    path.symlink_to(decoy)


def a_dangling_link(path: Path, decoy: Path) -> None:
    path.symlink_to(decoy.parent / "missing.json")


def a_link_loop(path: Path, decoy: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_a_directory(path: Path, decoy: Path) -> None:
    path.symlink_to(decoy.parent, target_is_directory=True)


def a_link_to_a_device(path: Path, decoy: Path) -> None:
    path.symlink_to("/dev/zero")


def a_fifo(path: Path, decoy: Path) -> None:
    os.mkfifo(path)


def a_directory(path: Path, decoy: Path) -> None:
    path.mkdir()
    (path / "kept").touch()


def a_unix_socket(path: Path, decoy: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


THINGS = (
    *(a_link, a_dangling_link, a_link_loop, a_link_to_a_directory, a_link_to_a_device),
    *(a_fifo, a_directory, a_unix_socket),
)
with_each_thing = pytest.mark.parametrize("put", THINGS, ids=[put.__name__ for put in THINGS])
needs_posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@needs_posix
@with_each_thing
async def test_what_is_no_file_is_neither_followed_nor_opened_nor_waited_for(
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    decoy: Path,
    put: Callable[[Path, Path], None],
) -> None:
    # promise 14
    path = path_of(directory)
    put(path, decoy)
    before = path.lstat()
    async with a_store(directory) as store:
        assert await store.load("bot") is None
        assert len(warnings_in(caplog)) == 1
        caplog.clear()
        assert await store.load_all() == []
        assert len(warnings_in(caplog)) == 1
        assert await store.cleanup() == 0
        after = path.lstat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        if put is not a_directory:
            await save_and_load(store)
            assert not path.is_symlink()


@needs_posix
@with_each_thing
async def test_what_is_no_file_under_the_originals_name_stops_nobody(
    directory: Path, decoy: Path, put: Callable[[Path, Path], None]
) -> None:
    # promises 12, 14
    original = path_of(directory, "a_b")
    put(original, decoy)
    before = original.lstat()
    state = replace(STATE, account_id="a.b")
    async with a_store(directory) as store:
        assert await store.load("a.b") is None
        await store.save(state)
        await store.flush()
        assert await store.load("a.b") == state
        await store.clear("a.b")
        assert await store.load("a.b") is None
    after = original.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


async def test_a_directory_in_a_records_place_is_reported_and_left_alone(
    directory: Path, decoy: Path
) -> None:
    # promises 8, 14
    a_directory(path_of(directory), decoy)
    store = a_store(directory)
    await store.save(STATE)
    await store.save(replace(STATE, account_id="good"))
    with pytest.raises(OSError, match="'bot'") as caught:
        await store.aclose()
    assert list(caught.value.failures) == ["bot"]  # type: ignore[attr-defined]
    assert sorted(os.listdir(directory)) == ["session-bot.json", "session-good.json"]  # noqa: PTH208
    assert (path_of(directory) / "kept").exists()


@needs_posix
async def test_left_overs_that_are_no_files_are_not_swept(directory: Path, decoy: Path) -> None:
    # promises 13, 14
    path_of(directory)
    for index, put in enumerate(THINGS):
        put(directory / f".qqbot-session-{index:016x}-0.tmp", decoy)
    before = sorted(os.listdir(directory))  # noqa: PTH208
    async with a_store(directory) as store:
        storage = store._storage
        assert await storage.sweep(-3600) == 0
        assert await store.cleanup() == 0
    assert sorted(os.listdir(directory)) == before  # noqa: PTH208


AS_NOBODY = """
import asyncio, logging, os, sys
from qqbot_session import AsyncSessionStore, FileStorage, SessionState

async def main():
    store = AsyncSessionStore(FileStorage(sys.argv[1], durable=False), debounce=0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda r: "written by others" in r.getMessage() or warnings.append(r)
    logging.getLogger("qqbot_session").addHandler(handler)
    assert await store.load("bot") is None
    assert len(warnings) == 1, warnings
    assert await store.load_all() == []
    assert len(warnings) == 2, warnings
    assert await store.cleanup() == 0
    assert os.path.exists(os.path.join(sys.argv[1], "session-bot.json"))
    await store.save(SessionState(account_id="bot", session_id="s1", last_seq=1))
    await store.flush()
    assert (await store.load("bot")).last_seq == 1
    await store.aclose()

asyncio.run(main())
"""


@needs_posix
@pytest.mark.real_time
def test_a_record_that_may_not_be_read_is_one_warning_and_never_removed() -> None:
    # promises 13, 14
    with tempfile.TemporaryDirectory(prefix="qqbot-session-") as name:
        Path(name).chmod(0o777)  # pytest's own are closed to others
        path = Path(name, "session-bot.json")
        path.write_bytes(VALID)
        path.chmod(0)
        arguments = [sys.executable, "-c", textwrap.dedent(AS_NOBODY), name]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# Bytes by chance

hostile_bytes = st.one_of(
    st.binary(max_size=400),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(NAMES)), inner)
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda start, end, data: VALID[: min(start, end)] + data + VALID[max(start, end) :],
        st.integers(0, len(VALID)),
        st.integers(0, len(VALID)),
        st.binary(max_size=20)
        | st.sampled_from([b"NaN", b"[", b'"', b"\\ud800", b"-1" + b"0" * 400]),
    ),
    st.dictionaries(
        st.sampled_from(sorted(NAMES)),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.integers()),
    ).map(lambda fields: a_record(**fields)),
)


def check_hostile_bytes(directory: Path, data: bytes) -> None:
    path = path_of(directory)
    path.write_bytes(data)
    loop = VirtualTimeLoop()

    async def use() -> None:
        async with a_store(directory) as store:
            loaded = await store.load("bot")
            assert loaded is None or loaded.account_id == "bot"
            await store.load_all(include_expired=True)
            await store.cleanup()
            assert loaded is None or await store.load("bot") == loaded
            await save_and_load(store)

    loop.run_until_complete(asyncio.wait_for(use(), 60))
    loop.close()


@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(hostile_bytes)
@example(VALID)
def test_any_bytes_are_a_session_or_none(directory: Path, data: bytes) -> None:
    # promise 14
    check_hostile_bytes(directory, data)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(
    max_examples=10_000,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(hostile_bytes)
def test_many_more_bytes_are_a_session_or_none(directory: Path, data: bytes) -> None:
    # promise 14
    check_hostile_bytes(directory, data)
