"""nanobot's `/restart`, which replaces the process without stopping anything (0.3).

The command waits for a second and calls `os.execv`. To QQ's session that is a crash: messages at
work would come again, `/restart` among them, and restart the bot once more. So the lines are ended
in order first; `/restart` itself counts as handled.
"""

from __future__ import annotations

import functools
from typing import Any

from ..answers import Answers
from . import wrapping

WRAPPED = "nanobot.command.builtin"
"""The module of the application that `wrap` takes."""


def wrap(module: Any) -> None:
    """End the lines before a restart.

    Raises:
        AttributeError: this version has no such command.
    """
    restart = module.cmd_restart

    @functools.wraps(restart)
    async def restart_in_order(context: Any) -> Any:
        message_id = str((context.msg.metadata or {}).get("message_id"))
        for client in list(wrapping.CLIENTS):
            if isinstance(client._qqbot_until, Answers):
                client._qqbot_until.accepted(message_id)
            await client._qqbot_end()
        return await restart(context)

    module.cmd_restart = restart_in_order
