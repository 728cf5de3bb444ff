"""A bot that repeats what it is told, and forgets nothing when it is restarted.

At QQ: set `QQBOT_APP_ID` and `QQBOT_SECRET`. On this machine: run `python -m qqbot_session.testing`
beside it, and set the four variables that it prints.
"""

import asyncio
import logging
import os
import sys

from qqbot_session import GatewayRefusedError
from qqbot_session.bot import ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch


async def handle(event: Dispatch, bot: Bot) -> None:
    if event.type == "C2C_MESSAGE_CREATE":
        chat = f"/v2/users/{event.data['author']['user_openid']}"
    elif event.type == "GROUP_AT_MESSAGE_CREATE":
        chat = f"/v2/groups/{event.data['group_openid']}"
    else:
        logging.info("no handler for %s", event.type)
        return
    answer = {"msg_type": 0, "msg_id": event.data["id"], "content": event.data["content"].strip()}
    try:
        await bot.request("POST", f"{chat}/messages", json=answer)
    except ApiError as error:
        if error.code != 40054005:  # QQ has this answer already: it went out just before a crash
            raise


logging.basicConfig(level=logging.INFO)
app_id, secret = os.environ.get("QQBOT_APP_ID"), os.environ.get("QQBOT_SECRET")
if not app_id or not secret:
    sys.exit("set QQBOT_APP_ID and QQBOT_SECRET")
api, token = os.environ.get("QQBOT_API_URL"), os.environ.get("QQBOT_TOKEN_URL")  # None: QQ's own
try:
    asyncio.run(
        run_bot(app_id, secret, intents=1 << 25, handle=handle, api_url=api, token_url=token)
    )
except GatewayRefusedError as error:  # a wrong secret, a ban: trying again will not help
    sys.exit(str(error))
