"""App secret and access token: in no line, error or variable that is shown, and nowhere else.

What Sentry, loguru and `traceback` show of an error is asked of the real ones.
"""

from __future__ import annotations

import asyncio
import gzip
import importlib
import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from endpoints import Endpoint, Reader, Request, Work, Writer, answers, endpoint, respond
from test_shard import settle

from qqbot_session import AsyncSessionStore, GatewayRefusedError, MemoryStorage
from qqbot_session.bot import ApiError, Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.shard import ShardRunner, open_gateway
from qqbot_session.testing import LocalGateway
from qqbot_session.web import api as api_module
from qqbot_session.web import entrance as entrance_module
from qqbot_session.web import http as http_module

sentry_sdk = pytest.importorskip("sentry_sdk")
loguru = pytest.importorskip("loguru")

pytestmark = pytest.mark.real_time

# Built so that no line of this file holds them, for reporters show lines, too.
SECRET = "-".join(["app", "s3cr3t", "9871"])
TOKEN = "-".join(["t0ken", "4711", "for", "one", "endpoint", "alone", "x" * 60])
PASSWORD = "-".join(["pr0xy", "pass", "3141"])


# What reporters show


def by_traceback(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def by_loguru(error: BaseException) -> str:
    text = io.StringIO()
    sink = loguru.logger.add(text, diagnose=True, backtrace=True, format="{message}")
    loguru.logger.opt(exception=error).error("it failed")
    loguru.logger.remove(sink)
    return text.getvalue()


def by_sentry(error: BaseException) -> str:
    sent: list[str] = []

    class Nowhere(sentry_sdk.transport.Transport):  # type: ignore[misc]
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.payload.get_bytes().decode() for item in envelope.items)

    client = sentry_sdk.Client(
        dsn="http://a@127.0.0.1:1/1", transport=Nowhere, default_integrations=False
    )
    event, hint = sentry_sdk.utils.event_from_exception(error, client_options=client.options)
    client.capture_event(event, hint)
    assert "stacktrace" in sent[0]
    return "".join(sent)


def by_repr(error: BaseException) -> str:
    """`%r` of it and of all that hangs on it, as a log line of the bot's shows it."""
    return f"{error!r} {error} {error.args!r} {vars(error)!r} {error.__cause__!r}"


REPORTERS = (by_traceback, by_loguru, by_sentry, by_repr)


def check_hidden(error: BaseException, *secrets: str) -> None:
    for report in REPORTERS:
        text = report(error)
        for secret in secrets or (SECRET, TOKEN):
            assert secret not in text, f"{report.__name__}:\n{text}"


# A bot whose endpoints answer as they like


class Kept(logging.Handler):
    """What was logged, as text and as the errors of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.errors: list[BaseException] = []
        self.news = asyncio.Event()

    async def until(self, words: str) -> None:
        async with asyncio.timeout(30):
            while words not in self.text:
                self.news.clear()
                await self.news.wait()

    def emit(self, record: logging.LogRecord) -> None:
        extra = {name: value for name, value in vars(record).items() if name.startswith("qqbot_")}
        self.text += f"{self.format(record)} {record.args!r} {extra!r}\n"
        if record.exc_info:
            assert isinstance(record.exc_info[1], BaseException)
            self.errors.append(record.exc_info[1])
        self.news.set()


@pytest.fixture
def log() -> Iterator[Kept]:
    kept = Kept()
    logger = logging.getLogger("qqbot_session")
    logger.addHandler(kept)
    level, logger.level = logger.level, logging.DEBUG
    yield kept
    logger.removeHandler(kept)
    logger.level = level


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_FIRST_BACK_OFF", 0.05)
    wait_for_answers(monkeypatch, 0.3)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every answer that comes waited for, where an error of another kind would be told."""
    wait_for_answers(monkeypatch, 30.0)


def wait_for_answers(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(api_module, "_HTTP_WAIT", seconds)
    monkeypatch.setattr(api_module, "_TOKEN_WAIT", seconds)
    monkeypatch.setattr(entrance_module, "_ASK_WAIT", seconds)


async def grant(request: Request, reader: Reader, writer: Writer) -> None:
    body = json.dumps({"access_token": TOKEN, "expires_in": "7200"}).encode()
    await respond(writer, "200 OK", body)


async def handle(event: Dispatch, bot: Bot) -> None: ...


async def error_of(api: Work, tokens: Work = grant, **options: Any) -> BaseException:
    """Return what `bot.request` raises, called beside the bot."""
    raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def call(bot: Bot) -> None:
        try:
            await bot.request("POST", "/v2/users/u/messages", json={"content": "hi"})
        except Exception as error:
            raised.set_result(error)
            raise  # and is logged

    async with endpoint(api) as there, endpoint(tokens) as granting:
        run = asyncio.create_task(bot_at(there, granting, started=call, **options))
        done, _ = await asyncio.wait([raised, run], return_when=asyncio.FIRST_COMPLETED)
        assert raised in done, run
        await settle()  # it is logged meanwhile
        run.cancel()
        await asyncio.wait([run])
    return raised.result()


def bot_at(api: Endpoint, tokens: Endpoint, **options: Any) -> Any:
    urls = {"api_url": api.url, "token_url": tokens.url + "/token"}
    options = {"handle": handle, "sessions": MemoryStorage(), "shards": 1} | urls | options
    return run_bot("102", SECRET, intents=1, signals=False, **options)


async def echo(request: Request, reader: Reader, writer: Writer) -> None:
    """Answer with all that came, in every place of an answer."""
    said = request.headers.get("authorization", "") + request.body.decode()
    body = json.dumps({"code": 40034, "message": f"what you sent: {said}"}).encode()
    plain = said.replace('"', "").replace("\n", "")
    await respond(writer, "400 Bad Request", body, X_Tps_trace_ID=plain, X_Echo=plain)


async def echo_page(request: Request, reader: Reader, writer: Writer) -> None:
    page = f"<html>{request.headers} {request.body!r}</html>"
    await respond(writer, "502 Bad Gateway", page.encode())


async def echo_redirect(request: Request, reader: Reader, writer: Writer) -> None:
    said = request.headers.get("authorization", SECRET).replace(" ", "-")
    await respond(writer, "302 Found", Location=f"http://127.0.0.1:1/{said}?{said}")


async def echo_success(request: Request, reader: Reader, writer: Writer) -> None:
    body = {"code": 11253, "message": "no", "data": dict(request.headers)}
    await respond(
        writer, "200 OK", gzip.compress(json.dumps(body).encode()), Content_Encoding="gzip"
    )


async def cut(request: Request, reader: Reader, writer: Writer) -> None:
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Length: 900\r\nX-Echo: {request.headers}\r\n\r\n".encode()
    )
    writer.transport.abort()


async def hang(request: Request, reader: Reader, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\nX-Echo: ")
    writer.write(f"{request.headers}\r\n\r\n{request.headers}".encode())
    await reader.read()


async def endless(request: Request, reader: Reader, writer: Writer) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\nX-Echo: {request.headers}\r\n\r\n".encode())
    while True:
        writer.write(str(request.headers).encode() * 1000)
        await writer.drain()


async def nonsense(request: Request, reader: Reader, writer: Writer) -> None:
    writer.write(f"no HTTP at all: {request.headers} {request.body!r}\r\n\r\n".encode())
    await writer.drain()


MISBEHAVIOUR = [echo, echo_page, echo_redirect, echo_success, cut, hang, endless, nonsense]


@pytest.mark.parametrize("api", MISBEHAVIOUR, ids=lambda work: work.__name__)
async def test_no_error_of_a_call_shows_the_token(api: Work, log: Kept) -> None:
    # promise 33
    check_hidden(await error_of(api))
    assert log.errors  # the line about what `started` began
    for error in log.errors:
        check_hidden(error)
    assert TOKEN not in log.text
    assert SECRET not in log.text


async def test_no_error_of_a_call_that_the_bot_itself_ends_shows_the_token() -> None:
    # promise 33: a TimeoutError holds the cancellation, which holds the frames
    raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def call(bot: Bot) -> None:
        try:
            async with asyncio.timeout(0.1):
                await bot.request("GET", "/slow")
        except TimeoutError as error:
            raised.set_result(error)

    async with endpoint(hang) as api, endpoint(grant) as tokens:
        run = asyncio.create_task(bot_at(api, tokens, started=call))
        error = await raised
        run.cancel()
        await asyncio.wait([run])
    check_hidden(error)


@pytest.mark.parametrize("tokens", MISBEHAVIOUR, ids=lambda work: work.__name__)
async def test_no_line_about_the_token_endpoint_shows_the_secret(tokens: Work, log: Kept) -> None:
    # promise 33
    async with endpoint(hang) as api, endpoint(tokens) as granting:
        run = asyncio.create_task(bot_at(api, granting))
        await log.until("no access token")
        run.cancel()
        await asyncio.wait([run])
    assert SECRET not in log.text
    for error in log.errors:
        check_hidden(error)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda granted: {"code": 0, "data": granted},
        lambda granted: {"code": 7, "message": json.dumps(granted)},
        lambda granted: [granted],
        lambda granted: f"callback({json.dumps(granted)})",
    ],
)
async def test_a_token_in_a_wrapping_that_is_not_known_is_not_shown(
    wrap: Callable[[Any], Any], log: Kept
) -> None:
    # promise 33
    answer = wrap({"access_token": TOKEN, "expires_in": 7200})
    body = answer if isinstance(answer, str) else json.dumps(answer)
    async with endpoint(hang) as api, endpoint(answers("200 OK", body.encode())) as tokens:
        run = asyncio.create_task(bot_at(api, tokens))
        await log.until("no access token")
        run.cancel()
        await asyncio.wait([run])
    assert TOKEN not in log.text


async def test_the_refusal_of_a_secret_shows_it_to_nobody(log: Kept) -> None:
    # promise 33
    async def refuse(request: Request, reader: Reader, writer: Writer) -> None:
        said = f"wrong: {request.body.decode()}"
        await respond(writer, "200 OK", json.dumps({"code": 100016, "message": said}).encode())

    async with endpoint(hang) as api, endpoint(refuse) as tokens:
        run = asyncio.create_task(bot_at(api, tokens))
        await asyncio.wait([run])
    error = run.exception()
    assert isinstance(error, GatewayRefusedError)
    check_hidden(error)
    assert SECRET not in log.text


@pytest.mark.parametrize("wrong", [{"intents": "all"}, {"shards": 0}, {"handle": None}])
async def test_the_error_of_a_wrong_argument_shows_no_secret(wrong: dict[str, Any]) -> None:
    # promise 33
    options = {"intents": 1, "handle": handle} | wrong
    run = asyncio.create_task(run_bot("102", SECRET, **options))
    await asyncio.wait([run])
    error = run.exception()
    assert isinstance(error, TypeError | ValueError)
    check_hidden(error)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("strike", ["4014", "banned", "handler"])
async def test_no_error_of_a_bot_at_work_shows_a_secret(strike: str, log: Kept) -> None:
    # promise 33
    async def fail(event: Dispatch, bot: Bot) -> None:
        await bot.request("GET", "/nope")

    async with LocalGateway(client_secret=SECRET) as qq:
        if strike == "4014":
            qq.refuse_identifies(code=4014)
        urls = {"api_url": qq.api_url, "token_url": qq.token_url}
        run = asyncio.create_task(
            run_bot(
                qq.app_id, SECRET, intents=1 << 25, handle=fail, shards=1, signals=False,
                sessions=MemoryStorage(), **urls,
            )
        )  # fmt: skip
        await qq.wait_for(lambda qq: qq.identifies)
        token = str(qq.identifies[0].token).removeprefix("QQBot ")
        if strike == "banned":
            await qq.wait_for(lambda qq: qq.clients[0].started)
            await qq.close(4915)
        if strike == "handler":
            await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hi"))
            await log.until("failed")
            run.cancel()
        await asyncio.wait([run])
    errors = [*log.errors] if strike == "handler" else [run.exception()]
    for error in errors:
        assert isinstance(error, ApiError | GatewayRefusedError)
        check_hidden(error, SECRET, token)
    assert SECRET not in log.text
    assert token not in log.text


# Where they go


@pytest.mark.usefixtures("patient")
async def test_no_redirect_is_followed(log: Kept) -> None:
    # promise 33
    async with endpoint(answers("200 OK", b"{}")) as elsewhere:
        for status in ("301 x", "302 x", "303 x", "307 x", "308 x"):
            redirect = answers(status, Location=f"{elsewhere.url}/gateway/bot")
            error = await error_of(redirect)
            assert isinstance(error, ApiError)
            assert f"redirects to {elsewhere.url}/gateway/bot, which is not followed" in str(error)
        assert elsewhere.requests == []


async def test_no_redirect_of_the_gateway_is_followed(log: Kept) -> None:
    # promise 33
    async with endpoint(answers("200 OK")) as elsewhere:
        redirect = answers("302 x", Location=elsewhere.url)
        async with endpoint(redirect) as gateway, http_module.Http() as http:
            with pytest.raises(http_module.aiohttp.ClientError, match="redirects to"):
                await http.connect(gateway.ws_url)
        assert elsewhere.requests == []


def entrance_at(base: str) -> entrance_module.Entrance:
    tokens: Any = None
    return entrance_module.Entrance(tokens, api_module.Api(tokens, "102", base, tokens))


async def test_an_api_asked_over_tls_cannot_lead_to_a_gateway_without() -> None:
    # promise 33
    entrance = entrance_at("https://api.bot.qq.com")
    with pytest.raises(ValueError, match="names a gateway without TLS: ws://"):
        entrance._learn({"url": "ws://api.bot.qq.com/websocket/"})
    entrance._learn({"url": "wss://api.sgroup.qq.com/websocket/"})


@pytest.mark.parametrize(
    ("address", "used"),
    [
        ("wss://api.sgroup.qq.com/websocket/", True),
        ("wss://api.bot.qq.com/websocket/", True),
        ("ws://api.bot.qq.com/websocket/", False),
        ("wss://evil.example/websocket/", False),
        ("wss://evilqq.com/", False),
        ("wss://api.bot.qq.com@evil.example/", False),
        ("wss://[/", False),
        ("", False),
    ],
)
def test_an_address_from_a_record_is_used_only_if_it_is_qqs(address: str, used: bool) -> None:
    # promise 33
    assert entrance_at("https://api.bot.qq.com")._is_qq(address) is used


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"api_url": "http://qq.example", "token_url": "http://qq.example/t"}, 1),
        ({"api_url": "http://127.0.0.1:1", "token_url": "http://localhost:1/t"}, 0),
        ({"api_url": "https://qq.example", "token_url": "https://qq.example/t"}, 0),
    ],
)
async def test_no_tls_to_another_host_is_one_warning(
    options: dict[str, str], warned: int, log: Kept
) -> None:
    # promise 33
    run = asyncio.create_task(run_bot("102", SECRET, intents=1, handle=handle, **options, shards=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.cancel()
    await asyncio.wait([run])
    assert log.text.count("without TLS") == warned


@pytest.mark.parametrize("name", ["aiohttp", "websockets"])
async def test_no_error_of_a_runner_shows_the_token(name: str, log: Kept) -> None:
    # promise 33: the token is the caller's, and a plain one
    library = importlib.import_module(f"qqbot_session.integrations.{name}")

    async def fail(event: object) -> None:
        raise ValueError

    def observe(event: object) -> None:
        raise KeyError

    async def connect(qq: LocalGateway, http: Any) -> Any:
        return await (library.connect(http, qq.ws_url) if name == "aiohttp" else
                      library.connect(qq.ws_url))  # fmt: skip

    async with (
        LocalGateway() as qq,
        http_module.aiohttp.ClientSession() as http,
        AsyncSessionStore(MemoryStorage()) as store,
    ):
        granted = qq._apps.grant(qq.app_id, qq.client_secret)[0]

        async def get(new: bool) -> str:
            return str(granted)

        gateway = await open_gateway(store, qq.app_id, intents=1 << 25)
        runner = ShardRunner(
            store, gateway, token=get, handle=fail, observe=observe,
            connect=lambda: connect(qq, http),
        )  # fmt: skip
        run = asyncio.create_task(runner.run())
        await qq.wait_for(lambda qq: qq.clients and qq.clients[0].started)
        await qq.emit("C2C_MESSAGE_CREATE", qq.c2c_message("hi"))
        await log.until("the handler of")
        await qq.close(4915)
        await asyncio.wait([run])
        errors = [*log.errors, run.exception()]
        assert len(errors) > 3
        for error in errors:
            assert error is not None
            check_hidden(error, str(granted))
        assert str(granted) not in log.text
