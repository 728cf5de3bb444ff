"""A bot in a process of its own, for stress.py.

It waits for a line on its standard input, so that it can be started before it is needed. What it
does it prints as it does it, one JSON object per line; an event's line is printed before the event
is settled, so that whoever ends the process knows what was handled. On SIGTERM and Ctrl-C it stops
reading, gives its handlers `--grace` seconds, cancels the rest, records, and closes its store.

`--library` is what it is made of: `aiohttp` and `websockets` are a `ShardRunner` on their sockets,
`run_bot` is the whole bot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable

import aiohttp

from qqbot_session import AsyncSessionStore, shard
from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch, connection
from qqbot_session.integrations import aiohttp as on_aiohttp
from qqbot_session.integrations import websockets as on_websockets
from qqbot_session.shard import ShardRunner, Socket, open_gateway

INTENTS = 1 << 25


def say(what: str, **details: object) -> None:
    line = {"what": what, "at": time.monotonic(), **details}
    os.write(1, (json.dumps(line) + "\n").encode())  # whole, whoever kills us


class Teller(logging.Handler):
    """Says the steps that the runner logs."""

    def emit(self, record: logging.LogRecord) -> None:
        reason = getattr(record, "qqbot_reason", "")
        if reason == "closed":
            say("closed", code=record.qqbot_code, next=record.qqbot_next)  # type: ignore[attr-defined]
        elif reason in ("ready", "resumed"):
            say(reason)
        elif reason == "deadly":
            say("let go", content=record.qqbot_event["id"])  # type: ignore[attr-defined]


class FailedOnPurpose(Exception):
    pass


def errors_of_its_own() -> list[BaseException]:
    """What a handler may raise that looks like a fault of the line's."""
    return [
        FailedOnPurpose(),
        aiohttp.ClientError("the handler's own"),
        OSError("the handler's own"),
        ValueError("the handler's own"),
        TimeoutError(),
    ]


class Work:
    """What the bot does with an event: take a random time, then fail or say that it is done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)

    async def __call__(self, event: Dispatch, bot: Bot | None = None) -> None:
        options = self.options
        content = event.data["content"]
        await asyncio.sleep(self.random.uniform(options.shortest, options.longest))
        if self.random.random() < options.fail:
            say("failed", content=content, seq=event.seq)
            raise self.random.choice(errors_of_its_own())
        if self.random.random() < options.cancelled:
            say("cancelled", content=content, seq=event.seq)
            raise asyncio.CancelledError
        say("handled", content=content, seq=event.seq, replayed=event.replayed)


class QQ:
    """QQ's HTTP endpoints, as a program of one's own asks them."""

    def __init__(self, options: argparse.Namespace, http: aiohttp.ClientSession) -> None:
        self.options, self.http = options, http
        self.token = ""

    async def get_token(self, new: bool = False) -> str:
        if new or not self.token:
            body = {"appId": self.options.app_id, "clientSecret": self.options.secret}
            async with self.http.post(self.options.token_url, json=body) as answer:
                self.token = (await answer.json())["access_token"]
        return self.token

    async def connect(self) -> Socket:
        """Ask for the address each time, so that limited calls and dead tokens are met."""
        headers = {"Authorization": f"QQBot {await self.get_token()}"}
        async with self.http.get(f"{self.options.api_url}/gateway", headers=headers) as answer:
            if answer.status == 401:
                self.token = ""
            answer.raise_for_status()
            url: str = (await answer.json())["url"]
        if self.options.library == "websockets":
            return await on_websockets.connect(url)
        return await on_aiohttp.connect(self.http, url)


async def run_runner(options: argparse.Namespace, store: AsyncSessionStore) -> None:
    async with aiohttp.ClientSession() as http:
        qq = QQ(options, http)
        runner = ShardRunner(
            store,
            await open_gateway(store, options.app_id, intents=INTENTS),
            connect=qq.connect,
            token=qq.get_token,
            handle=Work(options),
            grace=options.grace,
        )
        await runner.run()


async def run_whole_bot(options: argparse.Namespace) -> None:
    await run_bot(
        options.app_id,
        options.secret,
        intents=INTENTS,
        handle=Work(options),
        sessions=options.directory,
        api_url=options.api_url,
        token_url=options.token_url,
        grace=options.grace,
    )


async def live(options: argparse.Namespace) -> None:
    say("start")
    if options.library == "run_bot":
        await run_whole_bot(options)
    else:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            async with AsyncSessionStore(options.directory) as store:
                await run_runner(options, store)
    say("end", tasks=len(asyncio.all_tasks()))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--api-url", "--token-url", "--app-id", "--secret", "--directory"):
        parser.add_argument(name, required=True)
    parser.add_argument("--library", choices=["aiohttp", "websockets", "run_bot"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    numbers: dict[str, tuple[float, str]] = {
        "shortest": (0.0, "seconds a handler takes at least"),
        "longest": (0.02, "seconds a handler takes at most"),
        "fail": (0.0, "how likely a handler raises"),
        "cancelled": (0.0, "how likely a handler raises CancelledError"),
        "scale": (1.0, "of the waits between lines"),
        "patience": (20.0, "seconds for Hello, READY and RESUMED"),
        "grace": (5.0, "seconds for handlers at the end"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=float, default=default, help=text)
    return parser.parse_args(arguments)


def scaled(scale: float) -> Callable[[float], object]:
    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds * scale)

    return pause


def main() -> None:
    options = parse(sys.argv[1:])
    logging.getLogger("qqbot_session").setLevel(logging.INFO)
    logging.getLogger("qqbot_session").addHandler(Teller())
    shard._pause = scaled(options.scale)  # type: ignore[assignment]
    connection._PATIENCE = options.patience
    if sys.stdin.readline():
        asyncio.run(live(options))


if __name__ == "__main__":
    main()
