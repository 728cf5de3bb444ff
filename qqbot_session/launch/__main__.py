"""`python -m qqbot_session.launch`: say what would be wrapped in this Python.

--check    name each framework that is installed here, and say whether it would resume (exit code
           1: none would)
--path     print the folder for PYTHONPATH, for images that set the two variables themselves
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata

from . import HOOKS

DISTRIBUTIONS = {  # each with the module of ours that is imported for it
    "qq-botpy": "integrations.botpy",
    "qq-botpy-rc": "integrations.botpy",
    "qq-botpy-community": "integrations.botpy",
    "qq-botpy-v2": "integrations.botpy",
    "qq-botpy-sdk": "integrations.botpy",
    "b-botpy": "integrations.botpy",
    "nonebot-adapter-qq": "integrations.nonebot",
    "qqbot-agent-sdk": "integrations.agent_sdk",
    "langbot": "launch.langbot",
    "hermes-agent": "launch.hermes",
}


def check() -> int:
    """Print a line for each framework; return 0 if at least one would be wrapped."""
    wrapped = 0
    for distribution, ours in DISTRIBUTIONS.items():
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        try:
            module = import_module(f"qqbot_session.{ours}")
            if ours.startswith("launch."):  # the others look at their framework when imported
                module.wrap(import_module(module.WRAPPED))
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being wrapped
            print(f"{distribution} {version}: would not resume: {' '.join(str(error).split())}")
        else:
            print(f"{distribution} {version}: resumes")
            wrapped += 1
    if not wrapped:
        print(f"nothing to wrap in {sys.executable}: looked for {', '.join(DISTRIBUTIONS)}")
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
