"""`ShardRunner` on sockets that a test holds in its hand, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qqbot_session import (
    AsyncSessionStore,
    GatewayRefusedError,
    MemoryStorage,
    StoreClosedError,
    watch,
)
from qqbot_session.gateway import Dispatch, Event, GatewaySession, Hello, Ready, Resumed
from qqbot_session.shard import Health, ShardRunner, account_id_for, open_gateway
from qqbot_session.state import decode

ACCOUNT = "102000000-0-1"
KIND = "C2C_MESSAGE_CREATE"


class Line:
    """One socket: what the bot sent, and what the gateway says."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.inbox: asyncio.Queue[object] = asyncio.Queue()
        self.closed_with: int | None = None
        self.answers_close = True
        self.code: int | None = None  # the gateway's, once it closed

    async def send(self, frame: str, /) -> None:
        self.sent.append(json.loads(frame))

    async def receive(self) -> str | bytes | None:
        item = await self.inbox.get()
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[return-value]

    async def close(self, code: int, /) -> int | None:
        if not self.answers_close:
            await asyncio.Event().wait()
        if self.code is None:
            self.closed_with = code
        return self.code or code

    # The gateway's side

    def say(self, **frame: object) -> None:
        self.inbox.put_nowait(json.dumps(frame))

    def hello(self, interval: float = 45.0) -> None:
        self.say(op=10, d={"heartbeat_interval": interval * 1000})

    def ready(self) -> None:
        self.say(op=0, s=1, t="READY", d={"session_id": "S", "user": {"id": "me"}})

    def event(self, seq: int) -> None:
        self.say(op=0, s=seq, t=KIND, id=f"e{seq}", d={"id": f"m{seq}", "content": str(seq)})

    def end(self, code: int | None = None) -> None:
        self.code = code
        self.inbox.put_nowait(None)

    def handshakes(self) -> list[int]:
        return [frame["op"] for frame in self.sent if frame["op"] in (2, 6)]


class World:
    """A runner, its store and session, and every line it opened."""

    def __init__(self, store: AsyncSessionStore, gateway: GatewaySession, **options: Any) -> None:
        self.store, self.gateway = store, gateway
        self.lines: list[Line] = []
        self.opened: asyncio.Queue[Line] = asyncio.Queue()
        self.handled: list[int | None] = []
        self.tokens: list[bool] = []
        self.seen: list[Event] = []
        self.next_line: Callable[[], Awaitable[Line]] = self.make_line
        self.work: Callable[[Dispatch], Awaitable[object]] = self.note
        options = {
            "connect": lambda: self.next_line(),
            "token": self.token,
            "handle": lambda event: self.work(event),
            "observe": self.seen.append,
            **options,
        }
        self.runner = ShardRunner(store, gateway, **options)
        self.task = asyncio.create_task(self.runner.run())

    async def make_line(self) -> Line:
        line = Line()
        self.lines.append(line)
        self.opened.put_nowait(line)
        return line

    async def token(self, new: bool) -> str:
        self.tokens.append(new)
        return "secret-token"

    async def note(self, event: Dispatch) -> None:
        self.handled.append(event.seq)

    async def line(self) -> Line:
        """Wait for the next line that is opened."""
        async with asyncio.timeout(3600):
            return await self.opened.get()

    async def up(self) -> Line:
        """Wait for the next line, and take it to READY or RESUMED."""
        line = await self.line()
        line.hello()
        await settle()
        if line.handshakes() == [2]:
            line.ready()
        else:
            line.say(op=0, s=(self.gateway.received or 1) + 1, t="RESUMED", d="")
        await settle()
        return line

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


def reason(record: logging.LogRecord) -> str:
    return str(getattr(record, "qqbot_reason", ""))


@asynccontextmanager
async def a_world(store: AsyncSessionStore | None = None, **options: Any) -> AsyncIterator[World]:
    async with store or AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, "102000000", intents=1)
        world = World(store, gateway, **options)
        try:
            yield world
        finally:
            await world.stop()
            if not world.task.cancelled() and (error := world.task.exception()):
                raise error


# Handlers


async def test_reading_never_waits_for_a_handler() -> None:
    # promise 20
    async with a_world() as world:
        line = await world.up()
        world.work = lambda event: asyncio.Event().wait()
        for seq in range(2, 102):
            line.event(seq)
        line.say(op=1)
        await settle()
        assert world.gateway.received == 101
        assert world.runner.health.in_flight == 100
        assert line.sent[-1] == {"op": 1, "d": 101}


@pytest.mark.parametrize(
    "error",
    [OSError("own"), ValueError("own"), TimeoutError(), BaseExceptionGroup("g", [OSError()])],
)
async def test_a_handlers_error_ends_no_line_and_is_logged_once_with_its_event(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 20
    async def fail(event: Dispatch) -> None:
        raise error

    async with a_world() as world:
        line = await world.up()
        world.work = fail
        line.event(2)
        await settle()
        world.work = world.note
        line.event(3)
        await settle()
        assert world.handled == [3]
        assert line.closed_with is None
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.qqbot_event["seq"] == 2  # type: ignore[attr-defined]
        assert record.qqbot_account == ACCOUNT  # type: ignore[attr-defined]
        assert world.gateway.settled == 3


async def test_a_cancellation_out_of_what_a_handler_awaits_leaves_its_event_open_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promises 18 and 20
    async def be_cancelled(event: Dispatch) -> None:
        raise asyncio.CancelledError

    async with a_world() as world:
        line = await world.up()
        world.work = be_cancelled
        line.event(2)
        await settle()
        assert (world.gateway.received, world.gateway.settled) == (2, 1)
        assert line.closed_with is None
        assert "cancelled from within" in caplog.text


async def test_without_a_limit_a_handler_may_wait_for_a_later_event() -> None:
    later = asyncio.Event()

    async def work(event: Dispatch) -> None:
        if event.seq == 2:
            await later.wait()
        later.set()

    async with a_world() as world:
        line = await world.up()
        world.work = work
        line.event(2)
        line.event(3)
        await settle()
        assert world.gateway.settled == 3


async def test_a_limit_holds_and_handlers_start_in_order() -> None:
    going: list[int | None] = []
    most = 0
    doors: dict[int | None, asyncio.Event] = {seq: asyncio.Event() for seq in range(2, 12)}

    async def work(event: Dispatch) -> None:
        nonlocal most
        going.append(event.seq)
        world.handled.append(event.seq)
        most = max(most, len(going))
        await doors[event.seq].wait()
        going.remove(event.seq)

    async with a_world(concurrency=3) as world:
        line = await world.up()
        world.work = work
        for seq in doors:
            line.event(seq)  # type: ignore[arg-type]
        await settle()
        assert (world.runner.health.in_flight, world.gateway.settled) == (10, 1)
        for seq in (4, 2, 3, 5, 6, 7, 8, 9, 10, 11):
            doors[seq].set()
            await settle()
        assert world.handled == list(range(2, 12))
        assert most == 3
        assert world.gateway.settled == 11


async def test_a_handler_runs_in_a_copy_of_the_context_that_run_was_called_in() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    async def work(event: Dispatch) -> None:
        seen.append(name.get())
        name.set("a handler")

    name.set("the caller")
    async with a_world() as world:
        line = await world.up()
        world.work = work
        line.event(2)
        line.event(3)
        await settle()
        assert seen == ["the caller", "the caller"]


async def test_a_task_factory_that_wraps_every_coroutine_changes_nothing() -> None:
    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        async def traced() -> Any:
            return await coro

        return asyncio.Task(traced(), loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    async with a_world() as world:
        line = await world.up()
        line.event(2)
        await settle()
        assert world.handled == [2]
        assert world.gateway.settled == 2


async def test_eager_tasks_change_nothing() -> None:
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("Python 3.12")
    asyncio.get_running_loop().set_task_factory(factory)
    async with a_world(concurrency=1) as world:
        line = await world.up()
        for seq in range(2, 12):
            line.event(seq)
        await settle()
        assert world.handled == list(range(2, 12))
        assert world.runner.health.in_flight == 0


# Frames


@pytest.mark.parametrize("frame", ["", "{", "null", "[]", b"\x78\x9c\x00", '{"op":0,"s":"5"}'])
async def test_a_malformed_frame_is_skipped_and_the_line_read_on(frame: str | bytes) -> None:
    # promises 19 and 20
    async with a_world() as world:
        line = await world.up()
        line.inbox.put_nowait(frame)
        line.event(2)
        await settle()
        assert world.handled == [2]
        assert line.closed_with is None


async def test_skipped_frames_are_told_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_world() as world:
        line = await world.up()
        for _ in range(100):
            line.inbox.put_nowait("{")
        for seconds in (40, 40):
            line.say(op=11)
            await asyncio.sleep(seconds)
        line.inbox.put_nowait("{")
        await settle()
        told = [r.args[1] for r in caplog.records if reason(r) == "skipped"]  # type: ignore
        assert told == [1, 100]


async def test_a_binary_frame_with_json_counts_as_one(caplog: pytest.LogCaptureFixture) -> None:
    async with a_world() as world:
        line = await world.up()
        line.inbox.put_nowait(json.dumps({"op": 0, "s": 2, "t": KIND, "d": {}}).encode())
        await settle()
        assert world.handled == [2]


async def test_the_alarm_is_not_set_anew_for_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    # promise 24
    async with a_world() as world:
        line = await world.up()
        loop, calls = asyncio.get_running_loop(), []
        call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *a, **k: calls.append(a) or call_at(*a, **k))
        for seq in range(2, 502):
            line.event(seq)
        await settle()
        while len(world.handled) < 500:
            await settle()
        assert len(calls) < 10


# Lines


@pytest.mark.parametrize(
    "error", [OSError("reset"), TimeoutError(), ValueError("bug"), asyncio.CancelledError()]
)
async def test_whatever_a_socket_raises_ends_the_line_and_the_next_one_resumes(
    error: BaseException,
) -> None:
    # promise 20
    async with a_world() as world:
        line = await world.up()
        line.inbox.put_nowait(error)
        line = await world.up()
        assert line.handshakes() == [6]
        assert not world.task.done()


async def test_a_silent_socket_is_given_up_with_4000_and_taken_up_again() -> None:
    # promise 20
    async with a_world() as world:
        line = await world.line()  # no Hello
        began = asyncio.get_running_loop().time()
        second = await world.line()
        assert line.closed_with == 4000
        assert 20 <= asyncio.get_running_loop().time() - began < 60
        second.hello()  # and then no READY
        third = await world.line()
        assert second.closed_with == 4000
        third.hello()
        await settle()
        assert third.handshakes() == [2]


async def test_unanswered_heartbeats_end_the_line_though_its_peer_does_not_even_close() -> None:
    # promise 20
    async with a_world() as world:
        line = await world.up()
        line.answers_close = False
        began = asyncio.get_running_loop().time()
        following = await world.up()
        assert following.handshakes() == [6]
        assert asyncio.get_running_loop().time() - began < 3 * 45
        assert world.runner.health.last_close_code is None


@pytest.mark.parametrize("error", [OSError("gone"), asyncio.CancelledError()])
async def test_a_close_that_fails_is_a_close(error: BaseException) -> None:
    # promise 20
    async with a_world() as world:
        line = await world.up()

        async def close(code: int, /) -> int:
            raise error

        line.close = close  # type: ignore[method-assign, assignment]
        line.say(op=7)
        line = await world.up()
        assert line.handshakes() == [6]


async def test_heartbeats_report_the_number_received_last() -> None:
    # promises 18 and 21
    async with a_world() as world:
        line = await world.up()
        line.event(5)
        for _ in range(3):
            line.say(op=11)
            await asyncio.sleep(45)
            line.say(op=11)
            await settle()
        beats = [frame for frame in line.sent if frame["op"] == 1]
        assert beats[0] == {"op": 1, "d": 1}  # at READY
        assert beats[1:] == [{"op": 1, "d": 5}] * 3


@pytest.mark.parametrize("hang", [False, True])
async def test_a_token_that_is_not_to_be_had_ends_nothing(
    hang: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # promise 20
    answers = iter([False, False, True])

    async def token(new: bool) -> str:
        if not next(answers):
            if hang:
                await asyncio.Event().wait()
            raise ConnectionError("no route to the token endpoint")
        return "token"

    async with a_world(token=token) as world:
        line = await world.up()
        assert line.handshakes() == [2]
        told = [r for r in caplog.records if reason(r) == "no_line"]  # type: ignore[attr-defined]
        assert len(told) == 2
        assert "secret" not in caplog.text


@pytest.mark.parametrize("hang", [False, True])
async def test_a_line_that_does_not_open_is_tried_again(hang: bool) -> None:
    # promise 20
    async with AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, "102000000", intents=1)
        tries = 0

        async def next_line() -> Line:
            nonlocal tries
            tries += 1
            if tries < 4:
                if hang:
                    await asyncio.Event().wait()
                raise OSError("refused")
            return await world.make_line()

        world = World(store, gateway)
        world.next_line = next_line
        line = await world.up()
        assert line.handshakes() == [2]
        await world.stop()


async def test_a_code_that_forbids_another_try_ends_run_with_the_reason() -> None:
    # promise 16
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()
        line.end(4915)
        with pytest.raises(GatewayRefusedError, match="banned") as caught:
            await world.task
        assert (caught.value.account_id, caught.value.code) == (ACCOUNT, 4915)
        assert world.runner.health.next_try_at is None


async def test_intents_that_are_refused_end_run_with_a_sentence_that_names_them() -> None:
    # promise 16
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1 << 9 | 1 << 25))
        for _ in range(3):
            line = await world.line()
            line.hello()
            line.say(op=9, d=False)
        with pytest.raises(GatewayRefusedError, match=r"1 << 9 \| 1 << 25") as caught:
            await world.task
        assert caught.value.code is None
        assert world.tokens == [False, True, True]


async def test_a_refusal_out_of_token_or_connect_ends_run() -> None:
    async def token(new: bool) -> str:
        raise GatewayRefusedError("102000000", 100016, "The secret is wrong.")

    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1), token=token)
        with pytest.raises(GatewayRefusedError, match="The secret is wrong"):
            await world.task


async def test_a_refused_token_is_renewed() -> None:
    # promise 16
    async with a_world() as world:
        line = await world.up()
        line.end(4004)
        line = await world.up()
        line.end(1006)
        await world.up()
        assert world.tokens == [False, True, False]


async def test_a_fault_of_our_own_ends_run_instead_of_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # promise 20
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        line = await world.up()

        def broken(gateway: GatewaySession) -> None:
            raise TimeoutError("a fault that looks like a time-out")

        monkeypatch.setattr(store, "record_nowait", broken)
        line.event(2)
        with pytest.raises(TimeoutError, match="a fault"):
            await world.task
        assert len(world.lines) == 1
        monkeypatch.undo()


async def test_observe_sees_every_event_before_its_handler() -> None:
    async with a_world() as world:
        line = await world.up()
        line.event(2)
        line.event(2)
        await settle()
        kinds = [type(event) for event in world.seen]
        assert kinds == [Hello, Ready, Dispatch, Dispatch]
        assert world.handled == [2]
        line.end()
        await world.up()
        assert Resumed in [type(event) for event in world.seen]


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_observer_that_raises_is_told_and_ends_nothing(
    caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    # promise 20
    def observe(event: Event) -> None:
        raise kind("a framework's fault")

    async with a_world(observe=observe) as world:
        line = await world.up()
        line.event(2)
        await settle()
        assert world.handled == [2]
        assert "a framework's fault" in caplog.text


async def test_an_observer_that_is_async_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def observe(event: Event) -> None:
        pass

    async with a_world(observe=observe) as world:
        await world.up()
        assert "observe is async" in caplog.text


async def test_a_task_factory_that_raises_is_told_and_every_event_is_handled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 20
    def broken(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        raise TypeError("an old tracer's fault")

    async with a_world() as world:
        line = await world.up()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(broken)
        try:
            line.event(2)
            line.event(3)
            await settle()
        finally:
            loop.set_task_factory(None)
        assert world.handled == [2, 3]
        assert "an old tracer's fault" in caplog.text


async def test_before_identify_is_awaited_before_the_line_is_opened_and_never_before_a_resume() -> (
    None
):
    # promise 21
    steps: list[str] = []
    may = asyncio.Event()

    async def before_identify() -> None:
        steps.append("asked")
        await may.wait()

    async with a_world(before_identify=before_identify) as world:
        await asyncio.sleep(3600)
        assert (steps, world.lines, world.tokens) == (["asked"], [], [])
        may.set()
        line = await world.up()
        line.end()
        line = await world.up()
        assert line.handshakes() == [6]
        assert steps == ["asked"]
        line.end(4006)
        line = await world.up()
        assert line.handshakes() == [2]
        assert steps == ["asked", "asked"]


class Pacer:
    """What a runner tells whoever paces many shards."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def before_identify(self, shard: tuple[int, int], /) -> None:
        assert shard == (0, 1)
        self.told.append("may I")

    def identified(self, shard: tuple[int, int], /) -> None:
        self.told.append("identified")

    def withdraw(self, shard: tuple[int, int], /) -> None:
        self.told.append("ended")


async def test_pace_is_told_when_an_identify_goes_out_and_when_each_line_ends() -> None:
    # promise 21
    pace = Pacer()
    async with a_world(pace=pace) as world:
        await (await world.line()).close(4000)
        world.lines[0].end()  # before Hello: the Identify that was granted never goes out
        line = await world.up()
        assert pace.told == ["may I", "ended", "may I", "identified"]
        line.end()
        await world.up()  # a Resume
        assert pace.told[4:] == ["ended"]
    assert pace.told[5:] == ["ended"]


async def test_pace_is_told_of_a_line_that_never_opened() -> None:
    # promise 21
    pace = Pacer()

    async def connect() -> Line:
        raise OSError("no route")

    async with a_world(pace=pace, connect=connect):
        await settle()
        assert pace.told == ["may I", "ended"]


ANSWERS = {"token": "T", "connect": Line(), "receive": '{"op": 11}'}


@pytest.mark.parametrize("turned_into", ["an error", "an answer"])
@pytest.mark.parametrize(
    "where", ["before_identify", "token", "connect", "receive", "send", "close"]
)
async def test_a_cancellation_that_a_library_swallows_ends_run(
    where: str, turned_into: str
) -> None:
    # promise 20
    reached = asyncio.Event()

    async def hang(*_: object) -> Any:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if turned_into == "an error":
                raise RuntimeError("could not") from None
        return ANSWERS.get(where)

    options = {} if where in ("receive", "send", "close") else {where: hang}
    async with a_world(**options) as world:
        if not options:
            line = await world.up()
            setattr(line, where, hang)
            line.say(op={"close": 7, "send": 1}.get(where, 11))
        await reached.wait()
        world.task.cancel()
        await asyncio.wait([world.task], timeout=3600)
        assert world.task.cancelled()


@pytest.mark.parametrize("where", ["token", "connect"])
async def test_what_comes_too_late_but_comes_is_taken(where: str) -> None:
    # promise 20: such as `asyncio.wait_for` of Python 3.11 makes of a time-out
    async def late(*_: object) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return line if where == "connect" else "secret-token"

    line = Line()
    async with a_world(**{where: late}) as world:
        await asyncio.sleep(10.5)
        line = line if where == "connect" else world.lines[0]
        line.hello()
        line.ready()
        line.event(2)
        await settle()
        assert line.handshakes() == [2]
        assert world.handled == [2]


async def test_a_time_out_that_a_library_keeps_to_itself_is_no_missing_heartbeat() -> None:
    # promise 20
    async with a_world() as world:
        line = await world.up()
        receive = line.receive

        async def keep_to_itself() -> str | bytes | None:
            try:
                return await receive()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                return '{"op": 11}'

        line.receive = keep_to_itself  # type: ignore[method-assign]
        line.say(op=11)
        for _ in range(5):
            await asyncio.sleep(45.1)
            line.say(op=11)
        line.receive = receive  # type: ignore[method-assign]
        line.say(op=11)
        await settle()
        assert [frame["op"] for frame in line.sent].count(1) == 6


async def test_a_silent_line_is_given_up_though_its_send_keeps_a_time_out_to_itself() -> None:
    # promise 20
    async def hang(frame: str, /) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async with a_world() as world:
        line = await world.up()
        line.send = hang  # type: ignore[method-assign]
        line.say(op=1)
        await asyncio.sleep(200)
        assert line.closed_with == 4000


async def test_a_line_that_is_slow_to_close_hides_no_error() -> None:
    async def connect() -> Line:
        await asyncio.sleep(9.5)
        line.answers_close = False
        return line

    async def token(new: bool) -> Any:
        return 1

    line = Line()
    with pytest.raises(TypeError, match="token must be a str"):
        async with a_world(connect=connect, token=token) as world:
            await asyncio.wait([world.task])


async def test_thousands_of_handlers_in_flight_are_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_world(grace=0.0) as world:
        line = await world.up()
        world.work = lambda event: asyncio.Event().wait()
        for seq in range(2, 4002):
            line.event(seq)
        while world.runner.health.in_flight < 4000:
            await settle()
        assert [reason(r) for r in caplog.records].count("crowd") == 1


async def test_a_new_event_under_a_known_number_is_handled_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 18
    async with a_world() as world:
        line = await world.up()
        for seq in range(2, 5):
            line.event(seq)
        await settle()
        for seq in range(2, 5):
            line.say(op=0, s=seq, t=KIND, id=f"x{seq}", d={"id": f"new{seq}"})
            line.say(op=0, s=seq, t=KIND, id=f"x{seq}", d={"id": f"new{seq}"})
            line.say(op=0, s=seq, t=KIND, id=f"e{seq}", d={"id": f"m{seq}"})
        await settle()
        assert sorted(world.handled) == [2, 2, 3, 3, 4, 4]  # type: ignore[type-var]
        assert [reason(r) for r in caplog.records].count("renumbered") == 1


async def test_steps_of_the_wall_clock_are_no_dead_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # promise 11
    async with a_world() as world:
        line = await world.up()
        for step in (86_400.0, -86_400.0):
            now = time.time() + step
            monkeypatch.setattr("qqbot_session.shard.time.time", lambda now=now: now)
            for _ in range(4):
                await asyncio.sleep(20)
                line.say(op=11)
        await settle()
        assert line.closed_with is None
        assert len([frame for frame in line.sent if frame["op"] == 1]) in (4, 5)


async def test_a_line_beats_whatever_the_clock_says_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # promise 11: some machines have no clock until they were told the time
    for start in range(1, 40):
        monkeypatch.setattr("qqbot_session.shard.time.time", lambda now=start / 3: now)
        async with a_world() as world:
            line = await world.up()
            for _ in range(10):
                line.say(op=11)
                await asyncio.sleep(45.1)
            assert [frame["op"] for frame in line.sent].count(1) == 11
            assert line.closed_with is None


async def test_a_step_of_the_wall_clock_lets_no_event_go_on_the_next_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # promise 11, 18
    working = asyncio.Event()

    async with a_world() as world:
        line = await world.up()
        world.work = lambda event: working.wait()
        line.event(2)
        await settle()
        month_later = time.time() + 30 * 86_400.0
        monkeypatch.setattr("qqbot_session.shard.time.time", lambda: month_later)
        line.end(None)
        line = await world.up()
        line.event(4)
        await settle()
        assert (world.gateway.settled, world.gateway.received) == (1, 4)
        working.set()


# The end


async def test_a_resume_that_an_orderly_stop_cut_short_is_not_counted() -> None:
    # promise 17
    storage = MemoryStorage()
    handshakes = []
    for _ in range(6):
        async with AsyncSessionStore(storage) as store:
            world = World(store, await open_gateway(store, "102000000", intents=1))
            line = await world.line()
            line.hello()
            await settle()
            if line.handshakes() == [2]:
                line.ready()
                await settle()
            handshakes += line.handshakes()
            await world.stop()
            assert line.closed_with == 4000
    assert handshakes == [2, 6, 6, 6, 6, 6]


async def test_cancelled_it_closes_with_4000_and_lets_handlers_finish() -> None:
    # promise 22
    async def work(event: Dispatch) -> None:
        await asyncio.sleep(3)
        world.handled.append(event.seq)

    async with a_world(grace=5.0) as world:
        line = await world.up()
        world.work = work
        line.event(2)
        await settle()
        began = asyncio.get_running_loop().time()
        await world.stop()
        assert world.task.cancelled()
        assert line.closed_with == 4000
        assert world.handled == [2]
        assert asyncio.get_running_loop().time() - began == pytest.approx(3)
        state = await world.store.load(ACCOUNT)
        assert state is not None
        assert state.last_seq == 2


@pytest.mark.parametrize("answers", [True, False])
async def test_what_is_handled_within_the_grace_is_on_storage_at_once(answers: bool) -> None:
    """Supervisors with little patience kill what still has a window, or a farewell, to wait for."""
    # promise 31
    storage = MemoryStorage()

    async def work(event: Dispatch) -> None:
        await asyncio.sleep(0.3 * (event.seq or 0))

    async with a_world(AsyncSessionStore(storage, debounce=60), grace=60) as world:
        line = await world.up()
        line.answers_close = answers
        world.work = work
        await asyncio.sleep(10)
        for seq in range(2, 8):
            line.event(seq)
        await settle()
        world.task.cancel()
        for seq in range(2, 8):
            await asyncio.sleep(0.3 if seq > 2 else 0.6)
            await settle()
            assert decode(storage.records[ACCOUNT]).last_seq == seq
        await asyncio.wait([world.task])


async def test_what_was_handled_within_the_window_is_on_storage_before_the_farewell() -> None:
    # promise 31
    storage = MemoryStorage()
    async with a_world(AsyncSessionStore(storage, debounce=60)) as world:
        line = await world.up()
        line.answers_close = False
        await asyncio.sleep(10)
        for seq in range(2, 8):
            line.event(seq)
            await asyncio.sleep(0.5)
        assert decode(storage.records[ACCOUNT]).last_seq < 7
        world.task.cancel()
        await settle()
        assert decode(storage.records[ACCOUNT]).last_seq == 7
        await asyncio.wait([world.task])


async def test_a_lone_event_is_one_write_and_that_at_its_end() -> None:
    # promise 2
    storage = MemoryStorage()
    writes: list[float] = []

    async def work(event: Dispatch) -> None:
        await asyncio.sleep(3)

    store = AsyncSessionStore(
        storage, on_write=lambda _: writes.append(asyncio.get_running_loop().time())
    )
    async with a_world(store) as world:
        line = await world.up()
        world.work = work
        await asyncio.sleep(30)
        writes.clear()
        line.event(2)
        await settle()
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3.01)
        assert decode(storage.records[ACCOUNT]).last_seq == 2
        await asyncio.sleep(10)
        assert writes == [pytest.approx(began + 3)]


async def test_a_handler_that_outlasts_the_grace_is_cancelled_and_its_event_stays_open() -> None:
    # promises 18 and 22
    async with a_world(grace=5.0) as world:
        line = await world.up()
        world.work = lambda event: asyncio.sleep(3600)
        line.event(2)
        await settle()
        began = asyncio.get_running_loop().time()
        await world.stop()
        assert asyncio.get_running_loop().time() - began == pytest.approx(5)
        assert world.gateway.settled == 1
        assert world.runner.health.in_flight == 0


@pytest.mark.parametrize("end", ["cancelled", "frame"])
async def test_handlers_end_with_their_line_though_the_store_was_closed_before_it(end: str) -> None:
    # promise 22
    store = AsyncSessionStore(MemoryStorage())
    gateway = await open_gateway(store, "102000000", intents=1)
    world = World(store, gateway, grace=5.0)
    line = await world.up()
    world.work = lambda event: asyncio.sleep(4 if event.seq == 2 else 3600)
    line.event(2)
    line.event(3)
    await settle()
    await store.aclose()
    if end == "cancelled":
        world.task.cancel()
    else:
        line.say(op=11)  # which is to be recorded
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreClosedError):
        await world.task
    assert asyncio.get_running_loop().time() - began == pytest.approx(5)
    assert world.gateway.settled == 2
    assert world.runner.health.in_flight == 0
    assert world.runner not in watch.kept_up()


async def test_a_second_cancellation_ends_the_grace() -> None:
    # promise 22
    async with a_world(grace=3600) as world:
        line = await world.up()
        world.work = lambda event: asyncio.sleep(7200)
        line.event(2)
        await settle()
        began = asyncio.get_running_loop().time()
        world.task.cancel()
        await asyncio.sleep(1)
        world.task.cancel()
        await asyncio.wait([world.task])
        assert asyncio.get_running_loop().time() - began == pytest.approx(1)
        assert world.gateway.settled == 1


async def test_a_handler_that_will_not_be_cancelled_holds_the_end_up_for_moments_only() -> None:
    release = asyncio.Event()

    async def stubborn(event: Dispatch) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with a_world(grace=0) as world:
        line = await world.up()
        world.work = stubborn
        line.event(2)
        await settle()
        began = asyncio.get_running_loop().time()
        await world.stop()
        assert asyncio.get_running_loop().time() - began == pytest.approx(2)
        release.set()
        await settle()


async def test_what_waits_for_a_place_is_not_begun_at_the_end_and_stays_open() -> None:
    # promises 18 and 22
    async def work(event: Dispatch) -> None:
        world.handled.append(event.seq)
        await asyncio.sleep(1)

    async with a_world(concurrency=1) as world:
        line = await world.up()
        world.work = work
        for seq in range(2, 6):
            line.event(seq)
        await settle()
        await world.stop()
        assert world.handled == [2]
        assert world.gateway.settled == 2


async def test_what_waited_for_a_place_is_handled_when_run_is_called_again() -> None:
    # promise 18: the same session takes nothing for handled that was never begun
    async def work(event: Dispatch) -> None:
        world.handled.append(event.seq)
        await asyncio.sleep(1)

    async with a_world(concurrency=1) as world:
        line = await world.up()
        world.work = work
        for seq in range(2, 6):
            line.event(seq)
        await settle()
        await world.stop()
        world.task = asyncio.create_task(world.runner.run())
        line = await world.line()
        line.hello()
        await settle()
        for seq in range(3, 6):
            line.event(seq)
        line.say(op=0, s=6, t="RESUMED", d="")
        await asyncio.sleep(10)
        assert world.handled == [2, 3, 4, 5]
        assert world.gateway.settled == 6


async def test_an_event_whose_handler_is_cancelled_before_its_first_step_comes_again() -> None:
    # promise 18: whoever cancels all tasks
    async with a_world() as world:
        line = await world.up()
        before = asyncio.all_tasks()
        line.event(2)
        new: set[asyncio.Task[Any]] = set()
        for _ in range(20):
            if not new:
                await asyncio.sleep(0)
                new = asyncio.all_tasks() - before
        assert new
        assert not world.handled
        for handler in new:
            handler.cancel()
        await settle()
        line.end(4009)
        line = await world.line()
        line.hello()
        await settle()
        line.event(2)
        line.say(op=0, s=3, t="RESUMED", d="")
        await settle()
        assert world.handled == [2]
        assert world.gateway.settled == 3


async def test_run_can_be_called_again_but_not_twice_at_a_time() -> None:
    async with a_world() as world:
        await world.up()
        with pytest.raises(RuntimeError, match="running already"):
            await world.runner.run()
        await world.stop()
        world.task = asyncio.create_task(world.runner.run())
        line = await world.up()
        assert line.handshakes() == [6]


# What is said


async def test_of_two_runners_of_one_session_the_newer_stays() -> None:
    """Otherwise each would end the other's line, again and again and at once."""
    async with AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, "102000000", intents=1)
        older = World(store, gateway)
        line = await older.up()
        newer = World(store, gateway)
        await newer.up()
        line.end(4009)  # the gateway's, once the session has another line
        with pytest.raises(RuntimeError, match="another line was opened for the same session"):
            await older.task
        assert newer.runner.health.connected_since is not None
        await newer.stop()
        assert (len(older.lines), len(newer.lines)) == (1, 1)


async def test_health_tells_how_the_shard_is() -> None:
    async with a_world() as world:
        assert world.runner.health == Health()
        line = await world.up()
        health = world.runner.health
        assert health.connected_since is not None
        assert abs(health.connected_since - time.time()) < 60
        line.say(op=11)
        await settle()
        assert world.runner.health.last_ack_at == world.runner.health.last_frame_at
        line.end(4009)
        await settle()
        health = world.runner.health
        assert (health.connected_since, health.last_close_code) == (None, 4009)
        assert health.last_close_meaning == "The connection expired."
        assert health.next_try_at is not None
        await world.up()
        assert world.runner.health.next_try_at is None
        assert world.runner.health.connected_since is not None


async def test_every_step_has_one_log_line_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qqbot_session")
    async with a_world() as world:
        line = await world.up()
        line.end(4009)
        line = await world.up()
        line.end(4006)
        await world.up()
        said = [reason(r) for r in caplog.records if reason(r) != "absent"]  # that is the store's
        first = ["connected", "identify", "ready", "closed"]
        second = ["connected", "resume", "resumed", "closed"]
        assert said == [*first, *second, *first[:3]]
        assert {r.qqbot_account for r in caplog.records} == {ACCOUNT}  # type: ignore[attr-defined]
        closed = [r for r in caplog.records if reason(r) == "closed"]
        assert [(r.qqbot_code, r.qqbot_next) for r in closed] == [  # type: ignore[attr-defined]
            (4009, "resume"),
            (4006, "identify"),
        ]
        assert "The session id is not valid." in caplog.text
        assert "secret-token" not in caplog.text


async def test_nothing_that_people_wrote_is_in_a_log_line_or_in_its_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 33
    caplog.set_level(logging.DEBUG, "qqbot_session")

    async def fail(event: Dispatch) -> None:
        raise ValueError("a bug")

    def observe(event: Event) -> None:
        raise KeyError("a bug")

    async with a_world(observe=observe) as world:
        world.work = fail
        line = await world.line()
        line.hello()
        line.say(op=0, s=1, t="READY", d={"session_id": "S", "user": {"username": "PIN 4711"}})
        line.say(op=0, s=2, t=KIND, id="e2", d={"id": "m2", "content": "PIN 4711"})
        line.say(op=99, d="PIN 4711")
        line.say(op=0, s="PIN 4711", t=KIND, d="PIN 4711")
        line.say(op="PIN 4711")
        await settle()
        event = {"type": KIND, "seq": 2, "id": "e2"}
        told = [r.qqbot_event for r in caplog.records if hasattr(r, "qqbot_event")]
        assert told == [event, event]  # of the observer and of the handler
        assert not [r for r in caplog.records if "4711" in f"{r.getMessage()} {vars(r)}"]
        assert "4711" not in repr(world.seen) + repr(world.runner)


async def test_a_tiny_heartbeat_interval_is_one_warning_and_a_heartbeat_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_world() as world:
        line = await world.line()
        line.hello(0.001)
        await settle()
        line.ready()
        for _ in range(10):
            line.say(op=11)
            await asyncio.sleep(1)
        assert len([frame for frame in line.sent if frame["op"] == 1]) <= 11
        assert [reason(r) for r in caplog.records].count("short_interval") == 1


async def test_a_logging_filter_that_raises_ends_nothing() -> None:
    # promise 1
    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("the application's own fault")

    log = logging.getLogger("qqbot_session")
    log.addFilter(broken)
    log.setLevel(logging.INFO)
    try:
        async with a_world() as world:
            line = await world.up()
            line.end(4009)
            line = await world.up()
            line.event(4)
            await settle()
            assert world.handled == [4]
    finally:
        log.removeFilter(broken)
        log.setLevel(logging.NOTSET)


# What holds across restarts


async def test_a_refused_bot_waits_at_its_next_start_and_says_why_and_until_when(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # promise 30
    async with AsyncSessionStore(MemoryStorage()) as store:
        loop = asyncio.get_running_loop()
        for secret, waits in [("one", False), ("one", True), ("two", False)]:
            began = loop.time()
            gateway = await open_gateway(store, "102000000", intents=1, secret=secret)
            world = World(store, gateway)
            line = await world.line()
            assert (loop.time() - began > 800) == waits
            line.hello()
            await settle()
            line.end(4014)
            with pytest.raises(GatewayRefusedError, match="may not use these intents"):
                await world.task
        [told] = [r for r in caplog.records if reason(r) == "waiting"]
        assert (
            "QQ refused the bot: The bot may not use these intents (code 4014). With"
            in told.message
        )
        assert f"`qqbot-session clear {ACCOUNT}`" in told.message
        assert told.qqbot_code == 4014  # type: ignore[attr-defined]
        assert "'one'" not in repr(gateway.state)


async def test_an_identify_is_on_storage_before_it_goes_out() -> None:
    # promise 30
    storage = MemoryStorage()
    async with AsyncSessionStore(storage) as store:
        gateway = await open_gateway(store, "102000000", intents=1)
        world = World(store, gateway)
        line = await world.line()
        seen = []

        async def send(frame: str, /) -> None:
            seen.append(await storage.read(ACCOUNT))

        line.send = send  # type: ignore[method-assign]
        line.hello()
        await settle()
        await world.stop()
        [record] = seen
        assert b"identifyBudgetFullAt" in (record or b"")


async def test_a_storage_that_hangs_holds_an_identify_up_for_two_seconds() -> None:
    # promise 32
    class Hung(MemoryStorage):
        async def commit(self, changes: Any) -> Any:
            await asyncio.Event().wait()

    store = AsyncSessionStore(Hung())
    gateway = await open_gateway(store, "102000000", intents=1)
    world = World(store, gateway)
    line = await world.line()
    line.hello()
    await asyncio.sleep(1.9)
    assert not line.sent
    await asyncio.sleep(0.2)
    assert line.handshakes() == [2]
    await world.stop()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])


async def test_the_budget_outlives_an_expired_session() -> None:
    # promise 30
    storage = MemoryStorage()
    async with AsyncSessionStore(storage, max_age=0.0, clock=time.time) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        await world.up()
        await world.stop()
        await store.flush()
        gateway = await open_gateway(store, "102000000", intents=1)
        assert not gateway.resumable
        await store.flush()
        assert b"identifyBudgetFullAt" in (await storage.read(ACCOUNT) or b"")


# Names and arguments


def test_an_account_id_names_app_shard_and_environment() -> None:
    # promise 12
    assert account_id_for("102000000") == "102000000-0-1"
    assert account_id_for("102000000", (3, 4), sandbox=True) == "102000000-3-4-sandbox"
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        account_id_for("102000000", (4, 4))


async def test_open_gateway_resumes_what_the_store_remembers() -> None:
    async with AsyncSessionStore(MemoryStorage()) as store:
        world = World(store, await open_gateway(store, "102000000", intents=1))
        await world.up()
        await world.stop()
        again = await open_gateway(store, "102000000", intents=1)
        assert again.resumable
        other = await open_gateway(store, "102000000", intents=2)
        assert not other.resumable
        sandbox = await open_gateway(store, "102000000", intents=1, sandbox=True)
        assert (sandbox.account_id, sandbox.resumable) == ("102000000-0-1-sandbox", False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"concurrency": 0}, ValueError),
        ({"concurrency": 2.0}, TypeError),
        ({"concurrency": True}, TypeError),
        ({"grace": -1.0}, ValueError),
        ({"grace": float("nan")}, ValueError),
        ({"grace": "5"}, TypeError),
    ],
)
async def test_wrong_options_are_refused_by_name(
    options: dict[str, Any], error: type[Exception]
) -> None:
    # promise 10
    async with AsyncSessionStore(MemoryStorage()) as store:
        gateway = await open_gateway(store, "102000000", intents=1)
        with pytest.raises(error, match=next(iter(options))):
            World(store, gateway, **options)
