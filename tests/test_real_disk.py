"""Power loss on a real file system: ext4 on a loop device, told to stop where it stands.

`EXT4_IOC_SHUTDOWN` without flushing the log drops whatever is not on the device yet, as a power
loss does; mounting it again recovers the journal. Needs root and a loop device, else skips.
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

from qqbot_session import FileStorage
from qqbot_session.state import decode

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h

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


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """An empty ext4 with a journal, mounted in the test's own folder."""
    tools = ("mkfs.ext4", "mount", "umount")
    if sys.platform != "linux" or os.getuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip("needs root on Linux, mkfs.ext4 and mount")
    image, place = tmp_path / "image", tmp_path / "mount"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-O", "has_journal", image)
    try:
        run("mount", "-o", "loop", image, place)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device here: {error.stderr!r}")
    yield place
    run("umount", place)


def write_until_the_power_goes(directory: Path, mount: Path, commits: int) -> int:
    """Return the last number that `flush` said to be on storage."""
    command = [sys.executable, "-c", WRITER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = (int(line) for line in process.stdout)
        last = next(number for number in lines if number >= commits)
        top = os.open(mount, os.O_RDONLY)
        try:
            fcntl.ioctl(top, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(top)
        process.kill()
        return max([last, *lines])


@pytest.mark.slow
@pytest.mark.real_time
async def test_what_flush_said_is_on_storage_is_there_when_the_power_comes_back(
    mount: Path,
) -> None:
    # promise 7
    directory = mount / "sessions"
    for commits in range(1, 21):
        shutil.rmtree(directory, ignore_errors=True)
        last = write_until_the_power_goes(directory, mount, commits)
        run("umount", mount)
        run("mount", "-o", "loop", mount.parent / "image", mount)
        storage = FileStorage(directory)
        for name in ("one", "two", "a.b"):
            data = await storage.read(name)
            assert data is not None
            assert decode(data).last_seq in (last, last + 1)
        await storage.aclose()
