"""A process with one or more bots, and what people run beside them: `python beside.py SCENARIO`.

Where QQ is stands in `URLS` (of the API, and of the token). Each handler says "begun", works for
`WORK` seconds, answers, and says "handled".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch

WORK = float(os.environ.get("WORK", "0.5"))


def say(*words: object) -> None:
    """Print a line; into a file where a supervisor has the output."""
    with contextlib.ExitStack() as stack:
        file = os.environ.get("OUT")
        out = stack.enter_context(Path(file).open("a")) if file else None
        line = " ".join(map(str, words)) + "\n"  # at once: other threads print, too
        print(line, end="", flush=True, file=out)


async def handle(event: Dispatch, bot: Bot) -> None:
    if event.type != "C2C_MESSAGE_CREATE":
        return
    say("begun", event.data["content"])
    await asyncio.sleep(WORK)
    say("handled", event.data["content"])


def bot(number: int = 1, **options: Any) -> Any:
    api_url, token_url = os.environ["URLS"].split()
    options = {"handle": handle, "sessions": f"sessions-{number}", **options}
    urls = {"api_url": api_url, "token_url": token_url}
    secret = options.pop("secret", "s")
    return run_bot(f"10000{number}", secret, intents=1 << 25, **urls, **options)


async def alone() -> None:
    await bot()
    say("returned")


# Bots beside bots


async def two_bots() -> None:
    await asyncio.gather(bot(1), bot(2))
    say("returned")


async def three_bots_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        for number in (1, 2, 3):
            group.create_task(bot(number))
    say("returned")


async def a_refused_bot_beside_two() -> None:
    ends = await asyncio.gather(bot(1), bot(2, secret="wrong"), bot(3), return_exceptions=True)
    say("returned", *(type(end).__name__ for end in ends))


async def bots_that_start_one_after_the_other() -> None:
    """The second starts while the first is in its grace."""
    signalled = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signalled.set)

    async def second() -> None:
        await signalled.wait()
        await bot(2)
        say("the second returned")

    await asyncio.gather(bot(1), second())
    say("returned")


async def one_in_a_thread() -> None:
    thread = threading.Thread(target=lambda: asyncio.run(bot(2)))
    thread.start()
    await bot(1)
    await asyncio.to_thread(thread.join)
    say("returned")


async def one_after_the_other() -> None:
    """A program that starts its bot anew gets a signal each time."""
    for _ in range(2):
        await bot(1)
        say("returned")


# Bots beside handlers of the program's own


async def handler_of_the_loop() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, say, "own")
    await bot()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.3)
    say("returned")


async def handler_of_the_loop_that_comes_later() -> None:
    life = asyncio.create_task(bot())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, say, "own")
    await life
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.3)
    say("returned")


async def handler_of_the_process() -> None:
    signal.signal(signal.SIGTERM, lambda *_: say("own"))
    await bot()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.3)
    say("returned")


async def handler_that_exits() -> None:
    signal.signal(signal.SIGTERM, lambda *_: (say("own"), sys.exit(7)))
    await bot()
    say("never")


async def handler_that_cancels_the_bot() -> None:
    life = asyncio.create_task(bot())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, life.cancel)
    await asyncio.wait([life])
    say("returned", "cancelled" if life.cancelled() else "")


# Bots beside servers


@contextlib.asynccontextmanager
async def life(_: object = None) -> AsyncIterator[None]:
    """What a web application does around its own life."""
    task = asyncio.create_task(bot())
    yield
    task.cancel()
    await asyncio.wait([task])
    say("returned")


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        async with life() if scope["state"] is not None else contextlib.nullcontext():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})


def aiohttp_app() -> None:
    from aiohttp import web

    app = web.Application()
    app.cleanup_ctx.append(life)  # type: ignore[arg-type]
    web.run_app(app, host="127.0.0.1", port=0, print=None)


def uvicorn_lifespan() -> None:
    import uvicorn

    uvicorn.run(asgi, port=0, log_level="warning", ws="none")


def uvicorn_server() -> Awaitable[None]:
    import uvicorn

    config = uvicorn.Config(plain_asgi, port=0, log_level="warning", ws="none")
    return uvicorn.Server(config).serve()


async def uvicorn_before_the_bot() -> None:
    await asyncio.gather(uvicorn_server(), bot())
    say("returned")


async def uvicorn_after_the_bot() -> None:
    await asyncio.gather(bot(), uvicorn_server())
    say("returned")


def hypercorn_server(app: Any = plain_asgi) -> Awaitable[None]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = ["127.0.0.1:0"]
    return serve(app, config)


async def hypercorn_lifespan() -> None:
    await hypercorn_server(asgi)


async def hypercorn_before_the_bot() -> None:
    await asyncio.gather(hypercorn_server(), bot())
    say("returned")


async def hypercorn_after_the_bot() -> None:
    await asyncio.gather(bot(), hypercorn_server())
    say("returned")


# Bots whose handlers block the loop


async def block(event: Dispatch, bot: Bot) -> None:
    say("begun", event.data["content"])
    end = time.monotonic() + WORK
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            time.sleep(0.1)  # noqa: ASYNC251 - as people do
    say("handled", event.data["content"])


async def a_handler_that_blocks() -> None:
    await bot(handle=block)
    say("returned")


# Bots that end in odd ways


async def a_name_that_hangs() -> None:
    """As without a network: glibc tries for 20 s and more, in a thread that cannot be ended."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if host == "gateway.example":
            say("begun")
            time.sleep(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *rest, **named)

    socket.getaddrinfo = getaddrinfo
    await bot(shards=1)
    say("returned")


async def leave(event: Dispatch, bot: Bot) -> None:
    """Start anew in place on the first message, as "/restart" does."""
    await handle(event, bot)
    if event.type == "C2C_MESSAGE_CREATE" and event.data["content"] == "hello":
        asyncio.get_running_loop().call_later(0.3, again.set)


again = asyncio.Event()


async def a_bot_that_starts_anew_in_place() -> None:
    life = asyncio.create_task(bot(handle=leave))
    waiting = asyncio.create_task(again.wait())
    await asyncio.wait([life, waiting], return_when=asyncio.FIRST_COMPLETED)
    if life.done():
        waiting.cancel()
        say("returned")
        return
    life.cancel()
    await asyncio.wait([life])
    os.execv(sys.executable, [sys.executable, *sys.argv])


# A child of the process


async def a_child_that_was_forked() -> None:
    """`multiprocessing` ends its children with SIGTERM, and they have our handlers."""
    life = asyncio.create_task(bot())
    await asyncio.sleep(1)
    if (child := os.fork()) == 0:
        time.sleep(30)  # noqa: ASYNC251
        os._exit(1)
    await asyncio.sleep(0.5)  # what comes earlier, Python forgets in the child
    os.kill(child, signal.SIGTERM)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    say("child", -os.waitstatus_to_exitcode(status))
    await life
    say("returned")


def main() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="log %(message)s", stream=sys.stdout)
    scenario: Callable[[], Any] = globals()[sys.argv[1]]
    if not asyncio.iscoroutinefunction(scenario):
        scenario()
        return
    if len(sys.argv) > 2:
        import importlib

        factory = importlib.import_module(sys.argv[2]).new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario())
        return
    asyncio.run(scenario())


if __name__ == "__main__":
    main()
