"""QQ on localhost against the clients people run: they log in, understand every sample, and answer.

The bots are processes of their own, because both packages rearrange the logging of theirs.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qqbot_session import MemoryStorage
from qqbot_session.bot import Bot, run_bot
from qqbot_session.gateway import Dispatch
from qqbot_session.testing import LocalGateway, Sent

pytestmark = pytest.mark.real_time

TIMEOUT = 30.0  # seconds, for a bot to start and to answer

BOTPY = textwrap.dedent("""
    import sys
    from urllib.parse import urlsplit
    import aiohttp
    import botpy
    from botpy.http import Route

    api_url, token_url, app_id, secret = sys.argv[1:]
    Route.SCHEME, Route.DOMAIN = urlsplit(api_url)[:2]

    class Here(aiohttp.ClientSession):  # botpy cannot be told where the tokens are
        def post(self, url, **kwargs):
            return super().post(token_url if "getAppAccessToken" in url else url, **kwargs)

    aiohttp.ClientSession = Here

    class Bot(botpy.Client):
        async def answer(self, message):
            await message.reply(content="heard: " + message.content)
        on_c2c_message_create = on_group_at_message_create = answer
        on_at_message_create = on_direct_message_create = answer

        async def on_interaction_create(self, interaction):
            await self.api.on_interaction_result(interaction.id, 0)
            media = await self.api.post_c2c_file(interaction.user_openid, 1, "https://example.com/a")
            await self.api.post_c2c_message(
                interaction.user_openid, msg_type=7, media=media, event_id=interaction.event_id
            )

    intents = botpy.Intents(
        public_messages=True, public_guild_messages=True, direct_message=True, interaction=True
    )
    Bot(intents=intents, bot_log=None, ext_handlers=False).run(appid=app_id, secret=secret)
""")

NONEBOT = textwrap.dedent("""
    import sys
    import nonebot
    from nonebot.adapters.qq import Adapter, Bot, InteractionCreateEvent, MessageEvent

    api_url, token_url, app_id, secret = sys.argv[1:]
    intent = {"c2c_group_at_messages": True, "at_messages": True, "direct_message": True,
              "interaction": True}
    nonebot.init(
        _env_file=None, driver="~none+~aiohttp", log_level="WARNING",
        qq_api_base=api_url + "/", qq_auth_base=token_url,
        qq_bots=[{"id": app_id, "secret": secret, "intent": intent}],
    )
    nonebot.get_driver().register_adapter(Adapter)

    @nonebot.on_message().handle()
    async def answer(bot: Bot, event: MessageEvent):
        await bot.send(event, "heard: " + event.get_plaintext())

    @nonebot.on_notice().handle()
    async def pressed(bot: Bot, event: InteractionCreateEvent):
        await bot.put_interaction(interaction_id=event.id, code=0)
        openid = event.get_user_id()
        file = await bot.post_c2c_files(openid=openid, file_type=1, url="https://example.com/a")
        media = {"file_info": file.file_info}
        await bot.post_c2c_messages(
            openid=openid, msg_type=7, event_id=event.event_id,
            media=nonebot.adapters.qq.models.Media(**media),
        )

    nonebot.run()
""")


@asynccontextmanager
async def running(program: str, qq: LocalGateway, directory: Path) -> AsyncIterator[None]:
    """Run a bot, and say what it printed when something goes wrong."""
    with (directory / "output").open("w+b") as output:
        arguments = (qq.api_url, qq.token_url, qq.app_id, qq.client_secret)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, *arguments,
            stdout=output, stderr=output, cwd=directory,
        )  # fmt: skip
        try:
            yield
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{(directory / 'output').read_text()}") from None
        finally:
            process.kill()
            await process.wait()


@pytest.fixture(params=["botpy", "nonebot.adapters.qq"])
def program(request: pytest.FixtureRequest) -> str:
    if find_spec(request.param.partition(".")[0]) is None or find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return BOTPY if request.param == "botpy" else NONEBOT


@pytest.fixture
async def qq() -> AsyncIterator[LocalGateway]:
    async with LocalGateway(heartbeat_interval=30.0, deduplicate_replies=True) as qq:
        yield qq


async def identified(qq: LocalGateway) -> None:
    await qq.wait_for(lambda qq: qq.clients and qq.clients[-1].started, TIMEOUT)


async def answers(qq: LocalGateway, event: str, data: Any, count: int = 1) -> list[Sent]:
    """Emit an event, and return what the bot answers."""
    known = len(qq.sent)
    assert await qq.emit(event, data)
    await qq.wait_for(lambda qq: len(qq.sent) == known + count, TIMEOUT)
    return qq.sent[known:]


async def test_a_real_client_understands_every_sample_and_answers_it(
    program: str, qq: LocalGateway, tmp_path: Path
) -> None:
    messages = [
        ("C2C_MESSAGE_CREATE", qq.c2c_message("a", user_openid="U1"), "c2c", "U1"),
        ("GROUP_AT_MESSAGE_CREATE", qq.group_at_message("b", group_openid="G1"), "group", "G1"),
        ("AT_MESSAGE_CREATE", qq.at_message("c", channel_id="7"), "channel", "7"),
        ("DIRECT_MESSAGE_CREATE", qq.direct_message("d", guild_id="8"), "direct", "8"),
    ]
    async with running(program, qq, tmp_path):
        await identified(qq)
        for event, data, kind, to in messages:
            [sent] = await answers(qq, event, data)
            assert (sent.kind, sent.to, sent.msg_id, sent.ok) == (kind, to, data["id"], True)
            assert sent.content == f"heard: {data['content']}"
            assert sent.app_id == qq.app_id


async def test_a_real_client_answers_a_button_and_sends_a_file(
    program: str, qq: LocalGateway, tmp_path: Path
) -> None:
    async with running(program, qq, tmp_path):
        await identified(qq)
        button = qq.interaction("yes", openid="U2")
        pressed, file, message = await answers(qq, "INTERACTION_CREATE", button, count=3)
        assert (pressed.kind, pressed.to, pressed.body) == (
            "interaction",
            button["id"],
            {"code": 0},
        )
        assert (file.kind, file.to, file.status) == ("c2c file", "U2", 200)
        assert message.body["media"]["file_info"] == file.answer["file_info"]
        assert message.event_id == qq.delivered[-1].id


@pytest.mark.slow  # botpy waits 5 s before it connects again, nonebot 3 s
async def test_a_real_client_resumes_when_its_line_dies(
    program: str, qq: LocalGateway, tmp_path: Path
) -> None:
    async with running(program, qq, tmp_path):
        await identified(qq)
        await qq.close(4009)
        [sent] = await answers(qq, "C2C_MESSAGE_CREATE", qq.c2c_message("meanwhile"))
        assert sent.content == "heard: meanwhile"
        assert (len(qq.identifies), len(qq.resumes)) == (1, 1)


@pytest.mark.slow  # at QQ's pace: an Identify in 5 s
async def test_run_bot_stays_within_every_limit_of_qqs() -> None:
    # promise 21
    async def handle(event: Dispatch, bot: Bot) -> None:
        path = f"/v2/users/{event.data['author']['user_openid']}/messages"
        await bot.request("POST", path, json={"content": "heard", "msg_id": event.data["id"]})

    limits: dict[str, Any] = {"identify_window": 5.0, "gateway_rate": 2.0, "payload_rate": 120}
    async with LocalGateway(
        shards=3, session_starts=3, granted_intents=1 << 25, deduplicate_replies=True, **limits
    ) as qq:
        urls = {"api_url": qq.api_url, "token_url": qq.token_url}
        running = asyncio.create_task(
            run_bot(
                qq.app_id, qq.client_secret,
                intents=1 << 25, handle=handle, sessions=MemoryStorage(), signals=False, **urls,
            )
        )  # fmt: skip
        try:
            for round in range(6):
                await qq.wait_for(lambda qq, n=round: begun(qq) == 3 * (n + 1), TIMEOUT)
                for shard in range(3):
                    message = qq.c2c_message(f"round {round}")
                    await qq.emit("C2C_MESSAGE_CREATE", message, shard=(shard, 3))
                await qq.wait_for(lambda qq, n=round: len(qq.sent) == 3 * (n + 1), TIMEOUT)
                await (qq.close(4009) if round % 2 else qq.drop())
        finally:
            running.cancel()
            await asyncio.wait([running])
        assert (len(qq.identifies), qq.remaining()) == (3, 0)
        assert {call.status for call in [*qq.calls, *qq.sent]} == {200}
        assert {client.close_code for client in qq.clients} <= {None, 4000, 4009}


def begun(qq: LocalGateway) -> int:
    return sum(client.started is not None for client in qq.clients)
