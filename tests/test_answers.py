"""What holds an event open beyond its handler: `hold`, `until`, and an answer that is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from driven import NOW, Driven

from qqbot_session.answers import (
    REPEATED,
    Answers,
    Hold,
    answers_for,
    handle_whole,
    hold,
    skip_answer,
    until,
)
from qqbot_session.gateway import Dispatch
from qqbot_session.state import encode

KIND = "C2C_MESSAGE_CREATE"


def message(message_id: object = "m", kind: str = KIND) -> Dispatch:
    return Dispatch(kind, 2, "e", {"id": message_id})


async def nothing(event: Dispatch) -> None:
    """Be a handler that only puts the event into a queue."""


def handled(handle: Callable[[Dispatch], Any], event: Dispatch | None = None) -> asyncio.Task[Any]:
    """Handle an event as `ShardRunner` does; done when the event is."""
    return asyncio.create_task(handle_whole(handle, event or message()))


async def took(task: asyncio.Task[Any]) -> float:
    """Return the virtual seconds until the event was handled."""
    began = asyncio.get_running_loop().time()
    await task
    return asyncio.get_running_loop().time() - began


async def test_an_event_is_handled_when_what_it_is_held_for_has_ended() -> None:
    # promise 35
    async def queue_it(event: Dispatch) -> None:
        asyncio.get_running_loop().call_later(3, hold().release)
        until(asyncio.sleep(5))

    assert await took(handled(queue_it)) == 5


async def test_a_hold_that_is_cancelled_leaves_the_event_unhandled() -> None:
    # promise 18
    async def queue_it(event: Dispatch) -> None:
        hold().cancel()

    with pytest.raises(asyncio.CancelledError):
        await handled(queue_it)


@pytest.mark.parametrize(
    ("error", "is_handled"),
    [(None, True), (LookupError(), True), (asyncio.CancelledError(), False)],
)
async def test_the_body_of_a_hold_ends_an_event_as_a_handler_does(
    error: BaseException | None, is_handled: bool
) -> None:
    # promise 18
    held: list[Hold] = []

    async def queue_it(event: Dispatch) -> None:
        held.append(hold())

    task = handled(queue_it)
    await asyncio.sleep(1)
    with suppress(LookupError, asyncio.CancelledError), held[0]:
        assert repr(held[0]) == "<Hold open>"
        if error is not None:
            raise error
    await asyncio.wait([task])
    assert task.cancelled() is not is_handled


async def test_what_a_held_awaitable_raises_counts_as_the_handlers_own_error() -> None:
    async def fail() -> None:
        raise LookupError("in the queue")

    async def queue_it(event: Dispatch) -> None:
        until(fail())

    with pytest.raises(LookupError, match="in the queue"):
        await handled(queue_it)


async def test_cancelling_the_event_cancels_what_holds_it() -> None:
    held: list[Hold] = []

    async def queue_it(event: Dispatch) -> None:
        held.append(hold())

    task = handled(queue_it)
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert repr(held[0]) == "<Hold ended>"
    held[0].release()  # by whoever answers at last: it does no harm


async def test_hold_outside_a_handler_or_after_the_event_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"hold\(\) holds an event open: call it in"):
        hold()
    late: list[asyncio.Task[None]] = []

    async def later() -> None:
        await asyncio.sleep(1)
        with pytest.raises(RuntimeError, match=r"until\(\) comes too late: the event has been"):
            until(asyncio.get_running_loop().create_future())

    async def leave_a_task(event: Dispatch) -> None:
        late.append(asyncio.create_task(later()))

    await handled(leave_a_task)
    await late[0]


@pytest.mark.parametrize(
    "body",
    [
        {"msg_id": "m", "msg_type": 0, "content": "hi"},
        {"msg_id": "m", "stream": {"state": 10}},
        {"msg_id": "m", "input_state": 10},
    ],
)
async def test_a_message_is_handled_when_its_answer_was_accepted(body: Any) -> None:
    # promise 35
    answers = Answers()
    asyncio.get_running_loop().call_later(7, answers.sent, body)
    assert await took(handled(answers.awaited(nothing))) == 7
    assert repr(answers) == "<Answers timeout=60 waiting=0>"


@pytest.mark.parametrize(
    "body",
    [
        {"msg_id": "another"},
        {"msg_id": None, "content": "not a reply"},
        {"event_id": "m"},
        {"msg_id": "m", "msg_type": 6, "input_notify": {"input_type": 1}},
        {"msg_id": "m", "stream": {"state": 1}},
        {"msg_id": "m", "input_state": 1},
        "no mapping",
    ],
)
async def test_what_is_no_answer_to_it_leaves_it_open_for_a_minute(body: Any) -> None:
    # promise 35
    answers = Answers()
    asyncio.get_running_loop().call_later(7, answers.sent, body)
    assert await took(handled(answers.awaited(nothing))) == 60


class ApiError(Exception):
    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ApiError("refused", code=REPEATED), 7),
        (RuntimeError("QQ Bot API error [400] /v2/users/U/messages: 消息被去重, 请检查"), 7),
        (RuntimeError("err_code 40054005"), 7),
        (ApiError("content not allowed", code=40034004), 60),
        (TimeoutError(), 60),
    ],
)
async def test_of_the_errors_only_a_repetition_is_an_answer(
    error: Exception, seconds: float
) -> None:
    # promise 35
    answers = Answers()
    asyncio.get_running_loop().call_later(7, answers.sent, {"msg_id": "m"}, error)
    assert await took(handled(answers.awaited(nothing))) == seconds


async def test_the_time_for_an_answer_begins_at_the_end_of_the_handler() -> None:
    async def slow(event: Dispatch) -> None:
        await asyncio.sleep(100)

    assert await took(handled(Answers(timeout=30).awaited(slow))) == 130


async def test_an_answer_that_the_handler_sends_counts_unless_it_is_an_acknowledgement() -> None:
    async def answer(event: Dispatch) -> None:
        answers.sent({"msg_id": "m"})
        await asyncio.sleep(1)

    answers = Answers()
    assert await took(handled(answers.awaited(answer))) == 1
    answers = Answers(in_handler=False)
    asyncio.get_running_loop().call_later(20, answers.sent, {"msg_id": "m"})
    assert await took(handled(answers.awaited(answer))) == 20


async def test_a_handler_that_raises_or_skips_the_answer_has_handled_its_message() -> None:
    # promise 35
    async def fail(event: Dispatch) -> None:
        raise LookupError("no answer")

    async def ignore(event: Dispatch) -> None:
        skip_answer()

    with pytest.raises(LookupError):
        await handled(Answers().awaited(fail))
    assert await took(handled(Answers().awaited(ignore))) == 0


async def test_who_holds_the_message_knows_better_than_its_answer() -> None:
    async def queue_it(event: Dispatch) -> None:
        until(asyncio.sleep(2))

    answers = Answers()
    assert await took(handled(answers.awaited(queue_it))) == 2


@pytest.mark.parametrize("event", [message(kind="GROUP_ADD_ROBOT"), message(7), message("")])
async def test_what_nobody_could_answer_is_handled_with_its_handler(event: Dispatch) -> None:
    assert await took(handled(Answers().awaited(nothing), event)) == 0


async def test_hundreds_of_messages_wait_each_for_its_own_answer() -> None:
    answers = Answers()
    tasks = [handled(answers.awaited(nothing), message(f"m{n}")) for n in range(500)]
    await asyncio.sleep(1)
    answers.sent({"msg_id": "m123"})
    await asyncio.sleep(1)
    assert [n for n, task in enumerate(tasks) if task.done()] == [123]
    await asyncio.sleep(58.5)
    assert all(task.done() for task in tasks)


@pytest.mark.real_time
async def test_an_answer_and_the_end_of_a_hold_may_come_from_another_thread() -> None:
    answers = Answers()
    task = handled(answers.awaited(nothing))
    await asyncio.sleep(0)
    await asyncio.to_thread(answers.sent, {"msg_id": "m"})
    await asyncio.wait_for(task, 30)

    async def queue_it(event: Dispatch) -> None:
        threading.Thread(target=hold().release).start()

    await asyncio.wait_for(handled(queue_it), 30)


async def test_a_handler_that_waits_for_the_answer_works_without_a_runner() -> None:
    answers = Answers()
    task = asyncio.create_task(answers.awaited(nothing)(message()))  # type: ignore[arg-type]
    await asyncio.sleep(1)
    answers.accepted("m")
    assert await took(task) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'answred'"):
        answers_for("answred")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than 0 seconds, not 0"):
        Answers(timeout=0)
    with pytest.raises(TypeError, match="not '60'"):
        Answers(timeout="60")  # type: ignore[arg-type]
    assert answers_for("handled") is None
    assert isinstance(answers_for("answered"), Answers)


async def test_hundreds_of_unanswered_messages_hold_the_mark_and_fit_into_the_record() -> None:
    # promises 18 and 35
    gateway, answers = Driven("a", app_id="102000000", intents=1), Answers()
    gateway.handshake()
    gateway.receive({"op": 0, "s": 1, "t": "READY", "d": {"session_id": "S", "user": {}}})

    async def handle(event: Dispatch) -> None:
        with gateway.handling(event):
            await handle_whole(answers.awaited(nothing), event)

    tasks = []
    for seq in range(2, 802):
        event = gateway.receive(
            {"op": 0, "s": seq, "t": KIND, "id": f"e{seq}", "d": {"id": f"m{seq}"}}, NOW
        )
        assert isinstance(event, Dispatch)
        tasks.append(asyncio.create_task(handle(event)))
    await asyncio.sleep(1)
    for seq in range(3, 802, 2):
        answers.accepted(f"m{seq}")
    await asyncio.sleep(1)
    assert (gateway.settled, sum(task.done() for task in tasks)) == (1, 400)
    assert gateway.state is not None
    assert len(encode(gateway.state)) < 16 * 1024
    await asyncio.gather(*tasks)
    assert gateway.settled == 801
    assert repr(answers) == "<Answers timeout=60 waiting=0>"
