"""`python -m qqbot_session.testing`: run a gateway by hand, and see what a bot does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

from .gateway import LocalGateway

_log = logging.getLogger("qqbot_session.testing")

_WELCOME = """\
QQ's gateway on this machine, until Ctrl-C. Point your bot at:
  API        {0.api_url}
  token      {0.token_url}
  gateway    {0.ws_url}
  app id     {0.app_id}
  secret     {0.client_secret}
Once it has identified it gets a sample event every {1:g} s. Stop it and start it again
within moments: a bot that resumes loses none.
"""


async def _serve(port: int, heartbeat: float, every: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows has Ctrl-C alone
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop.set)
    async with LocalGateway(port=port, heartbeat_interval=heartbeat) as gateway:
        sys.stdout.write(_WELCOME.format(gateway, every))
        sys.stdout.flush()
        number = 0
        while not await _happens(stop, every):
            number += 1
            await _emit_sample(gateway, number)


async def _happens(event: asyncio.Event, within: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within)
    except TimeoutError:
        return False
    return True


async def _emit_sample(gateway: LocalGateway, number: int) -> None:
    if number % 2:
        event, data = "C2C_MESSAGE_CREATE", gateway.c2c_message(f"sample {number}")
    else:
        event, data = "GROUP_AT_MESSAGE_CREATE", gateway.group_at_message(f" sample {number}")
    if numbers := await gateway.emit(event, data):
        _log.debug("%s %r is number %s", event, data["content"], numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gateway until SIGINT or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qqbot_session.testing",
        description="Run QQ's gateway on this machine and emit sample events.",
    )
    parser.add_argument("--port", type=int, default=0, help="where to listen (default: any)")
    parser.add_argument("--heartbeat", type=float, default=45.0, help="interval in seconds")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between events")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s")
    _log.setLevel(logging.DEBUG)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.port, options.heartbeat, options.every))
    return 0


if __name__ == "__main__":
    sys.exit(main())
