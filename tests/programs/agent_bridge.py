"""What qqbot-agent-sdk resumes from, frame by frame: its real code in its thread, without a socket.

Each function is a case, named by the first argument; it ends with an error if it does not hold.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from qqbot_agent_sdk import QQWebSocket, WSCallbacks

from qqbot_session import AsyncSessionStore, MemoryStorage
from qqbot_session.integrations.agent_sdk import drain, remember

READY = {"op": 0, "t": "READY", "s": 1, "d": {"session_id": "S", "user": {"id": "1"}}}
HELLO = {"op": 10, "d": {"heartbeat_interval": 45_000}}


def message(seq: int, message_id: str | None = None) -> dict[str, Any]:
    data = {"id": message_id or f"m{seq}", "content": str(seq)}
    return {"op": 0, "t": "C2C_MESSAGE_CREATE", "s": seq, "d": data}


class Line:
    """A socket that keeps what is sent."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send_json(self, payload: Any) -> None:
        self.sent.append(payload)

    async def close(self) -> None:
        pass


class Sdk:
    """The SDK with our callbacks; frames are given to it in a thread with a loop of its own."""

    def __init__(self, store: AsyncSessionStore) -> None:
        self.store = store
        self.stuck = asyncio.Event()
        self.handled: list[str] = []

    async def open(self) -> None:
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        callbacks = WSCallbacks(
            on_message_event=self._handle,
            on_connected=nothing,
            on_disconnected=nothing,
            on_fatal_error=nothing,
            get_token=lambda: "token",
            get_session=lambda: (None, None),
            set_session=nothing,
            set_heartbeat_interval=nothing,
            clear_token=nothing,
            fail_pending=nothing,
            get_gateway_url=lambda: "ws://qq",
        )
        self.ws = QQWebSocket(await remember(callbacks, self.store, app_id="app"))
        self.ws._main_loop = asyncio.get_running_loop()

    async def _handle(self, kind: str, data: Any) -> None:
        if data["content"] == "2":
            await self.stuck.wait()
        if data["content"] == "8":
            raise asyncio.CancelledError
        if data["content"] == "9":
            raise LookupError("the handler of 9 raises")
        self.handled.append(data["content"])

    async def line(self, *frames: Any) -> list[Any]:
        """Let one line bring these frames; return what was sent on it."""
        line = self.ws._ws = Line()

        async def read() -> None:
            for frame in (HELLO, *frames):
                self.ws._dispatch_payload(frame)
                if frame is HELLO:
                    async with asyncio.timeout(5):
                        while not line.sent:  # noqa: ASYNC110
                            await asyncio.sleep(0.001)
            await asyncio.sleep(0)

        await asyncio.to_thread(asyncio.run, read())
        await turns()
        return line.sent

    async def drop(self) -> None:
        await asyncio.to_thread(self.ws._cb.on_disconnected)
        await turns()

    async def last_seq(self) -> int | None:
        await turns()
        state = await self.store.load("app-0-1")
        return None if state is None else state.last_seq


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def what_a_handler_holds_is_resumed_from_and_not_settled_by_its_copy(sdk: Sdk) -> None:
    await sdk.line(READY, message(2), message(3))
    assert await sdk.last_seq() == 1
    await sdk.drop()
    resumed = {"op": 0, "t": "RESUMED", "s": 4, "d": ""}
    (sent,) = await sdk.line(message(2), message(3), resumed, message(5))
    assert (sent["op"], sent["d"]["seq"]) == (6, 1)
    assert await sdk.last_seq() == 1
    sdk.stuck.set()
    assert await sdk.last_seq() == 5
    assert sdk.handled == ["3", "5", "2"]


async def what_nobody_wants_settles_itself(sdk: Sdk) -> None:
    await sdk.line(READY, {"op": 0, "t": "GUILD_CREATE", "s": 3, "d": {}}, message(4))
    assert await sdk.last_seq() == 4


async def op_9_gives_the_session_up(sdk: Sdk) -> None:
    await sdk.line(READY, message(3), {"op": 9, "d": False})
    assert await sdk.last_seq() is None
    await sdk.drop()
    (sent,) = await sdk.line()
    assert sent["op"] == 2


async def op_9_that_lets_resume_keeps_it(sdk: Sdk) -> None:
    await sdk.line(READY, message(3), {"op": 9, "d": True})
    await sdk.drop()
    (sent,) = await sdk.line()
    assert (sent["op"], sent["d"]["seq"]) == (6, 3)


async def after_three_unanswered_resumes_it_identifies(sdk: Sdk) -> None:
    await sdk.line(READY, message(3))
    ops = []
    for _ in range(4):
        await sdk.drop()
        (sent,) = await sdk.line()
        ops.append(sent["op"])
    assert ops == [6, 6, 6, 2]


async def a_handler_that_raises_has_handled_its_event(sdk: Sdk) -> None:
    await sdk.line(READY, message(9))
    assert await sdk.last_seq() == 9


async def the_copy_of_an_event_whose_handler_was_cancelled_leaves_it_open(sdk: Sdk) -> None:
    """The SDK drops the copy, as one that it had; after a restart it comes again."""
    await sdk.line(READY, message(8), message(9))
    assert await sdk.last_seq() == 1
    await sdk.drop()
    await sdk.line(message(8), message(9), {"op": 0, "t": "RESUMED", "s": 10, "d": ""})
    assert await sdk.last_seq() == 1


async def a_new_session_begins_at_its_own_number(sdk: Sdk) -> None:
    await sdk.line(READY, message(70), {"op": 9, "d": False})
    await sdk.drop()
    await sdk.line(READY | {"d": {"session_id": "T", "user": {"id": "1"}}}, message(3))
    assert await sdk.last_seq() == 3


async def what_comes_after_the_store_was_closed_is_no_error(sdk: Sdk) -> None:
    await sdk.line(READY)
    await sdk.store.aclose()
    await sdk.line(message(3))
    assert sdk.handled == ["3"]


async def drain_waits_for_handlers_and_then_cancels_them(sdk: Sdk) -> None:
    await sdk.line(READY, message(2), message(3))
    await sdk.drop()
    asyncio.get_running_loop().call_later(0.05, sdk.stuck.set)
    await drain(sdk.ws._cb)
    assert sdk.handled == ["3", "2"]
    sdk.stuck.clear()
    await sdk.line(message(4) | {"d": {"id": "m4", "content": "2"}})
    await drain(sdk.ws._cb, grace=0)
    assert await sdk.last_seq() == 3


async def an_answer_that_is_awaited_needs_a_client_that_sends_it(sdk: Sdk) -> None:
    try:
        await remember(sdk.ws._cb, sdk.store, app_id="app", until="answered")
    except ValueError as error:
        said = str(error)
    assert "needs api=" in said


async def main(case: str) -> None:
    async with AsyncSessionStore(MemoryStorage()) as store:
        sdk = Sdk(store)
        await sdk.open()
        await globals()[case](sdk)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]), debug=True)
