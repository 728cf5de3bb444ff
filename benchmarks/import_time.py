"""What `import qqbot_session` costs, against what it needs anyway: aiofiles, json and asyncio."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile

from ._measure import Row, Settings, main, ratios, take_turns

_TIMED = """
import time
started = time.perf_counter()
import {modules}
print(time.perf_counter() - started)
"""


def import_time(settings: Settings) -> list[Row]:
    """What does the import cost?"""
    with tempfile.TemporaryDirectory() as cache:  # filled by the first turn, which is not counted
        sides = {
            "ours": lambda: _import("qqbot_session", cache),
            "base": lambda: _import("aiofiles, aiofiles.os, json, asyncio", cache),
        }
        seen = asyncio.run(take_turns(sides, settings.repeats(25)))
    return [
        Row(
            question="`import qqbot_session`",
            against="importing aiofiles, json and asyncio",
            values=ratios(seen["ours"], seen["base"]),
            target="<= 1.15",
        ),
        Row(question="the base", values=[s * 1e3 for s in seen["base"]], unit="ms"),
    ]


async def _import(modules: str, cache: str) -> float:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _TIMED.format(modules=modules)),
        stdout=subprocess.PIPE,
        env=environment,
    )
    output, _ = await process.communicate()
    return float(output)


if __name__ == "__main__":
    main(import_time)
