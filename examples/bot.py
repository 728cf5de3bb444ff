"""A bot that repeats what it is told, and forgets nothing when it is restarted.

At QQ: set `QQBOT_APP_ID` and `QQBOT_SECRET`. On this machine: run `python -m qqbot_session.testing`
beside it, and set the four variables that it prints.
"""

import asyncio
import logging
import os
import sys

from qqbot_session import GatewayRefusedError
from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch


async def handle(event: Dispatch, bot: Bot) -> None:
    if event.type == "C2C_MESSAGE_CREATE":
        chat = f"/v2/users/{event.data['author']['user_openid']}"
    elif event.type == "GROUP_AT_MESSAGE_CREATE":
        chat = f"/v2/groups/{event.data['group_openid']}"
    else:
        return
    answer = {"msg_type": 0, "msg_id": event.data["id"], "content": event.data["content"].strip()}
    await bot.request("POST", f"{chat}/messages", json=answer)


logging.basicConfig(level=logging.INFO)
try:
    asyncio.run(
        run_bot(
            os.environ["QQBOT_APP_ID"],
            os.environ["QQBOT_SECRET"],
            intents=1 << 25,  # messages of groups and users
            handle=handle,
            sessions="sessions",  # a directory
            api_url=os.environ.get("QQBOT_API_URL"),  # QQ's, unless set
            token_url=os.environ.get("QQBOT_TOKEN_URL"),
        )
    )
except GatewayRefusedError as error:  # a wrong secret, a ban: another try is no use
    sys.exit(str(error))
