"""What the page on storages shows, and `test_docs` alone would not prove."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_readme import ROOT, block_with

from qqbot_session import FileStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import SqliteStorage

PAGE = ROOT / "docs" / "storages.md"


def test_moving_takes_the_sessions_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = SessionState(account_id="a", session_id="s", last_seq=7)
    asyncio.run(FileStorage("sessions").commit({"a": encode(state, 7, 1000.0)}))
    exec(block_with("SqliteStorage, copy", PAGE), {})
    assert "copied=1" in capsys.readouterr().out
    storage = SqliteStorage("sessions.db")
    assert asyncio.run(storage.read("a")) == encode(state, 7, 1000.0)
    asyncio.run(storage.aclose())


def test_a_storage_of_ones_own_is_proved_in_ten_lines(tmp_path: Path) -> None:
    block = block_with("storage_contract import CHECKS", PAGE)
    assert len(block.splitlines()) <= 10
    names: dict[str, Any] = {"MyStorage": partial(FileStorage, durable=False)}
    exec(block, names)
    for check in names["CHECKS"]:
        place = tmp_path / check.__name__
        names["test_my_storage_keeps_the_contract"](check, place)
