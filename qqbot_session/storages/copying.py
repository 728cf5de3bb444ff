"""`copy`: every session from one storage into another.

Rules:

* Storages hold bytes; what is copied is byte for byte what `read` gives, and only what is a record
  of its own account. What is none is counted, and left where it is.
* The newer of two records stays, so that a copy can be repeated: while the bot still runs on the
  source, and again when it has stopped.
* Nothing counts as copied that cannot be read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import InvalidRecordError
from ..state import SessionState, decode
from .base import Storage

__all__ = ["Copied", "copy"]

_BATCH = 128  # records


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What `copy` did, or has done so far; numbers of records.

    Args:
        copied: written to the target, and read back.
        same: there already, byte for byte.
        kept: the target's own, which is newer.
        unreadable: no record, or another account's; `load` would not give it either.
        failures: the error per account that is not on the target.
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

    Nothing is ever deleted. Copied twice, the second time changes nothing unless the source has.

    Args:
        overwrite: also over a record of the target that is newer.
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
    """Copy a batch; what stands under a name that its account id does not give is no record."""
    records = dict(zip(account_ids, await _read(source, account_ids), strict=True))
    theirs = dict(zip(account_ids, await _read(target, account_ids), strict=True))
    changes: dict[str, bytes] = {}
    unreadable = same = kept = 0
    for account_id, data in records.items():
        state = None if data is None else _try_decode(data)
        if data is None or state is None or state.account_id != account_id:
            unreadable += 1
        elif theirs[account_id] == data:
            same += 1
        elif not overwrite and _is_newer(theirs[account_id], state):
            kept += 1
        else:
            changes[account_id] = data
    failures = await _write(target, changes)
    return replace(
        done,
        copied=done.copied + len(changes) - len(failures),
        same=done.same + same,
        kept=done.kept + kept,
        unreadable=done.unreadable + unreadable,
        failures={**done.failures, **failures},
    )


async def _read(storage: Storage, account_ids: Sequence[str]) -> list[bytes | None]:
    return await asyncio.gather(*[storage.read(account_id) for account_id in account_ids])


async def _write(target: Storage, changes: Mapping[str, bytes]) -> Mapping[str, Exception]:
    if not changes:
        return {}
    try:
        failures = dict(await target.commit(changes))
    except Exception as error:  # noqa: BLE001 - of these; the next batch may be written
        return dict.fromkeys(changes, error)
    written = [account_id for account_id in changes if account_id not in failures]
    for account_id, data in zip(written, await _read(target, written), strict=True):
        if data != changes[account_id]:
            failures[account_id] = OSError(f"the copy of {account_id!r} is not what was written")
    return failures


def _try_decode(data: bytes) -> SessionState | None:
    try:
        return decode(data)
    except InvalidRecordError:
        return None


def _is_newer(theirs: bytes | None, state: SessionState) -> bool:
    known = None if theirs is None else _try_decode(theirs)
    return known is not None and known.saved_at > state.saved_at
