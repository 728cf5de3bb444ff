"""A plugin for AstrBot that takes a while for each message, as an LLM does, and then answers."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from typing import Any

from astrbot.api.event import filter
from astrbot.api.star import Star


class Answer(Star):  # type: ignore[misc]
    @filter.event_message_type(filter.EventMessageType.ALL)  # type: ignore[untyped-decorator]
    async def answer(self, event: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(random.uniform(0, float(os.environ["LONGEST"])))
        yield event.plain_result(f"answer {event.message_str.split()[-1]}")
