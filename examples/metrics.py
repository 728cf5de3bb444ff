"""Prometheus metrics of a bot's sessions: `pip install "qqbot_session[bot]" prometheus-client`.

    QQBOT_APP_ID=… QQBOT_SECRET=… python examples/metrics.py

Then http://localhost:9464/metrics tells how sessions are loaded and written, and how the lines are.
"""

import asyncio
import os

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from qqbot_session import AsyncSessionStore, LoadDetails, WriteDetails
from qqbot_session.bot import API_URL, TOKEN_URL, Bot, run_bot
from qqbot_session.gateway import Dispatch

loads = Counter("qqbot_session_loads", "What loads gave", ["reason"])
writes = Counter("qqbot_session_writes", "Accounts written or deleted")
failures = Counter("qqbot_session_write_failures", "Accounts whose write failed")
seconds = Histogram("qqbot_session_commit_seconds", "From handing a batch over to the answer")
in_flight = Gauge("qqbot_handlers", "Events whose handlers run", ["shard"])
acknowledged = Gauge("qqbot_last_ack_timestamp_seconds", "Last answered heartbeat", ["shard"])


def on_load(load: LoadDetails) -> None:
    loads.labels(load.reason.value).inc()


def on_write(write: WriteDetails) -> None:
    writes.inc(len(write.account_ids) - len(write.failures))
    failures.inc(len(write.failures))
    seconds.observe(write.seconds)


async def handle(event: Dispatch, bot: Bot) -> None:
    for (shard, _), health in bot.health.items():
        in_flight.labels(shard).set(health.in_flight)
        acknowledged.labels(shard).set(health.last_ack_at or 0)
    print("handled", event.type, event.seq, flush=True)


async def main() -> None:
    server, thread = start_http_server(int(os.environ.get("METRICS_PORT", "9464")))
    async with AsyncSessionStore("sessions", on_load=on_load, on_write=on_write) as store:
        await run_bot(
            os.environ["QQBOT_APP_ID"],
            os.environ["QQBOT_SECRET"],
            intents=1 << 25,
            handle=handle,
            sessions=store,
            api_url=os.environ.get("QQBOT_API_URL", API_URL),
            token_url=os.environ.get("QQBOT_TOKEN_URL", TOKEN_URL),
        )
    server.shutdown()
    server.server_close()
    thread.join()


if __name__ == "__main__":
    asyncio.run(main())
