"""The low watermark: promise 18 and what a restart must not forget."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qqbot_session.gateway.watermark import MAX_RUNS, MAX_STORED_RUNS, Watermark


def receive_all(mark: Watermark, seqs: Iterable[int]) -> list[bool]:
    return [mark.receive(seq) for seq in seqs]


def begin_all(mark: Watermark, seqs: Iterable[int]) -> None:
    for seq in seqs:
        mark.receive(seq)
        mark.begin(seq, mark.generation)


def settle_all(mark: Watermark, seqs: Iterable[int]) -> None:
    for seq in seqs:
        mark.settle(seq, mark.generation)


def restored(mark: Watermark, **limits: Any) -> Watermark:
    other = Watermark(**limits)
    other.restore(mark.settled, mark.above(), mark.held())
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
    mark = Watermark(max_held_seconds=None)
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
            assert mark.receive(seq)
            seq += data.draw(st.integers(1, 3))
        floor = min((n for n in received if n not in settled), default=seq)
        assert mark.received == max(received)
        assert mark.settled == max((n for n in received if n < floor), default=None)
        assert all(mark.is_settled(n) == (n in settled) for n in range(seq + 1))
        assert as_set(mark.above()) == {n for n in settled if n > floor}


class Model:
    """The rules, as plainly as can be: every number with what became of it."""

    LIMIT = 10.0

    def __init__(self) -> None:
        self.mark = Watermark(max_held_seconds=self.LIMIT)
        self.mark.release(0.0)
        self.mark.resumed(1)
        self.settled_up_to = 1
        self.now = 0.0
        self.received = {1}
        self.settled = {1}
        self.let_go: set[int] = set()
        self.used: dict[int, float] = {}  # open numbers
        self.running: set[int] = set()  # those whose time runs
        self.failed: set[int] = set()
        self.still = False

    def receive(self, seq: int) -> None:
        known = seq in self.settled or (seq in self.used and seq not in self.failed)
        if seq in self.failed:
            self.failed.discard(seq)
            self.running.discard(seq)
        elif not known and seq > self.settled_up_to:
            self.used[seq] = 0.0
        self.received.add(seq)
        assert self.mark.receive(seq) == (not known)

    def end(self, seq: int, well: bool) -> None:
        if well:
            self.mark.settle(seq, self.mark.generation)
            self.settled.add(seq)
            self.used.pop(seq, None)
            self.running.discard(seq)
            self.failed.discard(seq)
        else:
            self.mark.fail(seq, self.mark.generation)
            if seq in self.used:
                self.running.add(seq)
                self.failed.add(seq)

    def begin(self, seq: int) -> None:
        self.mark.begin(seq, self.mark.generation)
        if seq in self.used:
            self.running.add(seq)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for seq in self.running:
            self.used[seq] += seconds
        released = []
        while not self.still and self.used and self.used[lowest := min(self.used)] > self.LIMIT:
            del self.used[lowest]
            self.let_go.add(lowest)
            self.running.discard(lowest)
            self.failed.discard(lowest)
            released.append(lowest)
        assert self.mark.release(self.now) == tuple(released)

    def check(self) -> None:
        if not self.still:
            lowest = min(self.used, default=max(self.received) + 1)
            safe = {seq for seq in self.received if seq < lowest}
            self.settled_up_to = max(safe | {self.settled_up_to})
        assert self.mark.settled == self.settled_up_to
        assert self.mark.received == max(self.received)
        assert all(self.mark.is_settled(seq) == (seq in self.settled) for seq in self.received)


@given(st.data())
def test_whatever_happens_it_agrees_with_the_rules_said_plainly(data: st.DataObject) -> None:
    # promise 18: late numbers, gaps, failures, time, and a Resume in the middle
    model = Model()
    for _ in range(data.draw(st.integers(1, 40))):
        seq = data.draw(st.integers(2, 25))
        match data.draw(st.sampled_from("rrrrbbeefw!.")):
            case "r":
                model.receive(seq)
            case "b" if seq in model.used:
                model.begin(seq)
            case "e" if seq in model.received:
                model.end(seq, well=True)
            case "f" if seq in model.used:
                model.end(seq, well=False)
            case "w":
                model.wait(data.draw(st.sampled_from([0.0, 1.0, 4.0, 11.0])))
            case "!":
                model.still = True
                model.mark.hold_still()
            case ".":
                model.still = False
                model.mark.resumed(None)
        model.check()


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
    # promise 18: in whatever order the replay comes, the mark stands still until RESUMED
    mark = Watermark()
    receive_all(mark, [1, *sorted(numbers)])
    settle_all(mark, [1, *(numbers - unsettled)])
    again = restored(mark)
    assert again.settled == mark.settled
    missing = numbers & unsettled
    replay = [number for number in numbers if number > (mark.settled or 0)]
    rng.shuffle(replay)
    for number in replay:
        assert again.receive(number) == (number in missing)
        if number in missing and rng.random() < 0.8:
            settle_all(again, [number])
            missing.discard(number)
        assert again.settled == mark.settled
    again.resumed(61)
    assert again.settled is not None
    assert not missing or again.settled < min(missing)
    settle_all(again, sorted(missing))
    assert again.settled == 61 == again.received


def test_a_restored_mark_stands_still_until_resumed() -> None:
    # promise 18: 11 and 15 were in hand when the process died
    mark = Watermark()
    mark.restore(10, "12-14,16-20")
    assert (mark.received, mark.settled) == (20, 10)
    assert receive_all(mark, [15, 11, 12, 13]) == [True, True, False, False]
    settle_all(mark, [11, 15])
    assert (mark.settled, mark.above()) == (10, "11-20")
    mark.resumed(21)
    assert (mark.settled, mark.above()) == (21, "")


def test_so_does_the_mark_of_a_session_that_is_resumed_in_the_same_process() -> None:
    # promise 18: 2 was lost with the line, and comes after 3
    mark = Watermark()
    receive_all(mark, [1])
    settle_all(mark, [1])
    mark.hold_still()
    receive_all(mark, [3])
    settle_all(mark, [3])
    assert mark.settled == 1
    assert mark.receive(2)
    mark.resumed(4)
    assert mark.settled == 1
    settle_all(mark, [2])
    assert mark.settled == 4


def test_the_mark_does_not_pass_what_the_replay_left_in_hand() -> None:
    # promise 18
    mark = Watermark()
    mark.restore(10, "12")
    receive_all(mark, [11, 12, 15])
    mark.resumed(None)
    assert mark.settled == 10
    settle_all(mark, [11])
    assert mark.settled == 12
    settle_all(mark, [15])
    assert mark.settled == 15


def test_what_a_handler_still_has_is_not_given_out_again() -> None:
    mark = Watermark()
    assert mark.receive(1)
    assert not mark.receive(1)
    mark.fail(1, mark.generation)
    assert mark.receive(1)
    assert not mark.receive(1)


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
    assert not mark.receive(2)


def test_a_number_below_the_mark_is_delivered_but_cannot_hold_or_lower_it() -> None:
    mark = Watermark()
    receive_all(mark, [5, 9])
    settle_all(mark, [5, 9])
    assert not mark.receive(9)
    assert mark.receive(7)  # never seen: not certain
    assert mark.settled == 9
    settle_all(mark, [7])
    assert not mark.receive(7)


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
    mark.release(100.0)
    begin_all(mark, [1])
    mark.release(105.0)
    begin_all(mark, [2])
    assert mark.release(110.0) == ()
    assert mark.release(110.1) == (1,)
    assert (mark.settled, mark.is_settled(1)) == (1, False)
    assert mark.release(200.0) == (2,)
    settle_all(mark, [1])  # it ended after all
    assert mark.is_settled(1)


def test_letting_go_moves_the_mark_over_all_that_was_settled_above() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    mark.release(0.0)
    begin_all(mark, [1, 2, 3])
    settle_all(mark, [2, 3])
    assert mark.settled is None
    assert mark.release(11.0) == (1,)
    assert mark.settled == 3


def test_what_waits_for_its_handler_is_never_let_go_however_many_wait() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    receive_all(mark, range(20_000))
    for now in range(0, 10_000, 100):
        assert mark.release(float(now)) == ()
    assert mark.settled is None
    mark.begin(0, mark.generation)
    assert mark.release(9_911.0) == (0,)
    assert mark.release(99_999.0) == ()
    assert mark.settled == 0


def test_what_was_begun_behind_one_that_waits_is_not_let_go_before_it() -> None:
    # promise 18: it would not move the mark
    mark = Watermark(max_held_seconds=10.0)
    mark.release(0.0)
    receive_all(mark, [1, 2])
    mark.begin(2, mark.generation)
    assert mark.release(20.0) == ()
    settle_all(mark, [1])
    assert mark.release(20.0) == (2,)


def test_none_switches_the_limit_off() -> None:
    mark = Watermark(max_held_seconds=None)
    begin_all(mark, range(2000))
    assert mark.release(0.0) == mark.release(1e12) == ()
    assert mark.held() == ""


def test_the_time_of_a_failed_event_runs_on_but_not_while_it_waits_anew() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    mark.release(0.0)
    begin_all(mark, [1])
    mark.release(2.0)
    mark.fail(1, mark.generation)
    assert mark.release(8.0) == ()
    assert mark.receive(1)  # a Resume brought it again: 8 s are used
    assert mark.release(1000.0) == ()
    mark.begin(1, mark.generation)
    mark.begin(1, mark.generation)  # a second time changes nothing
    assert mark.release(1002.0) == ()
    assert mark.release(1002.1) == (1,)


def test_what_failed_before_it_was_begun_is_held_from_then_on() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    mark.release(0.0)
    receive_all(mark, [1])
    mark.fail(1, mark.generation)
    assert mark.release(11.0) == (1,)


@pytest.mark.parametrize("step", [-1e9, -50.0])
def test_a_clock_set_back_neither_stops_nor_hastens_the_release(step: float) -> None:
    # promise 11
    mark = Watermark(max_held_seconds=10.0)
    mark.release(1e9)
    begin_all(mark, [1])
    assert mark.release(1e9 + 6.0) == ()
    assert mark.release(1e9 + 6.0 + step) == ()
    assert mark.release(1e9 + 10.0 + step) == ()
    assert mark.release(1e9 + 10.1 + step) == (1,)


def test_the_default_is_300_seconds() -> None:
    mark = Watermark()
    mark.release(0.0)
    begin_all(mark, range(1001))
    assert mark.release(300.0) == ()
    assert mark.release(300.1) == tuple(range(1001))


def test_the_time_is_summed_over_restarts() -> None:
    # promise 18: an event that ends the process each time does not hold the mark for ever
    mark = Watermark(max_held_seconds=10.0)
    mark.resumed(1)
    lives = 0
    while mark.settled != 2:
        lives += 1
        begin_all(mark, [2])
        mark.release(0.0)
        mark.release(0.4)  # and it is gone
        mark = restored(mark, max_held_seconds=10.0)
    assert lives == 10  # seconds are rounded up, so that every life counts
    assert mark.release(0.0) == (2,)
    assert mark.release(0.0) == ()


def test_a_restart_counts_on_where_the_last_process_was() -> None:
    # promise 18
    mark = Watermark(max_held_seconds=10.0)
    mark.resumed(1)
    begin_all(mark, [5, 3, 4])
    receive_all(mark, [6, 7])
    mark.release(0.0)
    mark.release(7.0)
    settle_all(mark, [4])
    assert mark.held() == "3:7,5:7"
    again = restored(mark, max_held_seconds=10.0)
    assert again.held() == "3:7,5:7"
    again.release(0.0)
    assert again.receive(3)
    assert again.release(100.0) == ()  # it waits
    again.begin(3, again.generation)
    again.resumed(8)  # 5 was not delivered again: nobody waits for it
    assert again.release(103.1) == (3,)
    assert (again.settled, again.held()) == (8, "")


def test_what_was_let_go_is_never_called_settled() -> None:
    # promise 18: neither now nor after a restart, though the mark is that number
    mark = Watermark(max_held_seconds=10.0)
    mark.resumed(1)
    mark.release(0.0)
    begin_all(mark, [2])
    assert mark.release(11.0) == (2,)
    assert (mark.settled, mark.held()) == (2, "2:0")
    assert mark.receive(2)
    again = restored(mark)
    assert (again.settled, again.is_settled(2)) == (2, False)
    assert again.receive(2)
    settle_all(again, [2])
    assert restored(again).is_settled(2)


def test_generations_are_unique_in_the_process() -> None:
    # promise 18
    one, other = Watermark(), Watermark()
    seen = [one.generation, other.generation]
    one.reset()
    other.reset()
    seen += [one.generation, other.generation]
    assert sorted(set(seen)) == seen
    receive_all(one, [1, 2])
    receive_all(other, [1, 2])
    other.settle(1, one.generation)
    other.settle(2, one.generation)
    assert other.settled is None


def test_what_is_written_down_is_bounded_and_the_newest_wins() -> None:
    mark = Watermark()
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


def test_memory_beside_the_open_events_is_bounded_when_gaps_never_end() -> None:
    # promise 18: with one handler stuck below all of it
    mark = Watermark()
    for seq in range(2, 100_000, 2):
        mark.receive(seq)
        if seq > 2:
            mark.settle(seq, mark.generation)
    assert sizes(mark) <= 4 * MAX_RUNS
    assert not mark.is_settled(4)
    assert mark.is_settled(99_998)
    settle_all(mark, [2])
    assert mark.settled == 99_998


def test_so_it_is_when_numbers_come_and_end_in_any_order() -> None:
    # promise 18
    rng = random.Random(1)
    mark = Watermark()
    numbers = [3 * n + rng.randrange(3) for n in range(60_000)]
    for start in range(0, len(numbers), 500):
        some = numbers[start : start + 500]
        rng.shuffle(some)
        receive_all(mark, some)
        rng.shuffle(some)
        settle_all(mark, some[start == 0 :])
    assert sizes(mark) <= 4 * MAX_RUNS
    assert mark.settled is None or mark.settled < 1500


def sizes(mark: Watermark) -> int:
    """Return how many numbers it holds in memory."""
    values = (getattr(mark, name) for name in Watermark.__slots__)
    held = [value for value in values if isinstance(value, list | set | dict | deque)]
    runs = mark._runs
    return sum(map(len, held)) + len(runs.lows) + len(runs.highs)


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


@pytest.mark.parametrize(
    "held",
    [
        None, 7, [], {}, True, " ", "x", ":", "11:", ":3", "11:3,", "11:3,,12:3", "9:3", "11:-3",
        "11:3,11:3", "12:3,11:3", "11:1.5", "11:9999999999", "9007199254740992:1", "٣:3",
        ",".join(f"{n}:300" for n in range(11, 111)),
    ],
)  # fmt: skip
def test_a_hostile_text_of_times_is_ignored(held: Any) -> None:
    mark = Watermark()
    mark.restore(10, "12", held)
    assert (mark.received, mark.settled, mark.above(), mark.held()) == (12, 10, "12", "")
    assert mark.release(0.0) == ()


def test_the_longest_text_of_times_is_short_and_the_lowest_win() -> None:
    mark = Watermark(max_held_seconds=1e9 - 1)
    first = 2**53 - 1000
    mark.resumed(first)
    mark.release(0.0)
    begin_all(mark, range(first + 1, 2**53 - 1))
    mark.release(9e8)
    assert len(mark.held()) < 2048
    assert mark.held().startswith(f"{first + 1}:900000000,")
    assert restored(mark, max_held_seconds=1e9 - 1).held() == mark.held()


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
        ({"max_held_seconds": True}, TypeError),
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
