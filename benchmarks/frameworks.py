"""What bots on the frameworks' newest releases lose when they are ended, alone and with us.

40 events: 20, the signal in mid-stream, 8 while the bot is dead, 12 after its restart. "Slow" is a
kill while handlers of up to 5 s run for 20 events, 2.5 s after the last of them. Alone,
qq-botpy-sdk has its own `JsonFileSessionStore`, the others have nothing that keeps a session.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ._measure import Row, Settings, main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import frameworks as environments
from framework_runs import Build, Outcome, run_all

_BOTS = {  # the distribution, and how its bot is built alone and with us
    "botpy": ("qq-botpy", "botpy", "stock", "mixin"),
    "botpy-sdk": ("qq-botpy-sdk", "botpy", "their store", "mixin"),
    "nonebot": ("nonebot-adapter-qq", "nonebot", "stock", "adapter"),
    "agent-sdk": ("qqbot-agent-sdk", "agent_sdk", "stock", "remembered"),
}
_SCENARIOS = {"killed": "SIGKILL", "terminated": "SIGTERM", "slow handlers": "slow, SIGKILL"}


def frameworks(settings: Settings) -> list[Row]:
    """What does a bot lose when it is ended, alone and with us?"""
    rows = []
    for name, (distribution, program, *hows) in _BOTS.items():
        environments.make(name)
        builds = [Build(name, f"framework_{program}", how) for how in hows]
        found = asyncio.run(run_all((build, _SCENARIOS) for build in builds))
        rows += [
            Row(
                question=f"{distribution} {_version(name, distribution)}",
                against=f"{words}, {'with us' if build is builds[1] else 'alone'}",
                note=_told(found[build, scenario]),
            )
            for scenario, words in _SCENARIOS.items()
            for build in builds
        ]
    return rows


def table(rows: Iterable[Row]) -> str:
    """Return a line per framework, with what was lost and what came twice."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(row.question, {})[row.against] = row.note
    heads = list(next(iter(lines.values())))
    cells = [["lost (and came twice)", *heads], ["---"] * (len(heads) + 1)]
    cells += [[name, *(line[head] for head in heads)] for name, line in lines.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _told(outcome: Outcome | BaseException) -> str:
    if isinstance(outcome, BaseException):
        return repr(outcome)
    return f"{len(outcome.lost)} ({len(outcome.twice)})"


def _version(name: str, distribution: str) -> str:
    program = f"from importlib.metadata import version; print(version({distribution!r}))"
    command = [environments.python_of(name), "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(frameworks, table)
