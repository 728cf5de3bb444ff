"""`qqbot-session run -- COMMAND`: what reaches the program, and what does not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qqbot_session import launch
from qqbot_session.answers import Answers, handle_whole
from qqbot_session.gateway import Dispatch
from qqbot_session.launch import nanobot, wrapping

ROOT = Path(__file__).parent.parent


def run(
    directory: Path, *command: str, storage: str = "sessions", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Start a command by `qqbot-session run` in that directory."""
    launcher = [sys.executable, "-m", "qqbot_session", "--storage", storage, "run", "--"]
    return subprocess.run(
        [*launcher, *command],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        check=False,
    )


def python(directory: Path, program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program that way."""
    return run(directory, sys.executable, "-c", program, **environ)


def package(directory: Path, name: str, text: str) -> None:
    (directory / name).mkdir()
    (directory / name / "__init__.py").write_text(text, "utf-8")


def test_the_command_replaces_the_launcher_and_its_exit_code_is_the_command_s(
    tmp_path: Path,
) -> None:
    launcher = [sys.executable, "-m", "qqbot_session", "--storage", "s", "run"]
    program = "import os; print(os.getpid()); os._exit(7)"
    with subprocess.Popen(
        [*launcher, "--", sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
    assert process.returncode == 7


def test_a_signal_reaches_the_program_itself(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "qqbot_session", "--storage", "s", "run", "--"]
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "signal.pause()"
    )
    with subprocess.Popen(
        [*launcher, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 5


def test_options_of_the_command_are_the_command_s(tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1:])"
    result = run(tmp_path, sys.executable, "-c", program, "--storage", "other", "--", "--help")
    assert result.stdout == "['--storage', 'other', '--', '--help']\n"


def test_nothing_is_imported_that_the_program_does_not_import(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "before = {'qqbot_session', 'asyncio', 'aiofiles', 'botpy', 'nonebot', 'typing', 'json'}\n"
        "print(sorted(before & set(sys.modules)))"
    )
    assert python(tmp_path, program).stdout == "[]\n"


def test_a_relative_place_is_taken_from_where_the_launcher_was_started(tmp_path: Path) -> None:
    show = "import os; print(os.environ['QQBOT_SESSION_STORAGE'])"
    assert python(tmp_path, show).stdout == f"{tmp_path / 'sessions'}\n"
    command = [sys.executable, "-c", show]
    database = run(tmp_path, *command, storage="sqlite:a.db")
    assert database.stdout == f"sqlite:{tmp_path / 'a.db'}\n"
    server = run(tmp_path, *command, storage="redis://127.0.0.1")
    assert server.stdout == "redis://127.0.0.1\n"


@pytest.mark.parametrize("how", ["child", "execv"])
def test_children_and_a_program_that_starts_itself_anew_keep_it(tmp_path: Path, how: str) -> None:
    package(tmp_path, "botpy", "class Client: pass")
    inner = "import botpy; print(hasattr(botpy.Client.__init__, '__wrapped__'))"
    start = {
        "child": "subprocess.run([sys.executable, '-c', INNER])",
        "execv": "os.execv(sys.executable, [sys.executable, '-c', INNER])",
    }[how]
    result = python(tmp_path, f"import os, subprocess, sys\nINNER = {inner!r}\n{start}")
    assert result.stdout == "True\n"


def test_a_sitecustomize_of_the_user_s_own_still_runs_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("WHOSE = 'the user'\n", "utf-8")
    paths = os.pathsep.join([str(tmp_path / "mine"), str(ROOT)])
    program = "import sitecustomize, sys; print(sitecustomize.WHOSE, sys.path)"
    result = python(tmp_path, program, PYTHONPATH=paths)
    assert result.stdout.startswith("the user ")
    assert str(launch.HOOKS) not in result.stdout


def test_a_framework_that_cannot_be_wrapped_is_one_line_and_the_program_runs_on(
    tmp_path: Path,
) -> None:
    package(tmp_path, "botpy", "class Client: pass")  # not one that we know
    result = python(tmp_path, "import botpy; botpy.Client(); botpy.Client(); print('runs on')")
    assert (result.stdout, result.returncode) == ("runs on\n", 0)
    (line,) = result.stderr.splitlines()
    assert line.startswith("qqbot-session: botpy will not resume: ")


def test_a_framework_whose_import_fails_fails_as_it_would_alone(tmp_path: Path) -> None:
    package(tmp_path, "botpy", "raise LookupError('its own fault')")
    result = python(tmp_path, "import botpy")
    assert "LookupError: its own fault" in result.stderr
    assert "qqbot-session" not in result.stderr


def test_a_python_without_us_says_so_in_one_line(tmp_path: Path) -> None:
    package(tmp_path, "botpy", "class Client: pass")
    bare = [sys.executable, "-S", "-c"]  # no site-packages, so not installed there
    program = f"import sys; sys.path.insert(0, {str(launch.HOOKS)!r}); import sitecustomize, botpy"
    environ = {"QQBOT_SESSION_STORAGE": "s", "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [*bare, program], capture_output=True, text=True, cwd=tmp_path, env=environ, check=False
    )
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "qqbot_session is not installed in" in line


def test_two_variables_do_the_same_for_an_image(tmp_path: Path) -> None:
    package(tmp_path, "botpy", "class Client: pass")
    path = subprocess.run(
        [sys.executable, "-m", "qqbot_session.launch", "--path"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / "hooks").symlink_to(path)
    environ = {"PYTHONPATH": f"{tmp_path / 'hooks'}{os.pathsep}{ROOT}"}
    show = "import botpy; print(hasattr(botpy.Client.__init__, '__wrapped__'))"
    command = [sys.executable, "-c", show]
    for storage, expected in (("s", True), ("", False)):
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environ, "QQBOT_SESSION_STORAGE": storage},
            check=True,
        )
        assert result.stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--storage", "s", "run"], "which program?"),
        (["--storage", "s", "run", "--", "no-such-program"], "no-such-program cannot be started"),
        (["run", "--", "true"], "which storage?"),
    ],
)
def test_what_cannot_be_started_is_one_line(arguments: list[str], sentence: str) -> None:
    environ = {name: text for name, text in os.environ.items() if name != launch.VARIABLE}
    result = subprocess.run(
        [sys.executable, "-m", "qqbot_session", *arguments],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_check_says_which_frameworks_of_this_python_would_resume() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "qqbot_session.launch", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout
    expected = "resumes" in result.stdout
    assert result.returncode == (0 if expected else 1)


async def test_nanobots_restart_counts_as_handled_and_comes_after_the_lines_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    answers = Answers()

    async def queue(_: Dispatch) -> None:
        """Return at once, as nanobot's handlers do."""

    async def end() -> None:
        await handled  # else the end would wait for its answer, and it would come again
        order.append("lines")

    async def restart(context: object) -> str:
        order.append("restart")
        return f"Restarting {context.msg.metadata['message_id']}"  # type: ignore[attr-defined]

    event = Dispatch("C2C_MESSAGE_CREATE", 2, {"id": "M1"})
    handled = asyncio.create_task(handle_whole(answers.awaited(queue), event))
    await asyncio.sleep(0)
    client = type("Client", (), {"_qqbot_until": answers, "_qqbot_end": staticmethod(end)})()
    monkeypatch.setattr(wrapping, "CLIENTS", {client})
    builtin = SimpleNamespace(cmd_restart=restart)
    nanobot.wrap(builtin)
    context = SimpleNamespace(msg=SimpleNamespace(metadata={"message_id": "M1"}))
    assert await builtin.cmd_restart(context) == "Restarting M1"
    assert order == ["lines", "restart"]
