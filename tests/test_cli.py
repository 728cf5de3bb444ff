"""The operator's commands: what they print, what they leave alone, and how they end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis_server import RedisServer

from qqbot_session import AsyncSessionStore, FileStorage, SessionState
from qqbot_session.cli import main

STATES = [
    SessionState(account_id="shop-1", session_id="0123456789", last_seq=42, intents=1 << 25),
    SessionState(account_id="shop-2", session_id="abcdefghij", last_seq=7, shard=(0, 1)),
    SessionState(account_id="empty"),
]


def write(directory: Path, states: Iterable[SessionState], *, ago: float = 0.0) -> None:
    async def save() -> None:
        storage = FileStorage(directory, durable=False)
        async with AsyncSessionStore(storage, clock=lambda: time.time() - ago) as store:
            for state in states:
                await store.save(state)
        await storage.aclose()

    asyncio.run(save())


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


class KeepingStorage(FileStorage):
    """Files that stay, whatever is judged of them."""

    async def discard(self, key: str, expected: bytes) -> bool:
        return False


@pytest.fixture
def sessions(directory: Path) -> Path:
    """A directory with two sessions, one expired, one without, one corrupt, and a link."""
    write(directory, STATES)
    write(
        directory, [SessionState(account_id="old", session_id="old-session", last_seq=1)], ago=900
    )
    (directory / "session-bad.json").write_bytes(b"{")
    (directory / "session-link.json").symlink_to(directory.parent / "decoy")
    return directory


@pytest.fixture
def run(sessions: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("qqbot_session.cli.doctor._SLOW", 3600.0)  # the machine may be busy

    def run(*arguments: str, storage: str | None = None) -> Result:
        code = main(["--storage", storage or str(sessions), *arguments])
        return Result(code, *capsys.readouterr())

    return run


def snapshot(directory: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        path.name: (path.lstat().st_mtime_ns, None if path.is_symlink() else path.read_bytes())
        for path in directory.iterdir()
    }


# Looking


def test_list_shows_what_can_be_resumed_and_says_how_much_more_there_is(run: Run) -> None:
    result = run("list")
    header, *lines = result.out.splitlines()
    assert header.split() == ["ACCOUNT", "SESSION", "SEQ", "AGE", "STATUS"]
    assert [line.split()[0] for line in lines] == ["shop-1", "shop-2"]
    assert result.code == 0
    assert "4 more" in result.err


def test_list_all_says_of_every_record_what_it_is_worth(run: Run) -> None:
    rows = run("list", "--all", "--json").json
    assert {row["account"]: row["status"] for row in rows} == {
        "shop-1": "resumes",
        "shop-2": "resumes",
        "old": "expired",
        "empty": "no session",
        "session-bad.json": "corrupt",
        "session-link.json": "not a file",
    }


@pytest.mark.parametrize(
    ("sort", "first"), [("account", "shop-1"), ("seq", "shop-1"), ("age", "shop-2")]
)
def test_list_sorts(run: Run, sessions: Path, sort: str, first: str) -> None:
    write(sessions, [STATES[0]], ago=60)
    assert run("list", "--sort", sort, "--json").json[0]["account"] == first


def test_list_takes_statuses(run: Run) -> None:
    def accounts(*statuses: str) -> set[str]:
        chosen = [word for status in statuses for word in ("--status", status)]
        return {row["account"] for row in run("list", *chosen, "--json").json}

    assert accounts("expired") == {"old"}
    assert accounts("corrupt", "no session") == {"session-bad.json", "empty"}
    assert run("list", "--status", "lost").code == 2


def test_list_counts(run: Run, sessions: Path) -> None:
    write(sessions, [SessionState(account_id="slow", session_id="s", last_seq=1)], ago=120)
    counts = run("list", "--summary", "--json").json
    assert counts == {
        "records": 7, "resumes": 3, "expired": 1, "no session": 1, "corrupt": 1, "stranger": 0,
        "not a file": 1, "leased": 0, "resumes_by_age": {"60": 2, "300": 3, "3600": 3, "86400": 3},
    }  # fmt: skip
    assert "3 resumes: 2 up to 60 s old, 1 up to 5 min old" in run("list", "--summary").out
    assert "1 records" in run("list", "--summary", "*-2").out


def test_list_says_who_holds_a_lease_and_nobody_does_once_it_is_given_up(
    run: Run, tmp_path: Path
) -> None:
    database = f"sqlite:{tmp_path / 'sessions.db'}"
    before = int(time.time())

    async def hold() -> tuple[Any, str, Any]:
        async with AsyncSessionStore(database) as store, store.lease("shop-1"):
            await store.save(STATES[0])
            await store.flush()
            rows = await asyncio.to_thread(
                lambda: run("list", "--leases", "--json", storage=database)
            )
            text = await asyncio.to_thread(lambda: run("list", "--leases", storage=database))
            found = await asyncio.to_thread(lambda: run("doctor", "--json", storage=database))
        return rows.json, text.out, found.json

    rows, text, found = asyncio.run(hold())
    (row,) = rows
    assert (row["account"], row["process"]) == ("shop-1", os.getpid())
    assert row["host"] == socket.gethostname()
    assert before <= row["since"] <= time.time()
    assert text.splitlines()[0].split() == ["ACCOUNT", "HOST", "PROCESS", "SINCE"]
    (leases,) = [each["text"] for each in found if each["subject"] == "leases"]
    assert leases.startswith(
        f"1 held: shop-1 ({socket.gethostname()}, process {os.getpid()}, since"
    )
    assert run("list", "--leases", "--json", storage=database).json == []
    (leases,) = [
        f for f in run("doctor", "--json", storage=database).json if f["subject"] == "leases"
    ]
    assert leases["text"] == "none held"
    assert run("list", "--leases").code == 2  # files have none


def test_show_gives_the_hint_that_why_gives(run: Run) -> None:
    assert "102000000-0-1" in run("show", "102000000").err
    assert run("show", "102000000").code == 1


def test_list_takes_a_pattern(run: Run) -> None:
    assert [row["account"] for row in run("list", "*-2", "--json").json] == ["shop-2"]


def test_a_session_id_is_shown_whole_only_when_asked_for(run: Run) -> None:
    # promise 15
    for command in (["list"], ["show", "shop-1"], ["why", "shop-1"]):
        for form in ([], ["--json"]):
            assert "0123456789" not in run(*command, *form).out
            assert "0123456789" in run(*command, *form, "--full").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["shop-1"], 0, "would Resume: session 0123… from number 42"),
        (["shop-1", "--intents", "1"], 1, "other intents: asked for 1, found 33554432"),
        (["shop-2", "--shard", "1,2"], 1, "another shard: asked for (1, 2), found (0, 1)"),
        (["shop-1", "--app-id", "1", "--shard", "0,1"], 0, "would Resume"),  # it records none
        (["old"], 1, "expired: saved 90"),
        (["old", "--max-age", "never"], 0, "never expires"),
        (["empty"], 1, "no session id"),
        (["bad"], 1, "corrupt: the record is not JSON"),
        (["link"], 1, "unreadable: "),
        (["nobody"], 1, "no record"),
    ],
)
def test_why_says_in_a_sentence_what_the_bot_would_do(
    run: Run, arguments: list[str], code: int, words: str
) -> None:
    result = run("why", *arguments)
    assert words in result.out
    assert result.code == code


@pytest.mark.parametrize("saved_ago", [0, 900, -900], ids=["fresh", "expired", "future"])
@pytest.mark.parametrize("session_id", ["0123456789", None], ids=["session", "none"])
def test_why_tells_in_the_words_of_load_what_a_bot_would_meet(
    directory: Path, capsys: pytest.CaptureFixture[str], session_id: str | None, saved_ago: int
) -> None:
    """Whatever is wrong with the record besides, and whatever else is asked for."""
    state = SessionState(account_id="a", session_id=session_id, last_seq=1, app_id="1", intents=3)
    write(directory, [state], ago=saved_ago)
    (directory / "session-b.json").write_bytes((directory / "session-a.json").read_bytes())
    (directory / "session-c.json").write_bytes(b"[]")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("qqbot_session")

    async def load(account: str, **asked: Any) -> bool:
        storage = KeepingStorage(directory)
        async with AsyncSessionStore(storage) as store:
            found = await store.load(account, **asked)
        await storage.aclose()
        return found is not None

    asked_for = itertools.product([None, "1", "2"], [None, 3, 4], "abcd")
    for app_id, intents, account in asked_for:
        asked = {"app_id": app_id, "intents": intents}
        options = [f"--{k.replace('_', '-')}={v}" for k, v in asked.items() if v is not None]
        code = main(["--storage", str(directory), "why", account, *options])
        told = capsys.readouterr().out
        lines.clear()
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            assert asyncio.run(load(account, **asked)) is (code == 0), told
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        said = lines[0].partition(": ")[2] if lines else "would Resume"
        assert re.sub(r"\d+ s", "…", said) in re.sub(r"\d+ s", "…", told)


def test_why_counts_the_resumes_that_were_left_unanswered(run: Run, sessions: Path) -> None:
    tried = SessionState(account_id="tried", session_id="x" * 9, last_seq=1, failed_resumes=3)
    write(sessions, [tried])
    result = run("why", "tried")
    assert (result.code, "3 Resumes" in result.out) == (1, True)


def test_a_record_from_the_future_points_to_the_clock(run: Run, sessions: Path) -> None:
    write(sessions, [STATES[0]], ago=-900)
    assert "clock" in run("why", "shop-1").out
    findings = run("doctor", "--json").json
    assert "problem" in [f["level"] for f in findings if f["subject"] == "clock"]


def test_show_prints_the_record_and_nothing_if_there_is_none(run: Run) -> None:
    assert run("show", "shop-1", "--json").json["last_seq"] == 42
    assert "33554432" in run("show", "shop-1").out
    assert run("show", "nobody").code == 1
    assert run("show", "nobody", "--json").json is None


@pytest.mark.parametrize(
    "arguments",
    [["list", "--all"], ["show", "shop-1"], ["why", "old"], ["cleanup", "--dry-run"], ["doctor"]],
)
def test_looking_changes_nothing(run: Run, sessions: Path, arguments: list[str]) -> None:
    before = snapshot(sessions)
    run(*arguments)
    assert snapshot(sessions) == before


HOSTILE = "x\x1b]0;gone\x07\x9b2J\u202e\nforged"


@pytest.mark.parametrize(
    "arguments",
    [["list", "--all"], ["show", "shop-1"], ["show", "shop-1", "--full"], ["why", "shop-1"],
     ["why", HOSTILE], ["show", HOSTILE], ["clear", HOSTILE], ["doctor"], [HOSTILE],
     ["--storage", HOSTILE, "list"], ["cleanup"], ["why", "shop-1", "--app-id", HOSTILE]],
)  # fmt: skip
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_no_line_holds_a_character_that_a_terminal_obeys(
    run: Run, sessions: Path, arguments: list[str], form: list[str]
) -> None:
    extra = {HOSTILE: HOSTILE, "deep": [HOSTILE]}
    write(sessions, [SessionState(account_id=f"h{n}{HOSTILE}", session_id=HOSTILE, last_seq=1,
                                  app_id=HOSTILE, extra=extra) for n in range(2)])  # fmt: skip
    write(sessions, [SessionState(account_id="shop-1", session_id=HOSTILE, last_seq=1,
                                  app_id=HOSTILE, extra=extra)])  # fmt: skip
    (sessions / "session-torn.json").write_bytes(b'{\n  "sessionId": "\x1b[2J\n\n')
    (sessions / f"session-{HOSTILE}.json").write_bytes(b"{}")
    result = run(*form, *arguments)
    text = result.out + result.err
    assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert not any(line.startswith("forged") for line in text.split("\n"))
    if form and result.out:
        assert result.json is None or result.json


def test_what_a_record_holds_is_cut_unless_it_is_asked_for_whole(run: Run, sessions: Path) -> None:
    long = SessionState(account_id="a" * 200, session_id="s", last_seq=1, extra={"x": "y" * 9000})
    write(sessions, [long])
    for arguments in (["list"], ["show", long.account_id], ["why", long.account_id], ["doctor"]):
        assert max(map(len, run(*arguments).out.splitlines())) <= 2000
    assert "y" * 9000 in run("show", long.account_id, "--full").out


def test_why_speaks_of_the_account_that_was_asked_for(run: Run, sessions: Path) -> None:
    (sessions / "session-mine.json").write_bytes((sessions / "session-shop-1.json").read_bytes())
    result = run("why", "mine")
    assert result.out.startswith("mine would Identify: foreign")
    assert run("show", "mine", "--json").json["account"] == "mine"


@pytest.mark.parametrize("name", ["\x1b[2Jgone", "new\nline", "‮right"])
def test_nothing_that_a_record_holds_reaches_the_terminal_as_a_command(
    run: Run, sessions: Path, name: str
) -> None:
    write(sessions, [SessionState(account_id=name, session_id="\x1b[2J", last_seq=1)])
    result = run("list")
    assert all(line.isprintable() for line in result.out.splitlines())
    assert len(result.out.splitlines()) == 4


def terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Return what a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "qqbot_session", *arguments],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": str(columns), **environment},
    )
    os.close(theirs)
    output = b""
    try:
        while piece := os.read(ours, 65536):
            output += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    process.wait()
    return output.decode()


def test_a_table_fits_the_terminal_also_with_wide_characters(sessions: Path) -> None:
    wide = SessionState(account_id="机器人" * 20, session_id="s" * 20, last_seq=10**12)
    write(sessions, [wide])
    output = terminal("--storage", str(sessions), "list", columns=60, NO_COLOR="1")
    assert "机器人" in output
    for line in output.splitlines()[:-1]:
        assert sum(2 if ord(c) > 0x2E80 else 1 for c in line) <= 60


def test_colours_are_for_terminals_that_want_them(sessions: Path) -> None:
    arguments = ("--storage", str(sessions), "list", "--all")
    assert "\x1b[31m" in terminal(*arguments)
    assert "\x1b[" not in terminal(*arguments, NO_COLOR="1")


# Changing


def test_clear_forgets_and_warns_of_a_bot_that_seems_to_run(run: Run, sessions: Path) -> None:
    result = run("clear", "shop-1", "old")
    assert (result.code, result.out) == (0, "cleared 2\n")
    assert re.search(r"shop-1: written \d+ s ago, so a bot seems to run", result.err)
    assert "old:" not in result.err
    assert run("show", "shop-1").code == run("show", "old").code == 1


def test_clear_ends_with_1_if_an_account_was_not_there(run: Run) -> None:
    result = run("clear", "shop-1", "nobody")
    assert (result.code, result.out) == (1, "cleared 1\n")
    assert "nobody: no record" in result.err


def test_clear_ends_with_4_if_some_accounts_failed(run: Run) -> None:
    result = run("clear", "link", "shop-1", "--json")
    assert result.code == 4
    assert result.json["cleared"] == ["shop-1"]
    assert list(result.json["failed"]) == ["link"]


def test_clear_expired_removes_those_alone_once_it_is_told_to(run: Run, sessions: Path) -> None:
    assert run("clear", "--expired").code == 2  # nobody can be asked
    assert (sessions / "session-old.json").exists()
    assert run("clear", "--expired", "--yes").out == "cleared 1\n"
    assert run("show", "shop-1").code == 0
    assert run("clear", "--expired", "--yes").code == 0


def test_cleanup_removes_what_its_dry_run_names(run: Run, sessions: Path) -> None:
    left_over = sessions / f".qqbot-session-{'0' * 16}-0.tmp"
    left_over.touch()
    os.utime(left_over, (0, 0))
    named = [row["account"] for row in run("cleanup", "--dry-run", "--json").json["would_remove"]]
    assert named == ["session-bad.json", "old"] or named == ["old", "session-bad.json"]
    said = run("cleanup").out.splitlines()
    assert sorted(said[:2]) == ["removed old (expired)", "removed session-bad.json (corrupt)"]
    assert said[2:] == ["removed 2, and 1 left-over(s)"]
    assert not left_over.exists()
    assert run("show", "shop-1").code == 0


STRANGERS = {
    "session-3f2a9c.json": b'{"messages": [{"role": "user", "content": "of another program"}]}',
    "session-2026-11-30.json": b'{"x": "' + b"y" * 200_000 + b'"}',
    "session-list.json": b"[1, 2]",
    "session-binary.json": b"SQLite format 3\0",
}
TORN = [b"", b"{", b'{\n  "sessionId": "abc', b'{\n  "sessi', bytes(4096)]


def test_cleanup_names_and_leaves_what_never_was_a_session(run: Run, sessions: Path) -> None:
    for name, data in STRANGERS.items():
        (sessions / name).write_bytes(data)
    rows = {row["account"]: row["status"] for row in run("list", "--all", "--json").json}
    assert {rows[name] for name in STRANGERS} == {"stranger"}
    for arguments in (["--dry-run"], []):
        result = run("cleanup", *arguments)
        assert result.code == 0
        assert all(name in result.err for name in STRANGERS)
        assert not any(name in result.out for name in STRANGERS)
    assert {name: (sessions / name).read_bytes() for name in STRANGERS} == STRANGERS
    assert "strangers" in {finding["subject"] for finding in run("doctor", "--json").json}
    assert set(run("cleanup", "--yes", "--json").json["removed"]) == set(STRANGERS)


@pytest.mark.parametrize("data", TORN, ids=lambda data: repr(data[:12]))
def test_cleanup_removes_and_names_a_record_that_was_torn(
    run: Run, sessions: Path, data: bytes
) -> None:
    (sessions / "session-torn.json").write_bytes(data)
    assert "removed session-torn.json (corrupt)" in run("cleanup").out.splitlines()
    assert not (sessions / "session-torn.json").exists()


def test_the_commands_work_over_a_database_alike(run: Run, tmp_path: Path) -> None:
    async def save() -> None:
        async with AsyncSessionStore(f"sqlite:{tmp_path / 'sessions.db'}") as store:
            for state in STATES:
                await store.save(state)

    asyncio.run(save())
    database = f"sqlite:{tmp_path / 'sessions.db'}"
    rows = run("list", "--json", storage=database).json
    assert [row["account"] for row in rows] == ["shop-1", "shop-2"]
    assert run("why", "shop-1", storage=database).code == 0
    assert run("doctor", storage=database).code == 0
    assert run("clear", "shop-1", storage=database).out == "cleared 1\n"
    assert run("show", "shop-1", storage=database).code == 1
    assert run("list", storage=f"sqlite:{tmp_path / 'typo.db'}").code == 3
    assert not (tmp_path / "typo.db").exists()


def test_copy_moves_sessions_and_may_be_repeated(run: Run, sessions: Path, tmp_path: Path) -> None:
    database = f"sqlite:{tmp_path / 'sessions.db'}"
    first = run("copy", str(sessions), database, "--json")
    assert (first.code, first.json["copied"], first.json["unreadable"]) == (0, 4, 1)
    assert run("why", "shop-1", storage=database).code == 0
    assert run("copy", str(sessions), database, "--json").json["same"] == 4
    assert run("copy", str(tmp_path / "typo"), database).code == 3


def test_doctor_asks_a_server_for_what_would_lose_sessions(run: Run) -> None:
    pytest.importorskip("redis")
    with RedisServer() as server:
        lost = run("doctor", "--json", storage=server.url)
        assert (lost.code, levels(lost)["settings"]) == (1, {"ok", "problem"})
        assert run("list", storage=server.url).code == 0
    with RedisServer(appendonly="yes") as server:
        kept = run("doctor", "--json", storage=server.url)
        assert (kept.code, levels(kept)["settings"]) == (0, {"ok"})
    gone = run("doctor", "--json", storage=server.url)
    assert (gone.code, levels(gone)["server"]) == (1, {"problem"})
    assert run("list", storage=server.url).code == 3


def test_doctor_asks_a_server_with_a_replica_for_what_a_failover_would_lose(run: Run) -> None:
    pytest.importorskip("redis")
    with RedisServer(appendonly="yes") as server, RedisServer() as replica:
        replica.ask("REPLICAOF", "127.0.0.1", str(server.port))
        end = time.monotonic() + 30
        while b"state=online" not in bytes(server.ask("INFO", "replication")):
            assert time.monotonic() < end
            time.sleep(0.05)
        for least, level in (("0", "note"), ("1", "ok")):
            server.ask("CONFIG", "SET", "min-replicas-to-write", least)
            assert levels(run("doctor", "--json", storage=server.url))["replicas"] == {level}


def test_doctor_does_not_touch_what_is_no_database(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("somebody's")
    assert run("doctor", storage=f"sqlite:{other}").code == 1
    assert other.read_text() == "somebody's"


# Doctor


def levels(result: Result) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in result.json:
        found.setdefault(finding["subject"], set()).add(finding["level"])
    return found


def test_doctor_finds_nothing_where_nothing_is_wrong(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "good", STATES)
    result = run("doctor", "--json", storage=str(tmp_path / "good"))
    assert set.union(*levels(result).values()) == {"ok"}
    assert result.code == 0


def test_doctor_names_each_problem_and_what_to_do(run: Run, sessions: Path) -> None:
    (sessions / "session-copy.json").write_bytes((sessions / "session-shop-1.json").read_bytes())
    (sessions / "session-shop-2.json").chmod(0o644)
    left_over = sessions / f".qqbot-session-{'0' * 16}-0.tmp"
    left_over.touch()
    os.utime(left_over, (0, 0))
    result = run("doctor", "--json")
    found = levels(result)
    assert result.code == 1
    assert found["not files"] == {"problem"}
    assert found["records"] >= {"problem", "note"}
    assert found["modes"] == found["left-overs"] == {"note"}
    assert all(f["advice"] for f in result.json if f["level"] != "ok")


def test_doctor_says_that_a_directory_cannot_be_written(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = run("doctor", storage=str(file))
    assert (result.code, "not a directory" in result.out) == (1, True)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert run("doctor", storage=str(tmp_path / "closed")).code == 1


@pytest.mark.real_time
def test_doctor_beside_a_busy_bot_says_what_it_says_beside_a_quiet_one(
    run: Run, tmp_path: Path
) -> None:
    """Files come and go at every look, and a release of the directory removes them all."""
    where, stop = tmp_path / "busy", threading.Event()

    def live() -> None:
        names = [where / f"session-b{n}.json" for n in range(60)]
        data = (where / "session-shop-1.json").read_bytes()
        while not stop.is_set():
            for number, path in enumerate(names):
                temporary = where / f".qqbot-session-{os.urandom(8).hex()}-{number}.tmp"
                temporary.touch(0o600)
                temporary.write_bytes(data.replace(b"shop-1", b"b%d" % number))
                temporary.replace(path)
            for path in names:
                path.unlink()

    write(where, STATES)
    bot = threading.Thread(target=live)
    bot.start()
    try:
        results = [run("doctor", "--json", storage=str(where)) for _ in range(40)]
    finally:
        stop.set()
        bot.join()
    assert {result.code for result in results} == {0}
    assert {level for result in results for each in levels(result).values() for level in each} == {
        "ok"
    }


# The command line


def test_no_storage_is_a_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sessions: Path
) -> None:
    monkeypatch.delenv("QQBOT_SESSION_STORAGE", raising=False)
    assert main(["list"]) == 2
    assert "--storage" in capsys.readouterr().err
    monkeypatch.setenv("QQBOT_SESSION_STORAGE", str(sessions))
    assert main(["list"]) == 0


def test_a_directory_that_is_not_there_is_no_empty_one(run: Run, tmp_path: Path) -> None:
    result = run("list", storage=str(tmp_path / "typo"))
    assert (result.code, result.err) == (3, f"qqbot-session: there is no {tmp_path / 'typo'}\n")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["list", "--sort", "x"], ["why", "a", "--shard", "1"], ["clear"],
     ["clear", "a", "--expired"], ["list", "--max-age", "-1"]],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert " _" not in result.err  # no name of a function of ours


def test_an_unknown_storage_is_one_line_and_2(run: Run) -> None:
    result = run("list", storage="mongodb://x")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_debug_adds_the_traceback(run: Run, tmp_path: Path) -> None:
    missing = str(tmp_path / "typo")
    assert "Traceback" not in run("list", storage=missing).err
    assert "Traceback" in run("list", "--debug", storage=missing).err


def test_help_and_version_end_with_0(run: Run) -> None:
    assert "Exit codes" in run("--help").out
    assert run("--version").out.startswith("qqbot_session ")


def test_the_options_stand_before_or_behind_the_command(
    sessions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--storage", str(sessions), "--json"]) == 0
    behind = capsys.readouterr().out
    assert main(["--json", "--storage", str(sessions), "list"]) == 0
    before = capsys.readouterr().out
    assert [row["account"] for row in json.loads(before)] == [
        row["account"] for row in json.loads(behind)
    ]


def test_a_reader_that_has_seen_enough_is_no_error(sessions: Path) -> None:
    many = [SessionState(account_id=f"b{n}", session_id="s" * 9, last_seq=n) for n in range(3000)]
    write(sessions, many)
    command = f"{sys.executable} -m qqbot_session --storage {sessions} list | head -n 1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.count("Error")) == (0, 0)


COMMANDS = [
    (["list"], 0), (["show", "shop-1"], 0), (["why", "机器人-0-1"], 0), (["doctor"], 1),
    (["show", "nobody"], 1), (["list", "--json"], 0),
]  # fmt: skip
ONE_AFTER_THE_OTHER = """
import ast, sys
from qqbot_session.cli import main
for arguments in ast.literal_eval(sys.argv[1]):
    code = main(arguments)
    sys.stdout.write(f"\\0{code}\\0")
"""


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "cp1252", "latin-1", "ascii"])
def test_a_stream_shows_what_it_can(sessions: Path, encoding: str) -> None:
    write(sessions, [SessionState(account_id="机器人-0-1", session_id="s" * 9, last_seq=5)])
    commands = [["--storage", str(sessions), *arguments] for arguments, _ in COMMANDS]
    result = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, ascii(commands)],
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    texts = result.stdout.decode(encoding).split("\0")[:-1]
    codes, (*_, listing) = texts[1::2], texts[::2]
    assert codes == [str(code) for _, code in COMMANDS], result.stderr
    assert "机器人-0-1" in {row["account"] for row in json.loads(listing)}


@pytest.mark.parametrize(
    ("where", "code"), [("| head -n 0", 0), ("> /dev/full", 5), (">&-", 0), ("2>&-", 0)]
)
def test_an_answer_that_nobody_takes_is_not_the_storages_fault(
    sessions: Path, where: str, code: int
) -> None:
    if "full" in where and not Path("/dev/full").exists():
        pytest.skip("no such device here")
    command = f"{sys.executable} -m qqbot_session --storage {sessions} list {where}"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert result.returncode == code
    assert not re.search("Traceback|NoneType|Exception ignored", result.stderr)


def test_a_bug_of_ours_is_not_a_storage_out_of_reach(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("qqbot_session.cli.looking.judged", broken)
    result = run("show", "shop-1")
    assert (result.code, result.err) == (70, "qqbot-session: KeyError: 'ours'\n")


def test_ctrl_c_ends_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    write(tmp_path / "d", [STATES[0]], ago=900)
    ours, theirs = pty.openpty()  # somebody who can be asked, and does not answer
    process = subprocess.Popen(
        [sys.executable, "-m", "qqbot_session", "--storage", "d", "clear", "--expired"],
        cwd=tmp_path, stdin=theirs, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.read(5) == "clear"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    os.close(ours)
    os.close(theirs)
    assert (process.wait(), "Traceback" in rest) == (130, False)
    assert (tmp_path / "d" / "session-shop-1.json").exists()


def test_looking_does_not_disturb_a_bot_that_writes(sessions: Path) -> None:
    """A store writes as fast as it can while the commands look again and again."""

    async def live() -> None:
        storage = FileStorage(sessions, durable=False)
        async with AsyncSessionStore(storage, debounce=0.0) as store:
            looking = asyncio.create_task(look())
            seq = 42
            while not looking.done():
                seq += 1
                await store.update_last_seq("shop-1", seq)
                await asyncio.sleep(0)
            assert await looking == [0] * 8
            await store.flush()
            state = await store.load("shop-1")
            assert state is not None
            assert state.last_seq == seq
        await storage.aclose()

    async def look() -> list[int]:
        codes = []
        for arguments in (["list"], ["show", "shop-1"], ["why", "shop-1"], ["list", "--all"]) * 2:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "qqbot_session", "--storage", str(sessions), *arguments,
                stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            codes.append(await process.wait())
        return codes

    asyncio.run(live())
