"""`list`, `show`, `why` and `doctor`: they read the records themselves and change nothing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..judging import LoadReason, Verdict, inspect, judge
from . import terminal
from .codes import DONE, NEGATIVE, UsageError
from .rows import COLOURS, STATUSES, Row, account_id, judged, row, scanned
from .terminal import out, out_json, say, short

if TYPE_CHECKING:
    from ..state import SessionState
    from ..storages import Storage

_MAX_RESUMES = 3  # in a row without an answer; the default of `GatewaySession`
_AGES = (60, 300, 3600, 86_400)  # seconds; the summary's steps


async def list_sessions(storage: Storage, options: argparse.Namespace) -> int:
    """Print what the storage holds."""
    import fnmatch

    if options.leases:
        return await _list_leases(storage, options)
    rows = [
        found
        async for _, _, found in scanned(storage, options.max_age)
        if fnmatch.fnmatchcase(found.account, options.pattern)
    ]
    if options.summary:
        leases = [name for name, _ in await _held(storage, options.pattern) or ()]
        return _summarise(rows, len(leases), options)
    wanted = STATUSES if options.all else tuple(options.status or ["resumes"])
    chosen = sorted((r for r in rows if r.status in wanted), key=ORDERS[options.sort])
    if options.json:
        out_json([found.fields(full=options.full) for found in chosen])
        return DONE
    print_rows(chosen, full=options.full)
    if (hidden := len(rows) - len(chosen)) and not options.status:
        say(f"{hidden} more cannot be resumed: list --all shows them")
    elif not rows:
        say("no records")
    return DONE


ORDERS: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "account": lambda row: (row.account,),
    "age": lambda row: (row.age is None, row.age or 0.0, row.account),
    "seq": lambda row: (-(row.state.last_seq or 0) if row.state else 1, row.account),
}


async def _held(storage: Storage, pattern: str) -> list[tuple[str, str]] | None:
    """Return accounts and tokens of the leases that are held; `None` where there are no leases."""
    import fnmatch

    if not hasattr(storage, "held"):
        return None
    return [each async for each in storage.held() if fnmatch.fnmatchcase(each[0], pattern)]


async def _list_leases(storage: Storage, options: argparse.Namespace) -> int:
    from ..storages.holders import holder_of

    held = await _held(storage, options.pattern)
    if held is None:
        raise UsageError("files have no leases; SQLite and Redis have")
    rows = [(account, holder_of(token)) for account, token in sorted(held)]
    if options.json:
        names = ("host", "process", "since")
        out_json(
            [
                {"account": account} | {name: getattr(who, name, None) for name in names}
                for account, who in rows
            ]
        )
    elif rows:
        cells = [
            (account, who.host, str(who.process), terminal.moment(who.since) or "-")
            if who
            else (account, "-", "-", "-")
            for account, who in rows
        ]
        terminal.out_table(("ACCOUNT", "HOST", "PROCESS", "SINCE"), cells)
    else:
        say("no leases are held")
    return DONE


def _summarise(rows: Sequence[Row], leased: int, options: argparse.Namespace) -> int:
    """Print how many records there are of each status, and how old those are that resume."""
    counts = {status: sum(r.status == status for r in rows) for status in STATUSES}
    counts["leased"] = leased
    ages = [abs(r.age) for r in rows if r.status == "resumes" and r.age is not None]
    steps = {limit: sum(a <= limit for a in ages) for limit in _AGES}
    if options.json:
        by_age = {str(limit): count for limit, count in steps.items()}
        out_json({"records": len(rows)} | counts | {"resumes_by_age": by_age})
        return DONE
    out(f"{len(rows):>9,} records")
    for status, count in counts.items():
        if count or status in ("resumes", "expired", "corrupt"):
            out(f"{count:>9,} {status}{_by_age(steps, len(ages)) if status == 'resumes' else ''}")
    return DONE


def _by_age(steps: Mapping[int, int], total: int) -> str:
    parts, before = [], 0
    for limit, count in steps.items():
        if count > before:
            parts.append(f"{count - before:,} up to {terminal.age(limit)} old")
            before = count
    if total > before:
        parts.append(f"{total - before:,} older")
    return f": {', '.join(parts)}" if parts else ""


def print_rows(rows: Sequence[Row], *, full: bool) -> None:
    """Print records as a table, nothing for none."""
    if rows:
        terminal.out_table(
            ("ACCOUNT", "SESSION", "SEQ", "AGE", "STATUS"),
            [_cells(found, full=full) for found in rows],
            right=frozenset({2, 3}),
            colours=[COLOURS.get(found.status) for found in rows],
        )


def _cells(found: Row, *, full: bool) -> tuple[str, str, str, str, str]:
    state = found.state
    return (
        found.account,
        short(state.session_id, full=full) if state and state.session_id else "-",
        "-" if state is None or state.last_seq is None else str(state.last_seq),
        "-" if found.age is None else terminal.age(found.age),
        f"{found.status}: {found.detail}" if found.detail else found.status,
    )


async def show(storage: Storage, options: argparse.Namespace) -> int:
    """Print an account's record."""
    account = account_id(options.account)
    data = await storage.read(account)
    if data is None:
        return _absent(account, options)
    found = judged(account, data, time.time(), options.max_age)
    fields = found.fields(full=options.full)
    if options.json:
        out_json(fields | {"extra": _extra(found.state, full=options.full)})
        return DONE
    fields["age"] = None if found.age is None else terminal.age(found.age)
    fields["saved_at"] = terminal.moment(fields["saved_at"])
    if found.state is not None:
        fields["last_connected_at"] = terminal.moment(found.state.last_connected_at)
        fields["established_at"] = terminal.moment(found.state.established_at)
        fields |= _extra(found.state, full=options.full)
    for name, value in fields.items():
        if value is not None:
            out(f"{name:<18}{value}", limit=40_000 if options.full else 2_000)
    return DONE


def _absent(account: str, options: argparse.Namespace) -> int:
    if options.json:
        out_json(None)
    say(f"{account}: no record. {_ADVICE['absent']}")
    return NEGATIVE


def _extra(state: SessionState | None, *, full: bool) -> dict[str, Any]:
    """Return the further fields of a record; long ones, which only we read, shortened."""
    import json

    extra = dict(state.extra) if state else {}
    if full:
        return extra
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in extra.items()}
    return {
        name: extra[name] if len(text) <= 80 else f"{text[:79]}…" for name, text in texts.items()
    }


async def why(storage: Storage, options: argparse.Namespace) -> int:
    """Say whether a bot would Resume, and if not, why and what to do about it."""
    found, advice = await _explain(storage, options)
    resumes = found.status == "resumes"
    if options.json:
        out_json(found.fields(full=options.full) | {"resumes": resumes, "advice": advice})
    elif resumes and found.state is not None and found.age is not None:
        max_age = options.max_age
        limit = "never expires" if max_age is None else f"max {terminal.duration(max_age)}"
        session = short(found.state.session_id or "", full=options.full)
        out(
            f"{found.account} would Resume: session {session} from number {found.state.last_seq}, "
            f"saved {terminal.age(found.age)} ago ({limit})."
        )
    else:
        out(f"{found.account} would Identify: {found.detail}. {advice}")
    return DONE if resumes else NEGATIVE


async def _explain(storage: Storage, options: argparse.Namespace) -> tuple[Row, str]:
    """Return the account's row, with all of the verdict as its detail, and what to do about it."""
    account = account_id(options.account)
    try:
        verdict = inspect(account, await storage.read(account))
    except OSError as error:
        verdict = Verdict(LoadReason.UNREADABLE, str(error))
    asked = {name: getattr(options, name) for name in ("app_id", "shard", "intents")}
    verdict = judge(verdict, now=time.time(), max_age=options.max_age, asked=asked)
    found = replace(row(account, verdict), detail=verdict.words)
    if found.age is not None and found.age < 0 and found.status == "expired":
        return found, "A clock was wrong, on this machine or the one that wrote it: use NTP."
    state = verdict.state
    if found.status == "resumes" and state is not None and state.failed_resumes >= _MAX_RESUMES:
        detail = f"its last {state.failed_resumes} Resumes were refused or left unanswered"
        found = replace(found, status="refused", detail=detail)
    return found, _ADVICE.get(found.status, "")


_ADVICE = {
    "unreadable": "Fix that first: the bot tries for two seconds and then Identifies.",
    "absent": "`list --all` shows the ids that are there; a shard's looks like 102000000-0-1.",
    "corrupt": "The next connection replaces it. If it happens again, check the disk.",
    "foreign": "Somebody renamed or copied a record: `clear` the account that was asked for.",
    "no session": "The gateway ended that session, or never sent READY; the next READY brings "
    "another.",
    "expired": "The bot was down, or wrote nothing, for that long. Restart it sooner, or give "
    "AsyncSessionStore a longer max_age (the gateway may still refuse).",
    "other": "A session belongs to what it was identified with: this change costs one Identify.",
    "refused": "The gateway seems to have forgotten the session.",
}


async def examine(storage: Storage, options: argparse.Namespace) -> int:
    """Print what `doctor` finds."""
    from . import doctor

    findings = [finding async for finding in doctor.examine(storage, max_age=options.max_age)]
    if options.json:
        out_json([finding.fields() for finding in findings])
    else:
        for finding in findings:
            mark = terminal.mark(*_MARKS[finding.level])
            terminal.out_marked(mark, f"{finding.subject}: {finding.text}")
            if finding.advice:
                terminal.out_marked("     ", finding.advice)
    return NEGATIVE if any(finding.level == "problem" for finding in findings) else DONE


_MARKS = {"ok": ("ok   ", "32"), "note": ("note ", "33"), "problem": ("BAD  ", "31")}
