"""What would keep a server from keeping sessions, for `qqbot-session doctor`.

One record of its own is written and deleted again, under a random account id and expired from the
start, so that a cleanup removes it should the command be killed. Everything else only looks.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ..state import SessionState, encode
from .holders import held_in_words
from .redis_client import is_cluster

if TYPE_CHECKING:
    from .redis import RedisStorage

Said = tuple[str, str, str, str]  # level, subject, text, advice

_SKEW = 5.0  # seconds
_REFUSALS = ("NOPERM", "permission", "NOAUTH", "WRONGPASS", "uthenti", "username", "can't run")

COMMANDS = (
    *("get", "set", "del", "getrange", "exists", "pttl", "time", "eval", "evalsha", "scan"),
    *("hello", "client", "select"),
)
"""What a user of a server must be allowed to do; in a cluster also `cluster` and `command`."""

_PERMISSIONS = f"Check the password, and what the user may do: +{' +'.join(COMMANDS)}."

_SETTINGS = (
    ("maxmemory-policy", "noeviction", "When it is full the server drops sessions: noeviction."),
    ("appendonly", "yes", "A restart of the server forgets every session: appendonly yes."),
)


async def examine(storage: RedisStorage) -> AsyncIterator[Said]:
    """Yield what there is to say about the server."""
    began = time.perf_counter()
    try:
        where, skew = await storage.where()
    except Exception as error:  # noqa: BLE001 - of whichever client
        if any(word in str(error) for word in _REFUSALS):
            yield "problem", "server", f"refuses: {error}", _PERMISSIONS
        else:
            yield "problem", "server", f"does not answer: {error}", "Bots will Identify."
        return
    elapsed = (time.perf_counter() - began) * 1000
    yield "ok", "server", f"answers in {elapsed:.1f} ms{where}", ""
    if abs(skew) > _SKEW:
        yield "note", "clock", f"the server's differs by {skew:.0f} s", "Use NTP on both machines."
    yield await _try_to_write(storage)
    for name, good, advice in _SETTINGS:
        yield await _setting(storage.client, name, good, advice)
    async for said in _replicas(storage.client):
        yield said
    yield await _leases(storage)


async def _try_to_write(storage: RedisStorage) -> Said:
    account_id = f"qqbot-session-doctor-{secrets.token_hex(8)}"
    try:
        failures = await storage.commit({account_id: encode(SessionState(account_id=account_id))})
        failures = failures or await storage.commit({account_id: None})
        if failures:
            raise failures[account_id]
    except Exception as error:  # noqa: BLE001 - of whichever client
        return "problem", "writing", f"a record cannot be written: {error}", _advice(str(error))
    return "ok", "writing", "a record was written and deleted", ""


def _advice(text: str) -> str:
    if any(word in text for word in _REFUSALS):
        return _PERMISSIONS
    if "READONLY" in text:
        return "This is a replica: name the master, or hand in Sentinel's client."
    return "Every session is lost with its process."


async def _asked(client: Any, name: str) -> str:
    """Return the value of a setting."""
    answer = await client.execute_command("CONFIG GET", name, **_somewhere(client))
    value = next(iter(answer.values())) if isinstance(answer, dict) else answer[1]
    return _text(value)


def _somewhere(client: Any) -> dict[str, Any]:
    """Return what lets a cluster's client ask one node."""
    nodes = client.get_primaries() if is_cluster(client) else []
    return {"target_nodes": nodes[0]} if nodes else {}


async def _setting(client: Any, name: str, good: str, advice: str) -> Said:
    try:
        value = await _asked(client, name)
    except Exception as error:  # noqa: BLE001 - many hosted servers do not tell
        return "note", "settings", f"{name} cannot be asked for: {error}", advice
    if value == good:
        return "ok", "settings", f"{name} {value}", ""
    return "problem", "settings", f"{name} {value}", advice


async def _replicas(client: Any) -> AsyncIterator[Said]:
    """Say what a failover would lose; of a server without replicas there is nothing to say."""
    count = 0
    with contextlib.suppress(Exception):  # many hosted servers do not tell
        about = await client.execute_command("INFO", "replication", **_somewhere(client))
        found = about.get("connected_slaves", 0) if isinstance(about, dict) else 0
        count = int(found)
    if not count:
        return
    advice = (
        "A planned failover loses what the old master acknowledges meanwhile, leases included:"
        " min-replicas-to-write 1."
    )
    try:
        value = await _asked(client, "min-replicas-to-write")
    except Exception as error:  # noqa: BLE001 - see above
        yield "note", "replicas", f"min-replicas-to-write cannot be asked for: {error}", advice
        return
    good = value != "0"
    yield (
        "ok" if good else "note",
        "replicas",
        f"{count}, min-replicas-to-write {value}",
        ("" if good else advice),
    )


async def _leases(storage: RedisStorage) -> Said:
    try:
        held = sorted([each async for each in storage.held()])
    except Exception as error:  # noqa: BLE001 - see above
        return "note", "leases", f"cannot be listed: {error}", ""
    return "ok", "leases", held_in_words(held), ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
