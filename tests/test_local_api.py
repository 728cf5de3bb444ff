"""`LocalGateway`'s HTTP side: how bots answer, what is recorded, and how a test decides."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from qqbot_session.testing import Call, LocalGateway

pytestmark = pytest.mark.real_time

C2C = "/v2/users/U0/messages"
MESSAGES = [
    (C2C, "c2c", "U0"),
    ("/v2/groups/G0/messages", "group", "G0"),
    ("/channels/2/messages", "channel", "2"),
    ("/dms/4/messages", "direct", "4"),
]


class Caller:
    """A bot that only calls."""

    def __init__(self, http: aiohttp.ClientSession, qq: LocalGateway) -> None:
        self.http, self.qq = http, qq
        self.headers: dict[str, str] = {}
        self.trace_id: str | None = None
        self.content_type: str | None = None

    async def log_in(self) -> None:
        body = {"appId": self.qq.app_id, "clientSecret": self.qq.client_secret}
        _, answer = await self("POST", self.qq.TOKEN, body)
        self.headers = {"Authorization": "QQBot " + answer["access_token"]}

    async def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = self.qq.api_url + path
        async with self.http.request(method, url, json=body, headers=self.headers) as response:
            self.trace_id = response.headers.get("X-Tps-trace-ID")
            self.content_type = response.headers.get("Content-Type")
            if self.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway() as qq:
        yield qq


@pytest.fixture
async def call(qq: LocalGateway) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as http:
        caller = Caller(http, qq)
        await caller.log_in()
        yield caller


# How a bot answers


@pytest.mark.parametrize(("path", "kind", "to"), MESSAGES)
async def test_an_answer_is_recorded_with_what_it_answers(
    qq: LocalGateway, call: Caller, path: str, kind: str, to: str
) -> None:
    body = {"content": "hi", "msg_id": "m1", "msg_seq": 2, "event_id": "e1"}
    status, answer = await call("POST", path, body)
    [sent] = qq.sent
    assert (status, sent.status, sent.ok, sent.answer) == (200, 200, True, answer)
    assert (sent.kind, sent.to, sent.app_id, sent.body) == (kind, to, qq.app_id, body)
    assert (sent.content, sent.msg_id, sent.msg_seq, sent.event_id) == ("hi", "m1", 2, "e1")
    assert answer["id"]
    assert answer["timestamp"]


async def test_a_file_is_uploaded_and_a_button_answered(qq: LocalGateway, call: Caller) -> None:
    for path in ("/v2/users/U0/files", "/v2/groups/G0/files"):
        _, file = await call("POST", path, {"file_type": 1, "url": "https://example.com/a.png"})
        assert set(file) == {"file_uuid", "file_info", "ttl"}
    assert await call("PUT", "/interactions/i1", {"code": 0}) == (204, "")
    assert [(sent.kind, sent.to) for sent in qq.sent] == [
        ("c2c file", "U0"), ("group file", "G0"), ("interaction", "i1"),
    ]  # fmt: skip


async def test_an_answer_needs_a_token_and_a_body(qq: LocalGateway, call: Caller) -> None:
    assert (await call("POST", C2C))[1]["code"] == 11255
    call.headers = {}
    assert (await call("POST", C2C, {"content": "hi"}))[1]["code"] == 11244
    assert [(sent.status, sent.ok) for sent in qq.sent] == [(400, False), (401, False)]


async def test_who_answers_twice_is_seen(qq: LocalGateway, call: Caller) -> None:
    for _ in range(2):
        assert (await call("POST", C2C, {"content": "hi", "msg_id": "m1"}))[0] == 200
    assert [sent.msg_id for sent in qq.sent] == ["m1", "m1"]


@pytest.mark.parametrize("path", [C2C, "/v2/groups/G0/messages"])
async def test_the_same_answer_again_can_be_refused_as_qq_refuses_it(
    qq: LocalGateway, call: Caller, path: str
) -> None:
    qq.deduplicate_replies = True
    assert (await call("POST", path, {"msg_id": "m1"}))[0] == 200
    status, answer = await call("POST", path, {"msg_id": "m1", "msg_seq": 1})
    assert (status, answer["code"], answer["err_code"]) == (400, 40054005, 40054005)
    for other in ({"msg_id": "m1", "msg_seq": 2}, {"msg_id": "m2"}, {}, {}):
        assert (await call("POST", path, other))[0] == 200


async def test_a_direct_message_begins_with_its_conversation(
    qq: LocalGateway, call: Caller
) -> None:
    _, place = await call("POST", "/users/@me/dms", {"recipient_id": "3", "source_guild_id": "1"})
    _, message = await call("POST", f"/dms/{place['guild_id']}/messages", {"content": "hi"})
    assert (message["guild_id"], message["author"]["bot"]) == (place["guild_id"], True)


# What is recorded, and how it looks on the wire


async def test_json_is_called_json_and_nothing_more(qq: LocalGateway, call: Caller) -> None:
    """botpy reads no body of any other type (http.py)."""
    for method, path in (("GET", "/gateway/bot"), ("GET", "/nowhere"), ("POST", qq.TOKEN)):
        await call(method, path)
        assert call.content_type == "application/json"
        assert call.trace_id


async def test_every_other_call_is_recorded_with_its_answer(qq: LocalGateway, call: Caller) -> None:
    status, answer = await call("DELETE", "/v2/users/U0/messages/m1", {"why": "regret"})
    assert (status, answer["code"], answer["trace_id"]) == (404, 11254, call.trace_id)
    assert "DELETE /v2/users/U0/messages/m1" in answer["message"]
    token, recalled = qq.calls
    assert (token.path, token.app_id, token.status) == (qq.TOKEN, None, 200)
    assert (recalled.method, recalled.body, recalled.status) == ("DELETE", {"why": "regret"}, 404)
    assert qq.requests == {qq.TOKEN: 1, "/v2/users/U0/messages/m1": 1}
    assert qq.sent == []


async def test_a_body_that_is_not_json_is_recorded_as_text(qq: LocalGateway, call: Caller) -> None:
    for data in (b"{half", b"\xff", b"[" * 100_000):
        async with call.http.post(qq.api_url + C2C, data=data, headers=call.headers) as response:
            assert response.status == 400
    assert [sent.body for sent in qq.sent] == ["{half", "�", "[" * 100_000]
    assert qq.sent[0].content is None


async def test_large_files_are_taken(qq: LocalGateway, call: Caller) -> None:
    body = io.BytesIO(b'{"file_data": "%b"}' % (b"A" * 5_000_000))
    url = qq.api_url + "/v2/users/U0/files"
    async with call.http.post(url, data=body, headers=call.headers) as response:
        assert response.status == 200


# How a test decides


async def test_respond_answers_as_told_for_as_often_as_told(qq: LocalGateway, call: Caller) -> None:
    qq.respond("DELETE", "/v2/users/{openid}/messages/{id}", {"done": True}, times=2)
    for _ in range(2):
        answer = await call("DELETE", "/v2/users/U0/messages/m1")
        assert answer == (200, {"done": True})
    assert (await call("DELETE", "/v2/users/U0/messages/m1"))[0] == 404
    qq.respond("DELETE", "/v2/users/{openid}/messages/{id}", {"done": True}, times=0)
    assert (await call("DELETE", "/v2/users/U0/messages/m1"))[0] == 404


async def test_a_name_in_braces_is_one_part_of_a_path(qq: LocalGateway, call: Caller) -> None:
    qq.respond("GET", "/guilds/{id}.", {})
    assert (await call("GET", "/guilds/1."))[0] == 200
    for path in ("/guilds/1/2.", "/guilds/.", "/guilds/1x"):
        assert (await call("GET", path))[0] == 404
    assert (await call("POST", "/guilds/1."))[0] == 404


async def test_the_newest_response_stands_until_it_is_cleared(
    qq: LocalGateway, call: Caller
) -> None:
    qq.respond("GET", "/gateway", {"url": "old"})
    qq.respond("GET", "/gateway", {"url": "new"}, times=1)
    assert (await call("GET", "/gateway"))[1] == {"url": "new"}
    assert (await call("GET", "/gateway"))[1] == {"url": "old"}
    qq.clear_responses()
    assert (await call("GET", "/gateway"))[1] == {"url": qq.ws_url}


async def test_respond_can_ask_a_function(qq: LocalGateway, call: Caller) -> None:
    def echo(made: Call) -> object:
        return {"heard": made.body, "from": made.app_id}

    qq.respond("POST", C2C, echo)
    assert (await call("POST", C2C, {"a": 1}))[1] == {"heard": {"a": 1}, "from": qq.app_id}
    assert qq.sent[0].answer == {"heard": {"a": 1}, "from": qq.app_id}


@pytest.mark.parametrize(
    ("body", "seen", "content_type"),
    [
        ("<html>502</html>", "<html>502</html>", "text/html"),
        (b"\x00", "\x00", "application/octet-stream"),
        ({"code": 1}, {"code": 1}, "application/json"),
        ([], [], "application/json"),
    ],
)
async def test_the_token_endpoint_can_answer_with_anything(
    qq: LocalGateway, call: Caller, body: Any, seen: Any, content_type: str
) -> None:
    qq.respond("POST", qq.TOKEN, body, status=502, headers={"Retry-After": "1"})
    assert await call("POST", qq.TOKEN, {}) == (502, seen)
    assert call.content_type == content_type
    assert qq.calls[-1].status == 502


async def test_an_empty_answer_is_empty(qq: LocalGateway, call: Caller) -> None:
    qq.respond("POST", qq.TOKEN)
    assert await call("POST", qq.TOKEN, {}) == (200, "")


async def test_fail_is_an_error_of_qqs_once(qq: LocalGateway, call: Caller) -> None:
    qq.fail("POST", C2C, 304023, "push message is waiting for audit now", status=202)
    status, answer = await call("POST", C2C, {"content": "hi"})
    assert (status, answer["code"], answer["trace_id"]) == (202, 304023, call.trace_id)
    assert (await call("POST", C2C, {"content": "hi"}))[0] == 200


async def test_a_call_can_be_cut_off(qq: LocalGateway, call: Caller) -> None:
    qq.cut("POST", C2C)
    with pytest.raises(aiohttp.ClientConnectionError):
        await call("POST", C2C, {"content": "hi"})
    assert (await call("POST", C2C, {"content": "hi"}))[0] == 200
    assert [(sent.status, sent.ok) for sent in qq.sent] == [(None, False), (200, True)]


async def test_a_call_can_be_left_without_an_answer(qq: LocalGateway, call: Caller) -> None:
    qq.hang("GET", "/gateway", times=2)
    left, waits = (asyncio.create_task(call("GET", "/gateway")) for _ in range(2))
    await qq.wait_for(lambda qq: len(qq.calls) == 3)
    left.cancel()
    await asyncio.wait([left])
    assert (await call("GET", "/gateway"))[0] == 200
    assert not waits.done()
    await qq.aclose()
    with pytest.raises(aiohttp.ClientConnectionError):
        await waits


async def test_answers_come_as_late_as_told(qq: LocalGateway, call: Caller) -> None:
    loop = asyncio.get_running_loop()
    for change in ({"delay": 0.05}, {}):
        qq.respond("GET", "/late", {}, **change)
        qq.latency = 0.0 if change else 0.05
        start = loop.time()
        await call("GET", "/late")
        assert loop.time() - start >= 0.05


# The rate of /gateway


async def test_the_rate_of_gateway_is_enforced_when_asked(qq: LocalGateway, call: Caller) -> None:
    for _ in range(20):
        assert (await call("GET", "/gateway"))[0] == 200
    qq.gateway_rate = 2
    answers = [await call("GET", path) for path in ("/gateway", "/gateway/bot") * 6]
    assert [status for status, _ in answers] == [200] * 10 + [429] * 2
    assert answers[-1][1]["code"] == 100001
    qq._api._allowed_at -= 30.0  # half a minute later
    assert [(await call("GET", "/gateway"))[0] for _ in range(2)] == [200, 429]
