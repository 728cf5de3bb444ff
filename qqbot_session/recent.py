"""Which events are known again when the gateway sends them twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from .events import Dispatch

MAX_REMEMBERED = 512
"""The largest `remember_events`: less than 9 KiB in the record."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


class RecentEvents:
    """The fingerprints of the last events that were handled, oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, None] = {}
        self.text = ""

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._known

    def fingerprint(self, event: Dispatch) -> str | None:
        """Return 16 hexadecimal digits for the event, `None` without an id or without a memory.

        A message goes by its own id, because a redelivery may bear another event id; the `id` in
        any other event's data may be a guild's or a channel's, so those go by the event id.
        """
        if not self._limit:
            return None
        name = event.id
        if event.type.endswith("MESSAGE_CREATE") and isinstance(event.data, Mapping):
            name = event.data.get("id") or name
        if not isinstance(name, str) or not name:
            return None
        text = f"{event.type}:{name}".encode(errors="surrogatepass")
        return hashlib.sha256(text).hexdigest()[:16]

    def add(self, fingerprint: str | None) -> None:
        if fingerprint is None or fingerprint in self._known:
            return
        self._known[fingerprint] = None
        if len(self._known) > self._limit:
            del self._known[next(iter(self._known))]
        self.text = " ".join(self._known)

    def restore(self, text: object) -> None:
        """Take what `text` was; anything else is ignored."""
        if not isinstance(text, str):
            return
        for word in text.split(" ")[-self._limit :] if self._limit else ():
            if _FINGERPRINT.fullmatch(word):
                self._known[word] = None
        self.text = " ".join(self._known)
