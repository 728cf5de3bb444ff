"""What can happen to a line, without the end of its session: no event may be lost by it."""

from __future__ import annotations

from qqbot_session.testing import LocalGateway


async def drop(qq: LocalGateway) -> None:
    await qq.drop()


async def expire_connection(qq: LocalGateway) -> None:
    await qq.close(4009)


async def reconnect(qq: LocalGateway) -> None:
    await qq.reconnect()


async def op_9(qq: LocalGateway) -> None:
    await qq.invalid_session(True)


async def half_open(qq: LocalGateway) -> None:
    await qq.freeze()


async def half_open_twice(qq: LocalGateway) -> None:
    qq.open_half()
    await qq.freeze()


async def mute(qq: LocalGateway) -> None:
    lines = len(qq.clients)
    qq.mute_acks()
    await qq.wait_for(lambda qq: len(qq.clients) > lines)
    qq.mute_acks(False)


async def no_resumed(qq: LocalGateway) -> None:
    qq.withhold("RESUMED")
    await qq.drop()


async def no_hello(qq: LocalGateway) -> None:
    qq.withhold("HELLO")
    await qq.drop()


async def refused(qq: LocalGateway) -> None:
    qq.refuse_upgrades(1, 503)
    await qq.drop()


async def tokens_gone(qq: LocalGateway) -> None:
    qq.revoke_tokens()
    await qq.drop()


async def huge_frame(qq: LocalGateway) -> None:
    await qq.send_malformed("huge")


async def binary_frame(qq: LocalGateway) -> None:
    await qq.send_malformed("binary")


MISFORTUNES = [
    drop,
    expire_connection,
    reconnect,
    op_9,
    half_open,
    half_open_twice,
    mute,
    no_resumed,
    no_hello,
    refused,
    tokens_gone,
    huge_frame,
    binary_frame,
]
