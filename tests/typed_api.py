"""The public names as type checkers see them: checked by mypy and pyright, never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from qqbot_session import (
    AsyncSessionStore,
    FileStorage,
    LoadDetails,
    LoadReason,
    MemoryStorage,
    ResumableState,
    SessionState,
    Storage,
    WriteDetails,
)
from qqbot_session.gateway import GatewaySession


def on_write(details: WriteDetails) -> None:
    assert_type(details.account_ids, tuple[str, ...])
    assert_type(details.seconds, float)


def on_load(details: LoadDetails) -> None:
    assert_type(details.reason, LoadReason)
    assert_type(details.age, float | None)
    assert_type(details.state, SessionState | None)


async def use(directory: Path) -> None:
    AsyncSessionStore()
    AsyncSessionStore(directory, debounce=0, max_age=None, on_write=on_write, clock=lambda: 0.0)
    AsyncSessionStore(on_load=on_load)
    storages: list[Storage] = [FileStorage("sessions", durable=False), MemoryStorage()]
    async with AsyncSessionStore(storages[0]) as store:
        assert_type(store, AsyncSessionStore)
        state = await store.load("bot", app_id="1", shard=(0, 1), intents=1 << 25)
        assert_type(state, ResumableState | None)
        if state is not None:
            assert_type(state.session_id, str)
            assert_type(state.last_seq, int)
            as_any_other: SessionState = state
            await store.save(as_any_other)
        gateway = GatewaySession("bot", app_id="1", intents=1, resume=state)
        assert_type(await store.record(gateway), None)
        assert_type(store.record_nowait(gateway), None)
        new = SessionState(account_id="bot", session_id="s", last_seq=1)
        assert_type(await store.save(new), None)
        assert_type(store.save_nowait(new), None)
        assert_type(await store.update_last_seq("bot", 2), bool)
        assert_type(await store.touch("bot"), bool)
        assert_type(await store.clear("bot"), None)
        assert_type(await store.load_all(include_expired=True), list[ResumableState])
        assert_type(await store.cleanup(), int)
        assert_type(await store.flush("bot"), None)
        assert_type(await store.aclose(), None)
        await store.update_last_seq("bot", "2")  # type: ignore[arg-type]
        await store.save("bot")  # type: ignore[arg-type]
        new.last_seq = 3  # type: ignore[misc]
