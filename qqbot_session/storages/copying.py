"""`copy`: every session from one storage into another.

Rules:

* What is copied is byte for byte what `read` returns, and only records that name their own account.
  Anything else is counted and left where it is.
* The newer of two records wins, so a copy can be repeated: once while the bot still runs on the
  source, and again after it has stopped. A bot that runs on the target loses nothing either: the
  target compares and writes in one step, and a record that changed meanwhile is judged again.
* Nothing counts as copied that cannot be read back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import InvalidRecordError
from ..state import SessionState, decode
from .base import ExchangingStorage, RecordChangedError, Storage

__all__ = ["Copied", "copy"]

_BATCH = 128  # records
_TRIES = 5  # for a record that a bot goes on writing
_COUNTED = ("copied", "same", "kept", "unreadable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What `copy` did, or has done so far, in numbers of records.

    Args:
        copied: written to the target and read back.
        same: already there, byte for byte.
        kept: newer on the target, and left as it was.
        unreadable: no record, or one of another account; `load` would not return it either.
        failures: per account that is not on the target, the error.
    """

    copied: int = 0
    same: int = 0
    kept: int = 0
    unreadable: int = 0
    failures: Mapping[str, Exception] = field(default_factory=dict, hash=False)


async def copy(
    source: Storage,
    target: Storage,
    *,
    overwrite: bool = False,
    progress: Callable[[Copied], object] | None = None,
) -> Copied:
    """Copy every record of `source` to `target`; neither is closed.

    Nothing is ever deleted. A second copy changes nothing unless the source has changed.

    Args:
        overwrite: also replace records of the target that are newer.
        progress: called after each batch of up to 128 records with what is done so far.

    Returns:
        How many were copied; look at its `failures`.

    Raises:
        Exception: the source cannot be listed, or the target cannot be read.
    """
    done = Copied()
    async for account_ids, unreadable in _accounts(source):
        done = replace(done, unreadable=done.unreadable + unreadable)
        done = await _copy(source, target, account_ids, done, overwrite=overwrite)
        if progress is not None:
            progress(done)
    return done


async def _accounts(source: Storage) -> AsyncIterator[tuple[Sequence[str], int]]:
    """Yield batches of account ids, each id once, and how many records had none."""
    seen: set[str] = set()
    batch: list[str] = []
    unreadable = 0
    async for _, data in source.scan():
        state = _try_decode(data)
        if state is None:
            unreadable += 1
        elif state.account_id not in seen:
            seen.add(state.account_id)
            batch.append(state.account_id)
        if len(batch) >= _BATCH:
            yield batch, unreadable
            batch, unreadable = [], 0
    if batch or unreadable:
        yield batch, unreadable


async def _copy(
    source: Storage, target: Storage, account_ids: Sequence[str], done: Copied, *, overwrite: bool
) -> Copied:
    """Copy a batch. A record whose key is not its own account id is none."""
    records = zip(account_ids, await _read(source, account_ids), strict=True)
    ours = {id_: data for id_, data in records if data is not None and _names(data) == id_}
    counts = Counter(unreadable=len(account_ids) - len(ours))
    failures: dict[str, Exception] = {}
    for _ in range(_TRIES):
        theirs = dict(zip(ours, await _read(target, list(ours)), strict=True))
        changes: dict[str, tuple[bytes | None, bytes]] = {}
        for account_id, data in ours.items():
            failures.pop(account_id, None)  # of the try before
            if theirs[account_id] == data:
                counts["same"] += 1
            elif not overwrite and _is_newer(theirs[account_id], data):
                counts["kept"] += 1
            else:
                changes[account_id] = theirs[account_id], data
        failed = await _write(target, changes)
        counts["copied"] += len(changes) - len(failed)
        failures |= failed
        ours = {id_: ours[id_] for id_, e in failed.items() if isinstance(e, RecordChangedError)}
    return Copied(
        **{name: getattr(done, name) + counts[name] for name in _COUNTED},
        failures={**done.failures, **failures},
    )


async def _read(storage: Storage, account_ids: Sequence[str]) -> list[bytes | None]:
    return await asyncio.gather(*[storage.read(account_id) for account_id in account_ids])


async def _write(
    target: Storage, changes: Mapping[str, tuple[bytes | None, bytes]]
) -> Mapping[str, Exception]:
    """Write what should replace what; return the failures per account id."""
    if not changes:
        return {}
    try:
        if isinstance(target, ExchangingStorage):
            failures = dict(await target.exchange(changes))
        else:
            failures = dict(await target.commit({id_: data for id_, (_, data) in changes.items()}))
    except Exception as error:  # noqa: BLE001 - of these; the next batch may be written
        return dict.fromkeys(changes, error)
    written = [account_id for account_id in changes if account_id not in failures]
    for account_id, data in zip(written, await _read(target, written), strict=True):
        ours = changes[account_id][1]
        if data != ours and not _is_newer(data, ours):
            failures[account_id] = OSError(f"the copy of {account_id!r} is not what was written")
    return failures


def _try_decode(data: bytes) -> SessionState | None:
    try:
        return decode(data)
    except InvalidRecordError:
        return None


def _names(data: bytes) -> str | None:
    """Return the account that a record names."""
    state = _try_decode(data)
    return None if state is None else state.account_id


def _is_newer(theirs: bytes | None, ours: bytes) -> bool:
    known = None if theirs is None else _try_decode(theirs)
    state = _try_decode(ours)
    return known is not None and state is not None and known.saved_at > state.saved_at
