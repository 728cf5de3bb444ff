"""The Identify and Resume rules: promises 16 to 19."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest
from driven import HELLO, NOW, Driven, attributes, extra_of, has_session
from hypothesis import given, settings
from hypothesis import strategies as st

from qqbot_session.errors import GatewayProtocolError
from qqbot_session.gateway import (
    CLOSE_RULES,
    CloseRule,
    Connection,
    Dispatch,
    Event,
    GatewaySession,
    HeartbeatAck,
    HeartbeatRequest,
    Hello,
    InvalidSession,
    Next,
    Ready,
    Reconnect,
    Resumed,
    Stale,
    Unknown,
)
from qqbot_session.state import SessionState, decode, encode

RESUME, IDENTIFY, STOP = Next.RESUME, Next.IDENTIFY, Next.STOP


def make(**options: Any) -> Driven:
    standard = {"app_id": "app", "intents": 513, "remember_events": 0, "jitter": lambda: 0.0}
    return Driven("bot", **{**standard, **options})


def ready(session_id: str = "session-1", seq: int | None = 1) -> dict[str, Any]:
    user = {"id": "7", "username": "bot", "bot": True}
    data = {"version": 1, "session_id": session_id, "user": user, "shard": [0, 0]}
    return {"op": 0, "s": seq, "t": "READY", "d": data}


def resumed(seq: int) -> dict[str, Any]:
    return {"op": 0, "s": seq, "t": "RESUMED", "d": ""}


def message(seq: int | None, id: str = "", t: str = "C2C_MESSAGE_CREATE") -> dict[str, Any]:
    id = id or f"m{seq}"
    return {"op": 0, "s": seq, "t": t, "id": f"{t}:e{seq}", "d": {"id": id, "content": "hi"}}


def identified(gateway: Driven, session_id: str = "session-1") -> Driven:
    assert gateway.handshake("token", NOW)["op"] == 2
    gateway.receive(ready(session_id), NOW)
    return gateway


def dispatch(gateway: Driven | Connection, payload: object, now: float = NOW) -> Dispatch:
    event = gateway.receive(payload, now)
    assert isinstance(event, Dispatch)
    return event


def handle(gateway: Driven, *seqs: int) -> None:
    for seq in seqs:
        gateway.settle(dispatch(gateway, message(seq)))


def restarted(gateway: Driven, **options: Any) -> Driven:
    """Return what the next process makes of what this one stored."""
    state = gateway.state
    return make(resume=None if state is None else decode(encode(state)), **options)


def resume_op(gateway: Driven, now: float = NOW) -> int:
    """Return the op of the handshake that a copy of the session would send now."""
    again = restarted(gateway)
    return int(again.handshake("token", now)["op"])


# Handshakes


def test_without_a_session_the_handshake_is_identify() -> None:
    # promise 16
    assert make(shard=(1, 4)).handshake("abc", NOW) == {
        "op": 2,
        "d": {"token": "QQBot abc", "intents": 513, "shard": [1, 4], "properties": {}},
    }


def test_with_a_session_the_handshake_is_resume_from_the_settled_number() -> None:
    # promises 16 and 18
    gateway = identified(make())
    handle(gateway, 2, 3)
    dispatch(gateway, message(4))
    gateway.closed(None)
    assert gateway.handshake("QQBot abc", NOW) == {
        "op": 6,
        "d": {"token": "QQBot abc", "session_id": "session-1", "seq": 3},
    }


def test_a_handshake_is_json_and_the_token_is_nowhere_kept() -> None:
    gateway = identified(make())
    gateway.closed(None)
    json.dumps(gateway.handshake("s3cret", NOW))
    assert gateway.state is not None
    assert b"s3cret" not in encode(gateway.state)
    assert "s3cret" not in repr(gateway) + repr(attributes(gateway)) + repr(gateway.connect())


@pytest.mark.parametrize(("token", "error"), [("", ValueError), (None, TypeError), (7, TypeError)])
def test_a_wrong_token_is_refused_before_anything_changes(
    token: Any, error: type[Exception]
) -> None:
    gateway = identified(make())
    before = gateway.state
    with pytest.raises(error, match="token"):
        gateway.handshake(token, NOW)
    assert gateway.state is before


def test_a_stored_session_is_resumed_by_the_next_process() -> None:
    # promise 16
    gateway = identified(make())
    handle(gateway, 2)
    again = restarted(gateway)
    assert again.state == gateway.state
    assert again.handshake("t", NOW)["d"]["seq"] == 2


BOUND = {"app_id": "app", "shard": (0, 1), "intents": 513}


@pytest.mark.parametrize(
    "change",
    [{"app_id": "other"}, {"shard": (0, 2)}, {"intents": 1}, {"account_id": "x"},
     {"session_id": None}, {"session_id": ""}, {"last_seq": None}, {"session_id": "x" * 513}],
)  # fmt: skip
def test_a_record_of_another_session_or_of_none_identifies(change: dict[str, Any]) -> None:
    # promise 16
    fields: dict[str, Any] = {"account_id": "bot", "session_id": "s", "last_seq": 5, **BOUND}
    assert make(resume=SessionState(**fields)).handshake("t", NOW)["op"] == 6
    gateway = make(resume=SessionState(**{**fields, **change}))
    assert not has_session(gateway)
    assert gateway.handshake("t", NOW)["op"] == 2


def test_what_a_record_leaves_unset_matches() -> None:
    gateway = make(resume=SessionState(account_id="bot", session_id="s", last_seq=5))
    assert gateway.handshake("t", NOW)["op"] == 6
    assert gateway.state is not None
    assert {name: getattr(gateway.state, name) for name in BOUND} == BOUND


def test_at_most_three_resumes_in_a_row_then_identify() -> None:
    # promise 17
    gateway = identified(make())
    ops = []
    for _ in range(5):
        ops.append(gateway.handshake("t", NOW)["op"])
        gateway.closed(None)
    assert ops == [6, 6, 6, 2, 2]
    assert not has_session(gateway)


def test_resumes_in_a_row_are_counted_across_restarts() -> None:
    # promise 17
    gateway = identified(make())
    ops = []
    for _ in range(4):
        gateway = restarted(gateway)
        ops.append(gateway.handshake("t", NOW)["op"])
    assert ops == [6, 6, 6, 2]


def test_resumed_ends_the_row() -> None:
    # promise 17
    gateway = identified(make())
    for seq in range(2, 12):
        gateway = restarted(gateway)
        assert gateway.handshake("t", NOW + seq)["op"] == 6
        assert gateway.state is not None
        assert gateway.state.failed_resumes == 1
        assert gateway.receive(resumed(seq), NOW + seq) == Resumed(seq)
        assert gateway.state.failed_resumes == 0
        assert gateway.state.last_connected_at == NOW + seq
        assert gateway.state.established_at == NOW


@pytest.mark.parametrize(("limit", "resumes"), [(0, 0), (1, 1), (7, 7), (None, 20)])
def test_the_number_of_resumes_is_configurable(limit: int | None, resumes: int) -> None:
    # promise 17
    gateway = identified(make(max_resumes=limit))
    ops = []
    for day in range(20):
        ops.append(gateway.handshake("t", NOW + day * 86400)["op"])
        gateway.receive({"op": 9, "d": True}, NOW + day * 86400)
    assert ops[:resumes] == [6] * resumes
    assert ops.count(6) == resumes


@pytest.mark.parametrize(
    ("limit", "age", "op"),
    [(2 * 86400.0, 172800.0, 6), (2 * 86400.0, 172801.0, 2), (10.0, 11.0, 2), (None, 1e9, 6),
     (10.0, -500.0, 6)],
)  # fmt: skip
def test_a_session_too_old_identifies(limit: float | None, age: float, op: int) -> None:
    # promise 17
    gateway = identified(make(max_session_age=limit))
    assert gateway.handshake("t", NOW + age)["op"] == op
    assert (not has_session(gateway)) == (op == 2)


def test_the_age_is_off_by_default_and_counted_across_restarts() -> None:
    # promise 17
    gateway = identified(make())
    assert restarted(gateway).handshake("t", NOW + 1e9)["op"] == 6
    assert restarted(gateway, max_session_age=60.0).handshake("t", NOW + 60)["op"] == 6
    assert restarted(gateway, max_session_age=60.0).handshake("t", NOW + 61)["op"] == 2


def test_a_restored_session_is_no_younger_than_its_record() -> None:
    # promise 17: so that an Identify is known before the line is opened
    record = SessionState(
        account_id="bot", session_id="s", last_seq=5, established_at=NOW, saved_at=NOW + 61
    )
    assert make(resume=record, max_session_age=61.0).resumable
    assert not make(resume=record, max_session_age=60.0).resumable


def test_it_says_what_the_next_handshake_will_be() -> None:
    # promise 17
    assert not make().resumable
    gateway = identified(make(max_session_age=60.0))
    assert gateway.resumable
    assert restarted(gateway).resumable
    gateway.receive({"op": 11}, NOW + 61)
    assert not gateway.resumable
    gateway = identified(make(max_resumes=1))
    gateway.handshake()
    assert gateway.closed(None).next is IDENTIFY
    assert not gateway.resumable


@pytest.mark.parametrize(("connected", "expected"), [(NOW - 50, NOW - 50), (0.0, NOW)])
def test_a_record_that_does_not_say_its_age_starts_to_count(
    connected: float, expected: float
) -> None:
    record = SessionState(account_id="bot", session_id="s", last_seq=5, last_connected_at=connected)
    gateway = make(resume=record)
    gateway.handshake("t", NOW)
    assert gateway.state is not None
    assert gateway.state.established_at == expected


# Close codes

TABLE: list[tuple[int | None, Next, bool, float]] = [
    # code, next, refresh_token, wait
    (None, RESUME, False, 1.0),
    (1000, RESUME, False, 1.0),
    (1001, RESUME, False, 1.0),
    (1006, RESUME, False, 1.0),
    (1011, RESUME, False, 1.0),
    (4000, RESUME, False, 1.0),
    (4001, STOP, False, 0.0),
    (4002, STOP, False, 0.0),
    (4003, RESUME, False, 1.0),
    (4004, RESUME, True, 1.0),
    (4005, RESUME, False, 1.0),
    (4006, IDENTIFY, False, 5.0),
    (4007, IDENTIFY, False, 5.0),
    (4008, RESUME, False, 60.0),
    (4009, RESUME, False, 1.0),
    (4010, STOP, False, 0.0),
    (4011, STOP, False, 0.0),
    (4012, STOP, False, 0.0),
    (4013, STOP, False, 0.0),
    (4014, STOP, False, 0.0),
    (4015, RESUME, False, 1.0),
    (4899, RESUME, False, 1.0),
    (4900, IDENTIFY, False, 5.0),
    (4901, IDENTIFY, False, 5.0),
    (4902, IDENTIFY, False, 5.0),
    (4903, IDENTIFY, False, 5.0),
    (4904, IDENTIFY, False, 5.0),
    (4905, IDENTIFY, False, 5.0),
    (4906, IDENTIFY, False, 5.0),
    (4907, IDENTIFY, False, 5.0),
    (4908, IDENTIFY, False, 5.0),
    (4909, IDENTIFY, False, 5.0),
    (4910, IDENTIFY, False, 5.0),
    (4911, IDENTIFY, False, 5.0),
    (4912, IDENTIFY, False, 5.0),
    (4913, IDENTIFY, False, 5.0),
    (4914, STOP, False, 0.0),
    (4915, STOP, False, 0.0),
    (4916, RESUME, False, 1.0),
    (9001, RESUME, False, 1.0),
    (-1, RESUME, False, 1.0),
]


@pytest.mark.parametrize(("code", "next_", "refresh", "wait"), TABLE)
def test_every_close_code_follows_the_table(
    code: int | None, next_: Next, refresh: bool, wait: float
) -> None:
    # promise 16
    gateway = identified(make())
    handle(gateway, 2)
    rule = gateway.closed(code)
    assert (rule.next, rule.refresh_token, rule.wait) == (next_, refresh, wait)
    assert rule.meaning.endswith(".")
    assert has_session(gateway) == (next_ is RESUME)
    later = NOW + 900 if next_ is STOP else NOW  # a refusal is not tried again at once
    assert gateway.handshake("t", later)["op"] == (6 if next_ is RESUME else 2)


@pytest.mark.parametrize(("code", "next_", "refresh", "wait"), TABLE)
def test_without_a_session_a_resume_becomes_an_identify(
    code: int | None, next_: Next, refresh: bool, wait: float
) -> None:
    rule = make().closed(code)
    assert rule.next is (STOP if next_ is STOP else IDENTIFY)
    assert rule.refresh_token is refresh
    assert rule.wait == (0.0 if next_ is STOP else max(wait, 5.0))


def test_the_tests_table_names_every_row_of_the_rules() -> None:
    assert set(CLOSE_RULES) <= {code for code, *_ in TABLE}


@pytest.mark.parametrize("code", [True, "4009", 4009.0])
def test_a_close_code_of_another_type_is_refused(code: Any) -> None:
    gateway = identified(make())
    with pytest.raises(TypeError, match="code"):
        gateway.closed(code)
    assert gateway.state is not None


def test_close_rules_can_be_replaced() -> None:
    rules = {**CLOSE_RULES, 4009: CloseRule(IDENTIFY, True, 7.0, "Mine.")}
    gateway = identified(make(close_rules=rules))
    assert gateway.closed(4009) == CloseRule(IDENTIFY, True, 7.0, "Mine.")
    assert not has_session(gateway)


def test_a_row_none_of_ones_own_is_for_every_other_code() -> None:
    stop = CloseRule(STOP, meaning="Mine.")
    assert make(close_rules={None: stop}).closed(4009) == stop
    assert identified(make(close_rules={})).closed(4006).next is RESUME


def test_the_table_itself_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CLOSE_RULES[4009] = CLOSE_RULES[4001]  # type: ignore[index]


def test_exhausted_resumes_are_announced_as_identify_with_its_pace() -> None:
    gateway = identified(make(max_resumes=1))
    gateway.handshake("t", NOW)
    rule = gateway.closed(4009)
    assert (rule.next, rule.wait) == (IDENTIFY, 5.0)


def test_a_token_refused_twice_in_a_row_waits_a_minute_and_keeps_the_session() -> None:
    # promise 16
    gateway = identified(make())
    first, second = gateway.closed(4004), gateway.closed(4004)
    assert (first.refresh_token, first.wait) == (True, 1.0)
    assert (second.next, second.refresh_token, second.wait) == (RESUME, True, 60.0)
    gateway.handshake("t", NOW)
    gateway.receive(resumed(2), NOW)
    gateway.receive({"op": 11}, NOW)
    assert gateway.closed(4004).wait == 1.0


def test_the_wait_grows_until_a_line_has_lived() -> None:
    # promise 17
    gateway = identified(make())
    assert [gateway.closed(None).wait for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    gateway.handshake("t", NOW)  # an open socket alone is no success
    assert gateway.closed(None).wait == 60
    gateway.handshake("t", NOW)
    gateway.receive(resumed(2), NOW)  # nor is this: it may be closed the next moment
    assert gateway.closed(None).wait == 60
    gateway.handshake("t", NOW)
    gateway.receive({"op": 11}, NOW)  # the answer to a heartbeat in a long replay
    assert gateway.closed(None).wait == 60
    gateway.handshake("t", NOW)
    gateway.receive(resumed(3), NOW)
    gateway.receive({"op": 11}, NOW)
    assert gateway.closed(None).wait == 1


def test_chance_only_shortens_the_back_off_and_never_what_the_table_asks_for() -> None:
    # promise 17
    waits = []
    for chance in (0.0, 0.5, 1.0):
        gateway = identified(make(jitter=lambda chance=chance: chance))
        waits.append([gateway.closed(code).wait for code in (None, None, 4009, 4008, None, 4006)])
    assert waits == [
        [1, 2, 4, 60, 16, 32],
        [1, 1.75, 3.5, 60, 14, 28],
        [1, 1.5, 3, 60, 12, 24],
    ]


@pytest.mark.parametrize("code", [4004, 4008])
def test_a_resume_that_was_not_judged_is_not_counted(code: int) -> None:
    # promise 17
    gateway = identified(make(max_resumes=1))
    for _ in range(10):
        assert gateway.handshake()["op"] == 6
        assert gateway.closed(code).next is RESUME
        assert restarted(gateway).resumable
    gateway.handshake()
    assert gateway.closed(4009).next is IDENTIFY


def test_a_line_that_never_opened_counts_as_no_resume() -> None:
    # promise 17
    gateway = identified(make(max_resumes=1))
    for _ in range(10):
        gateway.connect()
        assert gateway.closed(None).next is RESUME
    assert gateway.handshake()["op"] == 6


def test_a_resume_that_brought_something_new_was_answered() -> None:
    # promise 17: a long replay on a bad line is no reason to give the session up
    gateway = identified(make(max_resumes=1))
    for seq in range(2, 12):
        assert gateway.handshake()["op"] == 6
        assert dispatch(gateway, message(seq)).replayed
        assert gateway.state is not None
        assert gateway.state.failed_resumes == 0
        gateway.closed(None)
    assert gateway.handshake()["op"] == 6
    assert dispatch(gateway, message(2)).already_handled  # nothing new
    assert gateway.closed(None).next is IDENTIFY


# Ops 7 and 9


def test_op_7_keeps_the_session_whatever_the_line_does_next() -> None:
    # promise 16
    gateway = identified(make())
    assert gateway.receive({"op": 7}, NOW) == Reconnect()
    assert gateway.closed(4009).next is RESUME
    assert gateway.handshake("t", NOW)["op"] == 6


@pytest.mark.parametrize("d", [False, None, 1, "true", "", {}, [True], 1.0])
def test_op_9_without_true_forgets_the_session(d: object) -> None:
    # promise 16
    gateway = identified(make())
    gateway.closed(None)
    gateway.handshake("t", NOW)
    assert gateway.receive({"op": 9, "d": d}, NOW) == InvalidSession(resumable=False)
    assert not has_session(gateway)
    rule = gateway.closed(4009)
    assert (rule.next, rule.refresh_token, rule.wait) == (IDENTIFY, False, 5.0)
    assert gateway.handshake("t", NOW)["op"] == 2


def test_op_9_with_true_keeps_the_session() -> None:
    # promise 16
    gateway = identified(make())
    gateway.closed(None)
    gateway.handshake("t", NOW)
    assert gateway.receive({"op": 9, "d": True}, NOW) == InvalidSession(resumable=True)
    assert gateway.closed(None).next is RESUME


@pytest.mark.parametrize("code", [None, 1000, 4009, 4903])
@pytest.mark.parametrize("d", [True, False])
def test_op_9_right_after_identify_refreshes_the_token_and_waits_long(
    code: int | None, d: bool
) -> None:
    gateway = make()
    gateway.receive(HELLO, NOW)
    gateway.handshake("t", NOW)
    gateway.receive({"op": 9, "d": d}, NOW)
    rule = gateway.closed(code)
    assert (rule.next, rule.refresh_token, rule.wait) == (IDENTIFY, True, 20.0)


def test_the_third_identify_in_a_row_that_is_answered_with_op_9_stops_and_names_the_intents() -> (
    None
):
    # promise 16
    gateway = make(intents=1 << 9 | 1 << 25)
    rules = []
    for code in (4000, None, 4903):
        assert gateway.handshake()["op"] == 2
        gateway.receive({"op": 9, "d": False})
        rules.append(gateway.closed(code))
        gateway.connect()  # a line that never opens is no answer, and ends no row
        gateway.closed(None)
    assert [rule.next for rule in rules] == [IDENTIFY, IDENTIFY, STOP]
    assert [rule.refresh_token for rule in rules] == [True, True, False]
    assert "33554944 (1 << 9 | 1 << 25)" in rules[-1].meaning
    assert "closed with 4903: The gateway had an internal error." in rules[-1].meaning


def test_ready_ends_the_row_of_refused_identifies() -> None:
    # promise 16
    gateway = make()
    for _ in range(4):
        gateway.handshake()
        gateway.receive({"op": 9, "d": False})
        assert gateway.closed(None).next is IDENTIFY
        identified(gateway)
        gateway.closed(4006)


def test_a_stop_after_op_9_is_still_a_stop() -> None:
    gateway = make()
    gateway.handshake("t", NOW)
    gateway.receive({"op": 9, "d": False}, NOW)
    assert gateway.closed(4914).next is STOP


# Events


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (HELLO, Hello(45.0)),
        ({"op": 10, "d": {"heartbeat_interval": 0.5}}, Hello(0.0005)),
        ({"op": 1}, HeartbeatRequest()),
        ({"op": 1, "d": 7}, HeartbeatRequest()),
        ({"op": 7, "d": None}, Reconnect()),
        ({"op": 11}, HeartbeatAck()),
        ({"op": 11, "s": "no dispatch, so not looked at"}, HeartbeatAck()),
        ({"op": 12, "d": 0}, Unknown(12, {"op": 12, "d": 0})),
        ({"op": -(10**30)}, Unknown(-(10**30), {"op": -(10**30)})),
        (ready("s", 4), Ready("s", 4, {"id": "7", "username": "bot", "bot": True})),
        ({"op": 0, "t": "READY", "d": {"session_id": "s"}}, Ready("s", None, None)),
        (resumed(9), Resumed(9)),
        ({"op": 0, "t": "RESUMED"}, Resumed(None)),
    ],
)
def test_every_documented_frame_has_its_event(payload: object, event: Event) -> None:
    assert make().receive(payload, NOW) == event


def test_a_dispatch_carries_what_the_frame_said() -> None:
    event = dispatch(identified(make()), message(2))
    assert (event.type, event.seq, event.id) == ("C2C_MESSAGE_CREATE", 2, "C2C_MESSAGE_CREATE:e2")
    assert event.data == {"id": "m2", "content": "hi"}
    assert not event.replayed
    assert not event.already_handled
    assert {event}  # hashable although its data is not


@pytest.mark.parametrize("nulls", [{}, dict.fromkeys(["s", "t", "d", "id"])])
def test_every_field_of_a_dispatch_may_be_absent_or_null(nulls: dict[str, None]) -> None:
    gateway = identified(make())
    event = dispatch(gateway, {"op": 0, **nulls})
    assert (event.type, event.seq, event.id, event.data) == ("", None, None, None)
    before = gateway.state
    with gateway.handling(event):
        pass
    assert gateway.state is before
    with pytest.raises(KeyError), gateway.handling(event):
        raise KeyError


def test_events_between_resume_and_resumed_are_replayed() -> None:
    gateway = identified(make())
    assert not dispatch(gateway, message(2)).replayed
    gateway.handshake()
    assert dispatch(gateway, message(3)).replayed
    gateway.receive(resumed(4))
    assert not dispatch(gateway, message(5)).replayed


def test_ready_starts_a_new_session_and_forgets_the_old_cursors() -> None:
    # promise 18
    gateway = identified(make())
    handle(gateway, *range(2, 500))
    old = dispatch(gateway, message(500))
    gateway.closed(4006)
    gateway.handshake("t", NOW + 5)
    gateway.receive(ready("session-2"), NOW + 5)
    gateway.settle(old)
    with pytest.raises(OSError, match="lost"), gateway.handling(old):
        raise OSError("lost")
    state = gateway.state
    assert state is not None
    assert (state.session_id, state.last_seq, gateway.received) == ("session-2", 1, 1)
    assert (state.established_at, state.last_connected_at) == (NOW + 5, NOW + 5)
    assert not dispatch(gateway, message(2)).already_handled


# Handling


def test_handling_settles_on_success_in_any_order() -> None:
    # promise 18
    gateway = identified(make())
    first, second = dispatch(gateway, message(2)), dispatch(gateway, message(7))
    with gateway.handling(first):
        with gateway.handling(second):
            pass
        assert gateway.settled == 1
    assert gateway.settled == 7


def test_a_handler_that_raised_counts_as_handled() -> None:
    # promise 18
    gateway = identified(make())
    with pytest.raises(ExceptionGroup), gateway.handling(dispatch(gateway, message(2))):
        raise ExceptionGroup("several", [OSError("x")])
    assert gateway.settled == 2


CANCELLED: list[BaseException] = [
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    GeneratorExit(),
    BaseExceptionGroup("x", [asyncio.CancelledError()]),
    BaseExceptionGroup("x", [OSError(), KeyboardInterrupt()]),
]


@pytest.mark.parametrize("error", [SystemExit(3), BaseExceptionGroup("x", [SystemExit()])])
def test_to_exit_is_a_handlers_own_decision_and_settles(error: BaseException) -> None:
    # promise 18
    gateway = identified(make(failed="keep"))
    with pytest.raises(type(error)), gateway.handling(dispatch(gateway, message(2))):
        raise error
    assert gateway.settled == 2


@pytest.mark.parametrize("failed", ["settle", "keep"])
@pytest.mark.parametrize("error", CANCELLED, ids=repr)
def test_a_cancelled_handler_never_counts(failed: str, error: BaseException) -> None:
    # promise 18
    gateway = identified(make(failed=failed))
    with pytest.raises(type(error)), gateway.handling(dispatch(gateway, message(2))):
        raise error
    assert gateway.settled == 1
    gateway.handshake()
    assert not dispatch(gateway, message(2)).already_handled


def test_what_failed_is_delivered_again_if_it_is_to_be_kept() -> None:
    # promise 18
    gateway = identified(make(failed="keep"))
    event = dispatch(gateway, message(2))
    with pytest.raises(ValueError, match="x"), gateway.handling(event):
        raise ValueError("x")
    handle(gateway, 3)
    assert gateway.settled == 1
    assert gateway.handshake()["d"]["seq"] == 1
    again = dispatch(gateway, message(2))
    assert not again.already_handled
    assert dispatch(gateway, message(3)).already_handled
    gateway.settle(again)
    gateway.receive(resumed(4))
    assert gateway.settled == 4


def test_what_a_handler_still_has_is_not_handled_a_second_time() -> None:
    # promise 18: the line drops while a handler runs
    gateway = identified(make(failed="keep"))
    event = dispatch(gateway, message(2))
    gateway.handshake()
    copy = dispatch(gateway, message(2))
    assert copy.already_handled
    with gateway.handling(copy):
        pass
    assert gateway.settled == 1  # the handler of the first copy is not done
    with pytest.raises(OSError, match="lost"), gateway.handling(copy):
        raise OSError("lost")
    assert dispatch(gateway, message(2)).already_handled
    gateway.receive(resumed(3))
    gateway.settle(event)
    assert gateway.settled == 3


def test_letting_go_is_seen_on_the_next_event_of_any_kind() -> None:
    # promise 18
    gateway = identified(make(max_held_seconds=30.0))
    with gateway.handling(dispatch(gateway, message(2))):
        handle(gateway, 3)
        assert gateway.receive({"op": 11}, NOW + 30) == HeartbeatAck()
        assert gateway.receive({"op": 11}, NOW + 31) == HeartbeatAck(released=(2,))
        assert gateway.receive({"op": 11}, NOW + 32).released == ()
        assert gateway.settled == 3


def test_between_two_lines_only_what_closed_told_to_wait_is_held_time() -> None:
    # promise 11, 18: each line dates its clock anew, and somebody sets it
    gateway = identified(make(max_held_seconds=30.0))
    with gateway.handling(dispatch(gateway, message(2))):
        gateway.receive({"op": 11}, NOW + 10)
        waited = gateway.closed(4008).wait
        later = NOW + 30 * 86_400
        assert waited > 20
        gateway.handshake("t", later)
        assert gateway.receive(resumed(3), later).released == (2,)
    with gateway.handling(dispatch(gateway, message(4), later)):
        gateway.receive({"op": 11}, later + 10)
        assert gateway.closed(None).wait < 20
        gateway.handshake("t", NOW)
        assert gateway.receive(resumed(5), NOW).released == ()
        gateway.handshake("t", later)
        assert gateway.receive(resumed(6), later).released == ()
        assert gateway.settled == 3


def test_the_mark_never_passes_what_nobody_handled_however_many_are_open() -> None:
    # promise 18: a replay of 3,000 at once, and the process dies
    gateway = restarted(identified(make()))
    gateway.handshake()
    for seq in range(2, 3002):
        assert dispatch(gateway, message(seq)).released == ()
    gateway.receive(resumed(3002))
    for hours in range(48):
        assert gateway.receive({"op": 11}, NOW + hours * 3600).released == ()
    assert gateway.settled == 1
    assert restarted(gateway).handshake()["d"]["seq"] == 1


def test_who_cannot_use_handling_says_when_it_begins_and_how_it_ends() -> None:
    # promise 18
    gateway = identified(make(max_held_seconds=30.0))
    first, second = dispatch(gateway, message(2)), dispatch(gateway, message(3))
    gateway.begin(first)
    gateway.fail(first)
    gateway.fail(first)
    gateway.begin(second)
    gateway.settle(second)
    assert gateway.settled == 1
    assert gateway.receive({"op": 11}, NOW + 31).released == (2,)
    assert gateway.settled == 3


def test_a_poison_event_does_not_hold_the_mark_for_ever() -> None:
    # promise 18: its handler always fails, and the bot is restarted every minute
    gateway, now, seq = identified(make(failed="keep")), NOW, 2
    lives, released = 0, []
    while gateway.settled == 1:
        lives += 1
        event = dispatch(gateway, message(2), now)
        with pytest.raises(ValueError, match="poison"), gateway.handling(event):
            raise ValueError("poison")
        seq += 1
        gateway.receive(resumed(seq), now)
        for _ in range(60):
            now, seq = now + 1, seq + 1
            event = dispatch(gateway, message(seq), now)
            gateway.settle(event)
            released += event.released
        gateway = restarted(gateway, failed="keep")
        gateway.line().opened("t", now)
        released += gateway.receive(HELLO, now).released
    assert (lives, released) == (5, [2])
    gateway.receive(resumed(seq + 1), now)
    assert gateway.settled == seq + 1


def test_an_event_of_another_gateway_session_settles_nothing() -> None:
    # promise 18
    one, other = identified(make(remember_events=9)), identified(make(remember_events=9))
    mine, yours = dispatch(one, message(2)), dispatch(other, message(2))
    other.begin(mine)
    other.fail(mine)
    other.settle(mine)
    with other.handling(mine):
        pass
    assert other.settled == 1
    assert other.state is not None
    assert extra_of(other) == {}
    other.handshake()
    assert dispatch(other, message(2)).already_handled  # its handler still has it
    other.fail(yours)
    assert not dispatch(other, message(2)).already_handled


def test_a_restored_mark_stands_still_until_resumed() -> None:
    # promise 18: the replay comes in any order, and the process dies in the middle of it
    gateway = restarted(identified(make()))
    gateway.handshake()
    handle(gateway, 3, 4)
    assert gateway.state is not None
    assert (gateway.state.last_seq, extra_of(gateway)) == (1, {"settledAbove": "3-4"})
    gateway = restarted(gateway)
    assert gateway.handshake()["d"]["seq"] == 1
    handle(gateway, 2)
    assert dispatch(gateway, message(3)).already_handled
    gateway.receive(resumed(5))
    assert gateway.settled == 5


# State


def test_the_turn_changes_with_what_a_crash_must_not_undo_and_with_nothing_else() -> None:
    # promise 17
    gateway = make()
    turns = [gateway.turn]

    def turned() -> bool:
        turns.append(gateway.turn)
        return turns[-1] > turns[-2]

    gateway.handshake()
    assert not turned()  # an Identify without a session changes nothing
    gateway.receive(ready())
    assert turned()
    for seq in range(2, 9):
        event = dispatch(gateway, message(seq))
        gateway.settle(event)
        gateway.receive({"op": 11})
    assert not turned()
    assert gateway.closed(None).next is RESUME
    assert not turned()
    gateway.handshake()
    assert turned()  # a Resume was sent
    assert dispatch(gateway, message(9)).replayed
    assert turned()  # and answered
    gateway.receive(resumed(10))
    gateway.receive({"op": 9, "d": False})
    assert turned()
    gateway.closed(None)
    assert not turned()
    gateway.handshake()
    gateway.receive(ready())
    assert turned()
    gateway.closed(4914)
    assert turned()


def test_a_resume_that_was_not_judged_is_written_down_as_not_counted() -> None:
    # promise 17
    gateway = identified(make())
    gateway.handshake()
    turn = gateway.turn
    gateway.closed(4004)
    assert gateway.turn > turn
    assert gateway.state is not None
    assert gateway.state.failed_resumes == 0


def test_generations_rise_with_every_session_made() -> None:
    # promise 18
    generations = [make().generation for _ in range(5)]
    assert generations == sorted(set(generations))
    assert make().generation > generations[-1]


def test_it_says_which_account_and_shard_it_is() -> None:
    gateway = make(shard=(1, 4))
    assert (gateway.account_id, gateway.shard) == ("bot", (1, 4))


def test_the_state_is_the_same_object_until_something_changes() -> None:
    gateway = identified(make())
    state = gateway.state
    gateway.receive({"op": 11}, NOW + 1)
    event = dispatch(gateway, message(2))
    assert gateway.state is state
    gateway.settle(event)
    assert gateway.state is not state
    assert gateway.state is gateway.state


def test_the_state_says_everything_the_record_needs() -> None:
    gateway = identified(make(shard=(1, 3)))
    handle(gateway, 2)
    assert gateway.state is not None
    assert replace(gateway.state, extra={}) == SessionState(
        account_id="bot", session_id="session-1", last_seq=2, last_connected_at=NOW, app_id="app",
        intents=513, shard=(1, 3), established_at=NOW,
    )  # fmt: skip


def test_what_others_keep_in_the_record_survives_even_a_new_session() -> None:
    record = SessionState(account_id="bot", session_id="s", last_seq=5, intent_level_index=2,
                          extra={"theirs": {"a": [1]}})  # fmt: skip
    gateway = make(resume=record)
    gateway.closed(4006)
    assert not has_session(gateway)
    identified(gateway)
    assert gateway.state is not None
    assert gateway.state.intent_level_index == 2
    assert extra_of(gateway) == {"theirs": {"a": (1,)}}


def test_after_a_graceful_stop_nothing_handled_is_delivered_again() -> None:
    # promise 18
    gateway = identified(make())
    events = {seq: dispatch(gateway, message(seq)) for seq in range(2, 12)}
    for seq in (11, 3, 5, 6, 8):
        gateway.settle(events[seq])
    assert gateway.state is not None
    assert extra_of(gateway) == {"settledAbove": "3,5-6,8,11"}
    again = restarted(gateway)
    assert again.received == 11
    assert again.handshake("t", NOW)["d"]["seq"] == 1
    wanted = []
    for seq in range(2, 12):
        event = dispatch(again, message(seq))
        if not event.already_handled:
            wanted.append(seq)
            again.settle(event)
    again.receive(resumed(12), NOW)
    assert wanted == [2, 4, 7, 9, 10]
    assert again.state is not None
    assert (again.state.last_seq, extra_of(again)) == (12, {})


def test_the_last_handled_event_is_known_if_the_gateway_repeats_it() -> None:
    gateway = identified(make())
    handle(gateway, 2)
    again = restarted(gateway)
    again.handshake("t", NOW)
    assert dispatch(again, message(2)).already_handled


def test_a_number_that_was_never_settled_is_not_called_handled() -> None:
    gateway = identified(make())
    handle(gateway, 2, 9)
    assert not dispatch(gateway, message(5)).already_handled
    assert not dispatch(restarted(gateway), message(5)).already_handled
    assert gateway.settled == 9


@pytest.mark.parametrize("value", [None, 7, True, [], [5], {}, {"a": 1}, "x", "zz-1", "3-2", -1.5])
def test_hostile_fields_of_ours_are_ignored(value: Any) -> None:
    extra = {"settledAbove": value, "recentEvents": value, "other": value}
    record = SessionState(account_id="bot", session_id="s", last_seq=5, extra=extra)
    gateway = make(resume=record, remember_events=10)
    assert gateway.state is not None
    assert set(extra_of(gateway)) == {"other"}
    assert gateway.handshake("t", NOW)["d"]["seq"] == 5


def test_our_fields_give_way_to_the_records_own() -> None:
    theirs = {"theirs": "x" * (32 * 1024 - 60)}
    record = SessionState(account_id="bot", session_id="s", last_seq=1, extra=theirs)
    gateway = make(resume=record, remember_events=100)
    gateway.receive(resumed(2), NOW)
    events = [dispatch(gateway, message(seq)) for seq in range(3, 6)]
    gateway.settle(events[2])
    assert gateway.state is not None
    assert dict(extra_of(gateway)) == theirs | {"settledAbove": "5"}
    for seq in range(6, 40, 2):
        events.append(dispatch(gateway, message(seq)))
        handle(gateway, seq + 1)
    assert dict(extra_of(gateway)) == theirs


def test_the_largest_memory_is_far_below_the_limit_of_extra() -> None:
    gateway = identified(make(remember_events=512))
    for seq in range(2**53 - 3000, 2**53 - 2, 2):
        dispatch(gateway, message(seq))
        handle(gateway, seq + 1)
    assert gateway.state is not None
    assert set(extra_of(gateway)) == {"settledAbove", "recentEvents"}
    assert len(json.dumps(dict(extra_of(gateway)))) < 18 * 1024


# Recent events


def test_by_default_the_last_256_messages_are_known_again() -> None:
    # promise 18: the same message a second time under another number, at once and after a restart
    gateway = Driven("bot", app_id="app", intents=513)
    identified(gateway)
    handle(gateway, *range(2, 300))
    assert dispatch(gateway, message(300, "m299")).already_handled
    again = Driven("bot", app_id="app", intents=513, resume=gateway.state)
    again.handshake()
    known = [dispatch(again, message(n + 1000, f"m{n}")).already_handled for n in range(2, 300)]
    assert known.count(True) == 256
    assert all(known[-256:])


def test_a_message_that_comes_again_with_a_new_number_is_known() -> None:
    gateway = identified(make(remember_events=10))
    gateway.settle(dispatch(gateway, message(2, "same")))
    again = restarted(gateway, remember_events=10)
    again.handshake("t", NOW)
    copy = dispatch(again, message(7, "same"))
    assert copy.already_handled
    again.receive(resumed(8))
    assert again.settled == 8  # it needs no handling, so it is settled at once
    assert not dispatch(again, message(9, "other")).already_handled
    assert not dispatch(again, message(10, "same", "GROUP_AT_MESSAGE_CREATE")).already_handled


def test_a_message_is_known_in_a_new_session_too_and_without_a_number() -> None:
    gateway = identified(make(remember_events=10))
    gateway.settle(dispatch(gateway, message(2, "same")))
    gateway.closed(4006)
    identified(gateway, "session-2")
    assert dispatch(gateway, message(None, "same")).already_handled


def test_a_copy_of_what_a_handler_still_has_is_known() -> None:
    # promise 18: the same message twice within a second
    gateway = identified(make(remember_events=10))
    first = dispatch(gateway, message(2, "same"))
    assert dispatch(gateway, message(3, "same")).already_handled
    assert dispatch(gateway, message(None, "same")).already_handled
    assert gateway.settled == 1  # the first is not done, and comes again if it never is
    again = restarted(gateway, remember_events=10)
    again.handshake()
    assert not dispatch(again, message(2, "same")).already_handled
    assert dispatch(again, message(3, "same")).already_handled
    gateway.settle(first)
    assert gateway.settled == 3


def test_what_is_handled_when_its_session_has_ended_is_known_in_the_next() -> None:
    gateway = identified(make(remember_events=10))
    event = dispatch(gateway, message(2, "same"))
    gateway.closed(4006)
    identified(gateway, "session-2")
    gateway.settle(event)
    assert dispatch(gateway, message(5, "same")).already_handled


@pytest.mark.parametrize("how", ["failed", "let go", "of an earlier session", "below the mark"])
def test_a_copy_is_handled_if_the_first_may_never_be(how: str) -> None:
    # promise 18
    gateway = identified(make(remember_events=10, failed="keep", max_held_seconds=10.0))
    if how == "below the mark":
        handle(gateway, 9)
    first = dispatch(gateway, message(2, "same"))
    gateway.begin(first)
    if how == "failed":
        gateway.fail(first)
    if how == "let go":
        assert gateway.receive({"op": 11}, NOW + 11).released == (2,)
    if how == "of an earlier session":
        gateway.closed(4006)
        identified(gateway)
    copy = dispatch(gateway, message(12, "same"), NOW + 11)
    assert not copy.already_handled
    gateway.settle(copy)
    assert dispatch(gateway, message(13, "same"), NOW + 11).already_handled


def test_a_message_that_comes_again_under_its_own_number_is_not_settled_by_it() -> None:
    # promise 18: the line drops while a handler runs, with the memory on
    gateway = identified(make(remember_events=10))
    event = dispatch(gateway, message(2, "same"))
    gateway.handshake()
    assert dispatch(gateway, message(2, "same")).already_handled
    gateway.receive(resumed(3))
    assert gateway.settled == 1
    gateway.settle(event)
    assert gateway.settled == 3


def test_only_what_was_handled_or_is_in_hand_is_known() -> None:
    gateway = identified(make(remember_events=10))
    dispatch(gateway, message(2, "same"))
    assert not dispatch(restarted(gateway, remember_events=10), message(3, "same")).already_handled


def test_other_events_go_by_their_event_id_not_by_their_guilds() -> None:
    gateway = identified(make(remember_events=10))
    update = {"op": 0, "t": "GUILD_UPDATE", "d": {"id": "guild"}}
    gateway.settle(dispatch(gateway, {**update, "s": 2, "id": "e2"}))
    assert not dispatch(gateway, {**update, "s": 3, "id": "e3"}).already_handled
    assert dispatch(gateway, {**update, "s": 4, "id": "e2"}).already_handled


@pytest.mark.parametrize(
    "payload",
    [{"d": {"id": 7}, "id": "e"}, {"d": None}, {"d": {"id": ""}, "id": ""}, {"d": [], "id": None}],
)
def test_an_event_without_an_id_is_never_known(payload: dict[str, Any]) -> None:
    gateway = identified(make(remember_events=10))
    for seq in (2, 3):
        event = dispatch(gateway, {"op": 0, "t": "MESSAGE_CREATE", "s": seq, **payload})
        assert not event.already_handled
        gateway.settle(event)
    assert gateway.state is not None
    assert extra_of(gateway) == {}


def test_the_memory_is_bounded_and_the_oldest_go_first() -> None:
    gateway = identified(make(remember_events=3))
    handle(gateway, 2, 3, 4, 5)
    assert gateway.state is not None
    assert len(gateway.state.extra["recentEvents"].split()) == 3
    again = restarted(gateway, remember_events=2)
    known = [dispatch(again, message(n + 100, f"m{n}")).already_handled for n in (2, 3, 4, 5)]
    assert known == [False, False, True, True]


def test_without_the_memory_nothing_is_kept_or_known() -> None:
    gateway = identified(make(remember_events=10))
    handle(gateway, 2)
    again = restarted(gateway)
    assert again.state is not None
    assert extra_of(again) == {}
    assert not dispatch(again, message(3, "m2")).already_handled


# Connections


def test_late_frames_and_closes_of_a_replaced_socket_change_nothing() -> None:
    gateway = identified(make())
    old = gateway.connect()
    new = gateway.connect()
    before = snapshot(gateway)
    assert (old.stale, new.stale) == (True, False)
    for payload in ({"op": 9, "d": False}, message(7), ready("other"), {"op": "malformed"}):
        assert old.receive(payload, NOW) == Stale()
    rule = old.closed(4915)
    assert (rule.next, rule.refresh_token, rule.wait) == (Next.IGNORE, False, 0.0)
    old.opened("t", NOW)
    old.receive(HELLO, NOW)
    old.handle_timer(NOW + 1000)
    assert (old.frames_to_send(), old.get_timer(), old.close_with) == ([], None, 4000)
    assert snapshot(gateway) == before
    assert not new.stale


def test_a_connection_ends_once() -> None:
    gateway = identified(make())
    connection = gateway.connect()
    assert connection.closed(4004).next is RESUME
    assert connection.stale
    assert connection.closed(4004).next is Next.IGNORE
    assert connection.receive(message(2), NOW) == Stale()
    assert "stale=True" in repr(connection)


def test_a_repr_helps_and_shortens_the_session_id() -> None:
    gateway = identified(make())
    assert repr(gateway) == (
        "<GatewaySession account_id='bot' session='sess…' received=1 settled=1>"
    )
    assert "session=None" in repr(make())
    assert "session-1" not in repr(make().receive(ready(), NOW))


# Malformed payloads


def snapshot(gateway: Driven) -> object:
    """Return all that can be told of a session, its next handshake, heartbeat and rule included."""

    def values(thing: Any) -> Any:
        match thing:
            case Mapping():
                return {name: values(value) for name, value in thing.items()}
            case Enum() | SessionState():
                return thing
            case _ if type(thing).__module__.startswith(("qqbot_session.", "driven")):
                return values({n: v for n, v in attributes(thing).items() if n != "_gateway"})
        return list(thing) if isinstance(thing, list | set) else thing

    state = gateway.state
    return values(gateway), state, resume_op(gateway)


BAD_INTERVALS: list[Any] = [
    None, True, "45000", 0, -1, float("nan"), float("inf"), 10**400, [],
]  # fmt: skip
BAD_NUMBERS: list[Any] = [True, "7", 7.0, -1, 2**53, 10**400, [], {}]
BAD_TEXTS: list[Any] = [7, True, [], {}]
BAD_READY: list[Any] = [None, "", [], 7, {}]
BAD_SESSION_IDS: list[Any] = [
    None, "", 7, True, [], "a\0b", "\ud800", "\udfff", "x" * 513,
]  # fmt: skip
KINDS = ("X", "READY", "RESUMED")
OTHER = {"session_id": "other"}
MALFORMED: list[Any] = [
    None, 7, "x", True, [], [{"op": 10}], {}, {"op": None}, {"op": "0"}, {"op": True}, {"op": 0.0},
    {"op": 10}, {"op": 10, "d": None}, {"op": 10, "d": []}, {"op": 10, "d": {}},
    *({"op": 10, "d": {"heartbeat_interval": bad}} for bad in BAD_INTERVALS),
    *({"op": 0, "t": t, "s": bad, "d": OTHER} for bad in BAD_NUMBERS for t in KINDS),
    *({"op": 0, "t": bad, "s": 7} for bad in BAD_TEXTS),
    *({"op": 0, "t": t, "s": 7, "id": bad, "d": OTHER} for bad in BAD_TEXTS for t in KINDS),
    *({"op": 0, "t": "READY", "s": 7, "d": bad} for bad in BAD_READY),
    *({"op": 0, "t": "READY", "s": 7, "d": {"session_id": bad}} for bad in BAD_SESSION_IDS),
]  # fmt: skip


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda payload: ascii(payload)[:60])
def test_a_malformed_payload_raises_and_changes_nothing(payload: object) -> None:
    # promise 19
    gateway = identified(make(max_held_seconds=10.0))
    handle(gateway, 3)
    dispatch(gateway, message(5))
    gateway.handshake("t", NOW)
    before = snapshot(gateway)
    with pytest.raises(GatewayProtocolError) as raised:
        gateway.receive(payload, NOW + 100)
    assert len(str(raised.value)) < 120
    assert snapshot(gateway) == before


def test_every_session_id_that_is_taken_fits_in_a_record() -> None:
    extra = {"theirs": "\ud800" + "x" * (32 * 1024 - 40)}
    record = SessionState(account_id="b" * 1024, session_id="s", last_seq=5, extra=extra)
    gateway = Driven("b" * 1024, app_id="a" * 17_000, intents=1, resume=record)
    gateway.receive(ready("\U0010ffff" * 512, 2**53 - 1), 4e12)
    assert gateway.state is not None
    assert decode(encode(gateway.state)) == gateway.state


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["READY", "RESUMED", "C2C_MESSAGE_CREATE", "", "s", "\ud800"])
    | st.text(max_size=5)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["session_id", "heartbeat_interval", "id", "user", "x"]), inner
        )
    ),
    max_leaves=6,
)
frames = st.fixed_dictionaries(
    {"op": st.sampled_from([0, 0, 0, 1, 7, 9, 10, 11]) | scalars},
    optional={
        "s": st.integers(-1, 30) | scalars,
        "t": scalars,
        "id": scalars,
        "d": anything,
    },
)


@settings(max_examples=200)
@given(st.lists(frames | anything, max_size=8), st.sampled_from([0, 5]))
def test_any_payload_is_an_event_or_an_error_that_changes_nothing(
    payloads: list[Any], remember: int
) -> None:
    # promise 19
    gateway = make(remember_events=remember)
    gateway.handshake("t", NOW)
    for payload in [ready(), message(3), *payloads]:
        before = snapshot(gateway)
        try:
            event = gateway.receive(payload, NOW)
        except GatewayProtocolError:
            assert snapshot(gateway) == before
            continue
        if isinstance(event, Dispatch):
            with gateway.handling(event):
                pass
        if gateway.state is not None:
            assert decode(encode(gateway.state)) == gateway.state


class Play:
    """A gateway that remembers its events, and a bot that meets with misfortune."""

    def __init__(self, pick: Any) -> None:
        self.options = {"max_resumes": None, "failed": "keep"}
        self.options["remember_events"] = pick(st.sampled_from([0, 4]))
        self.gateway = identified(make(**self.options))
        self.saved = self.gateway.state
        self.history: list[int] = []
        self.handled: list[int] = []
        self.running: dict[int, Dispatch] = {}
        self.top = 1
        self.online = True
        self.pick = pick

    def take(self, seq: int) -> None:
        event = dispatch(self.gateway, message(seq))
        if not event.already_handled:
            self.running[seq] = event

    def emit(self) -> None:
        self.top += self.pick(st.integers(1, 3))
        self.history.append(self.top)
        self.online = self.online and bool(self.pick(st.integers(0, 5)))
        if self.online:
            self.take(self.top)
        elif self.pick(st.booleans()):  # it was lost with the line, which may not be seen at once
            self.drop()

    def end_one(self, *, well: bool) -> None:
        if self.running:
            seq = self.pick(st.sampled_from(sorted(self.running)))
            event = self.running.pop(seq)
            if well:
                self.handled.append(seq)
                self.gateway.settle(event)
            else:
                with pytest.raises(OSError, match="x"), self.gateway.handling(event):
                    raise OSError("x")

    def drop(self) -> None:
        """Break the line, Resume, and be interrupted in the replay now and then."""
        self.gateway.closed(None)
        since = self.gateway.handshake("t", NOW)["d"]["seq"]
        missed = [seq for seq in self.history if seq > since]
        backwards = self.pick(st.booleans())  # nobody says in which order they come
        for seq in reversed(missed) if backwards else missed:
            self.take(seq)
            if self.pick(st.booleans()):
                self.end_one(well=True)
            self.check()
            self.online = bool(self.pick(st.integers(0, 9)))
            if not self.online:
                return
        self.online = True
        self.top += 1
        self.gateway.receive(resumed(self.top), NOW)

    def restart(self, state: SessionState | None) -> None:
        self.running.clear()
        assert state is not None
        self.gateway = make(resume=decode(encode(state)), **self.options)
        self.drop()

    def check(self) -> None:
        """Let no event lie at or below the mark that nobody has handled."""
        mark = self.gateway.settled or 0
        assert {seq for seq in self.history if seq <= mark} <= set(self.handled)

    def finish(self) -> None:
        """Let everything end well on a line that holds."""
        self.gateway.closed(None)
        since = self.gateway.handshake("t", NOW)["d"]["seq"]
        for seq in [seq for seq in self.history if seq > since]:
            self.take(seq)
        self.top += 1
        self.gateway.receive(resumed(self.top), NOW)
        for seq in list(self.running):
            self.handled.append(seq)
            self.gateway.settle(self.running.pop(seq))


@settings(max_examples=300)
@given(st.lists(st.sampled_from("eeeehhhfdrsk"), max_size=40), st.data())
def test_under_random_misfortune_no_event_is_lost_and_none_comes_twice_after_clean_stops(
    steps: list[str], data: st.DataObject
) -> None:
    # promise 18: e emit, h handled, f failed, d line drops, r clean restart, s save, k kill -9
    play = Play(data.draw)
    for step in steps:
        match step:
            case "e":
                play.emit()
            case "h" | "f":
                play.end_one(well=step == "h")
            case "d":
                play.drop()
            case "r":
                play.restart(play.gateway.state)
            case "s":
                play.saved = play.gateway.state
            case "k":
                play.restart(play.saved)
        play.check()
    play.finish()
    assert set(play.handled) == set(play.history)
    assert play.gateway.settled == play.gateway.received == play.top
    if "k" not in steps:
        assert len(play.handled) == len(play.history)


# Arguments


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("app_id", "", ValueError),
        ("app_id", None, TypeError),
        ("intents", -1, ValueError),
        ("intents", None, TypeError),
        ("shard", [0, 1], TypeError),
        ("shard", None, TypeError),
        ("shard", (1, 1), ValueError),
        ("resume", {"account_id": "bot"}, TypeError),
        ("max_resumes", -1, ValueError),
        ("max_resumes", 1.0, TypeError),
        ("max_session_age", -1.0, ValueError),
        ("max_session_age", float("nan"), ValueError),
        ("max_session_age", "1", TypeError),
        ("close_rules", [], TypeError),
        ("close_rules", {4009: RESUME}, TypeError),
        ("max_held_seconds", -1.0, ValueError),
        ("failed", "retry", ValueError),
        ("failed", None, ValueError),
        ("failed", [], ValueError),
        ("jitter", 0.5, TypeError),
        ("remember_events", -1, ValueError),
        ("remember_events", 513, ValueError),
        ("remember_events", True, TypeError),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    ("account_id", "error"), [("", ValueError), (None, TypeError), ("b" * 30000, ValueError)]
)
def test_a_wrong_account_id_is_named(account_id: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="account_id"):
        GatewaySession(account_id, app_id="app", intents=1)


@pytest.mark.parametrize(
    ("now", "error"),
    [(None, TypeError), (True, TypeError), ("1", TypeError), (-1.0, ValueError),
     (float("nan"), ValueError), (float("inf"), ValueError), (1e13, ValueError)],
)  # fmt: skip
def test_a_wrong_time_is_refused_before_anything_changes(now: Any, error: type[Exception]) -> None:
    gateway = identified(make())
    before = snapshot(gateway)
    with pytest.raises(error, match="now"):
        gateway.receive(message(2), now)
    with pytest.raises(error, match="now"):
        gateway.line().opened("t", now)
    assert snapshot(gateway) == before


def test_4902_again_and_again_names_the_likely_cause_and_waits_longer_each_time() -> None:
    # promise 17
    gateway = make()
    rules = []
    for _ in range(10):
        identified(gateway)
        rules.append(gateway.closed(4902))
    assert "another process" not in rules[0].meaning
    assert all("another process probably runs this bot" in rule.meaning for rule in rules[1:])
    waits = [rule.wait for rule in rules]
    assert waits[1:8] == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0]
    assert waits[8:] == [900.0, 900.0]


def test_a_reset_hours_after_the_last_one_is_nothing_special() -> None:
    gateway = make()
    for hours in range(0, 10, 2):
        gateway.handshake("t", NOW + hours * 3600)
        ready = {"op": 0, "s": 1, "t": "READY", "d": {"session_id": f"session-{hours}"}}
        gateway.receive(ready, NOW + hours * 3600)
        assert gateway.closed(4902).meaning == CLOSE_RULES[4902].meaning
