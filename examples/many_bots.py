"""Many bots in one process, with one store: `python many_bots.py APP_ID SECRET APP_ID SECRET …`.

On this machine: run `python -m qqbot_session.testing` beside it, and set `QQBOT_API_URL` and
`QQBOT_TOKEN_URL` as it prints them.
"""

import asyncio
import logging
import os
import sys
from functools import partial

from qqbot_session import AsyncSessionStore
from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch


async def handle(event: Dispatch, bot: Bot) -> None:
    logging.info("%s: %s", bot.app_id, event.type)


async def main(accounts: list[tuple[str, str]]) -> None:
    run = partial(
        run_bot,
        intents=1 << 25,
        handle=handle,
        api_url=os.environ.get("QQBOT_API_URL"),  # None: QQ's own
        token_url=os.environ.get("QQBOT_TOKEN_URL"),
    )
    async with AsyncSessionStore("sessions") as store:
        bots = [run(app_id, secret, sessions=store) for app_id, secret in accounts]
        ends = await asyncio.gather(*bots, return_exceptions=True)  # a refused bot ends alone
    for error in filter(None, ends):
        logging.error("%s", error)


logging.basicConfig(level=logging.INFO)
asyncio.run(main(list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))))
