"""A bot on virtual time that dies after so many events, once per moment; `test_shutdown.py`.

`killed.py ROOT MOMENTS`: the directories are `ROOT/<moment>`, the moments a JSON array.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from conftest import VirtualTimeLoop
from crash import a_state

from qqbot_session import AsyncSessionStore


async def bot(directory: Path, moment: int) -> None:
    store = AsyncSessionStore(directory, debounce=1.0)
    await store.save(a_state("bot", 0))
    await store.flush()
    for number in range(1, moment + 1):
        await asyncio.sleep(0.01)
        await store.update_last_seq("bot", number)
    os.kill(os.getpid(), signal.SIGKILL)


def main(root: str, moments: str) -> None:
    for moment in json.loads(moments):
        if (process := os.fork()) == 0:
            with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                runner.run(bot(Path(root, str(moment)), moment))
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
