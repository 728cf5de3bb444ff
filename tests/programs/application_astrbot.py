"""A plugin for AstrBot that takes a while for each message, as an LLM does, and then answers.

At SIGUSR1 it does what the dashboard's button for a restart does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

from astrbot.api.event import filter
from astrbot.api.star import Star
from astrbot.core.core_lifecycle import AstrBotCoreLifecycle


class Answer(Star):  # type: ignore[misc]
    async def initialize(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.restart)

    def restart(self) -> None:
        (core,) = (each for each in gc.get_objects() if isinstance(each, AstrBotCoreLifecycle))
        self.restarting = asyncio.create_task(core.restart())

    @filter.event_message_type(filter.EventMessageType.ALL)  # type: ignore[untyped-decorator]
    async def answer(self, event: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(random.uniform(0, float(os.environ["LONGEST"])))
        yield event.plain_result(f"answer {event.message_str.split()[-1]}")
