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

from qqbot_session.gateway import Next

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
