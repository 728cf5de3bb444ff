"""What may be a handler: said at the start, for an event that fails counts as handled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.bot import run_bot
from qqbot_session.guard import check_handler
from qqbot_session.shard import ShardRunner, open_gateway


async def right(event: object, bot: object) -> None: ...


async def with_more(
    event: object, bot: object, more: int = 0, *rest: int, **others: int
) -> None: ...


async def too_few(event: object) -> None: ...


async def too_many(event: object, bot: object, more: object) -> None: ...


async def by_name(*, event: object, bot: object) -> None: ...


async def generator(event: object, bot: object) -> Any:
    yield event


def not_async(event: object, bot: object) -> None: ...


class Bot:
    def __init__(self, event: object = None, bot: object = None) -> None: ...

    async def handle(self, event: object, bot: object) -> None: ...

    async def __call__(self, event: object, bot: object) -> None: ...

    @staticmethod
    async def static(event: object, bot: object) -> None: ...


@functools.wraps(right)
def decorated(*arguments: Any) -> Awaitable[None]:
    return right(*arguments)


def decorator(function: Any) -> Any:
    async def wrapper(*arguments: Any) -> Any:
        return await function(*arguments, 1)

    return functools.wraps(function)(wrapper)


def bare_decorator(function: Any) -> Any:
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def in_thread(function: Any) -> Any:
    async def wrapper(event: object, bot: object) -> None: ...

    return functools.wraps(function)(wrapper)


class Called:
    def __call__(self, event: object, bot: object) -> None: ...


class Generates:
    async def __call__(self, event: object, bot: object) -> Any:
        yield event


def name_of(value: object) -> str:
    return getattr(value, "__qualname__", type(value).__name__)


GOOD = [
    right,
    with_more,
    decorated,
    Bot().handle,
    Bot.static,
    Bot(),
    functools.partial(with_more, more=1),
    functools.partial(too_many, None),
    lambda event, bot: right(event, bot),
    functools.partial(Bot()),
    decorator(too_many),
    bare_decorator(right),
    in_thread(not_async),
    in_thread(too_few),
    AsyncMock(),
    MagicMock(),
]
BAD = [too_few, too_many, by_name, generator, not_async, Bot, None, 1, "handle", Bot.handle]
BAD += [Called(), Generates(), functools.partial(Bot), functools.partial(Called())]
BAD += [decorator(too_few), functools.wraps(generator)(bare_decorator(generator))]


@pytest.mark.parametrize("handler", GOOD, ids=name_of)
def test_what_can_be_called_with_event_and_bot_and_awaited_is_a_handler(handler: Any) -> None:
    check_handler("handle", handler, "event", "bot")


@pytest.mark.parametrize("handler", BAD, ids=name_of)
async def test_anything_else_is_an_error_that_shows_the_signature(handler: Any) -> None:
    with pytest.raises(TypeError, match=r"handle must be `async def handle\(event, bot\)`"):
        await run_bot("1", "s", intents=1, handle=handler)


@pytest.mark.parametrize("handler", [right, not_async, None, lambda: None], ids=name_of)
async def test_a_runners_handler_takes_the_event_alone(handler: Any) -> None:
    async def never(*_: object) -> Any: ...

    async with AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, "1", intents=1)
        with pytest.raises(TypeError, match=r"handle must be `async def handle\(event\)`"):
            ShardRunner(store, gateway, connect=never, token=never, handle=handler)


def test_the_error_says_what_was_given() -> None:
    with pytest.raises(TypeError, match=r"not_async at 0x\w+> is not async"):
        check_handler("handle", not_async, "event", "bot")
    with pytest.raises(TypeError, match="too many positional arguments"):
        check_handler("handle", too_few, "event", "bot")
    assert inspect.iscoroutinefunction(right)
