"""What LangBot and hermes-agent share: their connection to the gateway, kept up by our loop."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from ..answers import Answers
from ..gateway import Dispatch, Event
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from . import VARIABLE


async def keep_up(
    app_id: str,
    intents: int,
    *,
    answers: Answers,
    connect: Callable[[], Awaitable[Socket]],
    token: Callable[[bool], Awaitable[str]],
    handle: Callable[[Dispatch], Awaitable[object]],
    observe: Callable[[Event], object],
) -> None:
    """Keep the connection of the application's only shard up until cancelled.

    Raises:
        GatewayRefusedError: QQ refused the bot.
    """
    async with AsyncSessionStore(os.environ[VARIABLE]) as store:
        runner = ShardRunner(
            store,
            await open_gateway(store, app_id, intents=intents),
            connect=connect,
            token=token,
            handle=answers.awaited(handle),
            observe=observe,
        )
        await runner.run()
