"""What LangBot and hermes-agent share: their connection to the gateway, kept up by our loop."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from ..answers import Answers
from ..gateway import Dispatch, Event
from ..shard import ShardRunner, Socket, open_gateway
from ..store import AsyncSessionStore
from . import VARIABLE


class Telling:
    """A socket that reports when it is closed."""

    def __init__(self, socket: Socket, tell: Callable[[], object]) -> None:
        self.send, self.receive = socket.send, socket.receive
        self.closed = False
        self._close, self._tell = socket.close, tell

    async def close(self, code: int, /) -> int | None:
        """Report that it closes, then close it."""
        self.closed = True
        self._tell()
        return await self._close(code)


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


def require(owner: Any, names: tuple[str, ...], application: str) -> None:
    """Check that a class has these methods.

    Raises:
        ImportError: one is missing; the error names it.
    """
    if missing := [name for name in names if not callable(getattr(owner, name, None))]:
        raise ImportError(f"this version of {application} has no {owner.__name__}.{missing[0]}")
