"""An alarm interrupts what a line waits for, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from qqbot_session.loop.alarm import Alarm


def time() -> float:
    return asyncio.get_running_loop().time()


async def interrupted_at(alarm: Alarm) -> float:
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(3600)
    assert alarm.heed()
    return time()


async def test_it_rings_when_it_was_set_to_last_and_once() -> None:
    alarm = Alarm()
    for due in (10.0, 30.0, 20.0):  # sooner than its timer, later, and later than its timer
        alarm.set(due)
    assert await interrupted_at(alarm) == pytest.approx(20.0)
    assert alarm.due == 20.0
    await asyncio.sleep(100)
    alarm.set(time() + 5.0)
    assert await interrupted_at(alarm) == pytest.approx(125.0)


async def test_what_it_cancelled_counts_only_until_it_is_heeded() -> None:
    task = asyncio.current_task()
    assert task is not None
    alarm = Alarm()
    alarm.set(10.0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(3600)
    assert task.cancelling() == 1
    assert alarm.heed()
    assert task.cancelling() == 0
    assert not alarm.heed()


@pytest.mark.parametrize("how", [Alarm.stop, lambda alarm: alarm.set(float("inf"))])
async def test_one_that_was_stopped_or_set_to_never_does_not_ring(
    how: Callable[[Alarm], None],
) -> None:
    alarm = Alarm()
    alarm.set(10.0)
    how(alarm)
    await asyncio.sleep(100)
    assert not alarm.rings


@pytest.mark.real_time
def test_it_rings_on_uvloop_whose_handles_do_not_all_know_their_time() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def rings(due: float, later: float) -> None:
        alarm = Alarm()
        alarm.set(time() + due)
        alarm.set(time() + due + later)
        await interrupted_at(alarm)

    for due in (-1.0, 0.0, 0.0004, 0.0006, 0.0015, 0.01):
        for later in (0.0, 0.0003, 0.003):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(rings(due, later))
