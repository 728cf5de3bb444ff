"""Prometheus metrics of every bot in the process, and `/healthz` beside them.

    from qqbot_session.integrations import prometheus

    prometheus.serve(9464)

Needs `pip install "qqbot_session[prometheus]"`. It finds the lines of `run_bot`, of every
`ShardRunner` and of the frameworks by itself, and hears of every store's loads and commits.

Rules:

* A gauge is read during the scrape, so it is never out of date.
* All that runs on a bot's loop is counting, without a lock; the server has a thread of its own.
"""

from __future__ import annotations

import json
import math
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

try:
    from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "qqbot_session.integrations.prometheus needs prometheus-client: "
        'pip install "qqbot_session[prometheus]"'
    ) from error

from .. import watch
from ..commit import WriteDetails
from ..shard import Health
from ..store import LoadDetails

__all__ = ["Server", "SessionCollector", "serve"]

_SILENT = 150.0  # seconds without a frame: three heartbeats of QQ's 45 s, and a little
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, math.inf)
_GAUGES: tuple[tuple[str, str, Callable[[Health], float | None]], ...] = (
    ("qqbot_connected", "1 while READY or RESUMED came on the line", lambda health: (
        float(health.connected_since is not None))),
    ("qqbot_handlers", "Events whose handlers run, or wait for a place", lambda health: (
        float(health.in_flight))),
    ("qqbot_connected_since_timestamp_seconds", "When READY or RESUMED came", lambda health: (
        health.connected_since)),
    ("qqbot_last_frame_timestamp_seconds", "When the gateway last said anything", lambda health: (
        health.last_frame_at)),
    ("qqbot_last_ack_timestamp_seconds", "Last answered heartbeat", lambda health: (
        health.last_ack_at)),
    ("qqbot_next_try_timestamp_seconds", "When the next line will be opened", lambda health: (
        health.next_try_at)),
    ("qqbot_last_close_code", "How the last line ended", lambda health: health.last_close_code),
)  # fmt: skip


class SessionCollector(Collector):
    """What Prometheus scrapes; `serve` registers one.

    Lines have the label `account`: the account id, such as `102000000-0-1`. A gauge that has no
    value for a line, such as a close code before the first close, is left out for it.

    Args:
        registry: where this is registered.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._loads: Counter[str] = Counter()  # by reason
        self._writes = self._failures = 0
        self._commits: Counter[int] = Counter()  # by bucket
        self._seconds = 0.0
        self._registry = registry
        watch.on_load.append(self._count_load)
        watch.on_write.append(self._count_write)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield what the stores did, and the gauges of every line that is kept up now."""
        loads = CounterMetricFamily("qqbot_session_loads", "What loads gave", labels=["reason"])
        for reason, count in self._loads.copy().items():
            loads.add_metric([reason], count)
        yield loads
        yield CounterMetricFamily(
            "qqbot_session_writes", "Accounts written or deleted", value=self._writes
        )
        yield CounterMetricFamily(
            "qqbot_session_write_failures", "Accounts whose write failed", value=self._failures
        )
        yield HistogramMetricFamily(
            "qqbot_session_commit_seconds",
            "From handing a batch over to the answer",
            buckets=self._buckets(),
            sum_value=self._seconds,
        )
        found = [(line.account_id, line.health) for line in watch.kept_up()]
        for name, text, value_of in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=["account"])
            for account_id, health in found:
                if (value := value_of(health)) is not None:
                    family.add_metric([account_id], value)
            yield family

    def close(self) -> None:
        """Listen no more, and leave the registry."""
        watch.on_load.remove(self._count_load)
        watch.on_write.remove(self._count_write)
        self._registry.unregister(self)

    def _buckets(self) -> list[tuple[str, float]]:
        counts = self._commits.copy()
        return [
            (f"{limit:g}" if limit < math.inf else "+Inf", sum(map(counts.__getitem__, range(n))))
            for n, limit in enumerate(_BUCKETS, 1)
        ]

    # On the loop of whichever store: nothing here takes a lock.

    def _count_load(self, details: LoadDetails) -> None:
        self._loads[details.reason.value] += 1

    def _count_write(self, details: WriteDetails) -> None:
        self._writes += len(details.account_ids) - len(details.failures)
        self._failures += len(details.failures)
        self._commits[bisect_left(_BUCKETS, details.seconds)] += 1
        self._seconds += details.seconds


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error for each scrape."""


class Server:
    """The server that `serve` started; `close` it, or leave it to the end of the process.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self, port: int, addr: str, registry: CollectorRegistry, collector: SessionCollector | None
    ) -> None:
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/healthz":
                return _healthz(start)
            return list(metrics(environ, start))

        self._collector = collector
        self._http = make_server(addr, port, answer, _HttpServer, _Silent)
        self.port: int = self._http.server_port
        name = "qqbot_session-metrics"
        self._thread = threading.Thread(target=self._http.serve_forever, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what `serve` registered leaves the registry."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        if self._collector is not None:
            self._collector.close()


def serve(
    port: int = 9464, addr: str = "127.0.0.1", registry: CollectorRegistry = REGISTRY
) -> Server:
    """Serve `/metrics` and `/healthz` from a thread of its own.

    `/healthz` answers 200 while every line of the process has a session and heard from the gateway
    within 150 s, else 503; its body says how each line is, as JSON. That is readiness: a bot whose
    line is being opened again is alive, and not to be killed for it.

    Args:
        port: 0 for any free one: see `Server.port`.
        addr: `0.0.0.0` where Prometheus or Kubernetes ask from outside.
        registry: what else is in it is served, too.

    Raises:
        OSError: the port is taken.
    """
    collector = SessionCollector(registry)
    try:
        return Server(port, addr, registry, collector)
    except BaseException:
        collector.close()
        raise


def _healthz(start: Any) -> Iterable[bytes]:
    now = time.time()
    found = {line.account_id: line.health for line in watch.kept_up()}
    good = bool(found) and all(_is_good(health, now) for health in found.values())
    lines = {
        account_id: {field.name: getattr(health, field.name) for field in fields(health)}
        for account_id, health in found.items()
    }
    status = "200 OK" if good else "503 Service Unavailable"
    start(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps({"ok": good, "lines": lines}).encode()]


def _is_good(health: Health, now: float) -> bool:
    if health.connected_since is None or health.last_frame_at is None:
        return False
    return now - health.last_frame_at < _SILENT
