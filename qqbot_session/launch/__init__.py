"""`qqbot-session run -- COMMAND`: makes the bots of any program resume, unchanged.

    qqbot-session --storage sessions run -- python main.py

Rules:

* The command replaces this process: signals, standard streams and the exit code are its own.
* Two environment variables do the work. PYTHONPATH gains the folder `hooks`, whose `sitecustomize`
  waits until a framework is imported; QQBOT_SESSION_STORAGE says where the sessions are kept, and
  without it nothing is wrapped. Child processes, and a program that restarts itself, inherit both.
* qqbot_session must be installed in the Python that runs the program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

VARIABLE = "QQBOT_SESSION_STORAGE"
HOOKS = Path(__file__).with_name("hooks")
"""The folder to put on PYTHONPATH; images that set the variables themselves need it, too."""


def environment(storage: str, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment in which a program's bots resume.

    Args:
        storage: a directory, `sqlite:PATH` or `redis://…`. A relative path is resolved here, so
            that it stays the same when the program changes its directory.
        base: the environment to add to.
    """
    paths = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(HOOKS) not in paths:
        paths.insert(0, str(HOOKS))
    return {**base, "PYTHONPATH": os.pathsep.join(paths), VARIABLE: _absolute(storage)}


def run(command: Sequence[str], storage: str) -> NoReturn:
    """Replace this process with the command, in the environment that `environment` returns.

    Args:
        command: the program, looked up on PATH, and its arguments.
        storage: as in `environment`.

    Raises:
        OSError: the program cannot be started.
    """
    environ = environment(storage)
    if sys.platform == "win32":  # exec there ends this process and leaves the command behind
        sys.exit(_wait_for(command, environ))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], list(command), environ)


def say(text: str) -> None:
    """Write a line of ours to standard error."""
    print("qqbot-session:", " ".join(text.split()), file=sys.stderr, flush=True)  # noqa: T201


def _wait_for(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command as a child process. It gets every Ctrl-C from the console itself."""
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, env=environ, check=False).returncode


def _absolute(storage: str) -> str:
    kind, colon, path = storage.partition(":")
    if kind == "sqlite":
        return f"{kind}{colon}{Path(path).expanduser().absolute()}"
    if "://" in storage:
        return storage
    return str(Path(storage).expanduser().absolute())
