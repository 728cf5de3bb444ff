"""When one more session may be started, for all shards of a bot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qqbot_session.pace import Pace
from qqbot_session.web import entrance as entrance_module
from qqbot_session.web.api import Api

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
        qq.pace.identified(shard)
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
        qq.pace.identified(shard)
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
    qq.pace.identified(SHARDS[1])
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


async def test_one_more_is_granted_when_the_pace_is_over_to_the_tick_and_not_all() -> None:
    """3.0 + 5.2 == 8.2, but 8.2 - 5.2 < 3.0: on a clock that ticks in milliseconds, as uvloop's."""
    # promise 21
    qq = Qq()
    await asyncio.sleep(3.0)
    await qq.pace.before_identify((0, 6))
    qq.pace.identified((0, 6))
    others = [asyncio.create_task(qq.pace.before_identify((n, 6))) for n in range(1, 6)]
    await asyncio.sleep(5.2)
    await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() == pytest.approx(8.2)
    assert sum(other.done() for other in others) <= 1
    await asyncio.sleep(4)
    assert sum(other.done() for other in others) == 1
    for other in others:
        other.cancel()


async def test_an_identify_that_nobody_asked_for_is_counted_as_well() -> None:
    # promise 21
    qq = Qq(remaining=2, reset_after=3_600_000)
    await qq.pace.before_identify(SHARDS[0])
    qq.pace.identified(SHARDS[0])
    qq.pace.identified(SHARDS[1])
    third = asyncio.create_task(qq.pace.before_identify(SHARDS[2]))
    await asyncio.sleep(50)
    assert not third.done()
    third.cancel()


async def test_whoever_waits_behind_a_granted_identify_sleeps_until_it_went_out() -> None:
    qq = Qq()
    await qq.pace.before_identify(SHARDS[0])
    waiting = asyncio.create_task(qq.pace.before_identify(SHARDS[1]))
    await asyncio.sleep(20)
    qq.pace.withdraw(SHARDS[0])
    await asyncio.wait_for(waiting, 0.001)


@pytest.mark.parametrize("away", ["token", "api"])
async def test_who_cannot_ask_how_many_shards_there_are_pauses_between_all_tries(
    away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # promise 21
    pauses: list[float] = []
    looks: list[float] = []

    class Away(Api):
        def __init__(self) -> None:
            self.base, self.app_id, self.tokens = "https://api.bot.qq.com", "1", self  # type: ignore[assignment]

        async def get(self, new: bool = False) -> Any:
            if away == "token":
                raise TimeoutError

        async def request(self, *args: Any, **options: Any) -> Any:
            raise TimeoutError

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(max(0.001, seconds))

    async def known() -> list[tuple[int, int]]:
        looks.append(asyncio.get_running_loop().time())
        return []

    monkeypatch.setattr(entrance_module, "_pause", pause)
    entrance = entrance_module.Entrance(None, Away())  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(600):
            await entrance.suggested_shards(known)
    assert min(pauses) >= 1
    assert len(looks) == 1
