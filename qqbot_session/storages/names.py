"""Which file names an account's record may have: pure.

Rules:

* An id made of `[A-Za-z0-9_-]`, at most 242 of them, has the TypeScript original's name. Any other
  has the original's replaced name, shortened, and a hash: 143 bytes in all, because an encrypted
  home (eCryptfs) allows no more.
* A record may also lie under the original's name.
* No two ids share our name, on a disk that knows upper and lower case.
"""

from __future__ import annotations

import hashlib
import re

_LONGEST = 255  # bytes, on every ordinary file system
_SHORTENED = 105  # characters before the hash: 143 bytes in all
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,242}")  # both programs use its name, at most 255 bytes
_RECORD_NAME = re.compile(
    r"session-[A-Za-z0-9_-]{1,242}\.json|session-[A-Za-z0-9_-]{1,97}\.[0-9a-f]{32}\.json"
)


def is_record_name(name: str) -> bool:
    """Whether this is the form of a name that an id gives."""
    return _RECORD_NAME.fullmatch(name) is not None


def original_name(account_id: str) -> str:
    """Return the original's file name, which replaces UTF-16 units: an astral one is two."""
    replaced = re.sub(
        r"[^A-Za-z0-9_-]", lambda match: "__" if match[0] > "\uffff" else "_", account_id
    )
    return f"session-{replaced}.json"


def file_name(account_id: str) -> str:
    """Return the name that we write."""
    if _PLAIN_ID.fullmatch(account_id):
        return f"session-{account_id}.json"
    return _with_hash(account_id)


def other_names(account_id: str) -> tuple[str, ...]:
    """Return the other names that a record of this account may lie under: the original's."""
    if _PLAIN_ID.fullmatch(account_id):
        return ()
    original = original_name(account_id)
    return (original,) if len(original) <= _LONGEST else ()


def _with_hash(account_id: str) -> str:
    start = original_name(account_id).removesuffix(".json")[:_SHORTENED]
    return f"{start}.{hashlib.sha256(account_id.encode()).hexdigest()[:32]}.json"
