"""Environments with the frameworks' real packages, one per distribution and version.

    python tests/frameworks.py [NAME ...]     make those, by default the newest of each framework

They lie in `.venv-frameworks`, or where QQBOT_FRAMEWORKS says. A test whose environment is not
there skips, or, if it is slow, makes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"
DIRECTORY = Path(os.environ.get("QQBOT_FRAMEWORKS", ROOT / ".venv-frameworks"))


@dataclass(frozen=True)
class Environment:
    """What is installed there, beside what `qqbot_session` itself needs.

    Attributes:
        python: the lowest version of Python on which the package can be imported.
    """

    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 11)


_NONEBOT = "nonebot2[aiohttp,fastapi,httpx,websockets]"
NEWEST = {  # what the extras bring
    "botpy": Environment((f"{ROOT}[botpy]",)),
    "botpy-sdk": Environment(("qq-botpy-sdk",)),
    "nonebot": Environment((f"{ROOT}[nonebot]", _NONEBOT)),
    "agent-sdk": Environment((f"{ROOT}[agent-sdk]",)),
}
OTHERS = {
    "botpy-1.1.5": Environment(("qq-botpy==1.1.5",)),
    "botpy-1.1.6": Environment(("qq-botpy==1.1.6",)),
    "botpy-1.2.0": Environment(("qq-botpy==1.2.0",)),
    "botpy-rc": Environment(("qq-botpy-rc",)),
    "botpy-community": Environment(("qq-botpy-community",)),
    "botpy-v2": Environment(("qq-botpy-v2",)),
    "botpy-sdk-2.1.0": Environment(("qq-botpy-sdk==2.1.0",), python=(3, 12)),
    "nonebot-1.6.4": Environment(("nonebot-adapter-qq==1.6.4", f"{_NONEBOT}==2.4.3")),
    "agent-sdk-1.2.1": Environment(("qqbot-agent-sdk==1.2.1",)),
}
ALL = NEWEST | OTHERS


def python_of(name: str) -> Path:
    """Return where the environment's Python is, there or not."""
    scripts = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return DIRECTORY / name / scripts


def make(name: str, environment: Environment | None = None) -> None:
    """Make an environment from the package index; nothing to do if it is there.

    Args:
        environment: by default the one that has this name here.

    Raises:
        LookupError: if there is no Python that is new enough for it.
    """
    environment = environment or ALL[name]
    if python_of(name).exists():
        return
    unfinished = DIRECTORY / f"{name}.unfinished"
    fill(unfinished, environment)
    unfinished.rename(DIRECTORY / name)


def fill(folder: Path, environment: Environment) -> None:
    """Make an environment in that folder, in place of what is there.

    Raises:
        LookupError: if there is no Python that is new enough for it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    interpreter = interpreter_for(environment.python)
    python = str(folder / python_of("").relative_to(DIRECTORY))
    venv = [interpreter, "-m", "venv"]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):  # several times as fast
        venv = [uv, "venv", "--quiet", "--python", interpreter]
        install = [uv, "pip", "install", "--quiet", "--python", python]
    subprocess.run([*venv, str(folder)], check=True)
    subprocess.run([*install, *environment.requirements, "aiofiles"], check=True)


def interpreter_for(least: tuple[int, int]) -> str:
    """Return a Python of this version or later.

    Raises:
        LookupError: there is none.
    """
    if sys.version_info[:2] >= least:
        return sys.executable
    for minor in range(least[1], least[1] + 3):
        found = shutil.which(f"python{least[0]}.{minor}")
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found  # and no stand-in of a version manager's
    raise LookupError(f"no Python {least[0]}.{least[1]} or later on the PATH")


if __name__ == "__main__":
    with ThreadPoolExecutor(max_workers=2) as workers:
        list(workers.map(make, sys.argv[1:] or NEWEST))
