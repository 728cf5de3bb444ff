"""`RedisStorage`: records in Redis or Valkey, for bots that move between machines.

Rules:

* What the server gets round to after its client gave up must not undo what came later. A proxy or a
  lost packet holds a write back; the server may have been stopped. So each write carries a number
  and a deadline, and is refused once a later one has been executed or its time is over, by the
  server's own clock. A plain pipeline of `SET` is neither as safe nor as fast.
* Every batch is one call of one script, which also compares each account's lease. A cluster gets
  one call per account, each with a time-out of its own: a lost shard fails its accounts alone.
* Every call has a time-out, whatever the client's own are, and is tried once: trying again is the
  store's.
* Commits take effect in the order of their calls, also when their callers are cancelled: each is
  a task that waits for the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from ..errors import LeaseLostError
from .base import READ_LIMIT, is_of

__all__ = ["RedisStorage"]

_T = TypeVar("_T")

_PAGE = 256  # records per call of a scan
_KEYS_AT_ONCE = 500  # looked at per call of SCAN
_LEASE = b":lease"  # behind the record's key
_CLOCK_IS_KNOWN = 60.0  # seconds until the server is asked for its time again


class _Script:
    """A script and the name under which the server keeps it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_TIME = _Script("return redis.call('TIME')")

# KEYS: the number of the latest write, then record and lease of each account. ARGV: number, its
# life in ms, deadline in ms since the epoch, the records' life in ms or '', then for each account
# the token of its lease or '', 1 or 0 to delete, the record.
_WRITE = _Script("""
local t = redis.call('TIME')
if t[1] * 1000 + t[2] / 1000 > tonumber(ARGV[3]) then return 2 end
if tonumber(redis.call('GET', KEYS[1]) or 0) > tonumber(ARGV[1]) then return 2 end
redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local answers = {}
for i = 1, (#KEYS - 1) / 2 do
  local key, at, r = KEYS[2 * i], 3 * i + 2, nil
  local held = redis.call('GET', KEYS[2 * i + 1])
  if (held or '') ~= ARGV[at] then answers[i] = held and 1 or 3
  else
    if ARGV[at + 1] == '0' then r = redis.pcall('DEL', key)
    elseif ARGV[4] == '' then r = redis.pcall('SET', key, ARGV[at + 2])
    else r = redis.pcall('SET', key, ARGV[at + 2], 'PX', ARGV[4]) end
    answers[i] = type(r) == 'table' and r.err or 0
  end
end
return answers
""")
# A string, 0 where nothing is, or why it cannot be read.
_READ = _Script("""
local found = {}
for i = 1, #KEYS do
  local r = redis.pcall('GETRANGE', KEYS[i], 0, ARGV[1])
  if type(r) == 'table' then found[i] = {r.err}
  elseif r == '' and redis.call('EXISTS', KEYS[i]) == 0 then found[i] = 0
  else found[i] = r end
end
return found
""")
_DISCARD = _Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('GETRANGE', KEYS[1], 0, ARGV[2]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")
# ARGV: token, ttl in ms, whether one that is missing may be somebody's still. An empty lease is one
# that was given up. Answers -1, or for how many ms it is another's.
_ACQUIRE = _Script("""
local held = redis.call('GET', KEYS[1])
if held and held ~= '' and held ~= ARGV[1] then return redis.call('PTTL', KEYS[1]) end
if not held and ARGV[3] == '1' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return -1
""")
# ARGV: ttl in ms, then for each lease its token and the moment in ms since the epoch until which
# nobody else can have had it. Until then one that is missing was forgotten, and is set again.
_RENEW = _Script("""
local t, answers = redis.call('TIME'), {}
local now = t[1] * 1000 + t[2] / 1000
for i = 1, #KEYS do
  local held = redis.call('GET', KEYS[i])
  if held and held ~= ARGV[2 * i] or now > tonumber(ARGV[2 * i + 1]) then answers[i] = 1
  else
    redis.call('SET', KEYS[i], ARGV[2 * i], 'PX', ARGV[1])
    answers[i] = 0
  end
end
return answers
""")
_RELEASE = _Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], '', 'PX', math.max(redis.call('PTTL', KEYS[1]), 1))
return 1
""")


class RedisStorage:
    """Records in Redis 6 or later, or Valkey; one key for each.

    Needs `pip install "qqbot_session[redis]"`, unless the client handed in is of another package.

    Args:
        client: the URL of a server, `redis://` or `rediss://`, whose client is then made and
            closed here; or an asyncio client of redis-py or valkey-py, also one of Sentinel's or a
            cluster's.
        prefix: of every key. Two bots with accounts of the same name need two.
        expiry: seconds after its last write when the server drops a record, `None` is never. More
            than the store's `max_age`.
        timeout: seconds that any call may take; later it has failed, and will have no effect.

    The server must be set not to lose keys: `maxmemory-policy noeviction`, `appendonly yes`.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ModuleNotFoundError: redis-py is not installed.
    """

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "qqbot_session",
        expiry: float | None = 604_800.0,
        timeout: float = 2.0,
    ) -> None:
        if not isinstance(prefix, str) or not prefix:
            raise ValueError(f"prefix must be a str that is not empty, not {prefix!r}")
        if expiry is not None:
            _check_seconds("expiry", expiry)
        _check_seconds("timeout", timeout)
        self._url = client if isinstance(client, str) else None
        self._timeout = timeout
        self._client = client if self._url is None else _client_of(self._url, timeout)
        if not hasattr(self._client, "execute_command") or not hasattr(self._client, "aclose"):
            raise TypeError(f"client must be a URL or a client of redis.asyncio, not {client!r}")
        self._process = os.getpid()
        self.prefix = prefix
        self._prefix = f"{prefix}:".encode()
        self._life = "" if expiry is None else max(1, round(expiry * 1000))
        self._name = secrets.token_hex(8).encode()
        self._number = 0  # of the latest write
        self._latest: asyncio.Future[Mapping[str, Exception]] | None = None
        self._wanted: dict[bytes, None] | None = None  # to be read by the next call
        self._reading: asyncio.Future[dict[bytes, Any]] | None = None
        self._clocks: dict[str, tuple[float, float]] = {}  # theirs less ours, and when it was asked
        self._tokens: dict[str, str] = {}  # of the leases acquired here
        self._until: dict[str, float] = {}  # monotonic; nobody else can have the lease before

    def __repr__(self) -> str:
        where = "" if self._url is None else f" url={_without_secrets(self._url)!r}"
        return f"<RedisStorage{where} prefix={self.prefix!r}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            OSError: it cannot be read; `TimeoutError` and `ConnectionError` are such.
        """
        key = self._key(account_id)
        if self._wanted is None or len(self._wanted) >= _PAGE:
            self._wanted = {}
            self._reading = asyncio.ensure_future(self._read_after(self._reading, self._wanted))
        self._wanted[key] = None
        reading = self._reading
        assert reading is not None
        found = (await _outcome_of(reading))[key]
        if isinstance(found, list):
            raise OSError(f"the record of {account_id!r} cannot be read: {_text(found[0])}")
        return None if found == 0 else found

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records.

        Returns:
            A `LeaseLostError` for each account that another process holds the lease of; on a
            cluster also the error of each account whose shard failed.

        Raises:
            OSError: nothing may be taken as written.
        """
        self._latest = asyncio.ensure_future(self._commit_after(self._latest, dict(changes)))
        return await _outcome_of(self._latest)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every account id with its record; what is no string is none of ours."""
        seen: set[bytes] = set()  # SCAN may give a key twice
        async for keys in self._keys():
            new = [key for key in dict.fromkeys(keys) if key not in seen]
            seen.update(new)
            for start in range(0, len(new), _PAGE):
                some = new[start : start + _PAGE]
                for key, data in zip(some, await self._read(some), strict=True):
                    account_id = self._account_of(key)
                    if isinstance(data, bytes) and is_of(account_id, data):
                        yield account_id, data

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it is still `expected`."""
        async with self._in_time():
            arguments = (expected, READ_LIMIT - 1)
            return bool(await self._call(_DISCARD, [self._key(key)], arguments))

    async def sweep(self, older_than: float) -> int:
        """Do nothing: the server drops what has expired."""
        return 0

    async def acquire(self, account_id: str, token: str, ttl: float) -> bool:
        """Take the account's lease, unless somebody else holds it."""
        asked = time.monotonic()
        seen = "1" if self._until.get(account_id, asked) > asked else "0"
        async with self._in_time():
            arguments = (token, round(ttl * 1000), seen)
            left = await self._call(_ACQUIRE, [self._lease(account_id)], arguments)
        if left < 0:
            self._tokens[account_id] = token
            self._until[account_id] = asked + ttl
        elif left > 0:
            self._until[account_id] = time.monotonic() + left / 1000
        return bool(left < 0)

    async def renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        """Let leases end `ttl` seconds from now; return why each that did not is lost."""
        asked = time.monotonic()
        failures = await self._each_group(held, lambda ids: self._renew(ids, held, ttl, asked))
        for account_id in held.keys() - failures.keys():
            self._until[account_id] = asked + ttl
        return failures

    async def release(self, account_id: str, token: str) -> None:
        """Give the lease up."""
        if self._tokens.get(account_id) == token:
            del self._tokens[account_id], self._until[account_id]
        async with self._in_time():
            await self._call(_RELEASE, [self._lease(account_id)], (token,))

    async def aclose(self) -> None:
        """Let the commits under way end; close the client if it was made here."""
        if self._latest is not None:
            await asyncio.wait([self._latest])
        if self._url is not None and self._process == os.getpid():
            await self._client.aclose()

    # Keys: an id is quoted, so that whatever it holds it is one hash tag, and nothing to MATCH.

    def _key(self, account_id: str) -> bytes:
        return b"%s{%s}" % (self._prefix, quote(account_id, safe="").encode())

    def _account_of(self, key: bytes) -> str:
        return unquote(key[len(self._prefix) + 1 : -1].decode("utf-8", "replace"))

    def _lease(self, account_id: str) -> bytes:
        return self._key(account_id) + _LEASE

    # Calls

    @property
    def client(self) -> Any:
        """The client, for what a storage does not do; closed here if it was made here."""
        return self._redis()

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Bound a call, and let its error be one that says something in a log."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            self._clocks.clear()
            raise TimeoutError(f"no answer from the server in {self._timeout:g} s") from None
        except Exception as error:
            self._clocks.clear()  # another server may answer next
            if isinstance(error, OSError):
                raise
            await self._drop_connections(error)
            raise ConnectionError(str(error) or type(error).__name__) from error

    async def _drop_connections(self, error: Exception) -> None:
        """Let the next call find the new master, if this was the old one, by its name."""
        if type(error).__name__ == "ReadOnlyError" or str(error).startswith("READONLY"):
            with contextlib.suppress(Exception):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    def _redis(self) -> Any:
        if self._url is not None and self._process != os.getpid():  # forked: sockets are not ours
            self._process = os.getpid()
            self._client = _client_of(self._url, self._timeout)
        return self._client

    async def _call(self, script: _Script, keys: Sequence[bytes], arguments: Iterable[Any]) -> Any:
        """Run a script; what is bytes stays so, also with a client that decodes."""
        rest = (len(keys), *keys, *arguments)
        client = self._redis()
        try:
            return await client.execute_command("EVALSHA", script.sha, *rest, NEVER_DECODE=[])
        except Exception as error:
            if type(error).__name__ != "NoScriptError":
                raise
        return await client.execute_command("EVAL", script.text, *rest, NEVER_DECODE=[])

    def _groups(self, account_ids: Iterable[str]) -> list[list[str]]:
        """Return what one call may be about: on a cluster, keys of one slot."""
        account_ids = list(account_ids)
        if self._is_cluster:
            return [[account_id] for account_id in account_ids]
        return [account_ids] if account_ids else []

    @property
    def _is_cluster(self) -> bool:
        return hasattr(self._client, "get_node_from_key")

    async def _each_group(
        self,
        account_ids: Iterable[str],
        call: Callable[[list[str]], Awaitable[Mapping[str, Exception]]],
    ) -> Mapping[str, Exception]:
        """Return the failures of all calls; if there is only one, what it raises is raised."""
        groups = self._groups(account_ids)
        if len(groups) == 1:
            return await call(groups[0])
        answers = await asyncio.gather(*map(call, groups), return_exceptions=True)
        failures: dict[str, Exception] = {}
        for group, answer in zip(groups, answers, strict=True):
            if isinstance(answer, Exception):
                failures |= dict.fromkeys(group, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                failures |= answer
        return failures

    async def _read(self, keys: Sequence[bytes]) -> list[Any]:
        async def read(some: Sequence[bytes]) -> list[Any]:
            async with self._in_time():
                answer = await self._call(_READ, some, (READ_LIMIT - 1,))
            return [_bytes(data) if isinstance(data, str) else data for data in answer]

        if not self._is_cluster:
            return await read(keys)
        return [data for (data,) in await asyncio.gather(*[read([key]) for key in keys])]

    async def _read_after(
        self, before: asyncio.Future[dict[bytes, Any]] | None, wanted: dict[bytes, None]
    ) -> dict[bytes, Any]:
        """Read in one call what is asked for at about the same time, as when a fleet starts."""
        await asyncio.sleep(0)  # who else is to be read in this turn of the loop?
        if before is not None and not before.done():
            await asyncio.wait([before])
            if not before.cancelled() and (error := before.exception()):
                raise error  # a server that hangs costs one time-out, however many wait
        if self._wanted is wanted:
            self._wanted = None
        return dict(zip(wanted, await self._read(list(wanted)), strict=True))

    async def _keys(self) -> AsyncIterator[list[bytes]]:
        pattern = _literally(self._prefix) + b"{*}"
        nodes = self._client.get_primaries() if self._is_cluster else [None]
        for node in nodes:
            options = {} if node is None else {"target_nodes": node}
            cursor: Any = 0
            while True:
                async with self._in_time():
                    cursor, keys = await self._redis().execute_command(
                        *("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_AT_ONCE), **options
                    )
                yield [_bytes(key) for key in keys]
                if isinstance(cursor, dict):  # a cluster's client names each node's
                    (cursor,) = cursor.values()
                if int(cursor) == 0:
                    break

    async def _offset(self, key: bytes) -> float:
        """Return what the clock of the server that has the key is ahead of our monotonic one.

        Less than that by the way back, never more: so no deadline is later than it should be.
        """
        node = self._client.get_node_from_key(key).name if self._is_cluster else ""
        offset, asked = self._clocks.get(node, (0.0, -math.inf))
        if time.monotonic() - asked > _CLOCK_IS_KNOWN:
            seconds, micros = await self._call(_TIME, [key], ())
            asked = time.monotonic()
            offset = int(seconds) + int(micros) / 1e6 - asked
            self._clocks[node] = (offset, asked)
        return offset

    # Writing

    async def _commit_after(
        self, before: asyncio.Future[Any] | None, changes: Mapping[str, bytes | None]
    ) -> Mapping[str, Exception]:
        if before is not None:
            await asyncio.wait([before])
        self._number += 1
        return await self._each_group(
            changes, lambda ids: self._write({id_: changes[id_] for id_ in ids})
        )

    async def _write(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write what one call can; all of it has failed if this raises."""
        late = time.monotonic() + self._timeout
        keys: list[bytes] = []
        values: list[Any] = []
        for account_id, data in changes.items():
            key = self._key(account_id)
            keys += (key, key + _LEASE)
            values += (self._tokens.get(account_id, ""), int(data is not None), data or b"")
        owner = keys[0] if self._is_cluster else self._prefix
        order = b"%s:order:%s" % (owner, self._name)
        life = round(self._timeout * 2000)  # any write before this one is late by then
        async with self._in_time():
            deadline = int((await self._offset(order) + late) * 1000)
            head = (self._number, life, deadline, self._life)
            answer = await self._call(_WRITE, [order, *keys], (*head, *values))
            _raise_if_none_is_written(answer)
        return _refusals(changes, answer)

    async def _renew(
        self, group: Sequence[str], held: Mapping[str, str], ttl: float, asked: float
    ) -> Mapping[str, Exception]:
        keys = [self._lease(account_id) for account_id in group]
        async with self._in_time():
            offset = await self._offset(keys[0])
            values: list[Any] = [round(ttl * 1000)]
            for account_id in group:
                until = min(self._until.get(account_id, asked), asked + self._timeout)
                values += (held[account_id], int((offset + until) * 1000))
            answer = await self._call(_RENEW, keys, values)
        return _refusals(group, answer)


_REFUSED = {
    1: "the lease of {0!r} is not ours",
    3: "the server has forgotten the lease of {0!r}",
}


def _refusals(account_ids: Iterable[str], codes: Iterable[int]) -> dict[str, Exception]:
    return {
        account_id: LeaseLostError(_REFUSED[code].format(account_id))
        for account_id, code in zip(account_ids, codes, strict=True)
        if code
    }


def _raise_if_none_is_written(answer: Any) -> None:
    if answer == 2:
        raise _ServerError("the server got round to it too late")
    for code in answer:
        if isinstance(code, bytes | str):
            raise _ServerError(_text(code))


class _ServerError(Exception):
    """The server said no, as to a full memory."""


async def _outcome_of(task: asyncio.Future[_T]) -> _T:
    """Wait for a task that goes on when its waiters are cancelled, but not the other way round."""
    task.add_done_callback(_look_at)
    await asyncio.wait([task])
    if task.cancelled():  # by somebody who cancels all there is
        raise ConnectionError("the call was cancelled")
    return task.result()


def _look_at(task: asyncio.Future[Any]) -> None:
    """Take notice of the error of a task whose waiters may all have been cancelled."""
    if not task.cancelled():
        task.exception()


def _text(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)


def _bytes(data: Any) -> bytes:
    """Return what a client that decodes has decoded."""
    return data.encode() if isinstance(data, str) else bytes(data)


def _literally(prefix: bytes) -> bytes:
    """Let MATCH take a prefix for what it is."""
    for special in (b"\\", b"*", b"?", b"[", b"]"):
        prefix = prefix.replace(special, b"\\" + special)
    return prefix


def _client_of(url: str, timeout: float) -> Any:
    try:
        import redis
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("redis"):
            raise
        message = 'Redis needs `pip install "qqbot_session[redis]"`'
        raise ModuleNotFoundError(message, name="redis") from None
    try:
        return redis.asyncio.from_url(
            url,
            decode_responses=False,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1),  # at once, for a connection that was cut while it was idle
            retry_on_error=[redis.ConnectionError],
            **_namelessly(),
        )
    except ValueError:  # whose text may hold the password
        raise ValueError(f"not the URL of a Redis server: {_without_secrets(url)!r}") from None


def _namelessly() -> dict[str, Any]:
    """Return what keeps redis-py from reading its own version from the disk for each connection."""
    if importlib.util.find_spec("redis.driver_info"):
        return {"driver_info": None}
    return {"lib_name": None, "lib_version": None}


def _without_secrets(url: str) -> str:
    """Return what may be shown of a URL: no user, no password, no query."""
    if "@" not in url and "?" not in url:
        return url
    scheme, _, rest = url.partition("://")
    address = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{address}"


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds as a float, not {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be finite and positive, not {value!r}")
