"""Applications that people run lose nothing when `qqbot-session run` starts them, unchanged."""

from __future__ import annotations

import asyncio
import signal

import applications
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", applications.APPLICATIONS)
def test_an_unchanged_application_answers_every_message(name: str, number: signal.Signals) -> None:
    # promise 35
    try:
        result = asyncio.run(applications.restart(name, number))
    except LookupError as error:
        pytest.skip(str(error))
    assert (result.identifies, result.resumes) == (1, 1)
    if (name, number) == ("hermes", signal.SIGKILL):
        return  # its own recovery after a crash may say "restored" in place of the answer
    assert result.lost == [], result.printed[-3000:]


@pytest.mark.parametrize("name", applications.APPLICATIONS)
def test_alone_it_loses_messages_and_spends_a_session_start(name: str) -> None:
    try:
        result = asyncio.run(applications.restart(name, signal.SIGKILL, launched=False))
    except LookupError as error:
        pytest.skip(str(error))
    assert result.lost
    assert result.identifies == 2


def test_what_a_slow_answer_is_for_is_in_nobody_s_hands_after_a_kill() -> None:
    result = asyncio.run(applications.restart("astrbot", signal.SIGKILL, longest=6.0))
    assert result.lost == []
