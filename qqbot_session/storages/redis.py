"""`RedisStorage`: records in Redis or Valkey, for bots that move between machines.

Rules:

* A write that its client has given up on must not undo a later one, whenever the server executes
  it: a proxy or a lost packet may hold it back, or the server may have been stopped. So each write
  carries a number and a deadline, and the server refuses it once it has executed a later one, or
  when its time is over by the server's own clock. A plain pipeline of `SET` is neither as safe nor
  as fast.
* Every batch is one call of one script, which also compares each account's lease. Where the keys
  have slots (a cluster, or one behind a single address), every account is a call of its own, a few
  at a time per node, so that a lost node fails only its own accounts.
* Every call has a time-out, whatever the client's own are, and is tried once: retrying is the
  store's job. Calls for single accounts that come together are sent together, and what waits
  behind a call that failed fails with it.
* Commits take effect in the order of their calls, even when their callers are cancelled: each is a
  task that waits for the one before.
* What belongs to one process and one event loop (connections, numbers, leases) is kept per loop,
  and a forked process starts without any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
import os
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from ..errors import LeaseLostError, bare
from ..state import check_seconds
from ..words import whenever, without
from .base import READ_LIMIT, RecordChangedError, is_of
from .redis_client import (
    ServerUrl,
    check_client,
    client_of,
    cluster_client_of,
    connections_of,
    forget_connections,
    is_cluster,
    secrets_of,
    server_url,
)
from .together import Together

__all__ = ["RedisStorage"]

_T = TypeVar("_T")

_PAGE = 256  # accounts per call
_KEYS_AT_ONCE = 500  # looked at per call of SCAN
_AT_ONCE = 16  # calls under way per node, where every account is a call of its own
_LINE_MOVES = 0.005  # seconds until a client without a free connection is asked again
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"  # as in RFC 3986
_LEASE = b":lease"  # behind the record's key
_CLOCK_IS_KNOWN = 60.0  # seconds until the server is asked for its time again
_SENTINEL_IS_RIGHT = 1.0  # seconds until Sentinel is asked for the master again
_SENTINEL_IS_AWAY = 10.0  # the same, after it gave no answer
_TOO_MANY = "Too many connections"  # redis-py's words; it raises where others wait


class _Script:
    """A script and the name under which the server keeps it.

    Args:
        reads: it writes nothing. A server that knows flags (Redis 7, Valkey) then runs it while
            writes are paused, as during a failover.
    """

    def __init__(self, text: str, *, reads: bool = False) -> None:
        self.plain = None if not reads else _Script(text)
        self.text = f"#!lua flags=no-writes\n{text}" if reads else text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# The keys are there to learn whether they may be of different slots.
_TIME = _Script("return redis.call('TIME')", reads=True)

# KEYS: the number of the latest write, then record and lease of each account. ARGV: number, its
# life in ms, deadline in ms since the epoch, the records' life in ms or '', for each account one
# letter (s sets, d deletes; as a capital, its lease is ours), the records' lengths, the records,
# then the tokens of our leases. Answers 2 if it came too late, 0 if all is written, else for each
# account 0, 1, 3 or an error.
_WRITE = _Script("""
local t = redis.call('TIME')
if t[1] * 1000 + t[2] / 1000 > tonumber(ARGV[3]) then return 2 end
if tonumber(redis.call('GET', KEYS[1]) or 0) > tonumber(ARGV[1]) then return 2 end
redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local lengths, answers, at, tokens, refused = string.gmatch(ARGV[6], '%d+'), {}, 1, 8, 0
for i = 1, (#KEYS - 1) / 2 do
  local length, token, code = tonumber(lengths()), '', 0
  local kind = string.byte(ARGV[5], i)
  if kind < 97 then token, tokens, kind = ARGV[tokens], tokens + 1, kind + 32 end
  local held = redis.pcall('GET', KEYS[2 * i + 1])
  local r = held
  if type(held) ~= 'table' then
    if (held or '') ~= token and held ~= '?' .. token then code = held and 1 or 3
    elseif kind == 100 then r = redis.pcall('DEL', KEYS[2 * i])
    else
      local record = string.sub(ARGV[7], at, at + length - 1)
      if ARGV[4] == '' then r = redis.pcall('SET', KEYS[2 * i], record)
      else r = redis.pcall('SET', KEYS[2 * i], record, 'PX', ARGV[4]) end
    end
  end
  if type(r) == 'table' and r.err then code = r.err end
  if code ~= 0 then refused = 1 end
  answers[i], at = code, at + length
end
return refused == 1 and answers or 0
""")
# Answers the lengths of what was found (-1 where nothing is, !N for an error's text) and all of it
# joined: one long string costs a client less than many short ones.
_READ = _Script(
    """
local lengths, found = {}, {}
for i = 1, #KEYS do
  local r = redis.pcall('GETRANGE', KEYS[i], 0, ARGV[1])
  if type(r) == 'table' then
    lengths[i], found[i] = '!' .. #r.err, r.err
  elseif r == '' and redis.call('EXISTS', KEYS[i]) == 0 then
    lengths[i], found[i] = -1, ''
  else
    lengths[i], found[i] = #r, r
  end
end
return {table.concat(lengths, ','), table.concat(found)}
""",
    reads=True,
)
# ARGV: the most that is read of a record, then what each was judged by.
_DISCARD = _Script("""
local answers = {}
for i = 1, #KEYS do
  local r = redis.pcall('GETRANGE', KEYS[i], 0, ARGV[1])
  if type(r) == 'table' then answers[i] = r.err
  elseif r ~= ARGV[i + 1] or redis.call('EXISTS', KEYS[i]) == 0 then answers[i] = 0
  else answers[i] = redis.call('DEL', KEYS[i]) end
end
return answers
""")
# KEYS: record and lease of each account. ARGV: the records' life in ms or '', the most that is read
# of a record, then for each account 1 or 0 if there was one, what was read, what to write.
_EXCHANGE = _Script("""
local answers = {}
for i = 1, #KEYS / 2 do
  local key, at = KEYS[2 * i - 1], 3 * i
  local held, r = redis.pcall('GET', KEYS[2 * i]), redis.pcall('GETRANGE', key, 0, ARGV[2])
  if type(held) == 'table' then r = held end
  if type(r) ~= 'table' then
    local there = tostring(redis.call('EXISTS', key))
    if held and held ~= '' then r = 1
    elseif there ~= ARGV[at] or r ~= ARGV[at + 1] then r = 2
    elseif ARGV[1] == '' then r = redis.pcall('SET', key, ARGV[at + 2])
    else r = redis.pcall('SET', key, ARGV[at + 2], 'PX', ARGV[1]) end
  end
  if type(r) == 'table' then r = r.err or 0 end
  answers[i] = r
end
return answers
""")
# A lease is its holder's token; '?' before it while somebody whom the server has forgotten may
# still believe to be the holder; '' when it was given up. ARGV: for how long that is kept in ms or
# '', then for each lease a letter, token and ttl in ms. The letters: r gives it up; the others take
# it, and say of one that is missing: w it is another's still, c it may be, o it may be unless the
# question mark stands there that we set, t it is nobody's. Answers -1 taken, -2 taken with the
# question mark, else for how many ms it is another's, or an error.
_TAKE = _Script("""
local answers = {}
for i = 1, #KEYS do
  local kind, token, ttl, r = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1], nil
  local held = redis.pcall('GET', KEYS[i])
  local ours = held == token or held == '?' .. token
  if type(held) == 'table' then r = held
  elseif kind == 'r' then
    if not ours then r = 0
    elseif ARGV[1] == '' then r = redis.pcall('SET', KEYS[i], '')
    else r = redis.pcall('SET', KEYS[i], '', 'PX', ARGV[1]) end
  elseif held and held ~= '' and not ours then r = redis.call('PTTL', KEYS[i])
  elseif not held and kind == 'w' then r = 0
  elseif kind == 'o' and not held or kind == 'c' and held ~= '' and held ~= token then
    r = redis.pcall('SET', KEYS[i], '?' .. token, 'PX', ttl)
    if r.ok then r = -2 end
  else
    r = redis.pcall('SET', KEYS[i], token, 'PX', ttl)
    if r.ok then r = -1 end
  end
  if type(r) == 'table' then r = r.err or 0 end
  answers[i] = r
end
return answers
""")
# ARGV: ttl in ms, then for each lease its token and the moment in ms since the epoch until which
# nobody else can have had it. One that is missing, or that somebody took with a question mark, is
# set again until then. Answers 0, 1 if it is another's, 4 if it is too late, or an error.
_RENEW = _Script("""
local t, answers = redis.call('TIME'), {}
local now = t[1] * 1000 + t[2] / 1000
for i = 1, #KEYS do
  local token, r = ARGV[2 * i], nil
  local held = redis.pcall('GET', KEYS[i])
  if type(held) == 'table' then r = held
  elseif held == token or held == '?' .. token then
    r = redis.pcall('SET', KEYS[i], held, 'PX', ARGV[1])
  elseif held and string.sub(held, 1, 1) ~= '?' then r = 1
  elseif now > tonumber(ARGV[2 * i + 1]) then r = 4
  else r = redis.pcall('SET', KEYS[i], token, 'PX', ARGV[1]) end
  if type(r) == 'table' then r = r.err or 0 end
  answers[i] = r
end
return answers
""")


class _Elsewhere(Exception):
    """The server has slots, and the keys are of several, or of another server's."""


class _Here:
    """What a storage keeps for one event loop of one process."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.in_cluster = is_cluster(client)
        self.former: Any = None  # before we knew that the server is one of a cluster
        self.name = secrets.token_hex(8).encode()
        self.number = 0  # of the latest write
        self.latest: asyncio.Future[Mapping[str, Exception]] | None = None
        self.lines: dict[str, Together] = {}  # by kind of call and node
        self.clocks: dict[str, tuple[float, float]] = {}  # theirs less ours, and when it was asked
        self.tokens: dict[str, str] = {}  # of the leases acquired here
        self.until: dict[str, float] = {}  # monotonic; nobody else can have the lease before
        self.doubts: dict[str, float] = {}  # monotonic; until then somebody may believe to have it
        self.apart = False  # every account in a call of its own
        self.plain: set[str] = set()  # scripts that this server takes only without their flags
        self.sent: set[str] = set()  # scripts whose text this server has seen
        self.places: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_AT_ONCE)
        )
        self.ask_sentinel = 0.0  # monotonic; when to do so again

    def node(self, key: bytes) -> str:
        """Return the name of the server that has the key."""
        if self.in_cluster:
            with contextlib.suppress(Exception):  # a slot that no server has at present
                return str(self.client.get_node_from_key(key).name)
            return "nobody"
        return str(getattr(getattr(self.client, "connection_pool", None), "master_address", ""))


class RedisStorage:
    """Records in Redis 6 or later, or Valkey; one key for each.

    Needs `pip install "qqbot_session[redis]"`, unless the client handed in is of another package.

    Args:
        client: the URL of a server, `redis://`, `rediss://` (TLS), `valkey://` or `valkeys://`,
            whose client is then made and closed here; or an asyncio client of redis-py or
            valkey-py, including one of Sentinel's or a cluster's. With a URL every process and
            every event loop gets a client of its own, and a server that turns out to be one of a
            cluster gets a cluster's client.
        prefix: of every key. Two bots with accounts of the same name need two.
        expiry: seconds after its last write when the server drops a record, `None` is never. Must
            be more than the store's `max_age`.
        timeout: seconds that any call may take; after that it has failed, and will have no effect.

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
        client = ServerUrl(client) if isinstance(client, str) else client  # for tracebacks' sake
        if not isinstance(prefix, str) or not prefix:
            raise ValueError(f"prefix must be a str that is not empty, not {prefix!r}")
        if expiry is not None:
            check_seconds("expiry", expiry, least=0.001)
        check_seconds("timeout", timeout, least=0.001)
        self._timeout = timeout
        self.prefix = prefix
        self._url: ServerUrl | None = None
        if isinstance(client, str):
            self._url = server_url(client)
        else:
            check_client(client)
        self._given = client if self._url is None else None
        self._fresh = client_of(self._url, timeout) if self._url is not None else None
        self._served: Any = None  # the loop that uses the client that was given
        self._process = os.getpid()
        self._loops: dict[asyncio.AbstractEventLoop, _Here] = {}
        self._prefix = f"{prefix}:".encode()
        self._life = "" if expiry is None else max(1, round(expiry * 1000))

    @whenever
    def __repr__(self) -> str:
        where = "" if self._url is None else f" url={self._url.shown!r}"
        return f"<RedisStorage{where} prefix={self.prefix!r}>"

    async def read(self, account_id: str) -> bytes | None:
        """Return the account's record or `None`.

        Raises:
            OSError: it cannot be read; `TimeoutError` and `ConnectionError` are such.
        """
        key = self._key(account_id)
        try:
            found: bytes | None = await self._together("read", key, key)
        except _ServerError as error:
            raise OSError(f"the record of {account_id!r} cannot be read: {error}") from None
        return found

    _own_read = read

    def _ask(self, account_id: str) -> asyncio.Future[bytes | None] | None:
        here = self._here()
        if here.in_cluster:  # which node has to be found out first
            return None
        key = self._key(account_id)
        answer: asyncio.Future[bytes | None] = self._line(here, "read").ask(key)
        return answer

    async def commit(self, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
        """Write and delete records.

        Returns:
            A `LeaseLostError` for each account that another process holds the lease of, and the
            error of each account that failed where others did not, as when a cluster lost a node.

        Raises:
            OSError: nothing may be taken as written.
        """
        here = self._here()
        here.latest = asyncio.ensure_future(self._commit_after(here, here.latest, dict(changes)))
        return await _outcome_of(here.latest)

    async def exchange(
        self, changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Mapping[str, Exception]:
        """Write each record whose place still holds what was read there; `None` is nothing.

        Returns:
            A `RecordChangedError` for each account whose record is another by now, and a
            `LeaseLostError` for each that somebody holds the lease of.
        """
        here = self._here()
        outcomes = await self._each(
            here, list(changes), self._key, lambda ids: self._exchange(here, ids, changes)
        )
        return _failures(changes, outcomes)

    async def scan(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield every account id with its record; a key that holds no string is not ours."""
        here = self._here()
        seen: set[bytes] = set()  # SCAN may give a key twice
        async for keys in self._keys(here):
            new = [key for key in dict.fromkeys(keys) if key not in seen]
            seen.update(new)
            for start in range(0, len(new), _PAGE):
                some = new[start : start + _PAGE]
                for key, data in zip(some, await self._read(here, some), strict=True):
                    if isinstance(data, _OUT_OF_REACH):
                        raise data
                    account_id = self._account_of(key)
                    if isinstance(data, bytes) and is_of(account_id, data):
                        yield account_id, data

    async def discard(self, key: str, expected: bytes) -> bool:
        """Delete a record if it is still `expected`."""
        at = self._key(key)
        return bool(await self._together("discard", at, (at, expected)))

    async def sweep(self, older_than: float) -> int:
        """Do nothing: the server drops what has expired."""
        return 0

    async def acquire(self, account_id: str, token: str, ttl: float) -> bool:
        """Take the account's lease, unless somebody else holds it.

        What the server knows nothing of may be the lease of somebody whom it has forgotten. Then
        it is taken all the same, but `doubt` says how long to wait before relying on it; until
        then a holder's renewal takes it back.
        """
        here = self._here()
        asked = time.monotonic()
        until, doubt = here.until.get(account_id, 0.0), here.doubts.get(account_id)
        if doubt is not None:
            kind = "c" if doubt > asked else "o"
        else:
            kind = "w" if until > asked else "t" if until + ttl > asked else "c"
        left = await self._take(account_id, kind, token, ttl)
        if left >= 0:
            here.doubts.pop(account_id, None)
            if left > 0:
                here.until[account_id] = time.monotonic() + left / 1000
            return False
        if left == -1:
            here.doubts.pop(account_id, None)
        elif kind == "o" or doubt is None:
            here.doubts[account_id] = asked + ttl
        here.tokens[account_id] = token
        here.until[account_id] = asked + ttl
        return True

    def doubt(self, account_id: str) -> float:
        """Return for how many seconds somebody else may believe to hold a lease acquired here.

        Acquire it again after that (with the same token): it then is ours beyond doubt, or it has
        turned out to be theirs.
        """
        return max(0.0, self._here().doubts.get(account_id, 0.0) - time.monotonic())

    async def renew(self, held: Mapping[str, str], ttl: float) -> Mapping[str, Exception]:
        """Let leases end `ttl` seconds from now; return why each that did not is lost."""
        here = self._here()
        asked = time.monotonic()
        outcomes = await self._each(
            here,
            list(held),
            lambda account_id: self._lease(account_id),
            lambda ids: self._renew(here, ids, held, ttl, asked),
        )
        failures = _failures(held, outcomes)
        for account_id in held.keys() - failures.keys():
            here.until[account_id] = asked + ttl
        return failures

    async def release(self, account_id: str, token: str) -> None:
        """Give the lease up."""
        here = self._here()
        if here.tokens.get(account_id) == token:
            del here.tokens[account_id], here.until[account_id]
            here.doubts.pop(account_id, None)
        await self._take(account_id, "r", token, 0.0)

    async def aclose(self) -> None:
        """Let the commits under way end; close the client if it was made here."""
        if self._process != os.getpid():
            return
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None and here.latest is not None:
            await asyncio.wait([here.latest])
        if here is not None and self._url is not None:
            await here.client.aclose()
            if here.former is not None:
                await here.former.aclose()

    # For `doctor`

    def examine(self) -> AsyncIterator[tuple[str, str, str, str]]:
        """Yield what would keep the server from keeping sessions, for `qqbot-session doctor`."""
        from .redis_doctor import examine

        return examine(self)

    async def where(self) -> tuple[str, float]:
        """Return what kind of server this is, in words, and what its clock is ahead of ours."""
        here = self._here()
        await self._settle(here)
        (offset, _), *_ = here.clocks.values()
        kind = ""
        if here.in_cluster:
            kind = f", a cluster of {len(here.client.get_primaries())}"
        elif here.apart:
            kind = ", a cluster behind one address"
        return kind, offset + time.monotonic() - time.time()

    async def held(self) -> AsyncIterator[tuple[str, str]]:
        """Yield each account whose lease somebody holds, and the lease's token."""
        here = self._here()
        async for keys in self._keys(here, _LEASE):
            held = await self._read(here, keys)
            for key, token in zip(keys, held, strict=True):
                if isinstance(token, bytes) and token:  # not one that was given up
                    yield (
                        self._account_of(key.removesuffix(_LEASE)),
                        _text(token).removeprefix("?"),
                    )

    # Keys: an id is quoted, so that whatever it holds it is one hash tag, and nothing to MATCH.

    def _key(self, account_id: str) -> bytes:
        data = account_id.encode()
        if data.translate(None, _PLAIN):
            data = quote(data, safe="").encode()
        return b"%s{%s}" % (self._prefix, data)

    def _account_of(self, key: bytes) -> str:
        return unquote(key[len(self._prefix) + 1 : -1].decode("utf-8", "replace"))

    def _lease(self, account_id: str) -> bytes:
        return self._key(account_id) + _LEASE

    # Processes, loops and their clients

    @property
    def client(self) -> Any:
        """The client of this loop, for what a storage does not do; do not close it."""
        try:
            return self._here().client
        except RuntimeError:  # no loop runs
            if self._url is None:
                return self._given
            if self._fresh is None:
                self._fresh = client_of(self._url, self._timeout)
            return self._fresh

    def _here(self) -> _Here:
        loop = asyncio.get_running_loop()
        if self._process != os.getpid():
            self._leave_to_parent()
        here = self._loops.get(loop)
        if here is None:
            here = _Here(self._client_for(loop))
            for each in [each for each in self._loops if each.is_closed()]:
                del self._loops[each]
            self._loops[loop] = here
        return here

    def _leave_to_parent(self) -> None:
        """Begin afresh in a forked process, and close nothing: a selector is shared with it."""
        _inherited.append((self._loops, self._fresh, connections_of(self._given)))
        self._process = os.getpid()
        self._loops, self._fresh = {}, None
        self._served = _PARENTS

    def _client_for(self, loop: asyncio.AbstractEventLoop) -> Any:
        if self._url is not None:
            fresh, self._fresh = self._fresh, None
            return fresh if fresh is not None else client_of(self._url, self._timeout)
        served, self._served = self._served, loop
        if served is None or served is loop:
            return self._given
        in_use = served is not _PARENTS and served.is_running()
        if in_use or not forget_connections(self._given):
            self._served = served
            raise ConnectionError(
                "this client belongs to another event loop or process; RedisStorage(URL) makes"
                " one for each"
            )
        return self._given

    async def _ready(self, here: _Here) -> None:
        """Let a cluster's client learn its nodes, and Sentinel's which server is the master."""
        if here.in_cluster:
            async with self._in_time(here):
                await here.client.initialize()
            return
        ask = getattr(getattr(here.client, "connection_pool", None), "get_master_address", None)
        now = time.monotonic()
        if ask is None or now < here.ask_sentinel:
            return
        here.ask_sentinel = now + _SENTINEL_IS_AWAY
        with contextlib.suppress(Exception):  # then the next call fails, or all is well
            async with asyncio.timeout(self._timeout / 4):
                await ask()
            here.ask_sentinel = now + _SENTINEL_IS_RIGHT

    async def _join_cluster(self, here: _Here) -> None:
        """Take a cluster's client, if the client is ours and another server has the keys."""
        if self._url is None:
            raise ConnectionError(
                "the server is one of a cluster: hand in a client of redis.asyncio.RedisCluster"
            )
        if not here.in_cluster:
            here.former = here.client  # others may be using it
            here.client = cluster_client_of(self._url, self._timeout)
            here.in_cluster = True
            here.clocks.clear()

    # Calls

    @contextlib.asynccontextmanager
    async def _in_time(self, here: _Here) -> AsyncIterator[None]:
        """Bound a call, and let its error be one that says something in a log, and no secret."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except _Elsewhere:
            raise
        except TimeoutError as error:
            bare(error)
            here.clocks.clear()
            raise TimeoutError(f"no answer from the server in {self._timeout:g} s") from None
        except Exception as error:  # noqa: BLE001 - of whichever client
            here.clocks.clear()  # another server may answer next
            await self._drop_connections(here, error)
            secret = self._url.secrets if self._url is not None else secrets_of(here.client)
            text = without(str(error) or type(error).__name__, secret)
            bare(error)  # its frames are the client's, and hold the password, too
            raise ConnectionError(text) from None

    async def _drop_connections(self, here: _Here, error: Exception) -> None:
        """Let the next call find the new master, if this was the old one, by its name."""
        if type(error).__name__ == "ReadOnlyError" or "READONLY" in str(error):
            here.ask_sentinel = 0.0
            with contextlib.suppress(Exception):
                await here.client.connection_pool.disconnect(inuse_connections=False)

    async def _together(self, kind: str, key: bytes, item: Any) -> Any:
        """Ask the server that has the key, in one call with what else is asked for just now."""
        here = self._here()
        node = ""
        if here.in_cluster:
            await self._ready(here)
            node = here.node(key)
        return await self._line(here, kind, node).ask(item)

    def _line(self, here: _Here, kind: str, node: str = "") -> Together:
        line = here.lines.get(kind + node)
        if line is None:
            calls: dict[str, Any] = {
                "read": self._read,
                "discard": self._discard,
                "take": self._take_all,
            }
            line = here.lines[kind + node] = Together(functools.partial(calls[kind], here))
        return line

    async def _each(
        self,
        here: _Here,
        items: list[_T],
        key_of: Callable[[_T], bytes],
        call: Callable[[list[_T]], Awaitable[Sequence[Any]]],
    ) -> Sequence[Any]:
        """Return the outcome of each item, an answer or an error.

        Raises:
            OSError: the call as a whole failed.
        """
        if not items:
            return []
        for _ in range(3):
            await self._ready(here)
            try:
                if here.apart or here.in_cluster:
                    return await self._each_apart(here, items, key_of, call)
                async with self._in_time(here):
                    return await call(items)
            except _Elsewhere as error:
                if str(error) == "CROSSSLOT":
                    here.apart = True
                else:
                    await self._join_cluster(here)
        raise ConnectionError("the server sends us to another one, and that one sends us back")

    async def _each_apart(
        self,
        here: _Here,
        items: list[_T],
        key_of: Callable[[_T], bytes],
        call: Callable[[list[_T]], Awaitable[Sequence[Any]]],
    ) -> Sequence[Any]:
        lost: list[OSError] = []

        async def one(item: _T) -> Any:
            try:
                async with self._in_time(here), here.places[here.node(key_of(item))]:
                    (outcome,) = await call([item])
                    return outcome
            except OSError as error:
                lost.append(error)
                return error
            except _Elsewhere as error:
                return error

        outcomes = await asyncio.gather(*map(one, items))
        moved = [at for at, each in enumerate(outcomes) if isinstance(each, _Elsewhere)]
        if moved:  # only these: what has been done must not be done twice
            await self._join_cluster(here)
            await self._ready(here)
            again = await self._each_apart(here, [items[at] for at in moved], key_of, call)
            for at, outcome in zip(moved, again, strict=True):
                outcomes[at] = outcome
        if len(lost) == len(items) and len({here.node(key_of(item)) for item in items}) == 1:
            raise lost[0]
        return outcomes

    async def _call(
        self, here: _Here, script: _Script, keys: Sequence[bytes], arguments: Iterable[Any]
    ) -> Any:
        """Run a script; what is bytes stays so, also with a client that decodes."""
        rest = (len(keys), *keys, *arguments)
        if script.plain is not None and script.sha in here.plain:
            script = script.plain
        try:
            try:  # a name alone does not say that it only reads
                if script.plain is None or script.sha in here.sent:
                    return await _execute(here, "EVALSHA", script.sha, *rest)
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
            try:
                answer = await _execute(here, "EVAL", script.text, *rest)
                here.sent.add(script.sha)
                return answer
            except Exception as error:
                if script.plain is None or type(error).__name__ != "ResponseError":
                    raise
            answer = await _execute(here, "EVAL", script.plain.text, *rest)
            here.plain.add(script.sha)
            return answer
        except Exception as error:
            if not here.in_cluster:
                _look_elsewhere(here, error)
            raise

    async def _keys(self, here: _Here, suffix: bytes = b"") -> AsyncIterator[list[bytes]]:
        await self._settle(here)
        pattern = _literally(self._prefix) + b"{*}" + suffix
        nodes = here.client.get_primaries() if here.in_cluster else [None]
        for node in nodes:
            options = {} if node is None else {"target_nodes": node}
            cursor: Any = 0
            while True:
                async with self._in_time(here):
                    words = ("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_AT_ONCE)
                    cursor, keys = await _execute(here, *words, **options)
                yield [_bytes(key) for key in keys]
                if isinstance(cursor, dict):  # a cluster's client names each node's
                    (cursor,) = cursor.values()
                if int(cursor) == 0:
                    break

    async def _settle(self, here: _Here) -> None:
        """Learn whether the server is one of a cluster, of which it would list its part only."""

        async def ask(_: list[bytes]) -> Sequence[Any]:
            await self._offset(here, key)
            if here.apart and not here.in_cluster:
                with contextlib.suppress(Exception):
                    about = _text(await _execute(here, "CLUSTER", "INFO"))
                    if "cluster_size:" in about and "cluster_size:1\r" not in about:
                        raise _Elsewhere("MOVED")
            return [None]

        key = self._key("0")
        here.clocks.clear()
        for outcome in await self._each(here, [key], lambda key: key, ask):
            if isinstance(outcome, OSError):
                raise outcome

    async def _offset(self, here: _Here, key: bytes) -> float:
        """Return what the clock of the server that has the key is ahead of our monotonic one.

        Less than that by the way back, never more: so no deadline is later than it should be.
        """
        node = here.node(key)
        offset, asked = here.clocks.get(node, (0.0, -math.inf))
        if time.monotonic() - asked > _CLOCK_IS_KNOWN:
            keys = [key] if here.apart or here.in_cluster else [self._key("0"), self._key("1")]
            seconds, micros = await self._call(here, _TIME, keys, ())
            asked = time.monotonic()
            offset = int(seconds) + int(micros) / 1e6 - asked
            here.clocks[node] = (offset, asked)
        return offset

    async def _read(self, here: _Here, keys: list[bytes]) -> Sequence[Any]:
        async def read(some: list[bytes]) -> Sequence[Any]:
            lengths, data = await self._call(here, _READ, some, (READ_LIMIT - 1,))
            return _records(lengths, _bytes(data))

        return await self._each(here, keys, lambda key: key, read)

    async def _discard(self, here: _Here, judged: list[tuple[bytes, bytes]]) -> Sequence[Any]:
        async def discard(some: list[tuple[bytes, bytes]]) -> Sequence[Any]:
            expected = [data for _, data in some]
            keys = [key for key, _ in some]
            answer = await self._call(here, _DISCARD, keys, (READ_LIMIT - 1, *expected))
            return [_outcome(each) for each in answer]

        return await self._each(here, judged, lambda each: each[0], discard)

    # Writing

    async def _commit_after(
        self, here: _Here, before: asyncio.Future[Any] | None, changes: dict[str, bytes | None]
    ) -> Mapping[str, Exception]:
        if before is not None:
            await asyncio.wait([before])
        here.number += 1
        ids = list(changes)
        try:
            outcomes = await self._each(
                here, ids, self._key, lambda some: self._write(here, some, changes)
            )
        except _OUT_OF_REACH as error:
            if not self._is_wide(here, ids):
                return dict.fromkeys(ids, error)
            raise
        lost = [each for each in outcomes if isinstance(each, _OUT_OF_REACH)]
        if lost and len(lost) == len(ids) and self._is_wide(here, ids):
            raise lost[0]
        return _failures(ids, outcomes)

    def _is_wide(self, here: _Here, ids: list[str]) -> bool:
        """Return whether it is the storage as a whole that these accounts are on."""
        if not here.in_cluster:
            return True
        nodes = {here.node(self._key(account_id)) for account_id in ids}
        return len(nodes) >= len(here.client.get_primaries())

    async def _write(
        self, here: _Here, ids: list[str], changes: Mapping[str, bytes | None]
    ) -> Sequence[Any]:
        """Write what one call can."""
        late = time.monotonic() + self._timeout
        keys = [self._key(account_id) for account_id in ids]
        records = [changes[account_id] for account_id in ids]
        tokens = [here.tokens.get(account_id, "") for account_id in ids]
        kinds = "".join(
            _KINDS[data is not None, bool(token)]
            for data, token in zip(records, tokens, strict=True)
        )
        written = [data or b"" for data in records]
        rest = (
            self._life,
            kinds,
            ",".join([str(len(data)) for data in written]),
            b"".join(written),
            *filter(None, tokens),
        )
        at = keys[0] if here.apart or here.in_cluster else self._prefix
        both = [each for key in keys for each in (key, key + _LEASE)]
        order = [b"%s:order:%s" % (at, here.name), *both]
        life = round(self._timeout * 2000)  # any write before this one is late by then
        for _ in range(2):
            deadline = int((await self._offset(here, keys[0]) + late) * 1000)
            answer = await self._call(here, _WRITE, order, (here.number, life, deadline, *rest))
            if answer != 2:
                break
            here.clocks.clear()  # its clock may have been set
        if answer == 2:
            raise ConnectionError("the server got round to it too late")
        if answer == 0:
            return [None] * len(ids)
        return _verdicts(ids, answer)

    async def _exchange(
        self, here: _Here, ids: list[str], changes: Mapping[str, tuple[bytes | None, bytes]]
    ) -> Sequence[Any]:
        keys = [at for id_ in ids for at in (self._key(id_), self._lease(id_))]
        values: list[Any] = [self._life, READ_LIMIT - 1]
        for account_id in ids:
            expected, data = changes[account_id]
            values += (int(expected is not None), expected or b"", data)
        answer = await self._call(here, _EXCHANGE, keys, values)
        return [
            RecordChangedError(id_) if code == 2 else each
            for id_, code, each in zip(ids, answer, _verdicts(ids, answer), strict=True)
        ]

    # Leases

    async def _take(self, account_id: str, kind: str, token: str, ttl: float) -> int:
        key = self._lease(account_id)
        return int(await self._together("take", key, (key, kind, token, round(ttl * 1000))))

    async def _take_all(self, here: _Here, wanted: list[tuple[Any, ...]]) -> Sequence[Any]:
        async def take(some: list[tuple[Any, ...]]) -> Sequence[Any]:
            values = [value for each in some for value in each[1:]]
            answer = await self._call(
                here, _TAKE, [each[0] for each in some], (self._life, *values)
            )
            return [_outcome(each) for each in answer]

        return await self._each(here, wanted, lambda each: each[0], take)

    async def _renew(
        self, here: _Here, ids: list[str], held: Mapping[str, str], ttl: float, asked: float
    ) -> Sequence[Any]:
        keys = [self._lease(account_id) for account_id in ids]
        for _ in range(2):
            offset = await self._offset(here, keys[0])
            values: list[Any] = [round(ttl * 1000)]
            for account_id in ids:
                until = 0.0  # unless it is one of ours
                if here.tokens.get(account_id) == held[account_id]:
                    until = offset + min(here.until[account_id], asked + self._timeout)
                values += (held[account_id], int(until * 1000))
            answer = await self._call(here, _RENEW, keys, values)
            if 4 not in answer:
                break
            here.clocks.clear()  # its clock may have been set
        return _verdicts(ids, answer)


_KINDS = {(True, False): "s", (True, True): "S", (False, False): "d", (False, True): "D"}
_OUT_OF_REACH = (ConnectionError, TimeoutError)
_PARENTS = object()  # in the place of a loop: that of the process we were forked from
_inherited: list[Any] = []  # to close these would take the sockets from the parent's selector

_REFUSED = {
    1: "the lease of {0!r} is not ours",
    2: "",
    3: "the server has forgotten the lease of {0!r}",
    4: "the server has forgotten the lease of {0!r}, and another may have had it since",
}


def _verdicts(account_ids: Iterable[str], answers: Iterable[Any]) -> list[Exception | None]:
    """Return the error of each account, `None` where there is none."""
    return [
        _outcome(answer)
        if isinstance(answer, bytes | str)
        else LeaseLostError(_REFUSED[answer].format(account_id))
        if answer
        else None
        for account_id, answer in zip(account_ids, answers, strict=True)
    ]


def _outcome(answer: Any) -> Any:
    """Return what a script says of one account: a number, or an error."""
    if not isinstance(answer, bytes | str):
        return answer
    text = _text(answer)
    return _ServerError(text) if "WRONGTYPE" in text else ConnectionError(text)


class _ServerError(OSError):
    """The server said no to this account's keys, as to a list in the place of a record."""


def _failures(account_ids: Iterable[str], outcomes: Iterable[Any]) -> dict[str, Exception]:
    return {
        account_id: outcome
        for account_id, outcome in zip(account_ids, outcomes, strict=True)
        if isinstance(outcome, Exception)
    }


def _records(lengths: Any, data: bytes) -> list[bytes | Exception | None]:
    """Take apart what the reading script has joined."""
    found: list[bytes | Exception | None] = []
    at = 0
    for length in _text(lengths).split(","):
        if length == "-1":
            found.append(None)
        elif length[0] == "!":
            end = at + int(length[1:])
            found.append(_outcome(data[at:end]))
            at = end
        else:
            end = at + int(length)
            found.append(data[at:end])
            at = end
    return found


def _look_elsewhere(here: _Here, error: Exception) -> None:
    """Raise what lets the call be made again, one for each account or of another server."""
    said = f"{type(error).__name__} {error}".upper()
    if "CROSSSLOT" in said and not here.apart:
        raise _Elsewhere("CROSSSLOT") from None
    if "MOVED" in said:
        raise _Elsewhere("MOVED") from None


async def _execute(here: _Here, *words: Any, **options: Any) -> Any:
    """Send a command; wait in line where the client has no connection left and would raise."""
    while True:
        try:
            return await here.client.execute_command(*words, NEVER_DECODE=[], **options)
        except Exception as error:
            if type(error).__name__ != "MaxConnectionsError" and _TOO_MANY not in str(error):
                raise
        await asyncio.sleep(_LINE_MOVES)


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
