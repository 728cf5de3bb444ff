"""Which events are recognised when the gateway sends them twice.

Rules:

* An event is recognised by its type and id, once it was handled. Its number says nothing: the same
  message has been seen again under another number, within a second and after minutes, also across
  restarts (field reports).
* At least the last `limit` are known in memory, and exactly those are written down, as digests. The
  digest of a name is made when it is first written or looked for among restored ones; that of a
  long name at once, so that no id, however long, is kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import islice

MAX_REMEMBERED = 512
"""The largest `remember_events`: less than 9 KiB in the record."""

_LONG = 128  # characters; QQ's names have about 100
_NONE: frozenset[str] = frozenset()
_WIDTH = 17  # characters of a digest and a space
_DIGEST = re.compile(r"[0-9a-f]{16}")


class RecentEvents:
    """The events handled last.

    Attributes:
        limit: how many are written down; 0 = none, and nothing is known.
        names: those that were handled in this process, oldest first; not all that are known.
    """

    __slots__ = (
        "_new",
        "_text",
        "_written",
        "limit",
        "names",
        "restored",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: dict[str, None] = {}  # oldest first
        self.restored: frozenset[str] = _NONE  # digests, until they are too old
        self._text = ""  # the digests of all but those of `_new`, oldest first, as they are written
        self._new: list[str] = []  # names whose digests were not needed yet
        self._written = 0  # names whose digests were

    @property
    def changes(self) -> int:
        """How often what `text` says has changed."""
        return self._written + len(self._new)

    def __contains__(self, name: str) -> bool:
        return name in self.names or (bool(self.restored) and _digest(name) in self.restored)

    def name(self, kind: str, event_id: str | None, data: object) -> str | None:
        """Return the name by which to recognise an event, `None` without an id.

        A message is recognised by its own id, because a redelivery may have another event id. The
        `id` in any other event's data may be that of a guild or a channel, so the event id is used.
        """
        name: object = event_id
        if kind.endswith("MESSAGE_CREATE") and (type(data) is dict or isinstance(data, Mapping)):
            name = data.get("id") or event_id
        if not name or not isinstance(name, str):
            return None
        name = f"{kind}:{name}"
        return name if len(name) <= _LONG else _digest(name)

    def add(self, name: str) -> None:
        names = self.names
        if name in names:
            return
        names[name] = None
        self._new.append(name)
        if len(names) > 2 * self.limit:  # seldom, and so cheaper than one by one
            self._forget()
        if self.restored and len(names) >= self.limit:
            self.restored = _NONE

    def text(self) -> str:
        """Return the digests, for `restore`."""
        if self._new:
            new = " ".join(map(_digest, self._new[-self.limit :]))
            self._text = f"{self._text} {new}"[-_WIDTH * self.limit + 1 :].lstrip()
            self._written += len(self._new)
            self._new.clear()
        return self._text

    def restore(self, text: object) -> None:
        """Take what `text` gave; anything else is ignored."""
        words = text.split(" ") if isinstance(text, str) else []
        digests = list(filter(_DIGEST.fullmatch, words))[-self.limit :] if self.limit else []
        self._text = " ".join(digests)
        self.restored = frozenset(digests) if digests else _NONE
        self._written += 1

    def _forget(self) -> None:
        self.names = dict.fromkeys(islice(self.names, self.limit, None))
        self._written += max(0, len(self._new) - self.limit)
        del self._new[: -self.limit]


def _digest(name: str) -> str:
    """Return the digest of a name, or the name itself if it is one already."""
    if len(name) == 16 and _DIGEST.fullmatch(name):  # the first alone says no at once
        return name
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
