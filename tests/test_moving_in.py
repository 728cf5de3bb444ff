"""Sessions that other programs keep: found, copied under our names, and never touched."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import AsyncSessionStore, SessionState
from qqbot_session.cli import main

APP = "102000000"
OURS = f"{APP}-0-1"


def openclaw(**changes: Any) -> dict[str, Any]:
    return {
        "sessionId": "THEIRS", "lastSeq": 41, "lastConnectedAt": 1_790_000_000_000,
        "intentLevelIndex": 1, "accountId": "default", "savedAt": int(time.time() * 1000),
        "appId": APP,
    } | changes  # fmt: skip


def openclaw_until_3_31(home: Path, **changes: Any) -> Path:
    place = home / "qqbot" / "sessions"
    place.mkdir(parents=True)
    (place / "session-default.json").write_text(json.dumps(openclaw(**changes), indent=2))
    return home


def openclaw_from_4_12(home: Path, **changes: Any) -> Path:
    home.mkdir()
    name = base64.urlsafe_b64encode(b"default").decode().rstrip("=")
    (home / f"session-{name}.json").write_text(json.dumps(openclaw(**changes), indent=2))
    return home


def openclaw_database(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE plugin_state_entries (plugin_id TEXT, namespace TEXT, entry_key TEXT,"
            " value_json TEXT, created_at INTEGER, expires_at INTEGER)"
        )
        rows = [
            ("qqbot", "gateway-sessions", "a1", json.dumps(openclaw(**changes)), 1, 2),
            ("qqbot", "gateway-sessions", "a2", "[" * 100_000, 1, 2),
            ("qqbot", "known-users", "a3", json.dumps({"sessionId": "no"}), 1, 2),
        ]
        connection.executemany("INSERT INTO plugin_state_entries VALUES (?, ?, ?, ?, ?, ?)", rows)
    return path


def openclaw_from_6_11(home: Path, **changes: Any) -> Path:
    openclaw_database(home / "plugin-state" / "state.sqlite", **changes)
    return home


def openclaw_on_a_newer_host(home: Path, **changes: Any) -> Path:
    return openclaw_database(home / "state" / "openclaw.sqlite", **changes)


def botpy_sdk(home: Path) -> Path:
    home.mkdir()
    payload = {"app_id": APP, "session_id": "THEIRS", "sequence": 41, "shard_id": 0,
               "shard_count": 1, "saved_at": time.time()}  # fmt: skip
    name = base64.urlsafe_b64encode(APP.encode()).decode().rstrip("=")
    (home / f"session-{name}-0.json").write_text(json.dumps(payload, indent=2))
    return home


def agent_sdk(home: Path) -> Path:
    home.mkdir()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())  # without a zone, it is UTC
    session = {"session_id": "THEIRS", "seq": 41, "intents": 1 << 25, "last_active": moment}
    (home / "ws_sessions.json").write_text(json.dumps({APP: session, "other": {}}, indent=2))
    return home / "ws_sessions.json"


def alemonjs(home: Path) -> Path:
    home.mkdir()
    session = {"botId": APP, "sessionId": "THEIRS", "sequence": 41}
    (home / f"{APP}.json").write_text(json.dumps(session))
    return home


PROGRAMS: list[Callable[[Path], Path]] = [
    openclaw_until_3_31,
    openclaw_from_4_12,
    openclaw_from_6_11,
    openclaw_on_a_newer_host,
    botpy_sdk,
    agent_sdk,
    alemonjs,
]


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def load(where: Path | str, account: str, **asked: Any) -> SessionState | None:
    async def look() -> SessionState | None:
        async with AsyncSessionStore(str(where)) as store:
            return await store.load(account, **asked)

    return asyncio.run(look())


@pytest.mark.parametrize("write", PROGRAMS, ids=lambda write: write.__name__)
def test_a_session_moves_in_under_the_name_that_run_bot_asks_for(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    source, target = write(tmp_path / "theirs"), tmp_path / "ours"
    before = snapshot(tmp_path)
    assert main(["copy", str(source), str(target)]) == 0
    assert main(["copy", str(source), f"sqlite:{tmp_path / 'ours.db'}"]) == 0
    for where in (target, f"sqlite:{tmp_path / 'ours.db'}"):
        state = load(where, OURS, app_id=APP, shard=(0, 1))
        assert state is not None
        assert (state.session_id, state.last_seq, state.app_id) == ("THEIRS", 41, APP)
    now = snapshot(tmp_path)
    assert {name: now[name] for name in before} == before
    assert {name for name in now if name.startswith("theirs")} == set(before)


@pytest.mark.parametrize("write", PROGRAMS, ids=lambda write: write.__name__)
def test_the_account_gets_the_name_that_it_is_given(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    source, target = write(tmp_path / "theirs"), tmp_path / "ours"
    assert main(["copy", str(source), str(target), "--account", "shop"]) == 0
    assert load(target, "shop") is not None
    assert load(target, OURS) is None


def test_a_copied_session_is_as_old_as_it_was(tmp_path: Path) -> None:
    old = int((time.time() - 900) * 1000)
    source = openclaw_from_6_11(tmp_path / "theirs", savedAt=old)
    assert main(["copy", str(source), str(tmp_path / "ours")]) == 0
    assert main(["--storage", str(tmp_path / "ours"), "why", OURS]) == 1


def test_the_newest_of_several_generations_counts(tmp_path: Path) -> None:
    home = openclaw_until_3_31(tmp_path / "theirs", savedAt=int((time.time() - 60) * 1000))
    openclaw_from_6_11(home, lastSeq=77)
    assert main(["copy", str(home), str(tmp_path / "ours")]) == 0
    state = load(tmp_path / "ours", OURS)
    assert state is not None
    assert state.last_seq == 77


def test_an_old_account_is_renamed_and_others_keep_their_names(tmp_path: Path) -> None:
    async def save() -> None:
        async with AsyncSessionStore(str(tmp_path / "old")) as store:
            for name in ("a", "b"):
                await store.save(SessionState(account_id=name, session_id="s", last_seq=1))

    asyncio.run(save())
    command = ["copy", str(tmp_path / "old"), str(tmp_path / "new"), "--account", "a=c"]
    assert main(command) == 0
    assert [load(tmp_path / "new", name) is not None for name in "abc"] == [False, True, True]


def test_strangers_beside_our_own_records_are_left_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One directory for all, as somebody may set it."""
    home = botpy_sdk(tmp_path / "all")
    agent_sdk_file = agent_sdk(tmp_path / "agent")
    agent_sdk_file.rename(home / "ws_sessions.json")
    before = snapshot(home)
    for command in (["list", "--all"], ["cleanup"], ["clear", "--expired"], ["doctor"]):
        main(["--storage", str(home), *command])
        assert snapshot(home) == before
    said = capsys.readouterr().out
    assert "ws_sessions.json (qqbot-agent-sdk)" in said
    assert "(qq-botpy-sdk)" in said


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"botId": 1}', "[" * 100_000, '{"a": {}}'])
def test_a_file_that_holds_no_session_is_said_in_a_sentence(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(text)
    assert main(["copy", str(tmp_path / "x.json"), str(tmp_path / "new")]) == 2
    assert "holds no session that we know" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_no_file_in_their_place_is_not_opened(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    (home / "plugin-state").mkdir(parents=True)
    os.mkfifo(home / "ws_sessions.json")
    os.mkfifo(home / "plugin-state" / "state.sqlite")
    (home / "session-link.json").symlink_to("/dev/zero")
    assert main(["copy", str(home), str(tmp_path / "new")]) == 0


def test_a_view_in_the_place_of_their_table_ends(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE VIEW plugin_state_entries AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL"
            " SELECT x+1 FROM n) SELECT 'gateway-sessions' AS namespace, x AS value_json FROM n"
        )
    assert main(["copy", str(path), str(tmp_path / "new")]) == 2
