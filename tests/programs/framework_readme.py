"""The page's program for a framework, as it stands there, before its change or after it.

BUILD is the framework's module, and `before` or `after`. What is added here only leads it to
QQ on localhost and tells what becomes of its messages.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from framework_work import API, APP_ID, BUILD, SECRET, TOKEN_URL, work

_PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
_DROPPED = {"before": "+", "after": "-"}
module, when = BUILD.split()


def program(marker: str, when: str) -> str:
    """Return the block that holds the marker, with its change or without."""
    blocks = re.findall(r"^```diff\n(.*?)^```", _PAGE.read_text("utf-8"), re.M | re.S)
    (block,) = [block for block in blocks if marker in block]
    lines = block.splitlines()
    return "\n".join(line[1:] for line in lines if not line.startswith(_DROPPED[when]))


def run_botpy() -> None:
    import framework_botpy
    from botpy.message import C2CMessage

    framework_botpy.go_to_localhost()
    os.environ |= {"QQBOT_APP_ID": APP_ID, "QQBOT_SECRET": SECRET}
    answer = C2CMessage.reply

    async def reply(self: Any, **arguments: Any) -> None:
        assert arguments == {"content": f"You said {self.content}"}
        await work(self.content, lambda text: answer(self, content=text))

    C2CMessage.reply = reply
    text = program("class MyClient", when)
    if module == "botpy-remember":
        class_block, remembering = (
            program("class MyClient", "before"),
            program("remember(client", when),
        )
        text = "\n".join([*class_block.splitlines()[:-1], remembering])
    exec(compile(text, "frameworks.md", "exec"), {"__name__": "__main__"})


def run_nonebot() -> None:
    Path("plugins").mkdir(exist_ok=True)
    Path("plugins/answer.py").write_text(
        "import nonebot\n"
        "from framework_work import work\n"
        "from nonebot.adapters.qq import Bot, C2CMessageCreateEvent\n"
        "@nonebot.on_message().handle()\n"
        "async def _(bot: Bot, event: C2CMessageCreateEvent):\n"
        "    await work(event.get_plaintext(), lambda text: bot.send(event, text))\n"
    )
    bot = f'{{"id": "{APP_ID}", "secret": "{SECRET}", "token": "",'
    Path(".env").write_text(
        f"DRIVER=~none+~aiohttp\nQQ_API_BASE={API}/\nQQ_AUTH_BASE={TOKEN_URL}\n"
        f'QQ_BOTS=[{bot} "intent": {{"c2c_group_at_messages": true}}}}]\nQQ_SESSIONS=sessions\n'
    )
    sys.path.insert(0, ".")
    exec(compile(program("register_adapter", when), "frameworks.md", "exec"), {"__name__": "bot"})


def run_agent_sdk() -> None:
    from framework_agent_sdk import make

    names: dict[str, Any] = {}
    exec(compile(program("QQWebSocket(callbacks)", when), "frameworks.md", "exec"), names)

    async def main() -> None:
        stop = asyncio.Event()
        if when == "before":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        api, callbacks, _ = make()
        url = await asyncio.to_thread(api.get_gateway_url_sync)
        await names["run"](callbacks, APP_ID, url, stop)

    asyncio.run(main())


if module.startswith("botpy"):
    run_botpy()
elif module == "nonebot":
    run_nonebot()
else:
    run_agent_sdk()
