"""Which events are known again when the gateway sends them twice.

Rules:

* An event is known by its type and id, once it was handled. A number says nothing: the same
  message was seen again under another one, within a second and after minutes, also across
  restarts (field reports).
* At least the last `limit` are known in memory, exactly those are written down, as digests:
  the digest of a name is made when it is first written or looked for among restored ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice

MAX_REMEMBERED = 512
"""The largest `remember_events`: less than 9 KiB in the record."""

_DIGEST = re.compile(r"[0-9a-f]{16}")


class RecentEvents:
    """The events handled last, oldest first.

    Attributes:
        limit: how many are written down; 0 = none, and nothing is known.
        changes: how often what `text` says has changed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.changes = 0
        self._names: dict[str, str] = {}  # name -> its digest, empty until it is needed
        self._restored: OrderedDict[str, None] = OrderedDict()  # digests, older than every name

    def __contains__(self, name: str) -> bool:
        return name in self._names or (bool(self._restored) and _digest(name) in self._restored)

    def name(self, kind: str, event_id: str | None, data: object) -> str | None:
        """Return what an event is known by, `None` without an id.

        A message goes by its own id, because a redelivery may bear another event id; the `id` in
        any other event's data may be a guild's or a channel's, so those go by the event id.
        """
        name: object = event_id
        if kind.endswith("MESSAGE_CREATE") and (type(data) is dict or isinstance(data, Mapping)):
            name = data.get("id") or event_id
        return f"{kind}:{name}" if name and isinstance(name, str) else None

    def add(self, name: str) -> None:
        if name in self._names:
            return
        self.changes += 1
        self._names[name] = ""
        if self._restored and len(self._restored) + len(self._names) > self.limit:
            self._restored.popitem(last=False)
        elif len(self._names) > 2 * self.limit:
            self._names = dict(islice(self._names.items(), self.limit, None))

    def text(self) -> str:
        """Return the digests, for `restore`."""
        names = list(islice(reversed(self._names), self.limit))
        for name in names:
            self._names[name] = self._names[name] or _digest(name)
        return " ".join([*self._restored, *(self._names[name] for name in reversed(names))])

    def restore(self, text: object) -> None:
        """Take what `text` gave; anything else is ignored."""
        words = text.split(" ") if isinstance(text, str) and self.limit else []
        self._restored = OrderedDict.fromkeys(filter(_DIGEST.fullmatch, words[-self.limit :]))
        self.changes += 1


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
