"""Run scenarios of the write path, each in a process forked for it; see `crash.ForkServer`.

Reads one job per line, a JSON object: `name` of the scenario, `directory`, and either the fields of
`crash.Fault` or `inject`, what `strace` is to do to which call. `trace` names strace's log.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - before the forks, not in each
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from crash import KILLED, SCENARIOS, Fault, Scenario, a_store, tap

from qqbot_session import FileStorage, SessionState, WriteDetails, commit

commit._FIRST_RETRY = 0.005  # type: ignore[attr-defined]
STRACED = (
    "open,openat,read,write,pwrite64,close,stat,lstat,fstat,newfstatat,statx,fadvise64,fsync,"
    "fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,getdents64"
)


class Strace:
    """A tracer on the library's threads, from now on until `heal`."""

    def __init__(self, log: str, inject: str | None) -> None:
        ours = [t for t in threading.enumerate() if t.name.startswith("qqbot_session")]
        assert len(ours) == 2
        command = ["strace", "-o", log, "-e", f"trace={STRACED}"]
        for thread in ours:
            command += ["-p", str(thread.native_id)]
        if inject is not None:
            command += ["-e", f"inject={inject}"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for _ in ours:
            line = self._process.stderr.readline()
            assert "attached" in line, line

    def heal(self) -> None:
        self._process.terminate()
        self._process.wait()


async def act(directory: Path, scenario: Scenario, job: dict[str, Any]) -> list[str]:
    """Make the scenario's changes; return once each has reached storage by itself."""
    fault: Fault | Strace
    changes = scenario.changes()
    pending = set(changes)
    on_storage = asyncio.Event()

    def note(details: WriteDetails) -> None:
        if details.failures:
            fault.heal()
        pending.difference_update(set(details.account_ids) - set(details.failures))
        if not pending:
            on_storage.set()

    storage = FileStorage(directory)
    store = a_store(storage, on_write=note)
    if "trace" in job:
        await storage.read("nobody")  # start the threads
        await storage.sweep(1e9)
        fault = Strace(job["trace"], job.get("inject"))
    else:
        fault = Fault(**{key: job[key] for key in ("kind", "at", "lasting", "late") if key in job})
        tap(fault)
    if scenario.clean:
        await store.cleanup()
        fault.heal()
        calls = list(fault.calls) if isinstance(fault, Fault) else []
        await store.cleanup()
        return calls
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for account_id, state in changes.items():
            group.create_task(change(store, account_id, state))
        await on_storage.wait()
    fault.heal()
    return fault.calls if isinstance(fault, Fault) else []


async def change(store: Any, account_id: str, state: SessionState | None) -> None:
    await (store.clear(account_id) if state is None else store.save(state))


def run(job: dict[str, Any], report: int) -> None:
    calls = asyncio.run(act(Path(job["directory"]), SCENARIOS[job["name"]], job))
    os.write(report, json.dumps(calls).encode())


def main() -> None:
    for line in sys.stdin:
        reader, writer = os.pipe()
        if (process := os.fork()) == 0:
            signal.alarm(60)  # should it hang, on a thread that nobody can end
            try:
                run(json.loads(line), writer)
            except BaseException:  # noqa: BLE001 - the one place it can be told from
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            report = pipe.read()
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"status": KILLED if code == -9 else code, "calls": json.loads(report or "null")}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
