"""Look up names and connect to addresses without waiting for anyone else.

Rules:

* Each look-up runs in a daemon thread of its own. Handlers that keep the loop's thread pool busy do
  not delay a line, and a hanging resolver does not delay the end of the process.
* Lines that look up the same name within a second share one look-up while it is under way, so a
  thousand lines do not start a thousand threads.
* Connection attempts start a quarter of a second apart and alternate between IPv6 and IPv4
  (RFC 8305, Happy Eyeballs), so a dead address costs no more than that. This works on every event
  loop; uvloop's `create_connection` cannot do it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, TypeAlias

Address: TypeAlias = tuple[Any, ...]
"""As `socket.getaddrinfo` gives them: family, type, protocol, canonical name, address."""

_Key: TypeAlias = tuple[asyncio.AbstractEventLoop, str, int, int]
_Answer: TypeAlias = tuple[list[Address], Exception | None]

_SHARED = 1.0  # seconds for which a look-up serves others that ask; our choice
_HEAD_START = 0.25  # seconds between two attempts (RFC 8305, section 5)

_under_way: dict[_Key, tuple[float, asyncio.Future[_Answer]]] = {}  # since when, by the loop


async def look_up(host: str, port: int, family: int = 0) -> list[Address]:
    """Return the addresses of a host.

    Args:
        family: only those of this family; 0 = all.

    Raises:
        OSError: none can be found.
    """
    loop = asyncio.get_running_loop()
    key = (loop, host, port, family)
    began, found = _under_way.get(key, (0.0, None))
    if found is None or loop.time() > began + _SHARED:
        found = _ask(key)
        _under_way[key] = loop.time(), found
    addresses, error = await asyncio.shield(found)  # others may wait for it, too
    if error is not None:
        raise error.with_traceback(None)
    return list(addresses)


def _ask(key: _Key) -> asyncio.Future[_Answer]:
    """Start a look-up; the answer is what was found, and the error."""
    loop, host, port, family = key
    found: asyncio.Future[_Answer] = loop.create_future()

    def work() -> None:
        try:
            answer: _Answer = _look_up(host, port, family), None
        except Exception as failure:  # noqa: BLE001 - raised where it is awaited
            answer = [], failure
        try:
            loop.call_soon_threadsafe(tell, answer)
        except RuntimeError:  # the loop is closed: nobody waits
            _under_way.pop(key, None)

    def tell(answer: _Answer) -> None:
        if _under_way.get(key, (0.0, None))[1] is found:
            del _under_way[key]
        if not found.done():
            found.set_result(answer)

    try:
        threading.Thread(target=work, name="qqbot_session:look_up", daemon=True).start()
    except RuntimeError as error:  # no thread to be had
        raise OSError(f"cannot look up {host}: {error}") from error
    return found


async def dial(host: str, port: int) -> socket.socket:
    """Return a TCP socket connected to whichever of the host's addresses answers first.

    Raises:
        OSError: none of them does.
    """
    addresses = _in_turns(await look_up(host, port))
    attempts: list[asyncio.Task[socket.socket]] = []
    winner: asyncio.Task[socket.socket] | None = None
    try:
        for address in addresses:
            attempts.append(asyncio.create_task(_connect(address), name="qqbot_session:dial"))
            last = address is addresses[-1]
            if winner := await _first(attempts, None if last else _HEAD_START):
                return winner.result()
    finally:
        for attempt in attempts:
            if attempt is not winner:
                attempt.cancel()
                attempt.add_done_callback(_discard)
    reasons = dict.fromkeys(map(_failure, attempts))
    raise OSError(f"cannot connect to {host}:{port}: {'; '.join(reasons) or 'no address'}")


def _look_up(host: str, port: int, family: int) -> list[Address]:
    kind = socket.SOCK_STREAM
    try:
        return list(socket.getaddrinfo(host, port, family, kind, 0, socket.AI_ADDRCONFIG))
    except socket.gaierror:  # loopback alone counts as no address there (AI_ADDRCONFIG)
        return list(socket.getaddrinfo(host, port, family, kind))


def _in_turns(addresses: Sequence[Address]) -> list[Address]:
    """Return them alternating between families, starting with the resolver's first choice."""
    families = dict.fromkeys(address[0] for address in addresses)
    groups = [[address for address in addresses if address[0] == each] for each in families]
    return [address for address in chain(*zip_longest(*groups)) if address is not None]


async def _connect(address: Address) -> socket.socket:
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def _first(
    attempts: Sequence[asyncio.Task[socket.socket]], patience: float | None
) -> asyncio.Task[socket.socket] | None:
    """Return the first attempt that succeeds; `None` if all fail or the time is over."""
    loop = asyncio.get_running_loop()
    end = None if patience is None else loop.time() + patience
    while pending := [attempt for attempt in attempts if not attempt.done()]:
        left = None if end is None else max(0.0, end - loop.time())
        done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        if any(map(_succeeded, done)):
            break
    return next(filter(_succeeded, attempts), None)


def _succeeded(attempt: asyncio.Task[socket.socket]) -> bool:
    return attempt.done() and not attempt.cancelled() and attempt.exception() is None


def _failure(attempt: asyncio.Task[socket.socket]) -> str:
    return "cancelled" if attempt.cancelled() else str(attempt.exception())


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if _succeeded(attempt):
        attempt.result().close()
