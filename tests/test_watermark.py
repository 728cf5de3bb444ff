"""The low watermark: promise 18 and what a restart must not forget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qqbot_session import watermark as module
from qqbot_session.watermark import MAX_RUNS, MAX_STORED_RUNS, Watermark


def receive_all(mark: Watermark, seqs: Iterable[int], now: float = 0.0) -> list[bool]:
    return [mark.receive(seq, now) for seq in seqs]


def settle_all(mark: Watermark, seqs: Iterable[int]) -> None:
    for seq in seqs:
        mark.settle(seq, mark.generation)


def restored(mark: Watermark) -> Watermark:
    other = Watermark()
    other.restore(mark.settled, mark.above())
    return other


def test_a_new_watermark_has_seen_nothing() -> None:
    mark = Watermark()
    assert (mark.received, mark.settled, mark.above()) == (None, None, "")
    assert repr(mark) == "<Watermark received=None settled=None open=0>"


@pytest.mark.parametrize("order", list(itertools.permutations([3, 5, 9])))
def test_any_order_of_settling_gives_the_low_watermark(order: tuple[int, ...]) -> None:
    # promise 18
    mark = Watermark()
    receive_all(mark, [1])
    settle_all(mark, [1])
    receive_all(mark, [3, 5, 9])
    for index, seq in enumerate(order):
        settle_all(mark, [seq])
        still_open = set(order[index + 1 :])
        lower = [n for n in (1, 3, 5, 9) if all(n < other for other in still_open)]
        assert mark.settled == max(lower)
    assert mark.received == 9


def test_the_mark_is_always_a_number_that_was_received() -> None:
    mark = Watermark()
    receive_all(mark, [10, 20, 30])
    settle_all(mark, [10, 30])
    assert mark.settled == 10  # not 19
    assert mark.above() == "30"


@given(data=st.data())
def test_random_interleavings_agree_with_brute_force(data: st.DataObject) -> None:
    # promise 18
    mark = Watermark(max_held_seconds=None, max_held=None)
    received: list[int] = []
    settled: set[int] = set()
    seq = data.draw(st.integers(0, 5))
    for _ in range(data.draw(st.integers(1, 40))):
        waiting = [n for n in received if n not in settled]
        settles: bool = data.draw(st.booleans())
        if waiting and settles:
            number: int = data.draw(st.sampled_from(waiting))
            settled.add(number)
            mark.settle(number, mark.generation)
        else:
            received.append(seq)
            assert mark.receive(seq, 0.0)
            seq += data.draw(st.integers(1, 3))
        floor = min((n for n in received if n not in settled), default=seq)
        assert mark.received == max(received)
        assert mark.settled == max((n for n in received if n < floor), default=None)
        assert all(mark.is_settled(n) == (n in settled) for n in range(seq + 1))
        assert as_set(mark.above()) == {n for n in settled if n > floor}


def as_set(text: str) -> set[int]:
    numbers: set[int] = set()
    for item in text.split(",") if text else ():
        low, _, high = item.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


@given(st.sets(st.integers(2, 60), min_size=1), st.sets(st.integers(2, 60)), st.randoms())
def test_a_restart_redelivers_exactly_what_was_not_settled(
    numbers: set[int], unsettled: set[int], rng: random.Random
) -> None:
    # promise 18: at every moment of the replay, the mark is below all that is unsettled
    mark = Watermark()
    receive_all(mark, [1, *sorted(numbers)])
    settle_all(mark, [1, *(numbers - unsettled)])
    again = restored(mark)
    assert again.settled == mark.settled
    missing = numbers & unsettled
    for number in sorted(n for n in numbers if n > (mark.settled or 0)):
        assert again.receive(number, 0.0) == (number in missing)
        if number in missing and rng.random() < 0.8:
            settle_all(again, [number])
            missing.discard(number)
        assert again.settled is not None
        assert not missing or again.settled < min(missing)
    settle_all(again, sorted(missing))
    assert again.settled == max(1, *numbers) == again.received


def test_the_mark_does_not_pass_what_is_still_to_be_replayed() -> None:
    # promise 18: 11 and 15 were in hand when the process died
    mark = Watermark()
    mark.restore(10, "12-14,16-20")
    assert (mark.received, mark.settled) == (20, 10)
    assert mark.receive(11, 0.0)
    settle_all(mark, [11])
    assert mark.settled == 11
    assert receive_all(mark, [12, 13, 14, 15, 16]) == [False, False, False, True, False]
    assert mark.settled == 14
    settle_all(mark, [15])
    assert mark.settled == 16


def test_what_a_handler_still_has_is_not_given_out_again() -> None:
    mark = Watermark()
    assert mark.receive(1, 0.0)
    assert not mark.receive(1, 0.0)
    mark.fail(1, mark.generation)
    assert mark.receive(1, 0.0)
    assert not mark.receive(1, 0.0)


def test_settling_twice_or_what_was_never_received_changes_nothing() -> None:
    mark = Watermark()
    receive_all(mark, [1, 2])
    settle_all(mark, [1, 1, 7])
    assert (mark.received, mark.settled, mark.above()) == (2, 1, "")
    assert not mark.is_settled(7)


def test_settles_of_an_earlier_session_are_ignored() -> None:
    mark = Watermark()
    receive_all(mark, [1, 2])
    old = mark.generation
    mark.reset()
    assert (mark.received, mark.settled) == (None, None)
    receive_all(mark, [1, 2])
    mark.settle(1, old)
    mark.fail(2, old)
    assert mark.settled is None
    assert not mark.receive(2, 0.0)


def test_a_number_below_the_mark_is_delivered_but_cannot_hold_or_lower_it() -> None:
    mark = Watermark()
    receive_all(mark, [5, 9])
    settle_all(mark, [5, 9])
    assert not mark.receive(9, 0.0)
    assert mark.receive(7, 0.0)  # never seen: not certain
    assert mark.settled == 9
    settle_all(mark, [7])
    assert not mark.receive(7, 0.0)


def test_a_late_number_above_the_mark_holds_it() -> None:
    mark = Watermark()
    receive_all(mark, [1, 9, 5, 6])
    settle_all(mark, [1, 6])
    assert mark.settled == 1
    settle_all(mark, [9])
    assert mark.settled == 1
    settle_all(mark, [5])
    assert mark.settled == 9


def test_an_event_held_too_long_is_let_go_and_told() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    mark.receive(1, 100.0)
    mark.receive(2, 105.0)
    assert mark.release(110.0) == []
    assert mark.release(110.1) == [1]
    assert (mark.settled, mark.is_settled(1)) == (1, False)
    assert mark.release(200.0) == [2]
    settle_all(mark, [1])  # it ended after all
    assert mark.is_settled(1)


def test_letting_go_moves_the_mark_over_all_that_was_settled_above() -> None:
    mark = Watermark(max_held_seconds=10.0)
    receive_all(mark, [1, 2, 3], 0.0)
    settle_all(mark, [2, 3])
    assert mark.settled is None
    assert mark.release(11.0) == [1]
    assert mark.settled == 3


def test_of_too_many_events_the_lowest_are_let_go() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=None, max_held=3)
    receive_all(mark, range(1, 6))
    assert mark.release(0.0) == [1, 2]
    assert (mark.settled, mark.received) == (2, 5)


def test_none_switches_both_limits_off() -> None:
    mark = Watermark(max_held_seconds=None, max_held=None)
    receive_all(mark, range(2000), 0.0)
    assert mark.release(1e12) == []


def test_an_event_that_failed_is_let_go_by_its_first_delivery() -> None:
    # promise 18: what always fails cannot hold the mark by coming again
    mark = Watermark(max_held_seconds=10.0)
    mark.receive(1, 0.0)
    mark.fail(1, mark.generation)
    mark.receive(1, 9.0)
    assert mark.release(11.0) == [1]


def test_the_default_limits_are_300_seconds_and_1000_events() -> None:
    mark = Watermark()
    receive_all(mark, range(1001), 0.0)
    assert mark.release(300.0) == [0]
    assert mark.release(300.1) == list(range(1, 1001))


def test_what_is_written_down_is_bounded_and_the_newest_wins() -> None:
    mark = Watermark(max_held=None)
    receive_all(mark, range(0, 3000, 2))
    settle_all(mark, range(4, 3000, 4))
    runs = mark.above().split(",")
    assert len(runs) == MAX_STORED_RUNS == 256
    assert runs[-1] == "2996"
    assert restored(mark).settled is None  # nothing to restore: 0 is open
    mark.settle(0, mark.generation)
    assert restored(mark).above() == mark.above()


def test_the_longest_text_is_less_than_nine_kibibytes() -> None:
    mark = Watermark()
    top = 2**53 - 1
    mark.restore(0, ",".join(f"{top - 3 * n - 1}-{top - 3 * n}" for n in reversed(range(256))))
    assert len(mark.above()) == 256 * 34 - 1 < 9 * 1024


def test_memory_is_bounded_when_gaps_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RUNS", 10)
    assert MAX_RUNS == 4096
    mark = Watermark()
    for seq in range(0, 100, 2):
        mark.receive(seq, 0.0)
        mark.settle(seq, mark.generation)
    assert [mark.is_settled(seq) for seq in (78, 80, 98)] == [False, True, True]
    assert mark.settled == 98


@pytest.mark.parametrize(
    "above",
    [
        None, 7, [], {}, True, "", " ", "x", "-", "11-", "-11", "11,", "11,,12", "11 ,12", "12-11",
        "10", "9-12", "11,11", "13,12", "+11", "1_1", "٣٣", "11-9007199254740992", "1e3", "11.0",
        "9" * 5000, ",".join(str(n) for n in range(11, 2000, 2)),
    ],
)  # fmt: skip
def test_a_hostile_text_is_ignored(above: Any) -> None:
    mark = Watermark()
    mark.restore(10, above)
    assert (mark.received, mark.settled, mark.above()) == (10, 10, "")
    assert not mark.is_settled(11)


@given(st.text(alphabet="0123456789-, ", max_size=30))
def test_no_text_raises_and_what_is_taken_is_written_back(above: str) -> None:
    mark = Watermark()
    mark.restore(10, above)
    assert restored(mark).above() == mark.above()
    assert all(number > 10 for number in as_set_small(mark.above()))


def as_set_small(text: str) -> list[int]:
    return [int(number) for item in text.split(",") if text for number in item.split("-")]


def test_adjacent_runs_are_joined_from_both_sides() -> None:
    mark = Watermark()
    receive_all(mark, range(1, 8))
    settle_all(mark, [3, 7, 5, 4])
    assert mark.above() == "3-5,7"
    settle_all(mark, [6])
    assert mark.above() == "3-7"


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_held": 0}, ValueError),
        ({"max_held": -1}, ValueError),
        ({"max_held": 1.5}, TypeError),
        ({"max_held": True}, TypeError),
        ({"max_held_seconds": -0.1}, ValueError),
        ({"max_held_seconds": float("nan")}, ValueError),
        ({"max_held_seconds": float("inf")}, ValueError),
        ({"max_held_seconds": "5"}, TypeError),
    ],
)
def test_a_wrong_limit_is_named(limits: dict[str, Any], error: type[Exception]) -> None:
    [(name, value)] = limits.items()
    with pytest.raises(error, match=name) as raised:
        Watermark(**limits)
    assert repr(value) in str(raised.value)
