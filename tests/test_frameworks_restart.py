"""Bots on the frameworks' real packages, with us and without, killed, ended and struck.

Each runs as a process of its own against `LocalGateway`. `python tests/frameworks.py` makes the
environments of the newest versions; without them the tests skip. The others are slow.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import frameworks
import pytest
from framework_runs import Build, Outcome, Refusal, run_all


@dataclass(frozen=True)
class Pair:
    """A bot with us, the same without, and what only some of them do."""

    environment: str
    program: str
    ours: str
    stock: str = "stock"

    @property
    def with_us(self) -> Build:
        return Build(self.environment, self.program, self.ours)

    @property
    def alone(self) -> Build:
        return Build(self.environment, self.program, self.stock)


def botpy(environment: str) -> Pair:
    return Pair(environment, "framework_botpy", "mixin")


def nonebot(environment: str, driver: str = "~none+~aiohttp") -> Pair:
    return Pair(environment, "framework_nonebot", f"adapter {driver}", f"stock {driver}")


def agent_sdk(environment: str) -> Pair:
    return Pair(environment, "framework_agent_sdk", "remembered")


NEWEST = [botpy("botpy"), botpy("botpy-sdk"), nonebot("nonebot"), agent_sdk("agent-sdk")]
OTHERS = [
    *map(botpy, [name for name in frameworks.OTHERS if name.startswith("botpy")]),
    nonebot("nonebot", "~fastapi+~httpx+~websockets"),
    nonebot("nonebot-1.6.4"),
    agent_sdk("agent-sdk-1.2.1"),
]
WITH_US = [
    "misfortunes",
    "slow handlers",
    "refused",
    "killed",
    "terminated",
    "replies",
]  # longest first
ALONE = ["killed", "terminated", "slow handlers"]


class Measured:
    """The outcomes of a pair's scenarios, which ran side by side."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        shards = [] if pair.program == "framework_agent_sdk" else ["two shards"]  # it has one
        wanted = [(pair.with_us, WITH_US + shards), (pair.alone, ALONE + shards)]
        self._found = asyncio.run(run_all(wanted))

    def with_us(self, scenario: str) -> Any:
        return self._outcome(self.pair.with_us, scenario)

    def alone(self, scenario: str) -> Any:
        return self._outcome(self.pair.alone, scenario)

    def _outcome(self, build: Build, scenario: str) -> Any:
        if (build, scenario) not in self._found:
            pytest.skip("the SDK knows no shards")
        outcome = self._found[build, scenario]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture(
    scope="module",
    params=[*NEWEST, *(pytest.param(pair, marks=pytest.mark.slow) for pair in OTHERS)],
    ids=lambda pair: f"{pair.environment}:{pair.ours}",
)
def measured(request: pytest.FixtureRequest) -> Measured:
    pair: Pair = request.param
    slow = pair not in NEWEST
    if not frameworks.python_of(pair.environment).exists():
        if not slow:
            pytest.skip(f"no environment: python tests/frameworks.py {pair.environment}")
        try:
            frameworks.make(pair.environment)
        except LookupError as error:
            pytest.skip(str(error))
    return Measured(pair)


def is_botpy(measured: Measured) -> bool:
    return measured.pair.program == "framework_botpy"


def test_a_bot_that_is_killed_loses_nothing(measured: Measured) -> None:
    # promises 9 and 18
    outcome: Outcome = measured.with_us("killed")
    assert outcome.lost == []
    assert (outcome.identifies, outcome.resumes) == (1, 1)


def test_a_bot_that_is_terminated_loses_nothing_and_repeats_nothing(measured: Measured) -> None:
    # promise 22
    outcome: Outcome = measured.with_us("terminated")
    assert (outcome.lost, outcome.twice) == ([], [])
    assert (outcome.identifies, outcome.resumes) == (1, 1)


def test_without_us_the_same_bot_loses_events_and_a_session_start(measured: Measured) -> None:
    for scenario in ("killed", "terminated"):
        outcome: Outcome = measured.alone(scenario)
        assert outcome.lost
        assert outcome.identifies >= 2  # within a life it may resume, should its line drop


def test_events_whose_handlers_ran_when_it_was_killed_come_again(measured: Measured) -> None:
    # promise 18
    assert measured.with_us("slow handlers").lost == []
    assert measured.alone("slow handlers").lost


def test_the_bot_is_told_that_it_is_ready_once_in_each_life(measured: Measured) -> None:
    outcome: Outcome = measured.with_us("terminated")
    assert outcome.times("ready") == 2
    if is_botpy(measured):
        assert outcome.times("resumed") == 1
        _, said = measured.with_us("misfortunes")
        assert [line["what"] for line in said if line["what"] in ("ready", "resumed")] == [
            "ready",
            *["resumed"] * 3,
        ]


def test_a_lost_line_is_resumed_and_a_lost_session_is_begun_anew(measured: Measured) -> None:
    # promise 16
    blows, _ = measured.with_us("misfortunes")
    for name in ("op 7, then 4009", "4009", "the line drops"):
        blow = blows[name]
        assert (blow.lost, blow.twice, blow.identifies, blow.open_lines) == ([], 0, 0, 1), name
        assert blow.resumes == 1, name
    for name in ("op 9", "4006"):
        blow = blows[name]
        assert (blow.lost, blow.twice, blow.identifies, blow.open_lines) == ([4, 5, 6], 0, 1, 1)


def test_a_refused_bot_does_not_try_again(measured: Measured) -> None:
    # promise 16
    refusal: Refusal = measured.with_us("refused")
    assert refusal.tries == 0
    if measured.pair.program != "framework_agent_sdk":  # it says so in its own words
        assert "4914" in refusal.printed
    assert refusal.status == (1 if is_botpy(measured) else None)


def test_a_shard_that_drops_comes_back_alone_and_both_are_resumed(measured: Measured) -> None:
    outcome, back = measured.with_us("two shards")
    assert back
    assert outcome.lost == []
    assert (outcome.identifies, outcome.resumes) == (2, 3)


def test_without_us_a_dropped_shard_costs_events(measured: Measured) -> None:
    outcome, back = measured.alone("two shards")
    assert outcome.lost
    if measured.pair.environment == "botpy":
        assert not back


def test_the_bot_answers_and_an_event_whose_handler_raised_is_handled(measured: Measured) -> None:
    # promise 18
    outcome, sent = measured.with_us("replies")
    (answer,) = sent
    assert answer.ok
    assert "answer 1" in str(answer.body)
    assert (outcome.lost, outcome.twice) == ([2], [])
    assert outcome.times("raised") == 1
    assert (outcome.identifies, outcome.resumes) == (1, 1)
