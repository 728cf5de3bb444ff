"""Looking names up and connecting, while others are in the way."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from descriptors import descriptors

from qqbot_session.net import network
from qqbot_session.net.network import dial, look_up

pytestmark = pytest.mark.real_time

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the resolver knows: addresses, an error, or a function to call."""
    known: dict[str, Any] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any) -> Any:
        answer = known.get(host)
        if answer is None:
            return real(host, *rest)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def stream(where: tuple[Any, ...]) -> tuple[Any, ...]:
    family = V4 if len(where) == 2 else V6
    return (family, socket.SOCK_STREAM, 6, "", where)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address to which nobody answers."""
    address = "192.0.2.1"
    connect = network._connect

    async def never(to: Any) -> socket.socket:
        if to[4][0] == address:
            await asyncio.sleep(3600)
        return await connect(to)

    monkeypatch.setattr(network, "_connect", never)
    return address


async def listening() -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_an_address_that_leads_nowhere_costs_no_more_than_a_head_start(
    names: dict[str, Any], silent: str
) -> None:
    server, port = await listening()
    async with server:
        names["qq.test"] = [stream((silent, port)), stream(("127.0.0.1", port))]
        async with asyncio.timeout(30):
            sock = await dial("qq.test", port)
        assert sock.getpeername() == ("127.0.0.1", port)
        sock.close()


async def test_an_address_that_refuses_costs_nothing(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_HEAD_START", 3600.0)
    server, port = await listening()
    async with server:
        names["qq.test"] = [stream(("127.0.0.1", 1)), stream(("127.0.0.1", port))]
        async with asyncio.timeout(30):
            (await dial("qq.test", port)).close()


async def test_if_no_address_answers_the_error_says_why(names: dict[str, Any]) -> None:
    names["qq.test"] = [stream(("127.0.0.1", 1)), stream(("127.0.0.1", 2))]
    with pytest.raises(OSError, match=r"cannot connect to qq\.test:80: .*'127\.0\.0\.1', 1.*; .*2"):
        await dial("qq.test", 80)


async def test_a_name_that_is_not_known_is_the_resolvers_error(names: dict[str, Any]) -> None:
    names["qq.test"] = socket.gaierror(-2, "Name or service not known")
    with pytest.raises(socket.gaierror):
        await look_up("qq.test", 80)


def test_families_take_turns() -> None:
    six, four = [stream((str(n), 1, 0, 0)) for n in "ab"], [stream((str(n), 1)) for n in "123"]
    turns = [address[4][0] for address in network._in_turns([*six, *four])]
    assert turns == ["a", "1", "b", "2", "3"]


async def test_threads_that_are_all_busy_hold_up_no_look_up() -> None:
    # promise 32
    free = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, free.wait) for _ in range(64)]
    try:
        async with asyncio.timeout(30):
            assert await look_up("localhost", 80)
    finally:
        free.set()
        await asyncio.gather(*busy)


async def test_lines_that_look_up_the_same_name_at_once_share_a_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []
    free = threading.Event()

    def slow(*arguments: object) -> list[network.Address]:
        asked.append(arguments)
        free.wait(30)
        return [stream(("127.0.0.1", 1))]

    monkeypatch.setattr(network, "_look_up", slow)
    lines = [asyncio.create_task(look_up("qq.test", 80)) for _ in range(1000)]
    await asyncio.sleep(0)
    lines[0].cancel()  # what one gives up, the others still get
    free.set()
    found = await asyncio.gather(*lines[1:])
    assert asked == [("qq.test", 80, 0)]
    assert found == [[stream(("127.0.0.1", 1))]] * 999
    assert await look_up("qq.test", 80)
    assert len(asked) == 2  # an answer is not kept


async def test_a_look_up_that_hangs_does_not_hold_up_those_that_ask_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang, hangs = threading.Event(), threading.Event()

    def sometimes(*_: object) -> list[network.Address]:
        if not hangs.is_set():
            hangs.set()
            hang.wait(30)
        return [stream(("127.0.0.1", 1))]

    monkeypatch.setattr(network, "_look_up", sometimes)
    monkeypatch.setattr(network, "_SHARED", -1.0)
    first = asyncio.create_task(look_up("qq.test", 80))
    await asyncio.to_thread(hangs.wait, 30)
    try:
        assert await look_up("qq.test", 80)
        assert not first.done()
    finally:
        hang.set()
    assert await first


async def test_no_thread_to_be_had_is_an_error_of_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        await look_up("localhost", 80)


async def test_a_cancelled_dial_leaves_nothing_behind(names: dict[str, Any], silent: str) -> None:
    names["qq.test"] = [stream((silent, 1))] * 3
    before = descriptors()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await dial("qq.test", 1)
    await asyncio.sleep(0)
    assert [task.get_name() for task in asyncio.all_tasks() if "dial" in task.get_name()] == []
    assert descriptors() <= before


@pytest.mark.parametrize("runs", ["asyncio.run", "uvloop.run"])
def test_a_resolver_that_hangs_does_not_hold_up_the_end_of_the_process(runs: str) -> None:
    if runs.startswith("uvloop"):
        pytest.importorskip("uvloop")
    program = f"""
import asyncio, socket, time
{"import uvloop" if runs.startswith("uvloop") else ""}
from qqbot_session.net.network import dial
socket.getaddrinfo = lambda *_: time.sleep(3600)
async def main():
    try:
        async with asyncio.timeout(0.1):
            await dial("qq.test", 80)
    except TimeoutError:
        print("gave up")
{runs}(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr, result.returncode) == ("gave up\n", "", 0)
