"""QQ's HTTP calls: their bounds, their errors, and the way they take."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, Reader, Request, Work, Writer, answers, endpoint, proxy, respond

from qqbot_session import MemoryStorage
from qqbot_session.bot import ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.net.proxies import check_proxy, proxy_for
from qqbot_session.testing import LocalGateway
from qqbot_session.web.entrance import Entrance
from qqbot_session.web.http import MAX_BODY, Http
from qqbot_session.words import Secret

pytestmark = pytest.mark.real_time


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with Http() as client:
        yield client


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway() as local:
        yield local


async def handle(event: Dispatch, bot: Bot) -> None: ...


# Bounds


@pytest.mark.parametrize("encoding", ["gzip", "deflate", ""])
async def test_an_answer_is_read_up_to_its_bound_and_no_further(http: Http, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "": bytes}[encoding]
    # Noise, so that the packed one is about as long.
    fits = random.Random(1).randbytes(MAX_BODY // 2).hex().encode()
    for body, good in ((fits, True), (fits + b"x", False), (b"x" * 50_000_000, False)):
        work = answers("200 OK", pack(body), Content_Encoding=encoding)
        async with endpoint(work) as there:
            if good:
                answer = await http.call("GET", there.url, wait=30)
                assert answer.value == body.decode()
            else:
                with pytest.raises(ApiError, match="longer than 1048576 bytes"):
                    await http.call("GET", there.url, wait=30)


@pytest.mark.parametrize(
    ("encoding", "body", "error"),
    [("gzip", b"not packed", "cannot decompress"), ("br", b"x", "unknown Content-Encoding 'br'")],
)
async def test_an_answer_that_cannot_be_unpacked_is_an_error(
    http: Http, encoding: str, body: bytes, error: str
) -> None:
    async with endpoint(answers("200 OK", body, Content_Encoding=encoding)) as there:
        with pytest.raises(Exception, match=error):
            await http.call("GET", there.url, wait=30)


NUMBERS = ["1" * 5000, "1" * 400, "1e400", "-1" + "0" * 400, "NaN", "Infinity"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:10])
@pytest.mark.parametrize("field", ["code", "expires_in", "remaining", "reset_after", "shards"])
async def test_a_number_of_any_size_in_an_answer_ends_nothing(
    number: str, field: str, qq: LocalGateway
) -> None:
    async def work(request: Request, reader: Reader, writer: Writer) -> None:
        fields: dict[str, Any] = {"access_token": "t", "expires_in": 7200, "url": qq.ws_url}
        limit: dict[str, Any] = {"remaining": 9, "reset_after": 1, "max_concurrency": 1}
        (limit if field in limit else fields)[field] = "here"
        text = json.dumps(fields | {"session_start_limit": limit})
        await respond(writer, "200 OK", text.replace('"here"', number).encode())

    async with endpoint(work) as there:
        urls = {"api_url": there.url, "token_url": there.url}
        run = asyncio.create_task(
            run_bot("1", "s", intents=1, handle=handle, sessions=MemoryStorage(), **urls)
        )
        while len(there.requests) < 2:  # noqa: ASYNC110 - the endpoint tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert not run.done(), run
        run.cancel()
        await asyncio.wait([run])


@pytest.mark.parametrize("shards", [100_001, 10**400, 10**5000, -1], ids=["", "400", "5000", "-1"])
async def test_a_number_of_shards_that_cannot_be_is_refused_with_a_sentence(shards: int) -> None:
    with pytest.raises(ValueError, match="shards must be from 1 to 100000"):
        await run_bot("1", "s", intents=1, handle=handle, shards=shards)


def test_a_number_of_shards_that_cannot_be_is_not_taken_from_qq() -> None:
    nothing: Any = type("Nothing", (), {"base": "https://api.bot.qq.com"})
    with pytest.raises(ValueError, match="suggests 100001 shards"):
        Entrance(nothing, nothing)._learn({"url": "wss://api.bot.qq.com/", "shards": 100_001})


# What QQ says


async def ask(work: Work, *, calls: int = 1) -> list[Any]:
    """Return what `bot.request` returned or raised."""
    results: list[Any] = []
    over = asyncio.Event()

    async def tokens(request: Request, reader: Reader, writer: Writer) -> None:
        await respond(writer, "200 OK", b'{"access_token": "t", "expires_in": "7200"}')

    async def call(bot: Bot) -> None:
        for _ in range(calls):
            try:
                results.append(await bot.request("GET", "/x"))
            except ApiError as error:
                results.append(error)
        over.set()

    async def only_x(request: Request, reader: Reader, writer: Writer) -> None:
        if request.line.split()[1] == "/x":
            await work(request, reader, writer)

    async with endpoint(only_x) as api, endpoint(tokens) as granting:
        urls = {"api_url": api.url, "token_url": granting.url}
        run = asyncio.create_task(
            run_bot(
                "1", "s", intents=1, handle=handle, sessions=MemoryStorage(), started=call, **urls
            )
        )
        await over.wait()
        run.cancel()
        await asyncio.wait([run])
    return [*results, len([r for r in api.requests if r.line.split()[1] == "/x"])]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        ("200 OK", {"code": 40034, "message": "no"}, 40034),
        ("200 OK", {"code": "40034", "message": "no"}, 40034),
        ("200 OK", {"code": 0, "message": "ok"}, None),
        ("200 OK", {"code": None}, None),
        ("200 OK", {"code": True}, None),
        ("200 OK", {"id": "1"}, None),
        ("200 OK", [], None),
        ("202 Accepted", {"code": 304023, "message": "in review", "data": {}}, None),
    ],
)
async def test_an_error_code_is_an_error_whatever_the_status_says(
    status: str, body: Any, code: int | None
) -> None:
    result, _ = await ask(answers(status, json.dumps(body).encode()))
    if code is None:
        assert result == body
    else:
        assert isinstance(result, ApiError)
        assert (result.status, result.code, result.message) == (200, code, "no")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("401 x", 11298, "接口访问源IP不在白名单"),
        ("401 x", 401, "source IP not in whitelist"),
        ("200 x", 11298, "x"),
    ],
)
async def test_an_address_that_is_not_allowed_is_said_in_words_and_costs_no_token(
    status: str, code: int, message: str
) -> None:
    body = json.dumps({"code": code, "message": message}).encode()
    error, asked = await ask(answers(status, body))
    assert "not in the bot's IP allow-list" in str(error)
    assert error.is_not_allowed_here
    assert asked == 1  # a fresh token would not help


@pytest.mark.parametrize(("status", "code"), [("401 x", 11244), ("200 x", 11244), ("401 x", 1)])
async def test_a_refused_token_is_renewed_once_and_the_call_made_again(
    status: str, code: int
) -> None:
    body = json.dumps({"code": code, "message": "token not exist or expire"}).encode()
    error, asked = await ask(answers(status, body))
    assert (error.code, asked) == (code, 2)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"code": "-1"}', -1),
        (b'{"code": 11253.0}', 11253),
        (b'{"err_code": 40034028, "message": "no"}', 40034028),
        (b'\xef\xbb\xbf{"code": 11253}', 11253),
        (b'{"code": ' + b"9" * 5000 + b"}", None),
        (b"<!DOCTYPE html><p>Log in</p>", None),
    ],
)
async def test_an_error_in_another_shape_is_an_error_too(body: bytes, code: int | None) -> None:
    error, asked = await ask(answers("200 OK", body))
    assert (error.status, error.code, asked) == (200, code, 1)


@pytest.mark.parametrize("code", [b"0", b'"0"', b'""', b'"as-you-like"'])
async def test_an_answer_without_an_error_s_code_is_read_whatever_its_numbers(
    http: Http, code: bytes
) -> None:
    async with endpoint(answers("200 OK", b'{"code": %s, "n": %s}' % (code, b"9" * 5000))) as there:
        answer = await http.call("GET", there.url, wait=30)
    assert not answer.is_error
    assert answer.value["n"] == float("inf")


# The way


def test_the_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass@secure:1")
    monkeypatch.setenv("http_proxy", "plain:2")
    monkeypatch.setenv("NO_PROXY", "localhost,.internal, 10.0.0.0/8,fd00::/8,nonsense/8")
    assert proxy_for("https://api.bot.qq.com/x") == "http://user:pass@secure:1"
    assert proxy_for("wss://api.bot.qq.com/x") == "http://user:pass@secure:1"
    assert proxy_for("http://api.bot.qq.com/x") == "http://plain:2"
    assert proxy_for("ws://api.bot.qq.com/x") == "http://plain:2"
    for host in ("localhost", "a.internal", "10.1.2.3", "[fd00::1]"):
        assert proxy_for(f"wss://{host}/") is None
    for host in ("11.1.2.3", "[fe00::1]", "qq.com"):
        assert proxy_for(f"wss://{host}/") is not None


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "qq.com",
        ".qq.com",
        "*.qq.com",
        "qq.com.",
        "API.bot.qq.com",
        "api.bot.qq.com:443",
        "a.b qq.com",
        " qq.com , x",
    ],
)
def test_a_domain_of_no_proxy_stands_for_everything_below_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", " http://secure:1 ")
    monkeypatch.setenv("NO_PROXY", name)
    assert proxy_for("wss://api.bot.qq.com/websocket/") is None
    assert (proxy_for("https://notqq.com/") is None) is (name == "*")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("::1", "https://[::1]:8443/"),
        ("[::1]", "https://[::1]/"),
        ("[::1]:8443", "https://[::1]:8443/"),
        ("10.2.3.4", "https://10.2.3.4:8443/"),
        ("10.2.3.4:443", "https://10.2.3.4/"),
    ],
)
def test_an_address_in_no_proxy_may_have_a_port(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:1")
    monkeypatch.setenv("NO_PROXY", name)
    assert proxy_for(url) is None
    assert proxy_for("https://[::2]:1/") is not None
    assert (proxy_for("https://10.2.3.4:1/") is None) is (name == "10.2.3.4")


@pytest.mark.parametrize(
    ("proxy", "error"),
    [
        ("socks5://u:pass@127.0.0.1:1", ValueError),
        ("http://", ValueError),
        ("http://u:pass@h:port", ValueError),
        ("u:pass@h", ValueError),
        ("http://u:pass@h/path", ValueError),
        (b"http://h", TypeError),
        (1, TypeError),
    ],
)
def test_what_is_no_http_proxy_is_refused_without_its_password(
    proxy: Any, error: type[Exception]
) -> None:
    # promise 15
    with pytest.raises(error, match="proxy must be") as caught:
        check_proxy("proxy", proxy)
    assert "pass" not in str(caught.value)
    assert type(check_proxy("proxy", "http://u:pass@h:1")) is Secret


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_token_api_and_line_all_take_the_proxy(
    how: str, qq: LocalGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy(user="me:s3cret") as way:
        address = way.url.replace("//", "//me:s3cret@")
        if how == "environment":
            monkeypatch.setenv("HTTP_PROXY", address)
        urls = {"api_url": qq.api_url, "token_url": qq.token_url}
        run = asyncio.create_task(
            run_bot(
                qq.app_id, qq.client_secret, intents=1 << 25, handle=answer,
                sessions=MemoryStorage(), proxy=address if how == "argument" else None, **urls,
            )
        )  # fmt: skip
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hi"))
        await qq.wait_for(lambda qq: qq.sent)
        run.cancel()
        await asyncio.wait([run])
        seen = {request.line.split()[1].rpartition("/")[2] for request in way.requests}
        assert {"getAppAccessToken", "bot", "websocket", "messages"} <= seen


async def answer(event: Dispatch, bot: Bot) -> None:
    await bot.request("POST", "/v2/users/u/messages", json={"content": "x"})


def through(way: Endpoint) -> Http:
    return Http(Secret(way.url.replace("//", "//me:s3cret@")))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for `localhost`, and its key, in one file."""
    file = tmp_path / "localhost.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", file,
         "-out", tmp_path / "cert.pem"],
        capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("there is no openssl to make a certificate with")
    with file.open("ab") as both:
        both.write((tmp_path / "cert.pem").read_bytes())
    return file


async def test_tls_goes_through_the_proxy_by_connect(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await respond(writer, "200 OK", b"[1]")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server, proxy(user="me:s3cret") as way, through(way) as http:
        answer = await http.call("GET", f"https://localhost:{port}/", wait=30)
    assert answer.value == [1]
    assert way.requests[0].line == f"CONNECT localhost:{port} HTTP/1.1"
    assert base64.b64decode(way.requests[0].headers["proxy-authorization"][6:]) == b"me:s3cret"


async def test_a_proxy_that_wants_a_password_is_an_error_that_does_not_show_ours() -> None:
    # promise 33
    async with (
        proxy(user="me:other") as way,
        Http(Secret(way.url.replace("//", "//me:s3cret@"))) as http,
    ):
        with pytest.raises(Exception, match="407") as caught:
            await http.call("GET", "https://localhost:1/", wait=30)
    encoded = base64.b64encode(b"me:s3cret").decode()
    for text in (repr(caught.value), str(caught.value), repr(caught.value.args)):
        assert "s3cret" not in text
        assert encoded not in text


# Outside of a handler


async def test_the_bot_is_to_be_had_outside_of_a_handler(qq: LocalGateway) -> None:
    bots: list[Bot] = []
    urls = {"api_url": qq.api_url, "token_url": qq.token_url}

    async def beside(bot: Bot) -> None:
        bots.append(bot)
        await bot.request("POST", "/v2/users/u/messages", json={"content": "good morning"})
        await asyncio.sleep(3600)

    for started in (bots.append, beside):
        run = asyncio.create_task(
            run_bot(
                qq.app_id, qq.client_secret, intents=1 << 25, handle=handle,
                sessions=MemoryStorage(), started=started, **urls,
            )
        )  # fmt: skip
        before = len(qq.identifies)
        await qq.wait_for(lambda qq, n=before: len(qq.identifies) > n)
        assert list(bots[-1].health) == [(0, 1)]
        run.cancel()
        await asyncio.wait([run])
    assert [sent.body["content"] for sent in qq.sent] == ["good morning"]
    assert not [task for task in asyncio.all_tasks() if "started" in task.get_name()]
