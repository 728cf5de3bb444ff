"""The command line: what each command takes, and the module that runs it.

That module is imported only when its command is used: a probe that asks `why` every minute should
not pay for `doctor`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from typing import Any, NoReturn

from ..words import hidden
from .codes import UsageError
from .rows import STATUSES, VARIABLE

MAX_AGE = 300.0  # seconds, the store's default
DEFAULTS = {"json": False, "full": False, "debug": False, "storage": None, "max_age": MAX_AGE}


_Command = Callable[[str, str, str], argparse.ArgumentParser]


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return argparse's own, which would import shutil for each argument to know the width."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = 80
    return argparse.HelpFormatter(prog, width=columns - 2)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_formatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help says more)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        from .terminal import out

        out(f"qqbot_session {metadata.version('qqbot_session')}")
        parser.exit()


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options of a command line; `options.function` names who carries it out.

    Raises:
        UsageError: it cannot be understood.
        SystemExit: it asked for help or the version, which were printed.
    """
    verb = next((word for word in argv if word in _VERBS), None)
    if verb is not None:
        try:  # without the others
            return parser(verb).parse_args(argv, argparse.Namespace(**DEFAULTS))
        except UsageError:  # or it is something else's value
            pass
    try:
        return parser().parse_args(argv, argparse.Namespace(**DEFAULTS))
    except UsageError as error:
        raise UsageError(_without_passwords(str(error), argv)) from None


def _without_passwords(text: str, argv: list[str]) -> str:
    """Return a message that may quote arguments: one in the wrong place may be a server's URL."""
    for argument in argv:
        for part in (argument, argument.partition("=")[2]):
            if part and (safe := hidden(part)) != part:
                text = text.replace(part, safe).replace(repr(part)[1:-1], safe)
    return text


_VERBS = ("list", "show", "why", "doctor", "clear", "cleanup", "copy", "run")


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or of one."""
    common = _common()
    made = _Parser(
        prog="qqbot-session",
        parents=[common],
        description="Inspect and repair the gateway sessions that QQ bots keep.",
        epilog="Exit codes: 0 done, 1 not there or not resumable or doctor found a problem, "
        "2 usage, 3 storage out of reach, 4 some accounts failed, 5 the answer could not be "
        "printed, 70 a bug of ours, 130 interrupted.",
    )
    made.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = made.add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser, prog=made.prog
    )

    def command(name: str, function: str, help_text: str) -> argparse.ArgumentParser:
        if only not in (None, name):
            return _Parser(add_help=False)
        verb = commands.add_parser(name, parents=[common], help=help_text, description=help_text)
        verb.set_defaults(function=function)
        return verb

    _add_looking(command)
    _add_changing(command)
    started = command("run", "run", "Run a program whose bots resume: run -- COMMAND.")
    started.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return made


def _common() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--storage",
        default=argparse.SUPPRESS,
        help=f"a directory, sqlite:PATH or redis://…; without it ${VARIABLE}, which is the place "
        "for an address with a password: arguments show in ps",
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
    return common


def _add_looking(command: _Command) -> None:
    listed = command("list", "looking:list_sessions", "List the sessions that can be resumed.")
    listed.add_argument("pattern", nargs="?", default="*", help="account ids, like 'shop-*'")
    listed.add_argument("--all", action="store_true", help="also what cannot be resumed")
    listed.add_argument(
        "--status",
        action="append",
        choices=STATUSES,
        help="only records of this status; may be given more than once",
    )
    listed.add_argument(
        "--leases", action="store_true", help="who holds which account's lease instead"
    )
    listed.add_argument("--summary", action="store_true", help="only count them")
    listed.add_argument("--sort", choices=("account", "age", "seq"), default="account")
    command("show", "looking:show", "Show an account's record.").add_argument("account")
    why = command(
        "why", "looking:why", "Say whether the bot would Resume or Identify now, and why."
    )
    why.add_argument("account")
    why.add_argument("--app-id", help="what the bot will ask for")
    why.add_argument("--intents", type=int)
    why.add_argument("--shard", type=_shard, metavar="ID,COUNT")
    command(
        "doctor",
        "looking:examine",
        "Check what could make the storage lose sessions, and what to do.",
    )


def _add_changing(command: _Command) -> None:
    clear = command("clear", "changing:clear", "Forget sessions: the next start Identifies.")
    clear.add_argument("accounts", nargs="*", metavar="ACCOUNT")
    clear.add_argument("--expired", action="store_true", help="all that have expired")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    cleanup = command(
        "cleanup",
        "changing:cleanup",
        "Remove expired and corrupt records, and left-overs of interrupted writes.",
    )
    cleanup.add_argument("--dry-run", action="store_true", help="say what would be removed")
    cleanup.add_argument(
        "--yes", action="store_true", help="also what has a record's name and is no session"
    )
    copied = command(
        "copy",
        "changing:copy",
        "Copy every record into another storage; the newer one stays.",
    )
    copied.add_argument("source", help="a storage, or what another program keeps its sessions in")
    copied.add_argument("target")
    copied.add_argument("--overwrite", action="store_true", help="also over newer records")
    copied.add_argument(
        "--account",
        action="append",
        default=[],
        metavar="[OLD=]NEW",
        help="the account's name in the target; else it is made of the app id, as 102000000-0-1",
    )


def _seconds(text: str) -> float | None:
    if text == "never":
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"must be seconds or 'never', not {text!r}")


def _shard(text: str) -> tuple[int, int]:
    shard_id, _, count = text.partition(",")
    try:
        return int(shard_id), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be ID,COUNT, such as 0,1, not {text!r}") from None
