"""Our store behind qq-botpy-sdk's `SessionStore` protocol: `Client(session_store=...)`.

It makes the session durable, and no more: what is kept, and when it is given up, stays the SDK's.
Its numbers are saved when handlers are scheduled, not when they have ended, so that a crash loses
the events whose handlers ran (`botpy/gateway.py`, `on_message`); 4009 clears the session
(`botpy/protocol/reconnect.py`); `Client.run` takes no SIGTERM. `SessionMixin` of
`qqbot_session.integrations.botpy` has none of that; prefer it.
"""

from __future__ import annotations

from botpy.protocol import SessionState as TheirState

from ..shard import account_id_for
from ..state import SessionState
from ..store import AsyncSessionStore
from ._sessions import Sessions


class SessionStore:
    """`botpy.protocol.SessionStore` on an `AsyncSessionStore`.

    Args:
        sessions: where the sessions are kept: what `AsyncSessionStore` takes, or a store, which is
            then not closed here. `SessionMixin` takes up what is kept.
    """

    def __init__(self, sessions: Sessions = "sessions") -> None:
        self._own = not isinstance(sessions, AsyncSessionStore)
        self._store = (
            sessions if isinstance(sessions, AsyncSessionStore) else AsyncSessionStore(sessions)
        )
        self._account_ids: dict[tuple[str, int], str] = {}

    async def load(self, app_id: str, shard_id: int) -> TheirState | None:
        """Return the shard's newest session; the protocol leaves out how many there are."""
        kept = [
            state
            for state in await self._store.load_all()
            if state.app_id == app_id and state.shard is not None and state.shard[0] == shard_id
        ]
        if not kept:
            return None
        state = max(kept, key=lambda state: state.saved_at or 0.0)
        self._account_ids[app_id, shard_id] = state.account_id
        assert state.shard is not None
        return TheirState(state.session_id, state.last_seq, *state.shard)

    async def save(self, app_id: str, state: TheirState) -> None:
        """Remember it at once; a state without a session id or a number is ignored."""
        if not state.session_id or state.sequence is None:
            return
        shard = (state.shard_id, state.shard_count)
        account_id = self._account_ids[app_id, state.shard_id] = account_id_for(app_id, shard)
        await self._store.save(
            SessionState(
                account_id=account_id,
                session_id=state.session_id,
                last_seq=state.sequence,
                app_id=app_id,
                shard=shard,
            )
        )

    async def clear(self, app_id: str, shard_id: int) -> None:
        """Forget the shard's session."""
        if account_id := self._account_ids.pop((app_id, shard_id), None):
            await self._store.clear(account_id)

    async def close(self) -> None:
        """Write what is unsaved, and close the store if it was made here."""
        await (self._store.aclose() if self._own else self._store.flush())
