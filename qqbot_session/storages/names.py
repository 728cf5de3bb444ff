"""The file names that an account's record may have. Pure functions.

Rules:

* An id of up to 242 characters of `[A-Za-z0-9_-]` has the same file name as in the TypeScript
  original. Any other id has the original's name for it, shortened, plus a hash: 143 bytes in all,
  because an encrypted home directory (eCryptfs) allows no more.
* A record may also lie under the original's name.
* On a case-sensitive file system no two ids share a name that we write.
"""

from __future__ import annotations

import re

try:  # as `random` does: what `hashlib` loads of OpenSSL takes a tenth of our import
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:  # since Python 3.12 it is another's
    from hashlib import sha256

_LONGEST = 255  # bytes, on every ordinary file system
_SHORTENED = 105  # characters before the hash: 143 bytes in all
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,242}")  # both programs use its name, at most 255 bytes
_RECORD_NAME = re.compile(
    r"session-[A-Za-z0-9_-]{1,242}\.json|session-[A-Za-z0-9_-]{1,97}\.[0-9a-f]{32}\.json"
)


def is_record_name(name: str) -> bool:
    """Return whether the name has the form of one that an id yields."""
    return _RECORD_NAME.fullmatch(name) is not None


def original_name(account_id: str) -> str:
    """Return the original's file name. It replaces UTF-16 units, one by one."""
    replaced = re.sub(
        r"[^A-Za-z0-9_-]", lambda match: "__" if match[0] > "\uffff" else "_", account_id
    )
    return f"session-{replaced}.json"


def file_name(account_id: str) -> str:
    """Return the file name that we write."""
    if _PLAIN_ID.fullmatch(account_id):
        return f"session-{account_id}.json"
    return _with_hash(account_id)


def other_names(account_id: str) -> tuple[str, ...]:
    """Return the other file names of this account's record: the original's, if it differs."""
    if _PLAIN_ID.fullmatch(account_id):
        return ()
    original = original_name(account_id)
    return (original,) if len(original) <= _LONGEST else ()


def _with_hash(account_id: str) -> str:
    start = original_name(account_id).removesuffix(".json")[:_SHORTENED]
    return f"{start}.{sha256(account_id.encode()).hexdigest()[:32]}.json"
