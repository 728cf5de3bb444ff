"""Applications that people run lose nothing, unchanged by `qqbot-session run`, or as documented."""

from __future__ import annotations

import asyncio
import signal

import applications
import pytest
from applications import APPLICATIONS, End, Result, Way

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
OWN = {"hermes": signal.SIGUSR1}  # upon which it ends, for its supervisor to start it again


def endings(name: str) -> list[End]:
    """Return how the application ends: by signals, and by its own restart if it has one."""
    own = [OWN[name]] if name in OWN else []
    return [*SIGNALS, *own, *(["restart"] if APPLICATIONS[name].restart else [])]


CASES = [
    pytest.param(name, way, end, id=f"{name}-{way}-{getattr(end, 'name', end)}")
    for name, application in APPLICATIONS.items()
    for way in (["run", "line"] if application.write_line else ["run"])
    for end in endings(name)
]


def restart(name: str, end: End, way: Way, longest: float = 0.3) -> Result:
    try:
        return asyncio.run(applications.restart(name, end, way=way, longest=longest))
    except LookupError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "way", "end"), CASES)
def test_an_application_answers_every_message(name: str, way: Way, end: End) -> None:
    # promise 35
    result = restart(name, end, way)
    assert result.identifies == 1
    assert result.resumes >= 1  # more where a busy machine is late with its heartbeats
    assert result.lost == [], result.printed[-3000:]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_alone_it_loses_messages_and_spends_a_session_start(name: str) -> None:
    result = restart(name, signal.SIGKILL, "alone")
    assert result.lost
    assert result.identifies == 2


@pytest.mark.parametrize("way", ["run", "line"])
def test_what_a_slow_answer_is_for_is_in_nobody_s_hands_after_a_kill(way: Way) -> None:
    assert restart("astrbot", signal.SIGKILL, way, longest=6.0).lost == []
