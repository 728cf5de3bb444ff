"""The operator's commands: look at what a storage holds, and mend it, without disturbing a bot.

    qqbot-session --storage sessions list

Rules:

* Reading never writes. `list`, `show` and `why` look at the records themselves, because `load`
  removes what has expired.
* No storage is a default: a command never works on somebody's directory by accident.
* What was asked for goes to standard output, everything else to standard error. `--json` prints the
  same facts for programs: times in seconds, `null` where there is none.
* One line says what went wrong; `--debug` adds the traceback.

Exit codes: 0 done; 1 not there, not resumable, or `doctor` found a problem; 2 usage; 3 the storage
is out of reach; 4 some accounts failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import json
import logging
import math
import os
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, NoReturn

from . import doctor
from .judging import LoadReason, Verdict, account_of_key, inspect, judge, shown_key
from .state import SessionState
from .storages import Copied, FileStorage, Storage, copy, storage_of
from .store import AsyncSessionStore

DONE, NEGATIVE, USAGE, UNREACHABLE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 4, 130

_VARIABLE = "QQBOT_SESSION_STORAGE"
_MAX_AGE = 300.0  # seconds, the store's default
_MAX_RESUMES = 3  # in a row without an answer; the default of `GatewaySession`
_RECENT = 90.0  # seconds; a bot that runs writes at least at every other heartbeat
_BATCH = 128  # accounts per commit
_GAP = 2  # columns
_COLOURS = {"resumes": "32", "expired": "33", "corrupt": "31", "not a file": "31"}


class _UsageError(Exception):
    """A command that cannot be carried out as it was given."""


class _UnreachableError(Exception):
    """A storage that is not there, or does not answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as an operator sees it.

    Attributes:
        account: the account id, or the storage's name for what has none.
        state: what the record holds, `None` if it is no record.
        age: seconds since it was saved; negative if that lies ahead.
        status: `resumes`, `expired`, `no session`, `corrupt` or `not a file`.
        detail: what the status does not say by itself; empty if it does.
    """

    account: str
    state: SessionState | None
    age: float | None
    status: str
    detail: str = ""

    def fields(self, *, full: bool) -> dict[str, Any]:
        """Return what `--json` prints of it."""
        state = self.state
        session_id = state.session_id if state else None
        return {
            "account": self.account,
            "session_id": _shown(session_id, full=full) if session_id else None,
            "last_seq": state.last_seq if state else None,
            "age": None if self.age is None else round(self.age, 3),
            "saved_at": state.saved_at if state else None,
            "app_id": state.app_id if state else None,
            "intents": state.intents if state else None,
            "shard": list(state.shard) if state and state.shard else None,
            "failed_resumes": state.failed_resumes if state else None,
            "status": self.status,
            "detail": self.detail or None,
        }


def _judged(key: str, data: bytes, now: float, max_age: float | None) -> Row:
    verdict = judge(inspect(account_of_key(key), data), now=now, max_age=max_age)
    return _row(shown_key(key), verdict)


def _row(account: str, verdict: Verdict) -> Row:
    state, status = verdict.state, _STATUS.get(verdict.reason, verdict.reason.value)
    return Row(state.account_id if state else account, state, verdict.age, status, verdict.detail)


_STATUS = {
    LoadReason.RESUMABLE: "resumes",
    LoadReason.OTHER_APP: "other",
    LoadReason.OTHER_SHARD: "other",
    LoadReason.OTHER_INTENTS: "other",
}


# Commands


async def _list(storage: Storage, options: argparse.Namespace) -> int:
    rows = [row async for row in _rows(storage, options.max_age)]
    rows = [row for row in rows if fnmatch.fnmatchcase(row.account, options.pattern)]
    shown = rows if options.all else [row for row in rows if row.status == "resumes"]
    shown.sort(key=_ORDERS[options.sort])
    if options.json:
        _print_json([row.fields(full=options.full) for row in shown])
        return DONE
    _print_table(shown, full=options.full)
    if hidden := len(rows) - len(shown):
        _say(f"{hidden} more cannot be resumed: list --all shows them")
    elif not rows:
        _say("no records")
    return DONE


_ORDERS: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "account": lambda row: (row.account,),
    "age": lambda row: (math.inf if row.age is None else row.age, row.account),
    "seq": lambda row: (-(row.state.last_seq or 0) if row.state else 1, row.account),
}


async def _show(storage: Storage, options: argparse.Namespace) -> int:
    data = await storage.read(options.account)
    if data is None:
        return _absent(options)
    row = _judged(options.account, data, time.time(), options.max_age)
    if options.json:
        fields = row.fields(full=options.full)
        _print_json(fields | {"extra": _extra(row.state, full=options.full)})
        return DONE
    fields = row.fields(full=options.full)
    fields["age"] = None if row.age is None else _age(row.age)
    fields["saved_at"] = _moment(fields["saved_at"])
    if row.state is not None:
        fields["last_connected_at"] = _moment(row.state.last_connected_at)
        fields["established_at"] = _moment(row.state.established_at)
        fields |= _extra(row.state, full=options.full)
    for name, value in fields.items():
        if value is not None:
            print(f"{name:<18}{value}")  # noqa: T201
    return DONE


async def _why(storage: Storage, options: argparse.Namespace) -> int:
    row, advice = await _explain(storage, options)
    resumes = row.status == "resumes"
    if options.json:
        _print_json(row.fields(full=options.full) | {"resumes": resumes, "advice": advice})
    elif resumes and row.state is not None and row.age is not None:
        limit = "never expires" if options.max_age is None else f"max {_duration(options.max_age)}"
        session = _shown(row.state.session_id or "", full=options.full)
        print(  # noqa: T201
            f"{row.account} would Resume: session {session} from number {row.state.last_seq}, "
            f"saved {_age(row.age)} ago ({limit})."
        )
    else:
        print(f"{row.account} would Identify: {row.detail}. {advice}")  # noqa: T201
    return DONE if resumes else NEGATIVE


async def _explain(storage: Storage, options: argparse.Namespace) -> tuple[Row, str]:
    """Return the account's row, with all of the verdict as its detail, and what to do about it."""
    account = options.account
    try:
        found = inspect(account, await storage.read(account))
    except OSError as error:
        found = Verdict(LoadReason.UNREADABLE, str(error))
    asked = {name: getattr(options, name) for name in ("app_id", "shard", "intents")}
    verdict = judge(found, now=time.time(), max_age=options.max_age, asked=asked)
    row = replace(_row(account, verdict), detail=verdict.words)
    if row.age is not None and row.age < 0 and row.status == "expired":
        return row, "A clock was wrong, on this machine or on the one that wrote it: use NTP."
    state = verdict.state
    if row.status == "resumes" and state is not None and state.failed_resumes >= _MAX_RESUMES:
        detail = f"its last {state.failed_resumes} Resumes were refused or left unanswered"
        row = replace(row, status="refused", detail=detail)
    return row, _ADVICE.get(row.status, "")


_ADVICE = {
    "unreadable": "Mend that first: the bot tries for two seconds and then Identifies.",
    "absent": "`list --all` shows the ids that are there; a shard's looks like 102000000-0-1.",
    "corrupt": "The next connection writes a good one; if it comes again, look at the disk.",
    "foreign": "Somebody renamed or copied a record; `clear` the id it stands under.",
    "no session": "The gateway ended that session, or never sent READY; the next READY brings "
    "another.",
    "expired": "The bot was down, or wrote nothing, for that long. Restart it sooner, or give "
    "AsyncSessionStore a longer max_age (the gateway may still refuse).",
    "other": "A session belongs to what it was identified with: this change costs one Identify.",
    "refused": "The gateway seems to have forgotten the session.",
}


async def _clear(storage: Storage, options: argparse.Namespace) -> int:
    if options.expired == bool(options.accounts):
        raise _UsageError("clear takes account ids, or --expired")
    if options.expired:
        return await _clear_expired(storage, options)
    failures: dict[str, Exception] = {}
    there: list[str] = []
    for account in dict.fromkeys(options.accounts):
        try:
            data = await storage.read(account)
        except OSError as error:
            failures[account] = error
            continue
        if data is None:
            _say(f"{account}: no record")
            continue
        there.append(account)
        row = _judged(account, data, time.time(), None)
        if row.age is not None and 0 <= row.age < _RECENT:
            _say(f"{account}: written {_age(row.age)} ago, so a bot seems to run: it may come back")
    for start in range(0, len(there), _BATCH):
        failures |= await storage.commit(dict.fromkeys(there[start : start + _BATCH]))
    cleared = [account for account in there if account not in failures]
    code = _report("cleared", cleared, failures, options)
    return code or (DONE if len(cleared) == len(set(options.accounts)) else NEGATIVE)


async def _clear_expired(storage: Storage, options: argparse.Namespace) -> int:
    expired = {}
    async for key, data in storage.scan():
        row = _judged(key, data, time.time(), options.max_age)
        if row.status == "expired":
            expired[key] = (row.account, data)
    if expired and not options.yes:
        _confirm(f"clear {len(expired)} expired record(s)?")
    cleared, failures = [], {}
    for key, (account, data) in expired.items():
        try:
            if await storage.discard(key, data):
                cleared.append(account)
        except Exception as error:  # noqa: BLE001 - the others are cleared all the same
            failures[account] = error
    return _report("cleared", cleared, failures, options)


def _report(
    done: str, accounts: list[str], failures: dict[str, Exception], options: argparse.Namespace
) -> int:
    for account, error in failures.items():
        _say(f"{account}: failed: {error}")
    if options.json:
        failed = {account: str(error) for account, error in failures.items()}
        _print_json({done: accounts, "failed": failed})
    else:
        print(f"{done} {len(accounts)}")  # noqa: T201
    return PARTLY if failures else DONE


async def _cleanup(storage: Storage, options: argparse.Namespace) -> int:
    rows = [row async for row in _rows(storage, options.max_age)]
    garbage = [row for row in rows if row.status in ("expired", "corrupt")]
    if options.dry_run:
        if options.json:
            _print_json({"would_remove": [row.fields(full=options.full) for row in garbage]})
        else:
            _print_table(garbage, full=options.full)
            _say(f"would remove {len(garbage)}")
        return DONE
    async with AsyncSessionStore(storage, max_age=options.max_age) as store:
        removed = await store.cleanup()
    if options.json:
        _print_json({"removed": removed, "found": len(garbage)})
    else:
        print(f"removed {removed}")  # noqa: T201
    return DONE if removed >= len(garbage) else PARTLY


async def _copy(options: argparse.Namespace) -> int:
    source, target = _open(options.source), _open(options.target, may_be_new=True)
    progress = _Progress()
    try:
        done = await copy(source, target, overwrite=options.overwrite, progress=progress)
    finally:
        progress.end()
        await source.aclose()
        await target.aclose()
    for account, error in done.failures.items():
        _say(f"{account}: failed: {error}")
    if options.json:
        failed = {account: str(error) for account, error in done.failures.items()}
        counts = {name: getattr(done, name) for name in ("copied", "same", "kept", "unreadable")}
        _print_json(counts | {"failed": failed})
    else:
        print(  # noqa: T201
            f"copied {done.copied}; {done.same} were there already, {done.kept} are newer there, "
            f"{done.unreadable} are no records"
        )
    return PARTLY if done.failures else DONE


async def _doctor(storage: Storage, options: argparse.Namespace) -> int:
    findings = [finding async for finding in doctor.examine(storage, max_age=options.max_age)]
    if options.json:
        _print_json([finding.fields() for finding in findings])
    else:
        for finding in findings:
            mark = _coloured(*_MARKS[finding.level])
            print(f"{mark}  {finding.subject}: {finding.text}")  # noqa: T201
            if finding.advice:
                print(f"       {finding.advice}")  # noqa: T201
    return NEGATIVE if any(finding.level == "problem" for finding in findings) else DONE


_MARKS = {"ok": ("ok   ", "32"), "note": ("note ", "33"), "problem": ("BAD  ", "31")}


# What several commands do


async def _rows(storage: Storage, max_age: float | None) -> AsyncIterator[Row]:
    """Yield a row for everything in the storage's records, and in the places of records."""
    now = time.time()
    async for key, data in storage.scan():
        yield _judged(key, data, now, max_age)
    if isinstance(storage, FileStorage):
        for name in doctor.irregular(storage.directory):
            yield Row(name, None, None, "not a file")


def _open(where: object, *, may_be_new: bool = False) -> Storage:
    """Return the storage; a directory or a database that is not there is no empty one."""
    try:
        storage = storage_of(where)
    except (ImportError, TypeError, ValueError) as error:
        raise _UsageError(str(error)) from error
    path = doctor.path_of(storage)
    if path is not None and not may_be_new and not os.path.lexists(path):
        raise _UnreachableError(f"there is no {path}")
    return storage


def _absent(options: argparse.Namespace) -> int:
    if options.json:
        _print_json(None)
    else:
        _say(f"{options.account}: no record")
    return NEGATIVE


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise _UsageError(f"{question} Nobody can be asked here: add --yes")
    with contextlib.suppress(ValueError):  # not the main thread
        # asyncio's own would cancel this task, which waits for a line and not for the loop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _say(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


def _extra(state: SessionState | None, *, full: bool) -> dict[str, Any]:
    """Return the further fields of a record; long ones, which only we read, shortened."""
    extra = dict(state.extra) if state else {}
    if full:
        return extra
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in extra.items()}
    return {
        name: extra[name] if len(text) <= 80 else f"{text[:79]}…" for name, text in texts.items()
    }


class _Progress:
    """A line on a terminal that says how far long work has come; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, done: Copied) -> None:
        now = time.monotonic()
        if self._shown and now - self._last > 0.2:
            self._last = now
            _say(f"\r{done.copied + done.same + done.kept} ", end="")

    def end(self) -> None:
        if self._last:
            _say("\r\x1b[K", end="")


# Printing


def _say(text: str, *, end: str = "\n") -> None:
    print(text, file=sys.stderr, end=end, flush=True)  # noqa: T201


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201


def _print_table(rows: Sequence[Row], *, full: bool) -> None:
    """Print the rows in columns; the account gives way if the terminal is narrow."""
    if not rows:
        return
    cells = [_cells(row, full=full) for row in rows]
    header = ("ACCOUNT", "SESSION", "SEQ", "AGE", "STATUS")
    widths = [max(_width(line[column]) for line in [header, *cells]) for column in range(4)]
    columns = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10_000
    status = max(len(row.status) for row in rows)
    widths[0] = max(12, min(widths[0], columns - sum(widths[1:]) - 4 * _GAP - status))
    print("  ".join(_line(header, widths, columns)).rstrip())  # noqa: T201
    for row, line in zip(rows, cells, strict=True):
        *head, tail = _line(line, widths, columns)
        print("  ".join([*head, _coloured(tail, _COLOURS.get(row.status, "0"))]))  # noqa: T201


def _cells(row: Row, *, full: bool) -> tuple[str, str, str, str, str]:
    state = row.state
    return (
        _printable(row.account),
        _shown(state.session_id, full=full) if state and state.session_id else "-",
        "-" if state is None or state.last_seq is None else str(state.last_seq),
        "-" if row.age is None else _age(row.age),
        f"{row.status}: {_printable(row.detail)}" if row.detail else row.status,
    )


def _line(cells: Sequence[str], widths: Sequence[int], columns: int) -> list[str]:
    """Return the cells laid out; the status gets what room is left, and is not cut itself."""
    account, session, seq, age, status = cells
    room = max(columns - sum(widths) - 4 * _GAP, len(status.partition(":")[0]))
    return [
        _fitted(account, widths[0]),
        _fitted(session, widths[1]),
        seq.rjust(widths[2]),
        age.rjust(widths[3]),
        status if _width(status) <= room else _fitted(status, room),
    ]


def _width(text: str) -> int:
    """Return the columns that a text takes: wide characters, such as Chinese ones, take two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fitted(text: str, width: int) -> str:
    """Return the text cut or padded to so many columns."""
    if _width(text) > width:
        while text and _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _printable(text: str) -> str:
    """Return the text without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shown(session_id: str, *, full: bool) -> str:
    return _printable(session_id if full else f"{session_id[:4]}…")


def _age(seconds: float) -> str:
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{sign}{seconds / unit:.0f} {name}"
    return f"{sign}{seconds / 86_400:.0f} d"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g} s"


def _moment(seconds: float | None) -> str | None:
    if not seconds:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _coloured(text: str, colour: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} ({self.prog} --help says more)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("qqbot_session", metadata.version("qqbot_session"))  # noqa: T201
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--storage",
        default=argparse.SUPPRESS,
        help=f"a directory, sqlite:PATH or redis://…; without it ${_VARIABLE}",
    )
    for name, help_text in (
        ("--json", "print JSON"),
        ("--full", "show session ids whole"),
        ("--debug", "show the traceback of an error"),
    ):
        common.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=help_text)
    common.add_argument(
        "--max-age",
        type=_seconds,
        default=argparse.SUPPRESS,
        metavar="SECONDS",
        help="when a record counts as expired, or 'never' (default: 300)",
    )
    parser = _Parser(
        prog="qqbot-session",
        parents=[common],
        description="Look at, and mend, the gateway sessions that QQ bots keep.",
        epilog="Exit codes: 0 done, 1 not there or not resumable or doctor found a problem, "
        "2 usage, 3 storage out of reach, 4 some accounts failed, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: object, help_text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=help_text, description=help_text)
        made.set_defaults(function=function)
        return made

    listed = command("list", _list, "List the sessions that can be resumed.")
    listed.add_argument("pattern", nargs="?", default="*", help="account ids, like 'shop-*'")
    listed.add_argument("--all", action="store_true", help="also what cannot be resumed")
    listed.add_argument("--sort", choices=sorted(_ORDERS), default="account")
    command("show", _show, "Show an account's record.").add_argument("account")
    why = command("why", _why, "Say whether the bot would Resume or Identify now, and why.")
    why.add_argument("account")
    why.add_argument("--app-id", help="what the bot will ask for")
    why.add_argument("--intents", type=int)
    why.add_argument("--shard", type=_shard, metavar="ID,COUNT")
    clear = command("clear", _clear, "Forget sessions: the next start Identifies.")
    clear.add_argument("accounts", nargs="*", metavar="ACCOUNT")
    clear.add_argument("--expired", action="store_true", help="all that have expired")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    cleanup = command("cleanup", _cleanup, "Remove expired and corrupt records, and left-overs.")
    cleanup.add_argument("--dry-run", action="store_true", help="say what would be removed")
    copied = command("copy", _copy, "Copy every record into another storage; the newer one stays.")
    copied.add_argument("source")
    copied.add_argument("target")
    copied.add_argument("--overwrite", action="store_true", help="also over newer records")
    started = command("run", _run_program, "Run a program whose bots resume: run -- COMMAND.")
    started.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    command("doctor", _doctor, "Say what would keep sessions from being kept, and what to do.")
    return parser


def _seconds(text: str) -> float | None:
    if text == "never":
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"it is seconds, or 'never', not {text!r}")


def _shard(text: str) -> tuple[int, int]:
    shard_id, _, count = text.partition(",")
    try:
        return int(shard_id), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is ID,COUNT as in 0,1, not {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; return the exit code.

    Args:
        argv: the arguments without the program's name; `None` = those of the process.
    """
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    if not debug:  # what the library would warn of is in the answer
        logging.getLogger("qqbot_session").addHandler(logging.NullHandler())
    try:
        options = _parser().parse_args(argv, argparse.Namespace(**_DEFAULTS))
        if options.function is _run_program:
            _run_program(options)
        return asyncio.run(_run(options))
    except SystemExit as end:  # --help, --version
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - one line, whatever it is
        if debug:
            traceback.print_exc()
        _say(f"qqbot-session: {error or type(error).__name__}")
        return USAGE if isinstance(error, _UsageError | argparse.ArgumentTypeError) else UNREACHABLE


_DEFAULTS = {"json": False, "full": False, "debug": False, "storage": None, "max_age": _MAX_AGE}


def _run_program(options: argparse.Namespace) -> NoReturn:
    from . import launch

    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise _UsageError("which program? Give it behind run --")
    try:
        launch.run(command, _where(options))
    except OSError as error:
        raise _UsageError(f"{command[0]} cannot be started: {error.strerror}") from error


def _where(options: argparse.Namespace) -> str:
    where = options.storage or os.environ.get(_VARIABLE)
    if not where:
        raise _UsageError(f"which storage? Give --storage, or set {_VARIABLE}")
    return str(where)


async def _run(options: argparse.Namespace) -> int:
    function: Callable[..., Awaitable[int]] = options.function
    if function is _copy:
        return await _copy(options)
    storage = _open(_where(options))
    try:
        return await function(storage, options)
    finally:
        await storage.aclose()
