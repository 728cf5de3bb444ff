"""The `bot.py` of a NoneBot project, as `nb run` starts it, with a matcher that answers."""

import asyncio
import os
import random

import nonebot
from nonebot.adapters.qq import Adapter, Bot, C2CMessageCreateEvent

nonebot.init()
nonebot.get_driver().register_adapter(Adapter)


@nonebot.on_message().handle()
async def answer(bot: Bot, event: C2CMessageCreateEvent) -> None:
    await asyncio.sleep(random.uniform(0, float(os.environ["LONGEST"])))
    await bot.send(event, f"answer {event.get_plaintext().split()[-1]}")


nonebot.run()
