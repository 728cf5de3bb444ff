"""One of many processes on a directory; `test_processes.py`.

`worker.py saver DIRECTORY NAME ROUNDS ACCOUNT...` saves, updates and loads; each record says in
two places who wrote it. `worker.py cleaner DIRECTORY` cleans up until its input ends.
`worker.py keeper DIRECTORY` writes on and on until its input ends, and prints the last number.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator

from qqbot_session import AsyncSessionStore, SessionState


def signed(account_id: str, name: str, number: int) -> SessionState:
    return SessionState(
        account_id=account_id,
        session_id=name,
        last_seq=number,
        extra={"signature": f"{name}-{number}", "padding": name * (number % 50)},
    )


def assert_whole(state: SessionState) -> None:
    signature = f"{state.session_id}-{state.last_seq}"
    assert state.extra["signature"] == signature, state


async def saver(directory: str, name: str, rounds: str, *account_ids: str) -> None:
    async with (
        AsyncSessionStore(directory, debounce=0) as store,
        AsyncSessionStore(directory, clock=lambda: 1.0, debounce=0) as expired,
    ):
        for number in range(int(rounds)):
            for account_id in account_ids:
                mine = account_id.startswith(name)
                if mine and number % 3 == 0:  # a record to clean up, which is then renewed
                    await expired.save(signed(account_id, name, number))
                    await expired.flush()
                await store.save(signed(account_id, name, number))
            await store.flush()
            for account_id in account_ids:
                async with asyncio.timeout(30):
                    # While `discard` compares a renewed record that has a private name.
                    while (state := await store.load(account_id)) is None:
                        pass
                assert_whole(state)
                if account_id.startswith(name):
                    assert (state.session_id, state.last_seq) == (name, number)


async def until_input_ends() -> AsyncIterator[int]:
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    number = 0
    while not ended.is_set():
        number += 1
        yield number
        await asyncio.sleep(0)


async def cleaner(directory: str) -> None:
    async with AsyncSessionStore(directory) as store:
        async for _ in until_input_ends():
            await store.cleanup()
            for state in await store.load_all():
                assert_whole(state)


async def keeper(directory: str) -> None:
    number = 0
    async with AsyncSessionStore(directory, debounce=0.005) as store:
        await store.save(SessionState(account_id="bot", session_id="s", last_seq=0))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async for number in until_input_ends():
            await store.update_last_seq("bot", number)
    sys.stdout.write(f"{number}\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    programs = {"saver": saver, "cleaner": cleaner, "keeper": keeper}
    asyncio.run(programs[sys.argv[1]](*sys.argv[2:]))
