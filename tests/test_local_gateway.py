"""`LocalGateway` on real sockets: every test is a bot made of a few frames."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from qqbot_session.testing import LocalGateway
from qqbot_session.testing.__main__ import _emit_sample, _read_lines, main

pytestmark = pytest.mark.real_time

TIMEOUT = 30.0  # seconds, for anything that must come
PATIENCE = aiohttp.ClientWSTimeout(ws_close=1.0)  # seconds, with who does not answer a close
C2C = "C2C_MESSAGE_CREATE"


class Bot:
    """The least a bot does, frame by frame."""

    def __init__(self, http: aiohttp.ClientSession, gateway: LocalGateway) -> None:
        self.http, self.gateway = http, gateway
        self.ws: aiohttp.ClientWebSocketResponse
        self.lines: list[aiohttp.ClientWebSocketResponse] = []
        self.token = ""
        self.session_id = ""

    async def get_token(self, **changes: object) -> dict[str, Any]:
        body = {"appId": self.gateway.app_id, "clientSecret": self.gateway.client_secret}
        async with self.http.post(self.gateway.token_url, json=body | changes) as response:
            answer: dict[str, Any] = await response.json()
        self.token = "QQBot " + str(answer.get("access_token"))
        return answer

    async def get(self, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": token or self.token}
        async with self.http.get(self.gateway.api_url + path, headers=headers) as response:
            assert response.headers["X-Tps-trace-ID"]
            return response.status, await response.json()

    async def connect(self) -> dict[str, Any]:
        if not self.token:
            await self.get_token()
        self.ws = await self.http.ws_connect(self.gateway.ws_url, timeout=PATIENCE)
        self.lines.append(self.ws)
        return await self.receive()

    async def send(self, op: int, d: object = None) -> None:
        await self.ws.send_json({"op": op, "d": d})

    async def receive(self) -> dict[str, Any]:
        payload: dict[str, Any] = await self.ws.receive_json(timeout=TIMEOUT)
        return payload

    async def closed(self) -> int | None:
        """Expect the end of the line, and return its code."""
        message = await self.ws.receive(timeout=TIMEOUT)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return int(message.data)
        assert message.type is aiohttp.WSMsgType.CLOSED, message
        return self.ws.close_code

    async def identify(self, **changes: object) -> dict[str, Any]:
        """Connect and identify; return READY, or whatever came instead."""
        await self.connect()
        fields = {"token": self.token, "intents": 1 << 25, "shard": [0, 1], "properties": {}}
        await self.send(2, {k: v for k, v in (fields | changes).items() if v is not ...})
        message = await self.ws.receive(timeout=TIMEOUT)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return {"closed": self.ws.close_code}
        answer: dict[str, Any] = json.loads(message.data)
        if answer.get("t") == "READY":
            self.session_id = answer["d"]["session_id"]
        return answer

    async def resume(self, seq: object, **changes: object) -> None:
        await self.connect()
        fields = {"token": self.token, "session_id": self.session_id, "seq": seq}
        await self.send(6, fields | changes)


@pytest.fixture
async def gateway() -> AsyncIterator[LocalGateway]:
    async with LocalGateway() as gateway:
        yield gateway


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def a_bot(http: aiohttp.ClientSession, gateway: LocalGateway) -> AsyncIterator[Bot]:
    bot = Bot(http, gateway)
    yield bot
    for line in bot.lines:
        await line.close()


bot = pytest.fixture(a_bot, name="bot")
other = pytest.fixture(a_bot, name="other")


async def emit(gateway: LocalGateway, *contents: str) -> None:
    for content in contents:
        await gateway.emit(C2C, gateway.c2c_message(content))


def transport_of(bot: Bot) -> asyncio.Transport:
    connection = bot.ws._response.connection
    assert connection is not None
    assert isinstance(connection.transport, asyncio.Transport)
    return connection.transport


# HTTP


async def test_token_endpoint_gives_its_lifetime_as_a_string(bot: Bot) -> None:
    answer = await bot.get_token()
    assert answer["access_token"]
    assert answer["expires_in"] in ("7199", "7200")


async def test_asking_again_gives_the_same_token(bot: Bot) -> None:
    assert (await bot.get_token())["access_token"] == (await bot.get_token())["access_token"]


async def test_a_token_is_replaced_in_its_last_minute_and_stays_valid(
    http: aiohttp.ClientSession,
) -> None:
    async with LocalGateway(token_lifetime=3600) as gateway:
        bot = Bot(http, gateway)
        first = await bot.get_token()
        app = gateway._apps._apps[gateway.app_id]
        app.expires_at -= 3550
        assert (await bot.get_token())["access_token"] != first["access_token"]
        assert (await bot.get("/gateway", f"QQBot {first['access_token']}"))[0] == 200


async def test_a_wrong_secret_gets_the_error_qq_gives(bot: Bot) -> None:
    assert (await bot.get_token(clientSecret="wrong"))["code"] == 100016
    assert (await bot.get_token(appId="unknown"))["code"] == 100016
    assert (await bot.get_token(appId=[]))["code"] == 100007


async def test_gateway_tells_the_socket_and_the_start_limit(http: aiohttp.ClientSession) -> None:
    async with LocalGateway(shards=4, session_starts=7, max_concurrency=2) as gateway:
        bot = Bot(http, gateway)
        await bot.get_token()
        assert await bot.get("/gateway") == (200, {"url": gateway.ws_url})
        status, answer = await bot.get("/gateway/bot")
        assert (status, answer["url"], answer["shards"]) == (200, gateway.ws_url, 4)
        limit = answer["session_start_limit"]
        assert limit == {
            "total": 7, "remaining": 7, "reset_after": 86_400_000, "max_concurrency": 2,
        }  # fmt: skip
        assert gateway.requests["/gateway"] == 1


async def test_users_me_is_the_bot_itself(bot: Bot) -> None:
    await bot.get_token()
    status, me = await bot.get("/users/@me")
    assert (status, me["id"], me["bot"]) == (200, bot.gateway.app_id, True)


@pytest.mark.parametrize("path", ["/gateway", "/gateway/bot", "/users/@me"])
@pytest.mark.parametrize("token", ["QQBot wrong", "Bot 1.2", "QQBot"])
async def test_a_wrong_token_gets_11244(bot: Bot, path: str, token: str) -> None:
    status, answer = await bot.get(path, token)
    assert (status, answer["code"]) == (401, 11244)


async def test_rate_limit_refuses_the_next_calls_of_gateway(bot: Bot) -> None:
    await bot.get_token()
    bot.gateway.rate_limit(2)
    for path in ("/gateway", "/gateway/bot"):
        _, answer = await bot.get(path)
        assert (answer["code"], answer["message"]) == (100001, "frequency limit exceeded")
        assert answer["trace_id"]
    assert (await bot.get("/gateway"))[0] == 200


# Identify


async def test_hello_tells_the_heartbeat_interval_in_milliseconds(
    http: aiohttp.ClientSession,
) -> None:
    async with LocalGateway(heartbeat_interval=1.5) as gateway:
        assert await Bot(http, gateway).connect() == {"op": 10, "d": {"heartbeat_interval": 1500}}


async def test_identify_begins_a_session_at_number_one(bot: Bot, gateway: LocalGateway) -> None:
    ready = await bot.identify(shard=[1, 2])
    assert (ready["op"], ready["s"], ready["t"]) == (0, 1, "READY")
    assert ready["d"]["shard"] == [1, 2]
    assert ready["d"]["user"]["bot"] is True
    [client] = gateway.clients
    assert (client.started, client.session_id) == ("READY", bot.session_id)
    assert gateway.identifies == client.identifies
    assert (client.identifies[0].intents, client.identifies[0].shard) == (1 << 25, [1, 2])
    assert gateway.remaining() == 999


@pytest.mark.parametrize("shard", [[1, 1], [-1, 1], [0], [0, 0], "01", [False, True], [0.0, 1]])
async def test_a_bad_shard_is_4010(bot: Bot, shard: object) -> None:
    assert await bot.identify(shard=shard) == {"closed": 4010}


@pytest.mark.parametrize("intents", ["1", None, True, -1, 1.0])
async def test_intents_that_are_no_number_are_4013(bot: Bot, intents: object) -> None:
    assert await bot.identify(intents=intents) == {"closed": 4013}
    assert bot.gateway.remaining() == 1000


@pytest.mark.parametrize("token", ["QQBot wrong", "", None])
async def test_an_unknown_token_is_op_9_then_4903(bot: Bot, token: object) -> None:
    assert await bot.identify(token=token) == {"op": 9, "d": False}
    assert await bot.closed() == 4903


async def test_identify_needs_the_prefix_of_the_token(bot: Bot) -> None:
    await bot.get_token()
    assert await bot.identify(token=bot.token.removeprefix("QQBot ")) == {"op": 9, "d": False}


async def test_without_shard_the_bot_is_not_sharded(bot: Bot) -> None:
    assert (await bot.identify(shard=...))["d"]["shard"] == [0, 1]


async def test_session_starts_run_out(http: aiohttp.ClientSession) -> None:
    async with LocalGateway(session_starts=1) as gateway:
        bot = Bot(http, gateway)
        assert (await bot.identify())["t"] == "READY"
        assert await bot.identify() == {"op": 9, "d": False}
        assert await bot.closed() == 4903
        assert gateway.remaining() == 0


async def test_a_second_identify_on_a_line_is_4005(bot: Bot) -> None:
    await bot.identify()
    await bot.send(2, {"token": bot.token, "intents": 0, "shard": [0, 1]})
    assert await bot.closed() == 4005


async def test_a_new_identify_ends_the_shards_older_session(bot: Bot, other: Bot) -> None:
    await bot.identify()
    await other.identify()
    assert await bot.closed() == 4902
    await bot.resume(1)
    assert await bot.receive() == {"op": 9, "d": False}


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("not json", 4002),
        ("[" * 100_000, 4002),
        ("[]", 4002),
        ("{}", 4002),
        ('{"op":"2"}', 4002),
        ('{"op":true}', 4002),
        ('{"op":2,"d":[]}', 4002),
        ('{"op":6}', 4002),
        ('{"op":99}', 4001),
        ('{"op":0}', 4003),
        ('{"op":11}', 4003),
    ],
)
async def test_a_bad_frame_closes_the_line(bot: Bot, frame: str, code: int) -> None:
    await bot.connect()
    await bot.ws.send_str(frame)
    assert await bot.closed() == code


async def test_the_servers_ops_are_bad_from_a_client(bot: Bot) -> None:
    await bot.identify()
    await bot.send(10)
    assert await bot.closed() == 4001


# Heartbeats


async def test_heartbeats_are_acknowledged_and_recorded(bot: Bot, gateway: LocalGateway) -> None:
    await bot.connect()
    await bot.send(1, None)
    assert await bot.receive() == {"op": 11}
    await bot.send(1, 7)
    assert await bot.receive() == {"op": 11}
    assert [heartbeat.d for heartbeat in gateway.heartbeats] == [None, 7]


async def test_muted_acknowledgements_are_still_heartbeats(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    gateway.mute_acks()
    await bot.send(1, 1)
    await gateway.wait_for(lambda g: g.heartbeats)
    gateway.mute_acks(False)
    await bot.send(1, 2)
    assert await bot.receive() == {"op": 11}
    assert len(gateway.heartbeats) == 2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a heartbeat no longer than two intervals, however short they are."""
    monkeypatch.setattr("qqbot_session.testing.frames._LEAST_PATIENCE", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("identified", [False, True])
async def test_a_line_without_heartbeat_is_closed_with_4009(
    http: aiohttp.ClientSession, identified: bool
) -> None:
    async with LocalGateway(heartbeat_interval=0.05) as gateway:
        bot = Bot(http, gateway)
        await (bot.identify() if identified else bot.connect())
        assert await bot.closed() == 4009
        [client] = gateway.clients
        assert (client.close_code, client.closed_by) == (4009, "gateway")


@pytest.mark.usefixtures("impatient")
async def test_heartbeats_keep_a_line_open(
    http: aiohttp.ClientSession,
) -> None:
    async with LocalGateway(heartbeat_interval=0.5) as gateway:
        bot = Bot(http, gateway)
        await bot.identify()
        start = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < start + 1.2:  # more than its two intervals
            await bot.send(1, 1)
            assert await bot.receive() == {"op": 11}
        assert gateway.clients[0].closed_at is None


@pytest.mark.usefixtures("impatient")
async def test_a_loop_that_was_held_up_closes_no_line_whose_heartbeat_lies_unread(
    http: aiohttp.ClientSession,
) -> None:
    async with LocalGateway(heartbeat_interval=0.3) as gateway:
        bot = Bot(http, gateway)
        await bot.identify()
        await bot.send(1, 1)
        time.sleep(1.0)  # noqa: ASYNC251
        assert await bot.receive() == {"op": 11}


# Events


async def test_events_are_numbered_and_recorded(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    message = gateway.c2c_message("hello")
    assert await gateway.emit(C2C, message) == (2,)
    frame = await bot.receive()
    assert (frame["op"], frame["s"], frame["t"], frame["d"]) == (0, 2, C2C, message)
    assert frame["id"].startswith(f"{C2C}:")
    [delivery] = gateway.delivered
    assert (delivery.seq, delivery.type, delivery.id) == (2, C2C, frame["id"])
    assert not delivery.replayed
    assert gateway.clients[0].delivered == [delivery]


async def test_messages_have_the_documented_shapes(gateway: LocalGateway) -> None:
    c2c = gateway.c2c_message("a")
    assert set(c2c) == {"id", "content", "timestamp", "author"}
    assert set(c2c["author"]) == {"id", "user_openid"}
    group = gateway.group_at_message("b", group_openid="G")
    assert (group["group_openid"], group["group_id"], group["author"]["bot"]) == ("G", "G", False)
    guild = gateway.at_message("c")
    assert {"guild_id", "channel_id", "author", "content"} <= set(guild)
    button = gateway.interaction("yes", group_openid="G", openid="M")
    assert (button["group_openid"], button["group_member_openid"]) == ("G", "M")
    assert len({c2c["id"], group["id"], guild["id"], gateway.c2c_message("a")["id"]}) == 4


async def test_without_a_session_an_event_is_gone(bot: Bot, gateway: LocalGateway) -> None:
    assert await gateway.emit(C2C, gateway.c2c_message("nobody")) == ()
    await bot.identify()
    await emit(gateway, "somebody")
    assert (await bot.receive())["d"]["content"] == "somebody"


async def test_an_event_goes_to_every_shard_or_to_one(
    bot: Bot, other: Bot, gateway: LocalGateway
) -> None:
    await bot.identify(shard=[0, 2])
    await other.identify(shard=[1, 2])
    assert await gateway.emit("A", {}) == (2, 2)
    assert await gateway.emit("B", {}, shard=(1, 2)) == (3,)
    assert await gateway.emit("C", {}) == (3, 4)
    assert [(await bot.receive())["t"] for _ in range(2)] == ["A", "C"]
    assert [(await other.receive())["t"] for _ in range(3)] == ["A", "B", "C"]


async def test_apps_do_not_see_each_others_events(
    bot: Bot, other: Bot, gateway: LocalGateway
) -> None:
    gateway.add_app("second", "its secret")
    await other.get_token(appId="second", clientSecret="its secret")
    await bot.identify()
    await other.identify()
    await gateway.emit("A", {}, app_id="second")
    assert (await other.receive())["t"] == "A"
    assert gateway.clients[0].delivered == []
    assert (gateway.remaining(), gateway.remaining("second")) == (999, 999)


async def test_a_duplicate_has_a_new_number_and_the_old_id(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    await gateway.emit("A", {"id": 1}, event_id="first")
    await gateway.emit("B", {"id": 2}, event_id="second")
    assert await gateway.duplicate() == (4,)
    assert await gateway.duplicate("first") == (5,)
    assert await gateway.duplicate("unknown") == ()
    frames = [await bot.receive() for _ in range(4)]
    assert [(f["s"], f["id"]) for f in frames] == [
        (2, "first"), (3, "second"), (4, "second"), (5, "first"),
    ]  # fmt: skip


async def test_any_frame_can_be_sent(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    assert await gateway.send({"op": 1}) == 1
    assert await gateway.send("nonsense") == 1
    assert await bot.receive() == {"op": 1}
    assert (await bot.ws.receive(timeout=TIMEOUT)).data == "nonsense"


# Resume


async def test_resume_replays_what_was_missed_and_then_says_resumed(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    await emit(gateway, "a", "b")
    assert await gateway.drop() == 1
    await emit(gateway, "c")
    await bot.resume(2)
    frames = [await bot.receive() for _ in range(3)]
    assert [(f["s"], f["d"]["content"]) for f in frames[:2]] == [(3, "b"), (4, "c")]
    assert frames[2] == {"op": 0, "s": 5, "t": "RESUMED", "d": ""}
    await emit(gateway, "d")
    assert (await bot.receive())["s"] == 6
    [resume] = gateway.resumes
    assert (resume.session_id, resume.seq) == (bot.session_id, 2)
    assert [d.replayed for d in gateway.clients[1].delivered] == [True, True, False]
    assert gateway.clients[1].started == "RESUMED"
    assert gateway.remaining() == 999


async def test_every_resumed_takes_a_number(bot: Bot) -> None:
    await bot.identify()
    for seq in (2, 3, 4):
        await bot.gateway.drop()
        await bot.resume(seq - 1)
        assert (await bot.receive())["s"] == seq


async def test_botgos_bare_token_is_good_enough_for_resume(bot: Bot) -> None:
    await bot.identify()
    await bot.gateway.drop()
    await bot.resume(1, token=bot.token.removeprefix("QQBot "))
    assert (await bot.receive())["t"] == "RESUMED"


async def test_a_resume_takes_the_session_from_an_older_line(bot: Bot, other: Bot) -> None:
    await bot.identify()
    other.session_id = bot.session_id
    await other.resume(1)
    assert (await other.receive())["t"] == "RESUMED"
    assert await bot.closed() == 4902
    assert await bot.gateway.emit("A", {}) == (3,)
    assert (await other.receive())["s"] == 3


@pytest.mark.parametrize("session_id", ["made up", None, 7, []])
async def test_an_unknown_session_is_op_9_then_4006(bot: Bot, session_id: object) -> None:
    await bot.resume(1, session_id=session_id)
    assert await bot.receive() == {"op": 9, "d": False}
    assert await bot.closed() == 4006


async def test_the_close_after_an_unknown_session_can_be_left_out(
    http: aiohttp.ClientSession,
) -> None:
    async with LocalGateway(unknown_session_code=None) as gateway:
        bot = Bot(http, gateway)
        await bot.resume(1, session_id="made up")
        assert await bot.receive() == {"op": 9, "d": False}
        await bot.send(2, {"token": bot.token, "intents": 0, "shard": [0, 1]})
        assert (await bot.receive())["t"] == "READY"


async def test_another_apps_session_is_unknown(bot: Bot, other: Bot, gateway: LocalGateway) -> None:
    gateway.add_app("second", "secret")
    await bot.identify()
    await other.get_token(appId="second", clientSecret="secret")
    other.session_id = bot.session_id
    await other.resume(1)
    assert await other.receive() == {"op": 9, "d": False}


@pytest.mark.parametrize("seq", [2, -1, None, "1", True, 1.0])
async def test_a_wrong_number_is_4007(bot: Bot, seq: object) -> None:
    await bot.identify()
    await bot.gateway.drop()
    await bot.resume(seq)
    assert await bot.closed() == 4007


async def test_the_replay_buffer_is_bounded(http: aiohttp.ClientSession) -> None:
    async with LocalGateway(replay_limit=2) as gateway:
        bot = Bot(http, gateway)
        await bot.identify()
        await gateway.drop()
        await emit(gateway, "a", "b", "c")
        await bot.resume(1)
        assert await bot.closed() == 4007
        await bot.resume(2)
        assert [(await bot.receive())["s"] for _ in range(3)] == [3, 4, 5]


async def test_an_exhausted_replay_refuses_those_who_need_it(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    await emit(gateway, "a")
    await gateway.drop()
    gateway.exhaust_replay()
    await bot.resume(1)
    assert await bot.closed() == 4007
    await bot.resume(2)
    assert (await bot.receive())["t"] == "RESUMED"


async def test_expired_sessions_are_unknown(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    gateway.expire_sessions()
    assert await gateway.emit("A", {}) == (2,)  # its line is still alive
    await gateway.drop()
    assert await gateway.emit("B", {}) == ()
    await bot.resume(2)
    assert await bot.receive() == {"op": 9, "d": False}


async def test_a_session_lives_for_its_time_to_live_offline(http: aiohttp.ClientSession) -> None:
    async with LocalGateway(session_ttl=0.0) as gateway:
        bot = Bot(http, gateway)
        await bot.identify()
        assert await gateway.emit("A", {}) == (2,)
        await gateway.drop()
        await bot.resume(2)
        assert await bot.receive() == {"op": 9, "d": False}


async def test_resumes_can_be_refused_by_code_by_op_9_and_by_silence(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    await gateway.drop()
    gateway.refuse_resumes(2, 4900)
    gateway.refuse_resumes(code="op9")
    gateway.refuse_resumes(code=None)
    for _ in range(2):
        await bot.resume(1)
        assert await bot.closed() == 4900
    await bot.resume(1)
    assert await bot.receive() == {"op": 9, "d": False}
    await bot.ws.close()
    await bot.resume(1)
    assert await bot.closed() == 1006
    await bot.resume(1)
    assert (await bot.receive())["t"] == "RESUMED"


async def test_revoked_tokens_are_4004_until_there_is_a_new_one(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    await gateway.drop()
    gateway.revoke_tokens()
    assert (await bot.get("/gateway"))[1]["code"] == 11244
    await bot.resume(1)
    assert await bot.closed() == 4004
    assert await bot.identify() == {"closed": 4004}
    await bot.get_token()
    await bot.resume(1)
    assert (await bot.receive())["t"] == "RESUMED"


# Misfortune


async def test_drop_sends_no_close_frame(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    assert await gateway.drop() == 1
    assert await bot.closed() == 1006
    [client] = gateway.clients
    assert (client.close_code, client.closed_by) == (None, "gateway")
    assert await gateway.drop() == 0


@pytest.mark.parametrize("code", [1000, 4001, 4008, 4009, 4914])
async def test_close_sends_any_code_after_what_was_emitted(bot: Bot, code: int) -> None:
    await bot.identify()
    await emit(bot.gateway, "last words")
    assert await bot.gateway.close(code, "because") == 1
    assert (await bot.receive())["d"]["content"] == "last words"
    assert await bot.closed() == code
    assert bot.gateway.clients[0].close_code == code


async def test_one_shard_can_be_struck_alone(bot: Bot, other: Bot, gateway: LocalGateway) -> None:
    await bot.identify(shard=[0, 2])
    await other.identify(shard=[1, 2])
    assert await gateway.close(4009, shard=(1, 2)) == 1
    assert await other.closed() == 4009
    assert await gateway.emit("A", {}) == (2, 2)
    assert (await bot.receive())["t"] == "A"


async def test_reconnect_answers_the_clients_close_with_4009(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    assert await gateway.reconnect(delay=60) == 1
    assert await bot.receive() == {"op": 7}
    await bot.ws.close(code=4000)
    assert bot.ws.close_code == 4009
    await gateway.wait_for(lambda g: g.clients[0].closed_at)
    assert (gateway.clients[0].close_code, gateway.clients[0].closed_by) == (4000, "client")


async def test_reconnect_closes_by_itself_when_the_client_does_not(bot: Bot) -> None:
    await bot.identify()
    await bot.gateway.reconnect(then=4900, delay=0.01)
    assert await bot.receive() == {"op": 7}
    assert await bot.closed() == 4900


@pytest.mark.parametrize("resumable", [False, True])
async def test_invalid_session_keeps_the_session_only_if_it_says_so(
    bot: Bot, gateway: LocalGateway, resumable: bool
) -> None:
    await bot.identify()
    assert await gateway.invalid_session(resumable) == 1
    assert await bot.receive() == {"op": 9, "d": resumable}
    await bot.send(6, {"token": bot.token, "session_id": bot.session_id, "seq": 1})
    assert (await bot.receive()).get("t") == ("RESUMED" if resumable else None)


# Lines


@pytest.mark.parametrize(("code", "seen"), [(1000, 1000), (4000, 4000)])
async def test_a_clients_close_is_recorded_and_echoed(bot: Bot, code: int, seen: int) -> None:
    await bot.identify()
    await bot.ws.close(code=code)
    assert bot.ws.close_code == seen
    await bot.gateway.wait_for(lambda g: g.clients[0].closed_at)
    client = bot.gateway.clients[0]
    assert (client.close_code, client.closed_by) == (code, "client")


async def test_events_for_a_closed_client_wait_for_its_resume(bot: Bot) -> None:
    await bot.identify()
    await bot.ws.close(code=4000)
    assert await bot.gateway.emit("A", {}) == (2,)
    await bot.resume(1)
    assert [(await bot.receive())["t"] for _ in range(2)] == ["A", "RESUMED"]


async def test_a_client_killed_without_a_word_can_resume(bot: Bot, gateway: LocalGateway) -> None:
    await bot.get_token()
    program = textwrap.dedent("""
        import asyncio, json, sys
        import aiohttp
        async def main(url, token):
            async with aiohttp.ClientSession() as http, http.ws_connect(url) as ws:
                d = {"token": token, "intents": 1 << 25, "shard": [0, 1]}
                await ws.send_json({"op": 2, "d": d})
                await asyncio.sleep(60)
        asyncio.run(main(*sys.argv[1:]))
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, gateway.ws_url, bot.token
    )
    await gateway.wait_for(lambda g: g.clients and g.clients[0].started, timeout=60)
    await emit(gateway, "never read")
    process.kill()
    await process.wait()
    await gateway.wait_for(lambda g: g.clients[0].closed_at)
    assert (gateway.clients[0].close_code, gateway.clients[0].closed_by) == (None, "client")
    await emit(gateway, "while it was dead")
    bot.session_id = str(gateway.clients[0].session_id)
    await bot.resume(1)
    assert [(await bot.receive())["s"] for _ in range(3)] == [2, 3, 4]


async def test_a_reset_connection_goes_offline(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    raw = bot.ws.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport_of(bot).abort()
    await gateway.wait_for(lambda g: g.clients[0].closed_at)
    assert await gateway.emit("A", {}) == (2,)


async def test_a_client_that_stops_reading_is_cut_off(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    transport_of(bot).pause_reading()
    flood = asyncio.create_task(gateway.emit("BIG", "x" * 30_000_000))
    await asyncio.sleep(0)
    await gateway.close(4009)
    assert await flood == (2,)
    assert gateway.delivered == []
    assert (gateway.clients[0].close_code, gateway.clients[0].closed_by) == (None, "gateway")


async def test_a_session_survives_many_lines(bot: Bot, gateway: LocalGateway) -> None:
    await bot.identify()
    seen, seq = [], 1
    for number in range(30):
        await emit(gateway, f"{number} early")
        await gateway.drop()
        await emit(gateway, f"{number} late")
        await bot.resume(seq)
        while (frame := await bot.receive())["t"] != "RESUMED":
            seen.append(frame["d"]["content"])
        seq = frame["s"]
    assert seen == [f"{n} {when}" for n in range(30) for when in ("early", "late")]
    assert len(gateway.identifies) == 1


async def test_concurrent_emits_arrive_in_the_order_of_their_numbers(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    await asyncio.gather(*(gateway.emit("E", {"n": n}) for n in range(200)))
    assert [(await bot.receive())["s"] for _ in range(200)] == list(range(2, 202))


async def test_the_websockets_library_works_as_well(bot: Bot, gateway: LocalGateway) -> None:
    client = pytest.importorskip("websockets.asyncio.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    await bot.get_token()
    async with client.connect(gateway.ws_url + "/") as ws:
        assert json.loads(await ws.recv())["op"] == 10
        d = {"token": bot.token, "intents": 0, "shard": [0, 1]}
        await ws.send(json.dumps({"op": 2, "d": d}))
        assert json.loads(await ws.recv())["t"] == "READY"
        await gateway.close(4008, "too fast")
        with pytest.raises(exceptions.ConnectionClosed) as caught:
            await ws.recv()
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4008, "too fast")


# Waiting and ending


async def test_wait_for_says_what_there_was_instead(gateway: LocalGateway) -> None:
    with pytest.raises(TimeoutError, match=r"not within 0.01 s: <LocalGateway .* identifies=0"):
        await gateway.wait_for(lambda g: g.identifies, timeout=0.01)


async def test_closing_ends_lines_tasks_and_the_port(http: aiohttp.ClientSession) -> None:
    before = asyncio.all_tasks()
    async with LocalGateway() as gateway:
        bots = [Bot(http, gateway) for _ in range(3)]
        for number, bot in enumerate(bots):
            await bot.identify(shard=[number, 3])
    assert [await bot.closed() for bot in bots] == [1001] * 3
    assert {
        task for task in asyncio.all_tasks() - before if "LocalGateway" in task.get_name()
    } == set()
    await gateway.aclose()
    with pytest.raises(aiohttp.ClientConnectorError):
        await bots[0].connect()


async def test_closing_does_not_wait_for_a_client_that_stopped_reading(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    transport_of(bot).pause_reading()
    flood = asyncio.create_task(gateway.emit("BIG", "x" * 30_000_000))
    await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT):
        await gateway.aclose()
    assert await flood == (2,)


async def test_a_gateway_can_come_back_on_its_port(http: aiohttp.ClientSession) -> None:
    async with LocalGateway() as first:
        bot = Bot(http, first)
        await bot.identify()
    async with LocalGateway(port=first.port) as second:
        bot.gateway = second
        await bot.resume(1)
        assert await bot.receive() == {"op": 9, "d": False}  # it knows neither token nor session


async def test_a_taken_port_is_an_error(gateway: LocalGateway) -> None:
    with pytest.raises(OSError, match="in use"):
        await LocalGateway(port=gateway.port).__aenter__()


# The command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_until_it_is_told_to_stop(
    http: aiohttp.ClientSession, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "qqbot_session.testing",
        "--port", "0", "--heartbeat", "5", "--every", "0.01",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    words: dict[str, str] = {}
    async with asyncio.timeout(30):
        while not words.get("QQBOT_TOKEN_URL"):
            line = (await process.stdout.readline()).decode().strip()
            name, _, value = line.removeprefix("export ").partition("=")
            words[name] = value
    gateway = LocalGateway(
        app_id=words["QQBOT_APP_ID"],
        client_secret=words["QQBOT_SECRET"],
        port=int(words["QQBOT_API_URL"].rpartition(":")[2]),
    )
    assert gateway.token_url == words["QQBOT_TOKEN_URL"]
    bot = Bot(http, gateway)
    assert (await bot.identify())["t"] == "READY"
    events = [await bot.receive() for _ in range(3)]
    assert {event["t"] for event in events} == {C2C, "GROUP_AT_MESSAGE_CREATE"}
    url, headers = gateway.api_url + "/v2/users/U0/messages", {"Authorization": bot.token}
    async with http.post(url, json={"content": "你好", "msg_id": "m1"}, headers=headers) as reply:
        assert reply.status == 200
    process.send_signal(number)
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert b"Identify" in output
    assert "c2c to U0: '你好', to answer m1…: 200" in output.decode()


class LoudStdout(io.StringIO):
    """Ask the process to stop as soon as the command has said where it is."""

    def flush(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_main_returns_zero_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = LoudStdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["--port", "0", "--every", "0"]) == 0
    assert "http://127.0.0.1:" in stdout.getvalue()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_taken_port_ends_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with LocalGateway().serving() as gateway:
        assert main(["--port", str(gateway.port)]) == 1
    assert f"port {gateway.port}: " in capsys.readouterr().err


async def test_lines_that_are_typed_are_private_messages(
    bot: Bot, gateway: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bot.identify()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nworld\n"))
    await asyncio.to_thread(_read_lines, gateway, asyncio.get_running_loop())
    assert [(await bot.receive())["d"]["content"] for _ in range(2)] == ["hello", "world"]


async def test_samples_alternate_between_private_and_group_messages(
    bot: Bot, gateway: LocalGateway
) -> None:
    await bot.identify()
    for number in (1, 2):
        await _emit_sample(gateway, number)
    assert [(await bot.receive())["t"] for _ in range(2)] == [C2C, "GROUP_AT_MESSAGE_CREATE"]


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("LOCALHOST", 200), ("[::1]:1", 200),
     ("evil.example", 421), ("127.0.0.1.evil.example:{port}", 421), ("localhost@evil.example", 421),
     ("[", 421), ("", 421)],
)  # fmt: skip
async def test_a_name_that_is_not_its_own_gets_no_answer(host: str, status: int) -> None:
    """A page in a browser could have its own name resolve to this machine."""
    async with LocalGateway() as qq, aiohttp.ClientSession() as http:
        body = {"appId": qq.app_id, "clientSecret": qq.client_secret}
        headers = {"Host": host.format(port=qq.port)}
        async with http.post(qq.token_url, json=body, headers=headers) as answer:
            assert answer.status == status
            assert ("access_token" in await answer.text()) is (status == 200)
        async with http.get(qq.api_url + "/websocket", headers=headers) as answer:
            assert (answer.status == 421) is (status == 421)


def test_the_command_prints_its_variables_for_the_shells_of_each_system() -> None:
    from qqbot_session.testing import __main__ as command

    qq = LocalGateway(port=1)
    linux = command._variables(qq, "linux").splitlines()
    assert linux[0] == f"export QQBOT_APP_ID={qq.app_id}"
    assert len(linux) == 4
    windows = command._variables(qq, "win32").splitlines()
    assert f'$env:QQBOT_SECRET = "{qq.client_secret}"' in windows
    assert f"set QQBOT_SECRET={qq.client_secret}" in windows
