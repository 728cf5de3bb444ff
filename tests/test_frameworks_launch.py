"""Unchanged bots on the frameworks' real packages, started by `qqbot-session run`."""

from __future__ import annotations

import asyncio
from typing import Any

import frameworks
import pytest
from framework_runs import Build, Outcome, run_all

BUILDS = [
    Build("botpy", "framework_botpy", "stock", launched=True),
    Build("botpy-sdk", "framework_botpy", "stock", launched=True),
    Build("nonebot", "framework_nonebot", "stock ~none+~aiohttp", launched=True),
    Build("agent-sdk", "framework_agent_sdk", "stock", launched=True),
]


@pytest.fixture(scope="module", params=BUILDS, ids=lambda build: build.environment)
def outcomes(request: pytest.FixtureRequest) -> tuple[Build, dict[str, Any]]:
    build: Build = request.param
    if not frameworks.python_of(build.environment).exists():
        pytest.skip(f"no environment: python tests/frameworks.py {build.environment}")
    found = asyncio.run(run_all([(build, ["killed", "terminated"])]))
    return build, {scenario: outcome for (_, scenario), outcome in found.items()}


def test_an_unchanged_bot_that_is_killed_loses_nothing(
    outcomes: tuple[Build, dict[str, Any]],
) -> None:
    outcome: Outcome = _found(outcomes, "killed")
    assert outcome.lost == []
    assert (outcome.identifies, outcome.resumes) == (1, 1)


def test_an_unchanged_bot_that_is_terminated_loses_nothing(
    outcomes: tuple[Build, dict[str, Any]],
) -> None:
    build, _ = outcomes
    outcome: Outcome = _found(outcomes, "terminated")
    assert outcome.lost == []
    assert (outcome.identifies, outcome.resumes) == (1, 1)
    if build.environment != "agent-sdk":  # whose program does not wait for its handlers
        assert outcome.twice == []


def _found(outcomes: tuple[Build, dict[str, Any]], scenario: str) -> Outcome:
    outcome = outcomes[1][scenario]
    if isinstance(outcome, BaseException):
        raise outcome
    assert isinstance(outcome, Outcome)
    return outcome
