"""Leads a program that knows only QQ's own hosts to QQ on this machine: first on its PYTHONPATH.

Whatever aiohttp, httpx or requests would send to a host below qq.com goes to QQ_API instead.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def led(url: object) -> str | None:
    """Return where the URL leads here, `None` if it is not QQ's."""
    parts, here = urlsplit(str(url)), urlsplit(os.environ["QQ_API"])
    if parts.hostname is None or not parts.hostname.endswith("qq.com"):
        return None
    return urlunsplit((here.scheme, here.netloc, parts.path, parts.query, parts.fragment))


def lead_aiohttp(aiohttp: ModuleType) -> None:
    request = aiohttp.ClientSession._request

    async def _request(self: Any, method: str, url: Any, **kwargs: Any) -> Any:
        whole = url if "://" in str(url) else f"{self._base_url or ''}{str(url).lstrip('/')}"
        if here := led(whole):
            url = here
            kwargs.pop("ssl", None)
        return await request(self, method, url, **kwargs)

    aiohttp.ClientSession._request = _request


def lead_httpx(httpx: ModuleType) -> None:
    for kind in (httpx.AsyncClient, httpx.Client):
        build = kind.build_request

        def build_request(
            self: Any, method: str, url: Any, *, build: Any = build, **kwargs: Any
        ) -> Any:
            made = build(self, method, url, **kwargs)
            if here := led(made.url):
                made.url = httpx.URL(here)
                made.headers["host"] = made.url.netloc.decode()
            return made

        kind.build_request = build_request


def lead_requests(requests: ModuleType) -> None:
    request = requests.Session.request

    def _request(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        return request(self, method, led(url) or url, *args, **kwargs)

    requests.Session.request = _request


class Finder:
    """Leads each of them right after its import."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[ModuleType], None]] = {
            "aiohttp": lead_aiohttp,
            "httpx": lead_httpx,
            "requests": lead_requests,
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        lead = self._waiting.pop(name, None)
        spec = importlib.util.find_spec(name) if lead else None
        if lead is None or spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            lead(module)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
