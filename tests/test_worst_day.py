"""A gateway that misbehaves all day, in virtual time: what that costs. Promise 17.

QQ gives a bot a number of session starts a day (1000 in the docs' sample); a Resume is not known
to cost anything, but a bot that comes back every second for a day is nobody's friend.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from driven import HELLO, NOW, Driven

from qqbot_session.gateway import GatewaySession, Next
from qqbot_session.state import SessionState, decode, encode

DAY = 86_400.0
TAKES = 0.2  # seconds from the socket to the misfortune
INTERVAL = 45.0


@dataclass
class Day:
    """One day of one bot.

    Args:
        way: a close code, `None` for a broken line, `"op 9"`, or `"refused"` for a socket that
            never opens.
        moment: how far a line comes: `"before"` READY or RESUMED; to `"READY"`, with Resumes
            unanswered; to `"RESUMED"` or READY; or to the first `"beat"` an interval later.
    """

    way: int | str | None
    moment: str
    jitter: float = 0.0

    def __post_init__(self) -> None:
        self.now = NOW
        self.seq = 1
        self.connections = self.resumes = self.identifies = 0
        self.longest_to_resume = 0.0  # seconds to wait
        self.stopped = False
        self.gateway = Driven("bot", app_id="app", intents=513, jitter=lambda: self.jitter)
        self.gateway.handshake("t", NOW)
        self.accept(2)
        self.gateway.receive({"op": 11}, NOW)
        self.gateway.closed(None)
        while self.now < NOW + DAY and not self.stopped:
            self.line()

    def line(self) -> None:
        self.connections += 1
        line = self.gateway.connect()
        if self.way != "refused":
            line.opened("t", self.now)
            line.receive(HELLO, self.now)
            for frame in line.frames_to_send():
                self.answer(2 if '"op": 2' in frame else 6)
        rule = line.closed(self.way if isinstance(self.way, int) else None)
        if rule.next is Next.RESUME:
            self.longest_to_resume = max(self.longest_to_resume, rule.wait)
        self.stopped = rule.next is Next.STOP
        self.now += TAKES + rule.wait

    def answer(self, op: int) -> None:
        self.identifies += op == 2
        self.resumes += op == 6
        if self.moment in ("RESUMED", "beat") or (self.moment == "READY" and op == 2):
            self.accept(op)
        if self.moment == "beat":
            self.gateway.receive({"op": 11}, self.now)
            self.now += INTERVAL
            self.gateway.receive({"op": 11}, self.now)
        if self.way == "op 9":
            self.gateway.receive({"op": 9, "d": False}, self.now)

    def accept(self, op: int) -> None:
        self.seq = 1 if op == 2 else self.seq + 1
        frame: dict[str, Any] = {"op": 0, "s": self.seq, "t": "RESUMED", "d": ""}
        if op == 2:
            frame |= {"t": "READY", "d": {"session_id": f"session {self.identifies}"}}
        self.gateway.receive(frame, self.now)


# way, moment, connections, Resumes, Identifies
TABLE: list[tuple[int | str | None, str, int, int, int]] = [
    (4009, "before", 194, 3, 191),
    (4009, "READY", 767, 576, 191),
    (4009, "RESUMED", 1440, 1440, 0),
    (4009, "beat", 1871, 1871, 0),
    (4902, "before", 103, 1, 102),
    (4902, "READY", 103, 1, 102),
    (4902, "RESUMED", 103, 1, 102),
    (4902, "beat", 98, 1, 97),
    (4006, "before", 192, 1, 191),
    (4006, "READY", 192, 1, 191),
    (4006, "RESUMED", 192, 1, 191),
    (4006, "beat", 192, 1, 191),
    (4900, "before", 192, 1, 191),
    (4900, "READY", 192, 1, 191),
    (4900, "RESUMED", 192, 1, 191),
    (4900, "beat", 192, 1, 191),
    (1006, "before", 194, 3, 191),
    (1006, "READY", 767, 576, 191),
    (1006, "RESUMED", 1440, 1440, 0),
    (1006, "beat", 1871, 1871, 0),
    (None, "before", 194, 3, 191),
    (None, "READY", 767, 576, 191),
    (None, "RESUMED", 1440, 1440, 0),
    (None, "beat", 1871, 1871, 0),
    (4004, "before", 1437, 1437, 0),
    (4004, "READY", 1437, 1437, 0),
    (4004, "RESUMED", 1440, 1440, 0),
    (4004, "beat", 1871, 1871, 0),
    (4008, "before", 1436, 1436, 0),
    (4008, "READY", 1436, 1436, 0),
    (4008, "RESUMED", 1436, 1436, 0),
    (4008, "beat", 822, 822, 0),
    ("op 9", "before", 4, 1, 3),
    ("op 9", "READY", 192, 1, 191),
    ("op 9", "RESUMED", 192, 1, 191),
    ("op 9", "beat", 192, 1, 191),
    ("refused", "before", 1440, 0, 0),
]


@pytest.mark.parametrize(("way", "moment", "connections", "resumes", "identifies"), TABLE)
def test_what_a_day_costs(
    way: int | str | None, moment: str, connections: int, resumes: int, identifies: int
) -> None:
    # promises 16 and 17
    day = Day(way, moment)
    assert (day.connections, day.resumes, day.identifies) == (connections, resumes, identifies)
    assert day.identifies < 200
    assert day.longest_to_resume <= 60.0
    assert day.stopped == (way == "op 9" and moment == "before")


@pytest.mark.parametrize("moment", ["before", "READY", "RESUMED"])
@pytest.mark.parametrize("way", [4009, 4902, None, 4004, "op 9"])
def test_chance_makes_it_no_more_identifies(way: int | str | None, moment: str) -> None:
    # promise 17
    day = Day(way, moment, jitter=1.0)
    assert day.identifies < 200
    assert day.connections < 2000


@pytest.mark.parametrize("seed", range(3))
def test_nor_does_a_day_of_everything_at_random(seed: int) -> None:
    # promise 17
    rng = random.Random(seed)

    class AnyDay(Day):
        def line(self) -> None:
            self.way, self.moment = rng.choice(TABLE)[:2]
            super().line()

    day = AnyDay(None, "beat", 0.5)
    assert day.identifies < 200
    assert day.longest_to_resume <= 60.0
    assert day.stopped or day.connections > 150


class Restarts:
    """A bot that a supervisor starts anew as soon as it ends: what each process sends.

    Args:
        end: what ends each process once it has sent its Identify: a close code that stops it, or
            `None` for a crash.
        life: seconds that a process needs to start.
    """

    def __init__(self, end: int | None, life: float = 1.0) -> None:
        self.identifies = 0
        self.waited = 0.0  # seconds, of the latest start
        self.now = NOW
        self.end, self.life = end, life
        self.record: SessionState | None = None

    def day(self) -> None:
        while self.now < NOW + DAY:
            self.start()

    def start(self, **options: Any) -> GatewaySession:
        self.now += self.life
        kept = None if self.record is None else decode(encode(self.record, saved_at=self.now))
        settings = {"app_id": "app", "intents": 513, "jitter": lambda: 0.0}
        gateway = GatewaySession("bot", **(settings | {"resume": kept} | options))
        self.waited = 0.0 if gateway.resumable else gateway.until_identify(self.now)
        self.now += self.waited
        line = gateway.connect()
        line.opened("t", self.now)
        line.receive(HELLO, self.now)
        self.identifies += any('"op": 2' in frame for frame in line.frames_to_send())
        if self.end is not None:
            line.closed(self.end)
        self.record = gateway.state
        return gateway


@pytest.mark.parametrize("end", [4014, 4914, 4915, 4001, None])
def test_fewer_than_200_identifies_a_day_whatever_restarts_the_process(end: int | None) -> None:
    # promises 17 and 30
    bot = Restarts(end)
    bot.day()
    assert 90 < bot.identifies < 200


def test_three_processes_that_meet_op_9_and_a_crash_loop_share_one_budget() -> None:
    # promise 30
    bot = Restarts(None, life=0.0)
    for _ in range(20):
        bot.start()
        assert bot.waited == 0.0
    bot.start()
    assert bot.waited == pytest.approx(500.0)


def by_secret(secret: str) -> Any:
    return lambda earlier: f"salt:{secret}"


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({}, True),
        ({"fingerprint": by_secret("old"), "jitter": lambda: 1.0}, True),
        ({"fingerprint": by_secret("new")}, False),
        ({"intents": 1}, False),
        ({"app_id": "other"}, False),
        ({"shard": (0, 2)}, False),
    ],
)
def test_a_refused_bot_waits_unless_its_secret_intents_or_app_changed(
    change: dict[str, Any], waits: bool
) -> None:
    # promise 30
    old = {"fingerprint": by_secret("old")}
    bot = Restarts(4014)
    bot.start(**old)
    refusal = bot.start(**(old | change)).refusal
    assert bot.waited == pytest.approx(899.0 if waits else 0.0)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (4014, "The bot may not use these intents.")


def test_ready_ends_a_refusal() -> None:
    # promise 30
    bot = Restarts(4014)
    bot.start()
    bot.end = None
    gateway = bot.start()
    line = gateway.connect()
    line.receive({"op": 0, "s": 1, "t": "READY", "d": {"session_id": "S"}}, bot.now)
    assert gateway.refusal is None
    assert gateway.state is not None
    assert "refusal" not in gateway.state.extra


def test_a_clock_that_was_set_back_makes_nobody_wait_for_ever() -> None:
    # promise 11
    bot = Restarts(4014)
    bot.start()
    bot.now -= 30 * DAY
    bot.start()
    assert bot.waited <= 900.0


@pytest.mark.parametrize(
    "extra",
    [
        {"identifyBudgetFullAt": value, "refusal": value}
        for value in (None, True, -1, 1.5, 10**18, "soon", [], {})
    ]
    + [
        {"refusal": {"at": 1_800_000_000_000, "code": code, "reason": reason}}
        for code, reason in ((-1, "x"), (True, "x"), ("4014", "x"), (4014, ""), (4014, "x" * 501))
    ],
)
def test_hostile_fields_of_a_record_make_nobody_wait(extra: dict[str, Any]) -> None:
    # promise 14
    record = SessionState(account_id="bot", app_id="app", saved_at=NOW, extra=extra)
    gateway = GatewaySession("bot", app_id="app", intents=1, resume=record)
    assert (gateway.until_identify(NOW), gateway.refusal) == (0.0, None)


def test_a_session_for_other_intents_is_left_alone_until_an_identify_goes_out() -> None:
    record = SessionState(
        account_id="bot",
        app_id="app",
        intents=1,
        session_id="S",
        last_seq=5,
        saved_at=NOW,
        extra={"identifyBudgetFullAt": round((NOW + 300) * 1000)},
    )
    gateway = GatewaySession("bot", app_id="app", intents=2, resume=record)
    assert gateway.state is None
    line = gateway.connect()
    line.opened("t", NOW)
    line.receive(HELLO, NOW)
    assert gateway.state is not None
    assert gateway.state.extra["identifyBudgetFullAt"] == round((NOW + 800) * 1000)


def test_a_loop_that_does_not_ask_is_told_to_wait_by_its_first_line() -> None:
    # promise 30
    bot = Restarts(4014)
    bot.start()
    gateway = GatewaySession("bot", app_id="app", intents=513, resume=bot.record)
    line = gateway.connect()
    line.opened("t", bot.now + 1)
    line.receive(HELLO, bot.now + 1)
    assert (line.frames_to_send(), line.close_with) == ([], 4000)
    rule = line.closed(4000)
    assert (rule.next, rule.wait) == (Next.IDENTIFY, pytest.approx(899.0))
    assert "may not use these intents" in rule.meaning
