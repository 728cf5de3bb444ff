"""What runs in this process, for whoever measures it: the lines that are kept up, and the stores.

Rules:

* Whoever keeps a line up adds itself to `lines` while it does, and is read from any thread.
* A listener hears of every store in the process, whoever made it, besides the store's own hook.
* With nobody listening this costs a look at an empty list, per load and per commit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol


class Line(Protocol):
    """One shard's line: a `ShardRunner`, or what does its work in a framework."""

    @property
    def account_id(self) -> str:
        """Whose line it is."""
        ...

    @property
    def health(self) -> Any:
        """How it is: a `Health`."""
        ...


lines: weakref.WeakSet[Line] = weakref.WeakSet()
on_load: list[Callable[[Any], object]] = []
"""Called with the `LoadDetails` of each load, on that store's loop."""
on_write: list[Callable[[Any], object]] = []
"""Called with the `WriteDetails` of each commit, on that store's loop."""


def kept_up() -> list[Line]:
    """Return the lines that are kept up now, in the order of their accounts."""
    for _ in range(10):
        try:
            return sorted(lines, key=lambda line: line.account_id)
        except RuntimeError:  # another thread has just added one
            continue
    return []
