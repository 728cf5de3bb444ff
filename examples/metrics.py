"""Prometheus metrics of a bot, and /healthz: `pip install "qqbot_session[bot,prometheus]"`.

    QQBOT_APP_ID=… QQBOT_SECRET=… python examples/metrics.py

Then http://localhost:9464/metrics tells how sessions are loaded and written, and how the lines are.
"""

import asyncio
import os

from qqbot_session.bot import API_URL, TOKEN_URL, Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.integrations import prometheus


async def handle(event: Dispatch, bot: Bot) -> None:
    print("handled", event.type, event.seq, flush=True)


async def main() -> None:
    prometheus.serve(int(os.environ.get("METRICS_PORT", "9464")))
    await run_bot(
        os.environ["QQBOT_APP_ID"],
        os.environ["QQBOT_SECRET"],
        intents=1 << 25,
        handle=handle,
        api_url=os.environ.get("QQBOT_API_URL", API_URL),
        token_url=os.environ.get("QQBOT_TOKEN_URL", TOKEN_URL),
    )


if __name__ == "__main__":
    asyncio.run(main())
