"""Cut the power after every call of a commit and load whatever the disk may then hold.

`disk.py` says what that is. The machine that runs these tests need not lose its power: the calls
are recorded, and each state is laid out in a directory of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from crash import NOW, SCENARIOS, Scenario, Tap, a_state, a_store, loaded, stand_in
from disk import Disk, Ruins

from qqbot_session import FileStorage, SessionState
from qqbot_session.state import encode
from qqbot_session.storages import files
from qqbot_session.storages.names import file_name, original_name

Allowed = Mapping[str, set[SessionState | None]]


class Laboratory:
    """Runs a storage on a recording disk and loads every state a power loss may leave.

    Attributes:
        tried: how many different states were loaded.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "disk"
        self.root.mkdir()
        self.sessions = self.root / "sessions"
        self.tried = 0
        self.disk: Disk
        self._ruins = Ruins(root / "ruins")
        self._seen: set[Any] = set()
        self._monkeypatch = monkeypatch

    def record(self, before: Callable[[str], None] = lambda name: None) -> list[Any]:
        """Record from now on; return the list to which each call adds the states after it."""
        self.disk = disk = Disk(self.root)
        states: list[Any] = [list(disk.states())]

        def around(name: str, do: Any, args: tuple[Any, ...]) -> Any:
            before(name)
            result = disk(name, do, args)
            if name in _CHANGES:
                states.append(list(disk.states()))
            return result

        stand_in(self._monkeypatch, Tap(around))
        return states

    def stop(self) -> None:
        self._monkeypatch.undo()

    async def assert_allowed(
        self, states: list[dict[Path, bytes | None]], allowed: Mapping[str, Any]
    ) -> dict[str, list[SessionState | None]]:
        """Fail if a state holds anything else; return what each account was, each once."""
        found: dict[str, list[SessionState | None]] = {name: [] for name in allowed}
        for state in states:
            relative = {path.relative_to(self.root): data for path, data in state.items()}
            key = frozenset(relative.items())
            self.tried += key not in self._seen
            self._seen.add(key)
            self._ruins.become(relative)
            for name, session in (await loaded(self._ruins.root / "sessions", allowed)).items():
                assert session in allowed[name], (name, session, relative)
                if session not in found[name]:
                    found[name].append(session)
        return found


_CHANGES = frozenset(
    {"open", "write", "fdatasync", "fsync", "replace", "rename", "link", "unlink", "mkdir"}
)


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Laboratory(tmp_path, monkeypatch)


def encoded(states: Mapping[str, SessionState | None]) -> dict[str, bytes | None]:
    return {name: None if state is None else encode(state) for name, state in states.items()}


def unique(states: list[list[dict[Path, bytes | None]]]) -> list[dict[Path, bytes | None]]:
    found = {frozenset(state.items()): state for moment in states for state in moment}
    return list(found.values())


async def commit_and_lose_power(
    laboratory: Laboratory,
    scenario: Scenario,
    *,
    durable: bool = True,
    after: Mapping[str, SessionState | None] | None = None,
) -> dict[str, list[SessionState | None]]:
    """Fail unless every state is allowed; return what each account may be at the end."""
    after = scenario.after if after is None else after
    scenario.prepare(laboratory.sessions)
    states = laboratory.record()
    assert await FileStorage(laboratory.sessions, durable=durable).commit(encoded(after)) == {}
    laboratory.stop()
    allowed = {name: (scenario.before[name], after[name]) for name in after}
    if not durable:
        allowed = {name: (*values, None) for name, values in allowed.items()}
    await laboratory.assert_allowed(unique(states), allowed)
    return await laboratory.assert_allowed(states[-1], allowed)


THREE = Scenario(
    {"a": a_state("a", 1), "b": a_state("b", 1), "c": None},
    {name: a_state(name, 2) for name in "abc"},
)
MIGRATION = Scenario(
    {"c.d": a_state("c.d", 1)}, {"c.d": a_state("c.d", 2)}, originals=frozenset({"c.d"})
)


@pytest.mark.parametrize(
    "scenario",
    [SCENARIOS["save"], SCENARIOS["overwrite"], THREE, SCENARIOS["clear"]],
    ids=["save", "overwrite", "batch", "clear"],
)
async def test_no_power_loss_leaves_anything_but_the_old_or_the_new_record(
    laboratory: Laboratory, scenario: Scenario
) -> None:
    """And once the commit has returned it is the new one, whatever the disk does."""
    # promise 7
    at_the_end = await commit_and_lose_power(laboratory, scenario)
    assert at_the_end == {name: [state] for name, state in scenario.after.items()}
    assert laboratory.tried > 2


async def test_the_originals_record_goes_only_after_ours_is_on_the_disk(
    laboratory: Laboratory,
) -> None:
    """The rename and the removal are two names: the disk may take the second first."""
    # promise 7
    at_the_end = await commit_and_lose_power(laboratory, MIGRATION)
    assert at_the_end == {"c.d": [a_state("c.d", 2)]}


async def test_a_power_loss_within_a_clear_does_not_bring_back_the_originals_record(
    laboratory: Laboratory,
) -> None:
    """The original wrote seq 1 while we held seq 2: after a torn clear it is 2 or nothing."""
    # promise 4, 7
    laboratory.sessions.mkdir()
    (laboratory.sessions / original_name("c.d")).write_bytes(encode(a_state("c.d", 1)))
    (laboratory.sessions / file_name("c.d")).write_bytes(encode(a_state("c.d", 2)))
    states = laboratory.record()
    assert await FileStorage(laboratory.sessions).commit({"c.d": None}) == {}
    laboratory.stop()
    await laboratory.assert_allowed(unique(states), {"c.d": (a_state("c.d", 2), None)})


async def test_a_new_directory_is_on_the_disk_when_the_commit_returns_even_if_it_failed_before(
    laboratory: Laboratory,
) -> None:
    """The first commit makes the directory and cannot sync its parent; the second must."""
    # promise 7, 8
    refused: list[str] = []

    def refuse_once(name: str) -> None:
        if name == "fsync" and not refused:
            refused.append(name)
            raise OSError(5, "no luck")

    states = laboratory.record(before=refuse_once)
    storage = FileStorage(laboratory.sessions)
    with pytest.raises(OSError, match="no luck"):
        await storage.commit(encoded(SCENARIOS["save"].after))
    assert await storage.commit(encoded(SCENARIOS["save"].after)) == {}
    laboratory.stop()
    await laboratory.assert_allowed(states[-1], {"bot": (a_state("bot", 2),)})


async def test_a_renewed_record_that_cleanup_puts_back_survives_a_power_loss(
    laboratory: Laboratory,
) -> None:
    """Another process renews the record between `discard`'s first look and its rename.

    While the record has its private name a crash takes it away: that window is documented. When
    `discard` has returned it is over.
    """
    # promise 7, 13
    stale, renewed = encode(a_state("bot", 1)), encode(a_state("bot", 2))
    laboratory.sessions.mkdir()
    path = laboratory.sessions / file_name("bot")
    path.write_bytes(renewed)
    really = files._read_file

    def read_what_was_there_before(name: str) -> bytes | None:
        return really(name) if "rename" in laboratory.disk.calls else stale

    states = laboratory.record()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_read_file", read_what_was_there_before)
        assert not await FileStorage(laboratory.sessions).discard("bot", stale)
    laboratory.stop()
    assert path.read_bytes() == renewed
    await laboratory.assert_allowed(states[-1], {"bot": (a_state("bot", 2),)})


async def test_what_durable_false_gives_up(laboratory: Laboratory) -> None:
    """A power loss may tear the new record when the old one is gone already: `load` gives None.

    Never something third; and the end of the process, however sudden, still tears nothing.
    """
    # promise 7
    at_the_end = await commit_and_lose_power(laboratory, SCENARIOS["overwrite"], durable=False)
    old, new = a_state("bot", 1), a_state("bot", 2)
    assert old in at_the_end["bot"], "the commit has returned and is lost"
    assert None in at_the_end["bot"], "neither the old record nor the new one"
    assert new in at_the_end["bot"]
    assert not {"fsync", "fdatasync"} & set(laboratory.disk.calls)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_larger_batch_in_every_state(laboratory: Laboratory) -> None:
    """Four records overwritten, one made and one deleted."""
    # promise 7
    before = {name: a_state(name, 1) for name in "abde"} | {"c": None}
    after = {name: a_state(name, 2) for name in "abc"} | {"d": None, "e": a_state("e", 2)}
    at_the_end = await commit_and_lose_power(laboratory, Scenario(before, after))
    assert at_the_end == {name: [state] for name, state in after.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(40))
async def test_one_power_loss_after_the_other(laboratory: Laboratory, seed: int) -> None:
    """Random commits; now and then the power fails and the bot goes on with what is left."""
    # promise 7
    random_ = random.Random(seed)
    known: dict[str, SessionState | None] = dict.fromkeys("abc")
    for number in range(1, 13):
        chosen = random_.sample("abc", random_.randint(1, 2))
        changes = {
            name: None if random_.random() < 0.2 else a_state(name, number) for name in chosen
        }
        states = laboratory.record()
        assert await FileStorage(laboratory.sessions).commit(encoded(changes)) == {}
        laboratory.stop()
        allowed = {name: (state, changes.get(name, state)) for name, state in known.items()}
        different = unique(states)
        different = random_.sample(different, min(len(different), 200))
        await laboratory.assert_allowed(different, allowed)
        await laboratory.assert_allowed(
            states[-1], {name: (changes.get(name, known[name]),) for name in known}
        )
        known |= changes
        if random_.random() < 0.5:
            _lay_out(laboratory.root, random_.choice(different))
            known = await loaded(laboratory.sessions, known)


def _lay_out(root: Path, state: Mapping[Path, bytes | None]) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, data in sorted(state.items()):
        path.mkdir(mode=0o700) if data is None else path.write_bytes(data)


def test_the_clock_of_the_scenarios_is_the_one_they_are_judged_by(tmp_path: Path) -> None:
    """Otherwise `None` could mean expired, and every test here would pass."""
    assert a_store(tmp_path)._clock() == NOW == a_state("bot", 1).saved_at


async def test_a_disk_that_knows_not_even_its_root_is_an_error_and_no_endless_loop(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a lost network drive on Windows, or a kernel that refuses every `stat`."""
    # promise 8
    asked: list[object] = []

    def knows_nothing(path: object) -> bool:
        asked.append(path)
        assert len(asked) < 1000, "it asks for ever"
        return False

    monkeypatch.setattr("os.path.isdir", knows_nothing)
    storage = FileStorage("/no-such-drive/sessions/nested")
    monkeypatch.setattr(files.os, "mkdir", _refuse)
    with pytest.raises(OSError, match="no such drive"):
        await storage.commit({"bot": b"{}"})


def _refuse(*_: object) -> None:
    raise OSError(6, "no such drive")
