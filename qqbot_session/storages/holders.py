"""Who holds a lease: what its token says of the process that made it.

A token is compared as a whole and never taken apart to decide anything: what is in it is for
people. Tokens of older versions, and of other programs, say nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..words import shown

_SHOWN = 3  # leases in one line


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that took a lease.

    Attributes:
        host: the name of its machine or container.
        process: its id there.
        since: when it began to wait for the lease, seconds since the epoch.
    """

    host: str
    process: int
    since: float

    def __str__(self) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{shown(self.host, 60)}, process {self.process}, since {moment}"


def held_in_words(held: Sequence[tuple[str, str]]) -> str:
    """Return how many leases are held, and of some by whom.

    Args:
        held: account ids and tokens.
    """
    if not held:
        return "none held"
    words = [
        f"{ascii(account_id)[1:-1]}{f' ({holder})' if (holder := holder_of(token)) else ''}"
        for account_id, token in held[:_SHOWN]
    ]
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    return f"{len(held)} held: {', '.join(words)}{more}"


def new_token() -> str:
    """Return a token that nobody else has, and that names this process."""
    import socket

    host = socket.gethostname()[:100]
    return f"{os.urandom(16).hex()}/{os.getpid()}/{int(time.time())}/{host}"


def holder_of(token: str) -> Holder | None:
    """Return who made the token; `None` if it does not say."""
    found = re.fullmatch(r"[0-9a-f]{32}/([0-9]{1,19})/([0-9]{1,12})/(.{1,100})", token, re.DOTALL)
    return found and Holder(found[3], int(found[1]), float(found[2]))
