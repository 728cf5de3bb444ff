"""When one more session may be started, for all shards of a bot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qqbot_session.pace import Pace

SHARDS = [(number, 4) for number in range(4)]


class Qq:
    """What `/gateway/bot` tells, and how often it was asked."""

    def __init__(self, **limit: Any) -> None:
        self.limit = {"remaining": 100, "reset_after": 30_000, "max_concurrency": 1} | limit
        self.asked = 0
        self.pace = Pace(self.ask)

    async def ask(self) -> bool:
        self.asked += 1
        self.pace.learn(self.limit)
        return True


@pytest.mark.parametrize(("at_a_time", "steps"), [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])])
async def test_identifies_are_paced_over_all_shards(at_a_time: int, steps: list[int]) -> None:
    # promise 21
    qq = Qq(max_concurrency=at_a_time)
    sent: list[float] = []

    async def identify(shard: tuple[int, int]) -> None:
        await qq.pace.before_identify(shard)
        await asyncio.sleep(0.5)  # a socket is opened, and Hello comes
        qq.pace.handshake_goes_out(shard)
        sent.append(asyncio.get_running_loop().time())

    await asyncio.gather(*map(identify, SHARDS))
    windows = [round((moment - sent[0]) // 5) for moment in sent]
    assert windows == steps
    assert qq.asked == 1


async def test_none_is_granted_when_none_remains(caplog: pytest.LogCaptureFixture) -> None:
    # promise 21
    qq = Qq(remaining=0)
    waiting = asyncio.create_task(qq.pace.before_identify((0, 1)))
    await asyncio.sleep(29)
    assert not waiting.done()
    assert "no session start remains today: waiting until" in caplog.text
    await asyncio.wait_for(waiting, 2)  # then it has been reset


@pytest.mark.parametrize("told", [None, 0, -1, "soon", 10**30])
async def test_where_none_remains_and_no_time_is_told_it_is_asked_again(told: object) -> None:
    # promise 21
    qq = Qq(remaining=0, reset_after=told)
    waiting = asyncio.create_task(qq.pace.before_identify((0, 1)))
    await asyncio.sleep(3600)
    assert not waiting.done()
    assert 1 < qq.asked < 70
    qq.limit = {"remaining": 1}
    await asyncio.wait_for(waiting, 601)


async def test_what_went_out_is_counted_until_qq_is_asked_again() -> None:
    qq = Qq(remaining=2, max_concurrency=4, reset_after=3_600_000)
    for shard in SHARDS[:2]:
        await qq.pace.before_identify(shard)
        qq.pace.handshake_goes_out(shard)
    third = asyncio.create_task(qq.pace.before_identify(SHARDS[2]))
    await asyncio.sleep(20)
    assert not third.done()
    third.cancel()


async def test_what_was_granted_is_not_granted_to_another_before_it_went_out() -> None:
    # promise 21
    qq = Qq(remaining=1, max_concurrency=4, reset_after=3_600_000)
    await qq.pace.before_identify(SHARDS[0])
    second = asyncio.create_task(qq.pace.before_identify(SHARDS[1]))
    await asyncio.sleep(5)  # the first one's socket is still being opened
    assert not second.done()
    qq.pace.withdraw(SHARDS[0])  # it did not open
    await asyncio.wait_for(second, 1)
    qq.pace.handshake_goes_out(SHARDS[1])
    third = asyncio.create_task(qq.pace.before_identify(SHARDS[2]))
    await asyncio.sleep(20)
    assert not third.done()
    third.cancel()


async def test_what_was_granted_and_not_used_is_another_shards() -> None:
    qq = Qq()
    await qq.pace.before_identify(SHARDS[0])
    assert qq.pace.withdraw(SHARDS[0])
    await asyncio.wait_for(qq.pace.before_identify(SHARDS[1]), 0.1)


async def test_what_qq_leaves_out_is_no_limit() -> None:
    pace = Pace(Qq().ask)
    pace.learn(None)
    await asyncio.wait_for(pace.before_identify((0, 1)), 0.1)


async def test_nothing_is_granted_before_qq_has_said_how_many_may_be() -> None:
    async def ask() -> bool:
        return False

    with pytest.raises(ConnectionError, match="QQ has not said yet"):
        await Pace(ask).before_identify((0, 1))
