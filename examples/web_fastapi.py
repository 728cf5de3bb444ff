"""A bot in a FastAPI application: `uvicorn web_fastapi:app`.

At QQ: set `QQBOT_APP_ID` and `QQBOT_SECRET`. On this machine: run `python -m qqbot_session.testing`
beside it, and set the four variables that it prints.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response

from qqbot_session.bot import ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch


async def handle(event: Dispatch, bot: Bot) -> None:
    if event.type == "C2C_MESSAGE_CREATE":
        chat = f"/v2/users/{event.data['author']['user_openid']}/messages"
        answer = {"msg_type": 0, "msg_id": event.data["id"], "content": "pong"}
        try:
            await bot.request("POST", chat, json=answer)
        except ApiError as error:
            if error.code != 40054005:  # QQ has this answer already: it went out before a crash
                raise


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    bot = asyncio.create_task(
        run_bot(
            os.environ["QQBOT_APP_ID"],
            os.environ["QQBOT_SECRET"],
            intents=1 << 25,
            handle=handle,
            started=lambda bot: setattr(app.state, "bot", bot),
            api_url=os.environ.get("QQBOT_API_URL"),  # None: QQ's own
            token_url=os.environ.get("QQBOT_TOKEN_URL"),
        )
    )
    yield
    bot.cancel()
    await asyncio.gather(bot, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health(response: Response) -> dict[str, bool]:
    bot = getattr(app.state, "bot", None)
    shards = {} if bot is None else bot.health
    up = {str(shard[0]): shards[shard].connected_since is not None for shard in shards}
    response.status_code = 200 if up and all(up.values()) else 503
    return up
