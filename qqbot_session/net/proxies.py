"""Which proxy to use for an address: the same answer for a bot's token, API and line.

Rules:

* `HTTPS_PROXY` applies to `https://` and `wss://`, `HTTP_PROXY` to `http://` and `ws://`, and
  `NO_PROXY` lists exceptions, in upper or lower case, with commas or spaces between them: `*`, a
  domain with everything below it (`qq.com`, `.qq.com` or `*.qq.com`), an address, a network such as
  `10.0.0.0/8`, or one of these with a port.
* A proxy given as an argument applies to everything.
* A proxy's address may contain a password, so it is a `Secret`.
"""

from __future__ import annotations

import contextlib
import os
from base64 import b64encode
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies_environment

from ..words import Secret, address, hidden, shown

_SCHEMES = {"ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str) -> Secret | None:
    """Return the proxy that the environment names for this address; `None` = connect directly.

    Raises:
        ValueError: it is not the address of an HTTP proxy.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    if f"{scheme}_proxy" not in os.environ and f"{scheme.upper()}_PROXY" not in os.environ:
        return None  # as nearly always; to read the whole environment takes longer than a socket
    proxies = {name: address(each) for name, each in getproxies_environment().items()}
    proxy = address(proxies.get(scheme, "").strip())
    host, port = parts.hostname or "", parts.port or _PORTS.get(scheme)
    exceptions = proxies.get("no", "").lower().replace(",", " ").split()
    if not proxy or any(_is_excepted(host.rstrip("."), port, name) for name in exceptions):
        return None
    if "://" not in proxy:  # as curl takes it
        proxy = address(f"http://{proxy}")
    return check_proxy(f"{scheme.upper()}_PROXY", proxy)


def _is_excepted(host: str, port: int | None, name: str) -> bool:
    """Whether a name in `NO_PROXY` stands for this host."""
    before, _, after = name.rpartition(":")
    if after.isdecimal() and (before.endswith("]") or ":" not in before):
        return int(after) == port and _is_excepted(host, port, before)
    name = name.strip("[]")
    with contextlib.suppress(ValueError):  # one of them is a domain
        return ip_address(host) in ip_network(name, strict=False)
    domain = name.removeprefix("*").strip(".")
    return name == "*" or host == domain or host.endswith(f".{domain}")


def check_proxy(name: str, proxy: object) -> Secret:
    """Return it as a `Secret`.

    Raises:
        TypeError, ValueError: it is not the address of an HTTP proxy.
    """
    if not isinstance(proxy, str):
        raise TypeError(f"{name} must be a str or None, not {type(proxy).__name__}")
    if not _is_of_a_proxy(proxy):
        raise ValueError(
            f"{name} must be the address of an HTTP proxy, such as http://127.0.0.1:7890, "
            f"not {shown(hidden(proxy), 100)!r}"
        ) from None
    return Secret(proxy)


def _is_of_a_proxy(proxy: str) -> bool:
    """Whether an HTTP proxy can have this address; its parts stay out of the error's frames."""
    try:
        parts = urlsplit(proxy)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # of the port
        return False
    return bool(known and not parts.path.strip("/") and not parts.query and proxy.isprintable())


def aiohttp_options(url: str, proxy: str | None) -> dict[str, Any]:
    """Return aiohttp's options for a request to the address through the proxy.

    The password goes into a header because aiohttp's errors show the proxy's address. With TLS,
    only the proxy gets that header, with `CONNECT`; without TLS, it is part of the request, which
    the proxy reads anyway.
    """
    if proxy is None:
        return {}
    parts = urlsplit(proxy)
    if parts.username is None:
        return {"proxy": proxy}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    header = {"Proxy-Authorization": Secret("Basic " + b64encode(user).decode())}
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    plain = urlsplit(url).scheme in ("http", "ws")
    return {"proxy": address, "headers" if plain else "proxy_headers": header}
