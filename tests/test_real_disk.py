"""Power loss on real file systems: ext4 and xfs on a loop device, told to stop where they stand.

`FS_IOC_SHUTDOWN` without flushing the log drops whatever is not on the device yet, as a power loss
does; mounting it again recovers the journal. Needs root and a loop device, else skips.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qqbot_session.state import decode
from qqbot_session.storages import storage_of

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
FILE_SYSTEMS = {  # how it is made, and mounted
    "ext4": (["mkfs.ext4", "-q", "-O", "has_journal"], "loop"),
    "ext4, noauto_da_alloc": (["mkfs.ext4", "-q", "-O", "has_journal"], "loop,noauto_da_alloc"),
    "xfs": (["mkfs.xfs", "-q"], "loop"),
}

WRITER = """
import asyncio, sys
from qqbot_session import AsyncSessionStore, SessionState

async def main():
    async with AsyncSessionStore(sys.argv[1]) as store:
        for seq in range(1, 100_000):
            for name in ("one", "two", "a.b"):
                await store.save(SessionState(account_id=name, session_id="s", last_seq=seq))
            await store.flush()
            print(seq, flush=True)

asyncio.run(main())
"""


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Disk:
    """An empty file system in a file, mounted beside it."""

    def __init__(self, folder: Path, make: list[str], options: str) -> None:
        self.image, self.place, self._options = folder / "image", folder / "mount", options
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(320 << 20)
        run(*make, self.image)

    def mount(self) -> None:
        run("mount", "-o", self._options, self.image, self.place)

    def unmount(self) -> None:
        run("umount", self.place)


@pytest.fixture(params=FILE_SYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    make, options = FILE_SYSTEMS[request.param]
    tools = (make[0], "mount", "umount")
    if sys.platform != "linux" or os.getuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip(f"needs root on Linux, mount and {make[0]}")
    disk = Disk(tmp_path, make, options)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device or no {request.param} here: {error.stderr!r}")
    yield disk
    disk.unmount()


def write_until_the_power_goes(where: str, disk: Disk, commits: int) -> tuple[int, int]:
    """Return the last numbers that `flush` said to be on storage, before the cut and at all.

    A sync that the cut overtakes may be told that it succeeded; plain `sqlite3` is so, too.
    """
    command = [sys.executable, "-c", WRITER, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = (int(line) for line in process.stdout)
        before = next(number for number in lines if number >= commits)
        top = os.open(disk.place, os.O_RDONLY)
        try:
            fcntl.ioctl(top, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(top)
        process.kill()
        return before, max([before, *lines])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.real_time
@pytest.mark.parametrize("kind", ["files", "sqlite"])
async def test_what_flush_said_is_on_storage_is_there_when_the_power_comes_back(
    disk: Disk, kind: str
) -> None:
    """And a batch of a database is there whole or not at all."""
    # promise 7
    for commits in range(1, 21):
        place = disk.place / f"{commits}"
        where = f"sqlite:{place / 'sessions.db'}" if kind == "sqlite" else str(place)
        before, last = write_until_the_power_goes(where, disk, commits)
        disk.unmount()
        disk.mount()
        storage = storage_of(where)
        numbers = []
        for name in ("one", "two", "a.b"):
            data = await storage.read(name)
            assert data is not None
            number = decode(data).last_seq
            assert number is not None
            assert before <= number <= last + 1
            numbers.append(number)
        await storage.aclose()
        assert kind == "files" or len(set(numbers)) == 1
        shutil.rmtree(place)
