"""Clients for `RedisStorage`: from a URL, for a cluster, afresh in another process or loop.

Rules:

* Nothing here shows a password: neither an error nor a `repr` nor a traceback's locals. What a
  URL says is shown without its user, password and query, and only when it could be parsed.
* A client is known by what it can do, never by its class, so that redis-py's and valkey-py's work
  alike.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import bare
from ..words import Secret, without

SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
}
"""The URLs that name a server, and what redis-py calls them."""


class ServerUrl(str):
    """The URL of a server, whose `repr` and `str.format` show no password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.shown)

    @property
    def shown(self) -> str:
        """The URL without user, password and query; its scheme alone, if it is not well formed."""
        scheme, _, rest = self.partition("://")
        if _complaint(rest):
            return f"{scheme}://…"
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"

    @property
    def secrets(self) -> set[Secret]:
        """The passwords in it, as they stand there and as the server gets them."""
        found = {urlsplit(self).password or ""}
        for option in urlsplit(self).query.split("&"):
            name, _, value = option.partition("=")
            if "password" in name:
                found.add(value)
        return {Secret(word) for text in found for word in (text, unquote(text)) if word}


def server_url(text: str) -> ServerUrl:
    """Return the URL as redis-py wants it.

    Raises:
        ValueError: it is none; the sentence says what was probably meant, and shows no password.
    """
    text = ServerUrl(text.strip())  # for the traceback's sake
    scheme = text.partition("://")[0].lower()
    if "://" not in text or scheme not in {*SCHEMES, "unix"}:
        raise ValueError(
            "not the URL of a Redis server: it begins with redis:// or rediss:// (TLS), as in"
            " redis://:PASSWORD@HOST:6379/0"
        )
    if scheme != "unix" and (complaint := _complaint(text.partition("://")[2])):
        raise ValueError(f"not the URL of a Redis server: {scheme}://… {complaint}")
    return ServerUrl(f"{SCHEMES.get(scheme, scheme)}://{text.partition('://')[2]}")


def _complaint(rest: str) -> str | None:
    """Return what is wrong with what follows `redis://`; it is never quoted."""
    place, _, path = rest.partition("?")[0].partition("/")
    user, at, address = place.rpartition("@")
    host, _, port = address.rpartition("]")[2].partition(":")
    if place.count("[") != place.count("]"):
        return "has a [ or ] that belongs to no IPv6 address, as in redis://[::1]:6379/0"
    if "," in address:
        return (
            "names several hosts: hand in a client of redis.asyncio.RedisCluster,"
            " or Sentinel's master_for(), as RedisStorage(client)"
        )
    if port and not port.isdigit():
        return (
            "has no number for a port. A password goes before the host, as in"
            " redis://:PASSWORD@HOST:6379/0, with / ? # @ and % in it percent-encoded"
        )
    if port and int(port) > 65_535:
        return "has a port above 65535"
    if "@" in path or "#" in rest:
        return "has a / ? # or @ in its password that is not percent-encoded (%2F %3F %23 %40)"
    if path.strip("/") and not path.strip("/").isdigit():
        return "ends in no database's number, as in redis://HOST:6379/0"
    if at and ":" not in user and not host:
        return "names no host"
    return None


def client_of(url: ServerUrl, timeout: float) -> Any:
    """Return a client of one server, which connects with its first command.

    Raises:
        ModuleNotFoundError: neither redis-py nor valkey-py is installed.
        ValueError: it is no URL for it.
    """
    module = _module()
    return _made(lambda options: module.from_url(url, **options), url, timeout)


def cluster_client_of(url: ServerUrl, timeout: float) -> Any:
    """Return a client of the cluster that a server belongs to.

    Its own time-outs are longer than ours: when they come first, redis-py closes the connections to
    all nodes, those that are well included.
    """
    module = _module()
    cluster = getattr(module, "RedisCluster", None) or module.ValkeyCluster
    place, _, query = url.partition("?")
    scheme, _, rest = place.partition("://")
    bare = ServerUrl(f"{scheme}://{rest.partition('/')[0]}{'?' if query else ''}{query}")
    return _made(lambda options: cluster.from_url(bare, **options), bare, 2 * timeout)


def _made(make: Any, url: ServerUrl, timeout: float) -> Any:
    try:
        return make(_options(url, timeout))
    except (ValueError, TypeError) as error:  # whose text may hold the password
        text = without(str(error), url.secrets)
        bare(error)  # its frames are the client's, and hold the password, too
        raise ValueError(f"not the URL of a Redis server: {url.shown!r} ({text})") from None


def _options(url: ServerUrl, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "decode_responses": False,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        **one_more_attempt(),
        **namelessly(),
    }
    if url.startswith("rediss:") and "ssl_cert_reqs=" not in url:
        options["ssl_check_hostname"] = True  # some clients do not by themselves
    return options


def one_more_attempt() -> dict[str, Any]:
    """Return what lets a connection that was cut while it was idle be made anew, at once."""
    module = _module().__name__.partition(".")[0]
    retry = importlib.import_module(f"{module}.asyncio.retry").Retry
    backoff = importlib.import_module(f"{module}.backoff").NoBackoff()
    error = importlib.import_module(f"{module}.exceptions").ConnectionError
    return {"retry": retry(backoff, 1), "retry_on_error": [error]}


def namelessly() -> dict[str, Any]:
    """Return what keeps redis-py from reading its own version from the disk for each connection."""
    module = _module().__name__.partition(".")[0]
    if importlib.util.find_spec(f"{module}.driver_info"):
        return {"driver_info": None}
    return {"lib_name": None, "lib_version": None}


def _module() -> Any:
    for name in ("redis", "valkey"):
        try:
            return importlib.import_module(f"{name}.asyncio")
        except ModuleNotFoundError as error:
            if not str(error.name).startswith(name):
                raise
    message = 'Redis needs `pip install "qqbot_session[redis]"`'
    raise ModuleNotFoundError(message, name="redis") from None


def check_client(client: object) -> None:
    """Take nothing but an asyncio client.

    Raises:
        TypeError: it is something else; the sentence says what was probably meant.
    """
    kind = type(client) if not isinstance(client, type) else client
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if isinstance(client, type):
        raise TypeError(f"client must be a URL or a client, not the class {name}")
    if hasattr(client, "master_for"):
        raise TypeError(f"client must be what {name}.master_for(NAME) returns, not a {name}")
    if hasattr(client, "execute_command") and hasattr(client, "aclose"):
        return
    if hasattr(client, "execute_command"):
        package = kind.__module__.partition(".")[0]
        raise TypeError(
            f"client must be asynchronous: {package}.asyncio.{kind.__name__} in place of {name}"
        )
    raise TypeError(f"client must be a URL or a client of redis.asyncio, not a {name}")


def is_cluster(client: Any) -> bool:
    """Return whether this is a cluster's client."""
    return hasattr(client, "get_node_from_key")


def forget_connections(client: Any) -> bool:
    """Let a client that was used on another loop connect anew; return whether it can."""
    sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    pools = [
        getattr(each, "connection_pool", None)
        for each in (client, *getattr(sentinels, "sentinels", ()))
    ]
    if not all(hasattr(pool, "reset") for pool in pools):
        return False
    for pool in pools:
        pool.reset()  # type: ignore[union-attr]
    return True


def connections_of(client: Any) -> list[Any]:
    """Return what a client has open, to be kept where nobody may close it."""
    pools = [getattr(each, "connection_pool", each) for each in (client,) if each is not None]
    return [vars(pool).copy() for pool in pools if hasattr(pool, "__dict__")]


def secrets_of(client: Any) -> set[Secret]:
    """Return the passwords that a client has been given."""
    pool = getattr(client, "connection_pool", None)
    options = getattr(pool, "connection_kwargs", None) or getattr(client, "connection_kwargs", {})
    found = set()
    with contextlib.suppress(Exception):
        found = {options[name] for name in options if "password" in name and options[name]}
    return {Secret(value) for value in found if isinstance(value, str)}
