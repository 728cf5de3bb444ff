"""Sessions that other programs keep, for `qqbot-session copy` and `doctor`.

| program | where | in |
| --- | --- | --- |
| OpenClaw until 2026.3.31 | `session-<account id>.json` | our own form: a `FileStorage` reads it |
| OpenClaw 2026.4.12 to 2026.6.10 | `session-<base64url of the account id>.json` | the same form |
| OpenClaw's plugin from 2026.6.11 | `plugin-state/state.sqlite`, or `state/openclaw.sqlite` of newer hosts | a row of `plugin_state_entries`, namespace `gateway-sessions` |
| qq-botpy-sdk 2 | `session-<base64url of the app id>-<shard>.json` | its own JSON |
| qqbot-agent-sdk 1.2 | `ws_sessions.json` | its own JSON, all app ids in one file |
| @alemonjs/qq-bot 2.1 | `<app id>.json` | its own JSON, without a time: the file's counts |

Rules:

* Nothing is changed, made or locked, and no link is followed.
* What a program keeps is one session per app id and shard. So its new name is what every integration
  of ours asks for (`102000000-0-1`), unless the record does not say its app id: then it keeps its own.
* Times are theirs: a session that is too old there is too old here.
"""  # noqa: E501 - a table

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..state import SessionState, encode
from .names import file_name, other_names
from .places import is_in_use

_OPENCLAW = "OpenClaw"
_OPENCLAW_HOME = ("qqbot/sessions", "plugin-state/state.sqlite", "state/openclaw.sqlite")
_FILE = 4 * 1024 * 1024  # bytes; `ws_sessions.json` has all bots of a program in it
_SQLITE = b"SQLite format 3\0"
_PATIENCE = 5.0  # seconds for a database
_FLAGS = sum(
    getattr(os, name, 0)
    for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A session that another program keeps.

    Attributes:
        program: whose it is.
        place: the file it is in.
        account_id: what the program calls it.
        state: what we would keep, under its new name.
    """

    program: str
    place: str
    account_id: str
    state: SessionState

    @property
    def data(self) -> bytes:
        """The record that we would keep."""
        return encode(self.state)


def sessions(where: str) -> tuple[list[Foreign], bool]:
    """Return the sessions that other programs keep there, and whether we may keep some there, too.

    Args:
        where: a directory, a file, OpenClaw's own directory (`~/.openclaw`), `sqlite:PATH`; of
            anything else nothing is known here.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a file that holds no session.
    """
    path = os.path.expanduser(where.removeprefix("sqlite:"))
    if os.path.isdir(path):
        return [*in_directory(path), *_in_home(path)], True
    if not os.path.isfile(path):
        return [], True
    found = list(_of_file(path, alone=True))
    if not found and not where.startswith("sqlite:"):
        raise ValueError(f"{path} is a file, and holds no session that we know")
    return found, not found


def in_directory(path: str, *, alone: bool = False) -> list[Foreign]:
    """Return the sessions that other programs keep in the files of a directory.

    Args:
        alone: whether what a `FileStorage` reads as well is theirs.
    """
    found: list[Foreign] = []
    for name in sorted(os.listdir(path)):
        if name.endswith((".json", ".sqlite")):
            with contextlib.suppress(OSError):  # gone, or not for us to read
                found += _of_file(os.path.join(path, name), alone=alone)
    return found


def _in_home(path: str) -> Iterator[Foreign]:
    for name in _OPENCLAW_HOME:
        inside = os.path.join(path, *name.split("/"))
        if os.path.isdir(inside):
            yield from in_directory(inside, alone=True)
        elif os.path.isfile(inside):
            yield from _of_file(inside, alone=True)


def _of_file(path: str, *, alone: bool) -> Iterator[Foreign]:
    """Yield the sessions in a file.

    Args:
        alone: whether somebody named it; then a record of ours under another name counts, too.
    """
    data, changed = _read(path)
    if data.startswith(_SQLITE):
        yield from _of_database(path)
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        return
    name = os.path.basename(path)
    for program, recognise in _FORMS:
        for account_id, fields in recognise(name, value, changed):
            if program == _OPENCLAW and not alone and name in _names_of(account_id):
                continue  # ours, or as good as ours: a `FileStorage` reads it
            with contextlib.suppress(TypeError, ValueError):
                yield Foreign(program, path, account_id, SessionState(**fields))


def _names_of(account_id: str) -> tuple[str, ...]:
    return file_name(account_id), *other_names(account_id)


def _read(path: str) -> tuple[bytes, float]:
    """Return a regular file's bytes, of a database only the first, and when it was changed."""
    if is_in_use(path):  # so it is ours
        return b"", 0.0
    file = os.open(path, _FLAGS)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b"", 0.0
        data = os.read(file, len(_SQLITE))
        if data != _SQLITE:
            while len(data) <= _FILE and (more := os.read(file, 1 << 20)):
                data += more
        return (b"", 0.0) if len(data) > _FILE else (data, status.st_mtime)
    finally:
        os.close(file)


# Forms: what a program calls the session, and the fields of ours


def _new_name(account_id: str, app_id: object, shard_id: int = 0, shards: int = 1) -> str:
    return f"{app_id}-{shard_id}-{shards}" if app_id else account_id


_Found = Iterator[tuple[str, dict[str, Any]]]


def _openclaw(name: str, value: Mapping[str, Any], changed: float) -> _Found:
    account_id = value.get("accountId")
    if isinstance(account_id, str) and isinstance(value.get("sessionId"), str):
        yield (
            account_id,
            {
                "account_id": _new_name(account_id, value.get("appId")),
                "session_id": value["sessionId"],
                "last_seq": value.get("lastSeq"),
                "last_connected_at": value.get("lastConnectedAt", 0) / 1000,
                "intent_level_index": value.get("intentLevelIndex", 0),
                "saved_at": value.get("savedAt", 0) / 1000,
                "app_id": value.get("appId"),
            },
        )


def _botpy_sdk(name: str, value: Mapping[str, Any], changed: float) -> _Found:
    if {"app_id", "session_id", "sequence", "shard_id", "shard_count", "saved_at"} <= value.keys():
        app_id, shard = value["app_id"], (value["shard_id"], value["shard_count"])
        yield (
            f"{app_id} shard {shard[0]}",
            {
                "account_id": _new_name("", app_id, *shard),
                "session_id": value["session_id"],
                "last_seq": value["sequence"],
                "shard": shard,
                "saved_at": value["saved_at"],
                "app_id": app_id,
            },
        )


def _agent_sdk(name: str, value: Mapping[str, Any], changed: float) -> _Found:
    for app_id, session in value.items():
        if isinstance(session, dict) and {"session_id", "seq", "last_active"} <= session.keys():
            yield (
                app_id,
                {
                    "account_id": _new_name("", app_id),
                    "session_id": session["session_id"],
                    "last_seq": session["seq"],
                    "intents": session.get("intents") or None,
                    "saved_at": _moment(session["last_active"]),
                    "app_id": app_id,
                },
            )


def _alemonjs(name: str, value: Mapping[str, Any], changed: float) -> _Found:
    if {"botId", "sessionId", "sequence"} <= value.keys():
        yield (
            str(value["botId"]),
            {
                "account_id": _new_name("", value["botId"]),
                "session_id": value["sessionId"],
                "last_seq": value["sequence"],
                "saved_at": changed,
                "app_id": value["botId"],
            },
        )


_FORMS: tuple[tuple[str, Callable[[str, Mapping[str, Any], float], _Found]], ...] = (
    (_OPENCLAW, _openclaw),
    ("qq-botpy-sdk", _botpy_sdk),
    ("qqbot-agent-sdk", _agent_sdk),
    ("@alemonjs/qq-bot", _alemonjs),
)


def _moment(text: object) -> float:
    """Return an ISO time, which without a zone is UTC, in seconds since the epoch; 0 for none."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# OpenClaw's database


def _of_database(path: str) -> Iterator[Foreign]:
    import sqlite3
    from pathlib import Path

    # With `immutable` nothing is made beside a database that nobody uses.
    quiet = not os.path.lexists(f"{path}-wal")
    uri = f"{Path(path).absolute().as_uri()}?mode=ro{'&immutable=1' if quiet else ''}"
    end = time.monotonic() + _PATIENCE
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        with contextlib.suppress(sqlite3.Error):  # another program's, or damaged
            if connection.execute(_IS_OPENCLAWS).fetchone() is None:
                return
            rows = connection.execute(_ROWS).fetchall()
            for (text,) in rows:
                yield from _of_row(path, text)


_IS_OPENCLAWS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'plugin_state_entries'"
_ROWS = "SELECT value_json FROM plugin_state_entries WHERE namespace = 'gateway-sessions'"


def _of_row(path: str, text: object) -> Iterator[Foreign]:
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        value = json.loads(str(text))
        for account_id, fields in _openclaw("", value, 0.0):
            yield Foreign(_OPENCLAW, path, account_id, SessionState(**fields))
