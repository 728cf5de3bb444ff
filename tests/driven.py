"""A `GatewaySession` with one line at a time, for tests that need no loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qqbot_session.gateway import CloseRule, Connection, Event, GatewaySession

NOW = 1_800_000_000.0
HELLO = {"op": 10, "d": {"heartbeat_interval": 45000}}


class Driven(GatewaySession):
    """Acts on its latest connection, and makes one where there is none."""

    def line(self) -> Connection:
        return self._connection or self.connect()

    def receive(self, frame: str | bytes | Mapping[str, Any], now: float = NOW) -> Event:
        return self.line().receive(frame, now)

    def handshake(self, token: str = "t", now: float = NOW) -> dict[str, Any]:
        """Open a line, and return what answers its Hello."""
        line = self.connect()
        line.opened(token, now)
        line.receive(HELLO, now)
        return sent(line)

    def closed(self, code: int | None) -> CloseRule:
        return self.line().closed(code)


def has_session(gateway: GatewaySession) -> bool:
    """Return whether the state to save has a session; without one it may have a budget."""
    return gateway.state is not None and gateway.state.session_id is not None


def extra_of(gateway: GatewaySession) -> dict[str, Any]:
    """Return the extra of the state to save, without the budget of Identifies."""
    assert gateway.state is not None
    return {n: v for n, v in gateway.state.extra.items() if n != "identifyBudgetFullAt"}


def attributes(thing: object) -> dict[str, Any]:
    """Return all that an object holds, whether in slots or not."""
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(thing, name) for name in slots if name != "__weakref__"}
    return held | getattr(thing, "__dict__", {})


def sent(line: Connection) -> dict[str, Any]:
    """Return the one frame that is to be sent."""
    [frame] = line.frames_to_send()
    payload: dict[str, Any] = json.loads(frame)
    return payload
