"""Each misfortune that `LocalGateway` can be told to strike with, alone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from test_local_gateway import C2C, TIMEOUT, Bot, a_bot, emit

from qqbot_session.testing import MALFORMED, LocalGateway

pytestmark = pytest.mark.real_time

SOON = 0.1  # seconds in which something that must not come would have come


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway() as qq:
        yield qq


@pytest.fixture
async def bot(qq: LocalGateway) -> AsyncIterator[Bot]:
    async with aiohttp.ClientSession() as http:
        async for bot in a_bot(http, qq):
            yield bot


async def nothing_comes(bot: Bot) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bot.ws.receive(), SOON)  # its own time-out begins anew with pongs


async def open_line(bot: Bot, **options: object) -> None:
    """Connect, and do not wait for Hello."""
    await bot.get_token()
    bot.ws = await bot.http.ws_connect(bot.gateway.ws_url, **options)  # type: ignore[arg-type]
    bot.lines.append(bot.ws)


async def identify(bot: Bot) -> None:
    await bot.send(2, {"token": bot.token, "intents": 1 << 25, "shard": [0, 1]})


# Frames that do not come


async def test_no_hello(bot: Bot, qq: LocalGateway) -> None:
    qq.withhold("HELLO")
    await open_line(bot)
    await identify(bot)
    assert (await bot.receive())["t"] == "READY"
    assert (await bot.connect())["op"] == 10


async def test_no_ready(bot: Bot, qq: LocalGateway) -> None:
    qq.withhold("READY")
    await bot.connect()
    await identify(bot)
    await qq.wait_for(lambda qq: qq.identifies)
    assert await qq.emit(C2C, qq.c2c_message("before READY")) == (2,)
    assert (await bot.receive())["s"] == 2
    assert (qq.clients[0].started, qq.remaining()) == (None, 999)


async def test_no_resumed(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    await emit(qq, "a")
    await qq.drop()
    qq.withhold("RESUMED")
    await bot.resume(1)
    await qq.wait_for(lambda qq: qq.resumes)
    await emit(qq, "b")
    assert [(await bot.receive())["s"] for _ in range(2)] == [2, 4]
    assert qq.clients[1].started is None


# Half-open lines


async def test_a_line_can_be_half_open_from_the_start(bot: Bot, qq: LocalGateway) -> None:
    qq.open_half()
    await open_line(bot, timeout=aiohttp.ClientWSTimeout(ws_close=SOON))
    await identify(bot)
    await nothing_comes(bot)
    await bot.ws.close(code=4000)
    assert bot.ws.close_code == 1006
    await qq.wait_for(lambda qq: qq.clients[0].closed_at)
    assert (qq.clients[0].close_code, qq.clients[0].closed_by) == (None, "client")
    assert qq.identifies == []
    assert (await bot.identify())["t"] == "READY"


async def test_a_frozen_line_loses_what_is_sent_until_the_bot_resumes(
    bot: Bot, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qqbot_session.testing.line.GOODBYE", SOON / 4)
    qq.heartbeat_interval = SOON / 4
    await bot.identify()
    assert await qq.freeze() == 1
    assert await qq.emit(C2C, qq.c2c_message("lost")) == (2,)
    await bot.send(1, 1)
    await nothing_comes(bot)
    assert (qq.heartbeats, qq.delivered, qq.clients[0].closed_at) == ([], [], None)
    qq.heartbeat_interval = 45.0
    await bot.resume(1)
    assert [(await bot.receive())["s"] for _ in range(2)] == [2, 3]
    bot.ws = bot.lines[0]
    await nothing_comes(bot)  # not even an end, now that the session is another line's


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_frozen_line_answers_no_ping(bot: Bot, qq: LocalGateway, frozen: bool) -> None:
    await open_line(bot, heartbeat=SOON / 4)
    assert (await bot.receive())["op"] == 10
    if frozen:
        await qq.freeze()
        assert (await bot.ws.receive(timeout=TIMEOUT)).type is aiohttp.WSMsgType.ERROR
    else:
        await nothing_comes(bot)


async def test_a_gateway_with_frozen_lines_ends_at_once(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    await qq.freeze()
    async with asyncio.timeout(TIMEOUT):
        await qq.aclose()
    assert await bot.closed() == 1006


# Refusals


@pytest.mark.parametrize("code", [403, 429, 502])
async def test_an_upgrade_can_be_refused(bot: Bot, qq: LocalGateway, code: int) -> None:
    qq.refuse_upgrades(code=code)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await bot.connect()
    assert (caught.value.status, qq.clients) == (code, [])
    assert (await bot.connect())["op"] == 10
    assert qq.requests["/websocket"] == 2


async def test_an_upgrade_can_be_cut_off(bot: Bot, qq: LocalGateway) -> None:
    qq.refuse_upgrades(times=2, code=None)  # aiohttp tries once more on a connection it had
    with pytest.raises(aiohttp.ClientConnectionError):
        await bot.connect()


async def test_identifies_can_be_refused_and_cost_nothing(bot: Bot, qq: LocalGateway) -> None:
    qq.refuse_identifies()
    qq.refuse_identifies(code=4914)
    qq.refuse_identifies(code=None)
    assert await bot.identify() == {"op": 9, "d": False}
    assert await bot.identify() == {"closed": 4914}
    assert await bot.identify() == {"closed": 1006}
    assert (await bot.identify())["t"] == "READY"
    assert (len(qq.identifies), qq.remaining()) == (4, 999)


async def test_intents_that_were_not_granted_are_refused(bot: Bot, qq: LocalGateway) -> None:
    qq.granted_intents = 1 << 25 | 1 << 30
    assert await bot.identify(intents=1 << 25 | 1) == {"op": 9, "d": False}
    assert await bot.closed() == 4903
    assert (await bot.identify(intents=1 << 25))["t"] == "READY"


async def test_identifies_can_be_paced(bot: Bot, qq: LocalGateway) -> None:
    qq.identify_window, qq.max_concurrency = 60.0, 2
    for shard in (0, 1):
        assert (await bot.identify(shard=[shard, 3]))["t"] == "READY"
    assert await bot.identify(shard=[2, 3]) == {"op": 9, "d": False}
    qq.identify_window = 0.0
    assert (await bot.identify(shard=[2, 3]))["t"] == "READY"
    assert qq.remaining() == 997


async def test_the_budget_of_session_starts_is_reset(bot: Bot, qq: LocalGateway) -> None:
    async def limit() -> tuple[int, int]:
        answer = (await bot.get("/gateway/bot"))[1]["session_start_limit"]
        return answer["remaining"], answer["reset_after"]

    qq.session_starts, qq.session_reset = 1, 60.0
    await bot.get_token()
    assert await limit() == (1, 60_000)
    await bot.identify()
    remaining, reset_after = await limit()
    assert remaining == 0
    assert 50_000 < reset_after <= 60_000
    assert await bot.identify() == {"op": 9, "d": False}
    qq.session_reset = 0.0
    assert (await bot.identify())["t"] == "READY"


async def test_who_sends_too_fast_is_closed_with_4008(bot: Bot, qq: LocalGateway) -> None:
    qq.payload_rate = 3
    await bot.identify()
    for _ in range(2):
        await bot.send(1, 1)
        assert await bot.receive() == {"op": 11}
    await bot.send(1, 1)
    assert await bot.closed() == 4008
    await bot.resume(1)
    assert (await bot.receive())["t"] == "RESUMED"


# Strange frames


async def test_ready_can_tell_a_shard_nobody_asked_for(bot: Bot, qq: LocalGateway) -> None:
    qq.ready_shard = (0, 0)
    assert (await bot.identify(shard=[1, 2]))["d"]["shard"] == [0, 0]
    assert await qq.emit(C2C, {}, shard=(1, 2)) == (2,)


async def test_op_1_comes_from_the_gateway_too(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    assert await qq.ask_heartbeat() == 1
    assert await bot.receive() == {"op": 1}


async def test_op_9_can_come_without_d(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    assert await qq.invalid_session(None) == 1
    assert await bot.receive() == {"op": 9}
    await bot.resume(1)
    assert await bot.receive() == {"op": 9, "d": False}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_frames_come_as_they_are(bot: Bot, qq: LocalGateway, kind: str) -> None:
    await bot.identify()
    assert await qq.send_malformed(kind) == 1
    message = await bot.ws.receive(timeout=TIMEOUT)
    if kind == "binary":
        assert message.type is aiohttp.WSMsgType.BINARY
        return
    try:
        frame = json.loads(message.data)
    except ValueError:
        assert kind == "not json"
    else:
        assert frame in ([], {"d": {}}, {"op": 10}) or frame["s"] == "5"


async def test_a_huge_frame_is_5_mb(bot: Bot, qq: LocalGateway) -> None:
    await open_line(bot, max_msg_size=0)
    assert (await bot.receive())["op"] == 10
    assert await qq.send_malformed("huge") == 1
    assert len((await bot.ws.receive(timeout=TIMEOUT)).data) > 5_000_000


# Strange numbers


async def test_a_repeated_event_keeps_its_number(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    await qq.emit(C2C, {}, event_id="first")
    await emit(qq, "second")
    assert await qq.repeat() == (3,)
    assert await qq.repeat("first") == (2,)
    assert await qq.repeat("unknown") == ()
    assert [(await bot.receive())["s"] for _ in range(4)] == [2, 3, 3, 2]


async def test_reordered_events_come_behind_the_next_one(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    qq.reorder(2)
    await emit(qq, "a", "b", "c", "d")
    assert [(await bot.receive())["s"] for _ in range(4)] == [4, 2, 3, 5]


async def test_a_late_event_of_a_dead_line_is_replayed_in_order(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    qq.reorder()
    await emit(qq, "a")
    await qq.drop()
    await emit(qq, "b")
    await bot.resume(1)
    assert [(await bot.receive())["s"] for _ in range(3)] == [2, 3, 4]
    await emit(qq, "c")
    assert (await bot.receive())["s"] == 5
    assert [delivery.seq for delivery in qq.delivered] == [2, 3, 5]


async def test_numbers_can_have_gaps(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    qq.skip_numbers(5)
    await emit(qq, "a")
    assert (await bot.receive())["s"] == 7
    await qq.drop()
    await bot.resume(4)
    assert [(await bot.receive())["s"] for _ in range(2)] == [7, 8]


async def test_latency_delays_everything_and_reorders_nothing(bot: Bot, qq: LocalGateway) -> None:
    await bot.identify()
    loop, qq.latency = asyncio.get_running_loop(), SOON
    start = loop.time()
    emitting = asyncio.gather(*(emit(qq, name) for name in "abc"))
    await bot.send(1, 1)
    frames = [await bot.receive() for _ in range(4)]
    assert SOON <= loop.time() - start < TIMEOUT
    assert [frame["s"] for frame in frames if frame["op"] == 0] == [2, 3, 4]
    await emitting
    await qq.close(4009)
    assert await bot.closed() == 4009


# Intents


@pytest.mark.parametrize(
    ("bit", "event_type"),
    [
        (0, "GUILD_CREATE"),
        (1, "GUILD_MEMBER_ADD"),
        (9, "MESSAGE_CREATE"),
        (12, "DIRECT_MESSAGE_CREATE"),
        (24, "GROUP_MEMBER_ADD"),
        (25, "GROUP_AT_MESSAGE_CREATE"),
        (26, "INTERACTION_CREATE"),
        (30, "AT_MESSAGE_CREATE"),
    ],
)
async def test_events_go_to_those_who_asked_for_them(
    bot: Bot, qq: LocalGateway, bit: int, event_type: str
) -> None:
    await bot.identify(intents=1 << bit, shard=[0, 2])
    await bot.identify(intents=(1 << 31) - 1 - (1 << bit), shard=[1, 2])
    assert await qq.emit(event_type, {}) == (2,)
    assert [delivery.client for delivery in qq.delivered] == [1]
    assert await qq.emit("SOMETHING_NEW", {}) == (3, 2)


def test_what_the_class_promises_is_there() -> None:
    doc = LocalGateway.__doc__ or ""
    table = doc.partition("| misfortune | how |")[2]
    names = {name for cell in re.findall(r"`(.+?)`", table) for name in re.findall(r"^\w+", cell)}
    assert {"drop", "withhold", "ready_shard"} < names
    assert [name for name in names if not hasattr(LocalGateway, name)] == []


async def test_what_cannot_be_scripted_is_an_error_that_names_it(qq: LocalGateway) -> None:
    with pytest.raises(ValueError, match="'Hello'"):
        qq.withhold("Hello")  # type: ignore[arg-type]
    for code in (99, 5000, True, "op8"):
        with pytest.raises(ValueError, match=repr(code)):
            qq.refuse_resumes(code=code)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=repr(code)):
            qq.refuse_identifies(code=code)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="70000"):
        await qq.close(70000)
    with pytest.raises(ValueError, match="'gateway'"):
        qq.respond("GET", "gateway", {})
    with pytest.raises(ValueError, match="'tiny'"):
        await qq.send_malformed("tiny")
