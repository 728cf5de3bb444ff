"""`python -m qqbot_session.testing`: QQ on this machine, to try a bot by hand.

It prints what a bot needs to find it, sends sample events and every line that is typed, and shows
what the bot does and answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Sequence

from .gateway import LocalGateway

_log = logging.getLogger("qqbot_session.testing")

_PORT = 8710
_WELCOME = """\
QQ on this machine, until Ctrl-C. For the shell that your bot runs in:

{0}
{1} Stop the bot and start it again within moments: one that resumes loses none.
"""
_SHELLS = {  # how each sets a variable
    "sh": "export {}={}",
    "PowerShell": '$env:{} = "{}"',
    "cmd": "set {}={}",
}
_SAMPLES = "Once it has identified it gets a sample event every {:g} s."
_TYPED = "What you type here reaches it as a private message."


async def _serve(port: int, heartbeat: float, every: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows has Ctrl-C alone
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop.set)
    async with LocalGateway(port=port, heartbeat_interval=heartbeat) as gateway:
        typing = sys.stdin is not None and sys.stdin.isatty()
        words = [_SAMPLES.format(every)] * (every > 0) + [_TYPED] * typing
        sys.stdout.write(_WELCOME.format(_variables(gateway), " ".join(words)))
        sys.stdout.flush()
        if typing:
            threading.Thread(target=_read_lines, args=(gateway, loop), daemon=True).start()
        number = 0
        while not await _happens(stop, every or None):
            number += 1
            await _emit_sample(gateway, number)


def _variables(gateway: LocalGateway, system: str = sys.platform) -> str:
    """Return the lines that lead a bot here, for each shell that the system comes with."""
    values = {
        "QQBOT_APP_ID": gateway.app_id,
        "QQBOT_SECRET": gateway.client_secret,
        "QQBOT_API_URL": gateway.api_url,
        "QQBOT_TOKEN_URL": gateway.token_url,
    }
    shells = ("PowerShell", "cmd") if system == "win32" else ("sh",)
    text = ""
    for shell in shells:
        text += f"{shell}:\n" if len(shells) > 1 else ""
        text += "".join(f"{_SHELLS[shell].format(*pair)}\n" for pair in values.items())
    return text


async def _happens(event: asyncio.Event, within: float | None) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within)
    except TimeoutError:
        return False
    return True


def _read_lines(gateway: LocalGateway, loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        message = gateway.c2c_message(line.rstrip("\n"))
        emitting = gateway.emit("C2C_MESSAGE_CREATE", message)
        numbers = asyncio.run_coroutine_threadsafe(emitting, loop).result()
        if not numbers:
            _log.debug("no bot has identified yet that wants private messages (intent 1 << 25)")


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
        description="QQ on this machine, to try a bot by hand.",
    )
    parser.add_argument("--port", type=int, default=_PORT, help=f"0 = any (default: {_PORT})")
    parser.add_argument("--heartbeat", type=float, default=45.0, help="interval in seconds")
    every = "seconds between sample events; 0 = none (default: 1)"
    parser.add_argument("--every", type=float, default=1.0, help=every)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s")
    _log.setLevel(logging.DEBUG)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(options.port, options.heartbeat, options.every))
    except OSError as error:
        sys.stderr.write(f"port {options.port}: {error}; choose another with --port\n")
        return 1
    finally:
        _log.setLevel(logging.NOTSET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
