"""Heartbeats, time-outs, answers and wishes to close: promises 11 and 19 to 21, no socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from driven import HELLO, NOW, Driven, attributes, has_session, sent

from qqbot_session.errors import GatewayProtocolError
from qqbot_session.gateway import (
    CLOSE_RULES,
    Connection,
    Dispatch,
    GatewaySession,
    HeartbeatRequest,
    Hello,
    InvalidSession,
    Next,
    Reconnect,
    Resumed,
    Stale,
)

READY = {"op": 0, "s": 1, "t": "READY", "d": {"session_id": "session-1", "user": {}}}
ACK = {"op": 11}
INTERVAL = 45.0


def make(**options: Any) -> Driven:
    return Driven("bot", **{"app_id": "app", "intents": 513, **options})


def opened(gateway: GatewaySession | None = None, now: float = NOW) -> Connection:
    line = (gateway or make()).connect()
    line.opened("token", now)
    return line


def greeted(gateway: GatewaySession | None = None, now: float = NOW) -> Connection:
    """Return a line whose handshake was sent."""
    line = opened(gateway, now)
    line.receive(HELLO, now)
    sent(line)
    return line


def running(gateway: GatewaySession | None = None, now: float = NOW) -> Connection:
    """Return a line that has sent its first heartbeat."""
    line = greeted(gateway, now)
    line.receive(READY, now)
    assert sent(line) == {"op": 1, "d": 1}
    return line


def message(seq: int) -> dict[str, Any]:
    return {"op": 0, "s": seq, "t": "C2C_MESSAGE_CREATE", "d": {"id": f"m{seq}"}}


# Before the handshake


def test_before_it_is_opened_there_is_nothing_to_send_and_no_timer() -> None:
    line = make().connect()
    assert (line.frames_to_send(), line.get_timer(), line.close_with) == ([], None, None)
    line.handle_timer(NOW)
    assert (line.frames_to_send(), line.get_timer(), line.close_with) == ([], None, None)


def test_hello_is_answered_and_every_frame_is_given_out_once() -> None:
    # promise 16
    line = opened()
    assert line.frames_to_send() == []
    assert line.receive(HELLO, NOW) == Hello(45.0, "Identify")
    assert sent(line)["op"] == 2
    assert line.frames_to_send() == []


def test_hello_may_come_before_the_token_does() -> None:
    line = make().connect()
    line.receive(HELLO, NOW)
    assert line.frames_to_send() == []
    line.opened("token", NOW + 1)
    assert sent(line)["d"]["token"] == "QQBot token"
    assert line.get_timer() == NOW + 21


def test_a_second_hello_or_opening_brings_no_second_handshake() -> None:
    line = greeted()
    line.receive({"op": 10, "d": {"heartbeat_interval": 7000}}, NOW)
    line.opened("other", NOW)
    assert line.frames_to_send() == []
    line.receive(READY, NOW)
    assert line.get_timer() == NOW + 7


@pytest.mark.parametrize("milliseconds", [0.001, 1, 999])
def test_an_interval_below_a_second_is_taken_as_one_second(milliseconds: float) -> None:
    line = opened()
    hello = line.receive({"op": 10, "d": {"heartbeat_interval": milliseconds}}, NOW)
    assert hello == Hello(milliseconds / 1000, "Identify")
    line.receive(READY, NOW)
    assert line.get_timer() == NOW + 1


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ('{"op": 0, "s": %s, "t": "X"}', "s must be"),
        ('{"op": 10, "d": {"heartbeat_interval": %s}}', "heartbeat_interval is out of range"),
        ('{"op": %s.5}', "op must be"),
    ],
)
def test_a_number_of_400_digits_is_refused_with_a_short_sentence(frame: str, field: str) -> None:
    # promise 19
    line = greeted()
    with pytest.raises(GatewayProtocolError, match=field) as caught:
        line.receive(frame % ("9" * 400), NOW)
    assert len(str(caught.value)) < 100


def test_without_hello_for_20_seconds_the_line_is_given_up() -> None:
    # promise 20
    line = opened()
    assert line.get_timer() == NOW + 20
    line.handle_timer(NOW + 19.9)
    assert line.close_with is None
    line.handle_timer(NOW + 20)
    assert line.close_with == 4000


def test_an_op_1_before_the_handshake_is_not_answered() -> None:
    line = opened()
    assert line.receive({"op": 1}, NOW) == HeartbeatRequest()
    assert line.frames_to_send() == []


@pytest.mark.parametrize(("token", "error"), [("", ValueError), (None, TypeError), (7, TypeError)])
def test_a_wrong_token_is_refused_before_anything_changes(
    token: Any, error: type[Exception]
) -> None:
    line = make().connect()
    with pytest.raises(error, match="token"):
        line.opened(token, NOW)
    assert line.get_timer() is None


def test_the_token_is_kept_until_the_handshake_and_shown_nowhere() -> None:
    gateway = make()
    line = gateway.connect()
    line.opened("s3cret", NOW)
    assert "s3cret" not in repr(line) + repr(gateway) + repr(attributes(gateway))
    line.receive(HELLO, NOW)
    assert "s3cret" in line.frames_to_send()[0]
    assert not holds(line, "s3cret")
    again = gateway.connect()
    again.opened("s3cret", NOW)
    again.closed(None)  # it never came to a handshake
    assert not holds(again, "s3cret")


def holds(line: Connection, text: str) -> bool:
    return any(text in repr(getattr(line, name)) for name in line.__slots__)


# Until READY or RESUMED


def test_without_ready_for_20_seconds_the_line_is_given_up() -> None:
    # promise 20
    line = greeted()
    line.handle_timer(NOW + 19.9)
    assert line.close_with is None
    line.handle_timer(NOW + 20)
    assert line.close_with == 4000


def test_each_replayed_event_gives_resumed_20_seconds_more() -> None:
    # promise 20
    gateway = make()
    running(gateway)
    line = greeted(gateway)
    for n in range(10):
        line.receive(message(2 + n), NOW + 15 * n)
        line.handle_timer(NOW + 15 * n)
        assert line.close_with is None
        line.frames_to_send()
        line.receive(ACK, NOW + 15 * n)
    line.handle_timer(NOW + 15 * 9 + 20)
    assert line.close_with == 4000


def test_acknowledgements_alone_do_not_keep_a_line_that_never_resumes() -> None:
    # promise 20
    line = opened()
    line.receive({"op": 10, "d": {"heartbeat_interval": 5000}}, NOW)
    for seconds in (5, 10, 15):
        line.handle_timer(NOW + seconds)
        line.receive(ACK, NOW + seconds)
    line.handle_timer(NOW + 20)
    assert line.close_with == 4000


def test_the_first_beat_goes_out_at_ready() -> None:
    # promise 21
    line = greeted()
    line.receive(READY, NOW + 3)
    assert sent(line) == {"op": 1, "d": 1}
    assert line.get_timer() == NOW + 3 + INTERVAL


def test_or_at_resumed() -> None:
    # promise 21
    gateway = make()
    running(gateway)
    line = greeted(gateway)
    line.receive(message(2), NOW + 1)
    assert line.frames_to_send() == []
    assert line.receive({"op": 0, "s": 3, "t": "RESUMED", "d": ""}, NOW + 2) == Resumed(3)
    assert sent(line) == {"op": 1, "d": 3}


def test_or_one_interval_after_hello_if_the_replay_takes_longer() -> None:
    # promise 21
    gateway = make()
    running(gateway)
    line = greeted(gateway)
    for seconds in range(0, 50, 10):
        line.receive(message(2 + seconds), NOW + seconds)
    line.handle_timer(NOW + INTERVAL)
    assert sent(line) == {"op": 1, "d": 42}
    line.receive({"op": 0, "s": 60, "t": "RESUMED", "d": ""}, NOW + 50)
    assert line.frames_to_send() == []  # the first is still out
    assert line.get_timer() == NOW + 2 * INTERVAL


# On a line that runs


def test_it_beats_every_interval_as_long_as_it_is_answered() -> None:
    # promise 18: with the highest number received
    line = running()
    for n in range(1, 10):
        line.receive(message(10 * n), NOW)
        line.receive(ACK, NOW)
        assert line.get_timer() == NOW + INTERVAL * n
        line.handle_timer(NOW + INTERVAL * n)
        assert sent(line) == {"op": 1, "d": 10 * n}
    assert line.close_with is None


def test_too_early_a_timer_does_no_harm() -> None:
    line = running()
    line.handle_timer(NOW + INTERVAL - 0.001)
    assert (line.frames_to_send(), line.get_timer()) == ([], NOW + INTERVAL)


def test_a_beat_that_was_not_answered_when_the_next_is_due_ends_the_line() -> None:
    # promise 20
    line = running()
    line.handle_timer(NOW + INTERVAL + 0.5)
    assert line.close_with == 4000
    assert line.frames_to_send() == []


def test_a_timer_that_fires_late_judges_nothing_and_asks_again_a_second_later() -> None:
    # promise 21: the process was held up, and the answer may lie unread in the socket
    for line in (opened(), greeted(), running()):
        due = line.get_timer()
        assert due is not None
        line.handle_timer(due + 1.5)
        assert line.close_with is None
        assert line.get_timer() == due + 2.5
        line.handle_timer(due + 2.6)
        assert line.close_with == 4000


def test_an_answer_that_was_read_late_saves_the_line() -> None:
    # promise 21
    line = running()
    line.handle_timer(NOW + 300)
    line.receive(ACK, NOW + 300)
    line.handle_timer(NOW + 301)
    assert line.close_with is None
    assert sent(line) == {"op": 1, "d": 1}
    assert line.get_timer() == NOW + 301 + INTERVAL


def test_op_1_is_answered_at_once_and_is_no_beat_to_wait_for() -> None:
    # promise 21
    line = running()
    line.receive(ACK, NOW + 44.9)
    assert line.receive({"op": 1}, NOW + 44.95) == HeartbeatRequest()
    assert sent(line) == {"op": 1, "d": 1}
    line.handle_timer(NOW + INTERVAL)
    assert line.close_with is None
    assert sent(line) == {"op": 1, "d": 1}


def test_op_1_while_resuming_is_answered_too() -> None:
    line = greeted()
    line.receive({"op": 1}, NOW)
    assert sent(line) == {"op": 1, "d": None}


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ({"op": 7}, Reconnect()),
        ({"op": 9, "d": True}, InvalidSession(True)),
        ({"op": 9, "d": False}, InvalidSession(False)),
    ],
)
def test_op_7_and_op_9_end_the_line_with_4000(frame: dict[str, Any], event: object) -> None:
    # promise 16
    line = running()
    assert line.receive(frame, NOW) == event
    assert line.close_with == 4000


@pytest.mark.parametrize("resumable", [True, False])
def test_after_op_9_upon_an_identify_the_close_frame_is_waited_for(resumable: bool) -> None:
    # promise 16
    line = greeted()
    line.receive({"op": 9, "d": resumable}, NOW)
    assert (line.close_with, line.get_timer()) == (None, NOW + 1)
    line.receive({"op": 11}, NOW + 0.5)
    line.handle_timer(NOW + 1)
    assert line.close_with == 4000


def test_what_closes_the_line_after_op_9_is_what_the_refusal_means() -> None:
    # promise 16
    line = greeted()
    line.receive({"op": 9, "d": False}, NOW)
    rule = line.closed(4914)
    assert (rule.next, rule.meaning) == (Next.STOP, CLOSE_RULES[4914].meaning)


def test_any_frame_is_a_sign_of_life_however_long_the_replay() -> None:
    # promise 20
    gateway = make()
    running(gateway).closed(None)
    line, now = greeted(gateway), NOW
    for seq in range(2, 502):
        now += 1.0
        while (due := line.get_timer()) is not None and due <= now:
            line.handle_timer(now)
        line.receive(message(seq), now)
    assert line.close_with is None
    assert len(line.frames_to_send()) == 11  # a heartbeat every 45 s
    for _ in range(2):  # then nothing comes any more
        due = line.get_timer()
        assert due is not None
        line.handle_timer(due)
    assert line.close_with == 4000


def test_what_comes_behind_op_7_is_still_taken() -> None:
    # promise 18
    gateway = make()
    line = running(gateway)
    line.receive({"op": 7}, NOW)
    event = line.receive(message(2), NOW)
    assert isinstance(event, Dispatch)
    gateway.settle(event)
    assert gateway.settled == 2


def test_a_replaced_line_wants_to_be_closed_and_changes_nothing() -> None:
    gateway = make()
    old = running(gateway)
    gateway.connect()
    assert old.close_with == 4000
    turn, state = gateway.turn, gateway.state
    old.handle_timer(NOW + 1000)
    assert old.receive(READY, NOW) == Stale()
    assert old.frames_to_send() == []
    assert old.closed(4915).next is Next.IGNORE
    assert (gateway.turn, gateway.state) == (turn, state)


def test_nothing_is_left_to_send_after_the_close() -> None:
    line = greeted()
    line.receive({"op": 1}, NOW)
    line.closed(None)
    assert line.frames_to_send() == []


@pytest.mark.parametrize("step", [-3600.0, -1e9])
def test_a_handler_of_a_set_back_clock_does_no_harm(step: float) -> None:
    # promise 11: who gives a wall clock beats late, but loses no line by it
    line = running()
    line.handle_timer(NOW + step)
    assert line.close_with is None


# Who has numbers but no frames


def test_an_sdk_that_keeps_its_own_line_can_be_followed() -> None:
    gateway = make()
    line = gateway.connect()
    line.receive({"op": 0, "t": "READY", "s": 1, "d": {"session_id": "theirs"}}, NOW)
    first = line.receive({"op": 0, "t": "", "s": 2}, NOW)
    second = line.receive({"op": 0, "t": "", "s": 3}, NOW)
    assert isinstance(first, Dispatch)
    assert isinstance(second, Dispatch)
    gateway.settle(second)
    gateway.begin(first)
    gateway.fail(first)
    assert (gateway.settled, gateway.received) == (1, 3)
    line.receive({"op": 0, "t": "RESUMED", "s": 4}, NOW)
    gateway.settle(first)
    assert gateway.settled == 4
    assert (line.frames_to_send(), line.get_timer()) == ([], None)
    line.receive({"op": 9, "d": False}, NOW)
    assert not has_session(gateway)


# Frames


def test_a_frame_may_be_text_bytes_or_decoded() -> None:
    # promise 19
    text = json.dumps(message(2))
    for frame in (text, text.encode(), json.loads(text), " " + text + "\n"):
        event = running().receive(frame, NOW)
        assert isinstance(event, Dispatch)
        assert (event.seq, event.data) == (2, {"id": "m2"})


def test_chinese_and_emoji_arrive_as_they_were_sent() -> None:
    text = '{"op": 0, "s": 2, "t": "X", "d": "机器人🤖\\ud83e\\udd16"}'
    for frame in (text, text.encode()):
        event = running().receive(frame, NOW)
        assert isinstance(event, Dispatch)
        assert event.data == "机器人🤖🤖"


BROKEN: dict[str, Any] = {
    "not JSON": "hello",
    "empty": "",
    "empty bytes": b"",
    "cut off": '{"op": 0, "s": 2, "t": "X", "d": {',
    "two objects": '{"op": 11}{"op": 11}',
    "byte order mark": "\ufeff" + json.dumps(message(2)),
    "UTF-16": json.dumps(message(2)).encode("utf-16"),
    "not UTF-8": b'{"op": 0, "t": "\xff"}',
    "a lone surrogate in UTF-8": b'{"op": 0, "t": "\xed\xa0\x80"}',
    "compressed": b"\x78\x9c\x00",
    "null": "null",
    "array": "[]",
    "number": "7",
    "text": '"x"',
    "true": "true",
    "deep": "[" * 100_000,
    "deep inside": '{"op": 0, "s": 2, "t": "X", "d": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "huge integer": '{"op": 0, "s": ' + "9" * 5000 + "}",
    "large integer": '{"op": 0, "s": 9007199254740992}',
    "NaN": '{"op": 0, "s": 2, "t": "X", "d": NaN}',
    "infinity": '{"op": 0, "s": 2, "t": "X", "d": -Infinity}',
    "NaN for a number": '{"op": 0, "s": NaN, "t": "X"}',
    "number as text": '{"op": 0, "s": "5", "t": "X", "d": {}}',
    "number as float": '{"op": 0, "s": 5.0, "t": "X", "d": {}}',
    "op as text": '{"op": "0"}',
    "5 MB": '{"op": 0, "s": 3, "t": "X", "d": "' + "x" * 5_000_000 + '"}',
    "5 MB of bytes": b'{"op": 0, "s": 3, "t": "X", "d": "' + b"x" * 5_000_000 + b'"}',
    "None": None,
    "bytearray": bytearray(b"{}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_frame_raises_says_why_and_changes_nothing(name: str) -> None:
    # promise 19
    gateway = make()
    line = running(gateway)
    line.receive(message(2), NOW)
    before = [getattr(line, slot) for slot in line.__slots__], gateway.turn, gateway.state
    with pytest.raises(GatewayProtocolError) as raised:
        line.receive(BROKEN[name], NOW + 10)
    assert 10 < len(str(raised.value)) < 120
    assert ([getattr(line, slot) for slot in line.__slots__], gateway.turn, gateway.state) == before
    assert isinstance(line.receive(message(3), NOW), Dispatch)


@pytest.mark.parametrize("now", [None, "1", True, float("nan"), -1.0, 1e13])
def test_a_wrong_time_is_refused_before_anything_changes(now: Any) -> None:
    line = opened()
    for call in (
        lambda: line.opened("t", now),
        lambda: line.handle_timer(now),
        lambda: line.receive(HELLO, now),
    ):
        with pytest.raises((TypeError, ValueError), match="now"):
            call()
    assert (line.frames_to_send(), line.get_timer()) == ([], NOW + 20)


# The budget


def test_without_an_identify_left_none_is_sent_and_the_close_says_how_long_to_wait() -> None:
    # promise 17: though the caller did not wait as long as it was told
    gateway = make()
    for _ in range(20):
        running(gateway)
        gateway.closed(4006)
    line = opened(gateway)
    line.receive(HELLO, NOW)
    assert (line.frames_to_send(), line.close_with) == ([], 4000)
    assert line.closed(4000).wait == 500.0
    line = opened(gateway, NOW + 499.5)
    line.receive(HELLO, NOW + 499.5)
    assert sent(line)["op"] == 2


def test_a_clock_set_back_does_not_stop_identifies() -> None:
    # promise 11
    gateway = make()
    for _ in range(20):
        running(gateway)
        gateway.closed(4006)
    line = opened(gateway, NOW - 1e6)
    line.receive(HELLO, NOW - 1e6)
    assert line.frames_to_send() == []
    assert line.closed(4000).wait == 500.0


def test_a_socket_that_does_not_open_does_not_make_the_wait_for_an_identify_begin_anew() -> None:
    # promise 17: what `closed` said was waited for
    gateway = make(jitter=lambda: 0.0)
    waits = []
    for _ in range(20):
        running(gateway)
        gateway.closed(4006)
    for _ in range(3):
        gateway.connect()
        waits.append(gateway.closed(None).wait)
    assert waits == [60.0, 60.0, 60.0]
    running(gateway, NOW + 500)
    assert gateway.closed(4006).wait == 500.0
    gateway.connect()
    assert gateway.closed(None).wait == 60.0
