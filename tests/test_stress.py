"""Bots in processes of their own, on real sockets, end in every way; no event is lost.

A short run of `programs/stress.py`, which prints what the full counts came to as a table.
"""

from __future__ import annotations

import pytest
from programs import stress

pytestmark = pytest.mark.real_time


async def run(name: str, library: str, share: float) -> stress.Row:
    row = await stress.SCENARIOS[name](library, 1, share)
    assert row.lost == 0, stress.show(row)
    assert "exit codes" not in row.notes, stress.show(row)
    return row


@pytest.mark.parametrize("library", ["aiohttp", "websockets"])
async def test_killed_and_started_again_no_event_is_lost_and_no_session_spent(library: str) -> None:
    # promises 9, 16, 17, 18 and 20
    row = await run("kill", library, 0.03)
    assert row.identifies == 1


async def test_stopped_by_signals_no_event_is_lost_and_none_comes_twice() -> None:
    # promises 9 and 22
    row = await run("sigterm", "run_bot", 0.03)
    assert (row.twice, row.identifies) == (0, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("library", stress.LIBRARIES)
@pytest.mark.parametrize("name", stress.SCENARIOS)
async def test_a_tenth_of_the_full_counts(name: str, library: str) -> None:
    # promises 9, 16 to 18, 20 to 22
    row = await run(name, library, 0.1)
    assert row.identifies == row.notes.get("due", 1)
