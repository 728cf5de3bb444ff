"""The operator's commands: inspect and repair a storage without disturbing a running bot.

    qqbot-session --storage sessions list

Rules:

* Reading never writes. `list`, `show` and `why` look at the records themselves, because `load`
  removes what has expired.
* There is no default storage: a command never touches somebody's directory by accident.
* The answer goes to standard output, everything else to standard error. `--json` prints the same
  facts for programs: times in seconds, `null` where there is no value.
* One line says what went wrong; `--debug` adds the traceback.
* A command imports only what it needs: `why` is a probe that runs every minute.

Exit codes: see `codes`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import terminal
from .codes import DONE, INTERRUPTED, USAGE, UsageError, code_of

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; return the exit code.

    Args:
        argv: the arguments without the program's name; `None` = those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    terminal.prepare()
    try:
        code = _carry_out(arguments, debug=debug)
        terminal.flush()
        return code
    except SystemExit as end:  # --help, --version
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        terminal.discard_output()
        return DONE
    except Exception as error:  # noqa: BLE001 - one line, whatever it is
        return _explain(error, debug=debug)


def _explain(error: Exception, *, debug: bool) -> int:
    if debug:
        import traceback

        for line in traceback.format_exc().splitlines():
            terminal.say(line)
    from ..errors import describe

    words = str(error) if isinstance(error, UsageError) else ""
    code = code_of(error)
    text = words or (str(error) if str(error) and code != 70 else describe(error))
    terminal.say(f"qqbot-session: {text}")
    terminal.discard_output()
    return code


def _carry_out(arguments: list[str], *, debug: bool) -> int:
    from .arguments import parse

    options = parse(arguments)
    if options.function == "run":
        _run_program(options)
    if options.function == "looking:why":
        from .probe import answer

        if (code := answer(options)) is not None:
            return code
    import asyncio
    import logging

    log, silence = logging.getLogger("qqbot_session"), logging.NullHandler()
    if not debug:  # what the library would warn of is in the answer
        log.addHandler(silence)
    try:
        return asyncio.run(_run(options))
    finally:
        log.removeHandler(silence)


async def _run(options: argparse.Namespace) -> int:
    from .rows import open_storage

    function = _function(options.function)
    if options.function == "changing:copy":
        return int(await function(options))
    storage = open_storage(_where(options))
    try:
        return int(await function(storage, options))
    finally:
        await storage.aclose()


def _function(name: str) -> Any:
    from importlib import import_module

    module, _, function = name.partition(":")
    return getattr(import_module(f".{module}", __name__), function)


def _where(options: argparse.Namespace) -> str:
    from .rows import VARIABLE

    where = options.storage or os.environ.get(VARIABLE)
    if not where:
        raise UsageError(f"which storage? Give --storage, or set {VARIABLE}")
    return str(where)


def _run_program(options: argparse.Namespace) -> NoReturn:
    from .. import launch

    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError("which program? Give it behind run --")
    try:
        launch.run(command, _where(options))
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}") from error
