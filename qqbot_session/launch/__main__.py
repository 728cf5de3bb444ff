"""`python -m qqbot_session.launch`: say what would be wrapped in this Python.

--check    each framework that is installed here, and whether it would resume (exit code 1: none)
--path     the folder for PYTHONPATH, for images that set the two variables themselves
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata

from . import HOOKS

DISTRIBUTIONS = {  # what is installed as which import name, and the integration it needs
    "qq-botpy": "botpy",
    "qq-botpy-rc": "botpy",
    "qq-botpy-community": "botpy",
    "qq-botpy-v2": "botpy",
    "qq-botpy-sdk": "botpy",
    "b-botpy": "botpy",
    "nonebot-adapter-qq": "nonebot",
    "qqbot-agent-sdk": "agent_sdk",
}


def check() -> int:
    """Print a line for each framework; return 0 if at least one would be wrapped."""
    wrapped = 0
    for distribution, integration in DISTRIBUTIONS.items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        try:
            import_module(f"qqbot_session.integrations.{integration}")
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being wrapped
            print(f"{distribution} {version}: not wrapped: {' '.join(str(error).split())}")
        else:
            print(f"{distribution} {version}: resumes")
            wrapped += 1
    if not wrapped:
        print(f"nothing to wrap in {sys.executable}: " + ", ".join(DISTRIBUTIONS))
    return 0 if wrapped else 1


def main(arguments: list[str]) -> int:
    """Carry out a command line; return the exit code: 2 for one that is not understood."""
    if arguments == ["--path"]:
        print(HOOKS)
        return 0
    if arguments == ["--check"]:
        return check()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
