"""What `import qqbot_session` costs, against what it needs anyway: aiofiles, json and asyncio.

The package imports each name when it is first used, so a program that keeps sessions in files is
measured by the names that it uses.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile

from ._measure import Row, Settings, main, ratios, take_turns

_USED = "from qqbot_session import AsyncSessionStore, FileStorage, SessionState"
_BOUND = (
    "loading twenty modules of ours takes three fifths of what is more; `dataclasses`, the pool of "
    "threads, and making three dataclasses and five protocols take the rest"
)
_TIMED = """
import time
started = time.perf_counter()
{statement}
print(time.perf_counter() - started)
"""


def import_time(settings: Settings) -> list[Row]:
    """What does the import cost?"""
    with tempfile.TemporaryDirectory() as cache:  # filled by the first turn, which is not counted
        sides = {
            "ours": lambda: _import("import qqbot_session", cache),
            "used": lambda: _import(_USED, cache),
            "base": lambda: _import("import aiofiles, aiofiles.os, json, asyncio", cache),
        }
        seen = asyncio.run(take_turns(sides, settings.repeats(25)))
    return [
        *(
            Row(
                question=f"`{what}`",
                against="importing aiofiles, json and asyncio",
                values=ratios(seen[name], seen["base"]),
                target="<= 1.15",
                bound=_BOUND,
            )
            for what, name in ((_USED, "used"), ("import qqbot_session", "ours"))
        ),
        Row(question="the base", values=[s * 1e3 for s in seen["base"]], unit="ms"),
    ]


async def _import(statement: str, cache: str) -> float:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _TIMED.format(statement=statement)),
        stdout=subprocess.PIPE,
        env=environment,
    )
    output, _ = await process.communicate()
    return float(output)


if __name__ == "__main__":
    main(import_time)
