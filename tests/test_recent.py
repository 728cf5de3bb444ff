"""The memory of recent events: promise 18's `already_handled`, and what it costs to keep."""

from __future__ import annotations

import random
from typing import Any

import pytest
from driven import attributes

from qqbot_session.gateway.recent import MAX_REMEMBERED, RecentEvents


def restored(recent: RecentEvents, limit: int) -> RecentEvents:
    other = RecentEvents(limit)
    other.restore(recent.text())
    return other


def test_at_least_the_last_are_known_and_exactly_those_are_written_down() -> None:
    recent = RecentEvents(10)
    for n in range(1000):
        recent.add(f"m{n}")
        assert all(f"m{k}" in recent for k in range(max(0, n - 9), n + 1))
        assert f"m{n - 20}" not in recent
    again = restored(recent, 10)
    assert [n for n in range(1000) if f"m{n}" in again] == list(range(990, 1000))


@pytest.mark.parametrize("seed", range(5))
def test_over_restarts_the_last_are_known_whenever_they_were_written(seed: int) -> None:
    rng = random.Random(seed)
    recent, names = RecentEvents(8), []
    for n in range(300):
        name = f"m{n}" if not names or rng.random() < 0.8 else rng.choice(names)
        if name not in recent:
            recent.add(name)
            names.append(name)
        assert all(name in recent for name in names[-8:])
        if rng.random() < 0.2:
            recent.text()
        if rng.random() < 0.1:
            recent = restored(recent, 8)


def test_adding_twice_changes_nothing() -> None:
    recent = RecentEvents(3)
    for name in ("a", "b", "a", "a"):
        recent.add(name)
    recent.add("c")
    assert recent.changes == 3
    assert len(recent.text().split()) == 3


def test_memory_stays_where_it_is() -> None:
    recent = RecentEvents(MAX_REMEMBERED)
    for n in range(100_000):
        recent.add(f"m{n}")
    sizes = [len(value) for value in attributes(recent).values() if hasattr(value, "__len__")]
    assert max(sizes) <= 2 * MAX_REMEMBERED
    assert len(recent.text()) < 9 * 1024


def test_what_was_restored_is_forgotten_once_it_is_too_old() -> None:
    recent = RecentEvents(4)
    recent.add("old")
    recent = restored(recent, 4)
    for name in ("a", "b", "c"):
        assert "old" in recent
        recent.add(name)
    recent.add("d")
    assert "old" not in recent


@pytest.mark.parametrize("text", [None, 7, [], {}, "", "x", "0" * 15, "0" * 17, "G" * 16, "\0"])
def test_a_hostile_text_is_ignored(text: Any) -> None:
    recent = RecentEvents(4)
    recent.restore(text)
    assert recent.text() == ""


def test_a_smaller_memory_keeps_the_newest() -> None:
    recent = RecentEvents(8)
    for n in range(8):
        recent.add(f"m{n}")
    again = restored(recent, 2)
    assert [n for n in range(8) if f"m{n}" in again] == [6, 7]
    assert restored(recent, 0).text() == ""


def test_a_name_that_is_no_unicode_can_be_written_down() -> None:
    recent = RecentEvents(2)
    recent.add("X:\ud800")
    assert "X:\ud800" in restored(recent, 2)


def test_a_long_id_is_known_again_and_not_kept() -> None:
    recent = RecentEvents(8)
    long_id = "x" * 100_000
    name = recent.name("C2C_MESSAGE_CREATE", "e1", {"id": long_id})
    assert name is not None
    assert len(name) == 16
    recent.add(name)
    again = restored(recent, 8)
    assert name in recent
    assert name in again
    assert recent.name("C2C_MESSAGE_CREATE", "e2", {"id": long_id + "y"}) not in again
