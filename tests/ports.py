"""Ports for programs that have to be told one."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

_tried = itertools.count(97 * os.getpid())


def free_port() -> int:
    """Return a port that nobody listens on, and that no system gives away by itself.

    So it is still free when a program takes it, or takes it again. A cluster's second port, 10,000
    above it, is never returned.
    """
    while True:
        port = 10_000 + next(_tried) % 10_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
