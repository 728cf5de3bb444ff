"""`clear`, `cleanup` and `copy`: they change only what they name."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..state import decode, encode
from ..words import shown
from . import terminal
from .codes import DONE, NEGATIVE, PARTLY, UsageError
from .looking import print_rows
from .rows import Row, account_id, judged, open_storage, scanned
from .terminal import out, out_json, say

if TYPE_CHECKING:
    from ..storages import Storage

_RECENT = 90.0  # seconds; a bot that runs writes at least at every other heartbeat
_LEFT_OVER_AGE = 3600.0  # seconds; younger ones may be a write under way
_BATCH = 128  # accounts per commit
_NAMED = 100  # lines about removed records


async def clear(storage: Storage, options: argparse.Namespace) -> int:
    """Forget sessions."""
    if options.expired == bool(options.accounts):
        raise UsageError("clear takes account ids, or --expired")
    if options.expired:
        return await _clear_expired(storage, options)
    failures: dict[str, Exception] = {}
    there: list[str] = []
    asked = list(dict.fromkeys(map(account_id, options.accounts)))
    for account in asked:
        try:
            data = await storage.read(account)
        except OSError as error:
            failures[account] = error
            continue
        if data is None:
            say(f"{account}: no record")
            continue
        there.append(account)
        age = judged(account, data, time.time(), None).age
        if age is not None and 0 <= age < _RECENT:
            word = terminal.age(age)
            say(f"{account}: written {word} ago, so a bot seems to run: it may come back")
    for start in range(0, len(there), _BATCH):
        failures |= await storage.commit(dict.fromkeys(there[start : start + _BATCH]))
    cleared = [account for account in there if account not in failures]
    code = _report("cleared", cleared, failures, options)
    return code or (DONE if len(cleared) == len(asked) else NEGATIVE)


async def _clear_expired(storage: Storage, options: argparse.Namespace) -> int:
    expired = [
        (key, data, row)
        async for key, data, row in scanned(storage, options.max_age)
        if row.status == "expired" and key is not None
    ]
    if expired and not options.yes:
        _confirm(f"clear {len(expired)} expired record(s)?")
    removed, failures = await _discard(storage, expired)
    return _report("cleared", [row.account for row in removed], failures, options)


async def _discard(
    storage: Storage, records: Iterable[tuple[str, bytes, Row]]
) -> tuple[list[Row], dict[str, Exception]]:
    """Remove what still is what was judged; return what went, and what could not."""
    removed: list[Row] = []
    failures: dict[str, Exception] = {}
    for key, data, row in records:
        try:
            if await storage.discard(key, data):
                removed.append(row)
        except Exception as error:  # noqa: BLE001 - the others are removed all the same
            failures[row.account] = error
    return removed, failures


def _report(
    done: str, accounts: list[str], failures: dict[str, Exception], options: argparse.Namespace
) -> int:
    _say_failures(failures)
    if options.json:
        out_json({done: accounts, "failed": _in_words(failures)})
    else:
        out(f"{done} {len(accounts)}")
    return PARTLY if failures else DONE


def _say_failures(failures: dict[str, Exception]) -> None:
    for account, error in failures.items():
        say(f"{shown(account, 100)}: failed: {error}")


def _in_words(failures: dict[str, Exception]) -> dict[str, str]:
    return {account: str(error) for account, error in failures.items()}


def _confirm(question: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here: add --yes")
    import signal

    with contextlib.suppress(ValueError):  # not the main thread
        # asyncio's own would cancel this task, which waits for a line and not for the loop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    say(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


async def cleanup(storage: Storage, options: argparse.Namespace) -> int:
    """Remove our expired and corrupt records; name and leave other programs' files."""
    garbage: list[tuple[str, bytes, Row]] = []
    strangers: list[Row] = []
    async for key, data, row in scanned(storage, options.max_age):
        if key is None:
            continue
        if row.status in ("expired", "corrupt") or (row.status == "stranger" and options.yes):
            garbage.append((key, data, row))
        elif row.status == "stranger":
            strangers.append(row)
    if options.dry_run:
        return _print_plan([row for _, _, row in garbage], strangers, options)
    removed, failures = await _discard(storage, garbage)
    swept = await storage.sweep(_LEFT_OVER_AGE)
    _say_failures(failures)
    if options.json:
        rows = {"removed": removed, "left": strangers}
        names = {word: [row.account for row in found] for word, found in rows.items()}
        out_json(names | {"left_overs": swept, "failed": _in_words(failures)})
    else:
        for row in removed[:_NAMED]:
            out(f"removed {shown(row.account, 100)} ({row.status})")
        if len(removed) > _NAMED:
            out(f"and {len(removed) - _NAMED} more")
        out(f"removed {len(removed)}" + (f", and {swept} left-over(s)" if swept else ""))
    _say_strangers(strangers)
    return PARTLY if failures else DONE


def _print_plan(garbage: list[Row], strangers: list[Row], options: argparse.Namespace) -> int:
    if options.json:
        fields = [row.fields(full=options.full) for row in garbage]
        out_json({"would_remove": fields, "left": [row.account for row in strangers]})
    else:
        print_rows(garbage, full=options.full)
        say(f"would remove {len(garbage)}")
    _say_strangers(strangers)
    return DONE


def _say_strangers(strangers: list[Row]) -> None:
    for row in strangers[:_NAMED]:
        name = shown(row.account, 100)
        say(f"left {name}: it holds no session and belongs to another program; --yes removes it")
    if len(strangers) > _NAMED:
        say(f"left {len(strangers) - _NAMED} more of the kind")


async def copy(options: argparse.Namespace) -> int:
    """Copy every record, and what other programs keep, into another storage."""
    from ..storages import copy as copy_records

    source = await _source(options)
    target = open_storage(options.target, may_be_new=True)
    progress = terminal.Progress("records copied")

    def show(done: Any) -> None:
        progress(done.copied + done.same + done.kept)

    try:
        done = await copy_records(source, target, overwrite=options.overwrite, progress=show)
    finally:
        progress.end()
        await source.aclose()
        await target.aclose()
    _say_failures(dict(done.failures))
    if options.json:
        counts = {name: getattr(done, name) for name in ("copied", "same", "kept", "unreadable")}
        out_json(counts | {"failed": _in_words(dict(done.failures))})
    else:
        out(
            f"copied {done.copied}; {done.same} were there already, {done.kept} are newer there, "
            f"{done.unreadable} are not records"
        )
    return PARTLY if done.failures else DONE


async def _source(options: argparse.Namespace) -> Storage:
    """Return what to copy from: a storage, or in memory what other programs keep there."""
    from ..storages import MemoryStorage, foreign

    names = dict(map(_renaming, options.account))
    try:
        found, has_ours = foreign.sessions(options.source)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not found and not names:
        return open_storage(options.source)
    records: dict[str, bytes] = {}
    if has_ours:
        await _take(open_storage(options.source), records, names)
    for session in found:
        state = session.state
        if new := names.get(session.account_id, names.get("")):
            state = replace(state, account_id=new)
        known = records.get(state.account_id)
        if known is None or decode(known).saved_at < state.saved_at:
            records[state.account_id] = encode(state)
        say(f"{session.program}'s {session.account_id} becomes {state.account_id}")
    return MemoryStorage(records)


async def _take(storage: Storage, records: dict[str, bytes], names: dict[str, str]) -> None:
    """Read a storage's records, under their new names where they get one."""
    try:
        async for _, data, row in scanned(storage, None):
            if row.state is None or row.status == "foreign":
                continue
            new = names.get(row.account, names.get(""))
            state = row.state if new is None else replace(row.state, account_id=new)
            records[state.account_id] = data if new is None else encode(state)
    finally:
        await storage.aclose()


def _renaming(text: str) -> tuple[str, str]:
    """Return the old and the new account id; the old one is empty if there is only one."""
    old, equals, new = text.rpartition("=")
    return old if equals else "", account_id(new)
