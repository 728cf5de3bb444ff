"""Several processes on one directory, and a directory that is deleted under a process's feet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import a_state, end_programs, finish, left_overs, start, until

from qqbot_session import AsyncSessionStore


@pytest.fixture(autouse=True)
def no_program_outlives_its_test() -> Iterator[None]:
    yield
    end_programs()


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("*")]


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def _share_a_directory(directory: Path, processes: int, rounds: int) -> None:
    """Save, load and clean up at the same time: own accounts and one that all of them use."""
    cleaner = start("worker", "cleaner", directory)
    names = [f"p{number}" for number in range(processes)]
    savers = [
        start("worker", "saver", directory, name, rounds, f"{name}-0", f"{name}.1", "shared")
        for name in names
    ]
    for saver in savers:
        code, _, errors = finish(saver)
        assert (code, errors) == (0, "")
    code, _, errors = finish(cleaner)
    assert (code, errors) == (0, "")
    assert left_overs(directory) == []
    states = {state.account_id: state for state in await AsyncSessionStore(directory).load_all()}
    assert states.keys() == {"shared"} | {f"{name}{n}" for name in names for n in ("-0", ".1")}
    assert {state.last_seq for state in states.values()} == {rounds - 1}
    assert states["shared"].session_id in names


async def test_two_processes_and_one_that_cleans_up_share_a_directory(directory: Path) -> None:
    """No record is torn, swapped or lost, and nobody is warned of anything."""
    # promise 7, 12, 13
    await _share_a_directory(directory, processes=2, rounds=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [2, 8])
async def test_many_processes_share_a_directory_for_long(directory: Path, processes: int) -> None:
    # promise 7, 12, 13
    await _share_a_directory(directory, processes, rounds=1600 // processes)


def _delete(directory: Path) -> None:
    """Delete although a process goes on writing into it."""

    def gone() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    until(gone, "the directory is deleted")


@pytest.mark.parametrize("made_again", [True, False], ids=["made-again", "gone"])
async def test_a_process_survives_that_its_directory_is_deleted(
    directory: Path, made_again: bool
) -> None:
    """Deleted, or deleted and made again: the records are soon there once more, and private."""
    # promise 8, 15
    keeper = start("worker", "keeper", directory)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "ready\n"
    record = directory / "session-bot.json"
    for _ in range(2):
        until(record.exists, "the record is written")
        _remove(directory, made_again)
        until(record.exists, "the record is written again")
        assert made_again or _mode(directory) == 0o700
    code, output, errors = finish(keeper)
    assert code == 0, errors
    state = await AsyncSessionStore(directory, max_age=None).load("bot")
    assert state is not None
    assert state.last_seq == int(output)


def _remove(directory: Path, made_again: bool) -> None:
    """Take the directory away in one step, so that the process cannot help making it again."""
    away = directory.with_name(f"deleted-{len(list(directory.parent.iterdir()))}")
    directory.rename(away)
    if made_again:
        directory.mkdir(mode=0o700, exist_ok=True)
    _delete(away)


async def test_a_deleted_directory_is_made_again_by_the_next_write(directory: Path) -> None:
    """Its file system need not have the same idea of it: not one call fails."""
    # promise 8
    failures: list[object] = []
    async with AsyncSessionStore(
        directory / "nested", on_write=lambda details: failures.extend(details.failures.values())
    ) as store:
        for number in (1, 2):
            await store.save(a_state("bot", number))
            await store.flush()
            assert _names(directory / "nested") == ["session-bot.json"]
            shutil.rmtree(directory)
        await store.clear("bot")
    assert failures == []
    assert _names(directory) == []
