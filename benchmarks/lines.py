"""What a platform's lines cost, on real sockets, beside the barest loops that keep as many.

A bare gateway runs here, and each client in a process of its own, whose processor time, of all its
threads, is what counts. *Coming back* is to open a line, Resume, get RESUMED and beat once. *An
event* is read, handled in a task and recorded; every account gets two a second, so that its state
is due in each window. A *quiet* bot gets one message and answers it after 0.1 s. The barest loops
do the same with aiohttp and with websockets, and remember nothing. The plot has 100 to 3,000 lines;
what grows there is the garbage collector's full pass, which `gc.freeze` takes off what is up.

The fleets of 100,000 accounts, the listings, what a row costs on Redis and a server that hangs are
rows of `storages.py`, the import is one of `import_time.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qqbot_session import AsyncSessionStore, SessionState, Storage
from qqbot_session.state import encode
from qqbot_session.storages import storage_of

from . import _at_once, _first_line
from ._client import FROZEN, INTENTS, app_id
from ._gateway import END, GO, Gateway, Line, gateway
from ._measure import Row, Settings, main, ratios, temporary_directory
from ._plot import Series, plot

PLOT = Path(__file__).with_name("lines.svg")
_LINES, _FEW = 600, 300  # that come back; that get events
_COUNTS = (100, 300, 1_000, 3_000)
_OLD = 4.5  # seconds after which an account has its whole window (promise 2)
_WINDOW = 1.2  # seconds after which a window is over
_COSTS = {"cpu": "coming back, µs", "kb": "memory, kB", "event": "an event, µs"}
_BARE, _BARE_WEBSOCKETS = "bare-aiohttp", "bare-websockets"
_AIOHTTP, _WEBSOCKETS = "ours-aiohttp", "ours-websockets"
_ROOT = Path(__file__).parents[1]
# Kind and storage of each side
_BACK = {
    "bare": (_BARE, ""),
    "files": (_AIOHTTP, "{}/back"),
    "SQLite": (_AIOHTTP, "sqlite:{}/back.db"),
    "bare websockets": (_BARE_WEBSOCKETS, ""),
    "files, websockets": (_WEBSOCKETS, "{}/back"),
}
# And how many events it remembers, and how many come before the first turn
_EVENTS = {
    "bare": (_BARE, "", 0, 0),
    "memory, nothing remembered": (_AIOHTTP, "memory", 0, 0),
    "memory, 256 remembered, after 20": (_AIOHTTP, "memory", 256, 16),
    "memory, all 256 remembered": (_AIOHTTP, "memory", 256, 256),
    "files, 256 remembered, after 20": (_AIOHTTP, "{}/events", 256, 16),
    "SQLite, 256 remembered, after 20": (_AIOHTTP, "sqlite:{}/events.db", 256, 16),
    "bare websockets": (_BARE_WEBSOCKETS, "", 0, 0),
    "memory, nothing remembered, websockets": (_WEBSOCKETS, "memory", 0, 0),
}
_EVENT_TARGETS = {  # side, against, target
    ("memory, nothing remembered", "bare"): "<= 1.25",
    ("memory, 256 remembered, after 20", "bare"): "<= 1.4",
    ("memory, all 256 remembered", "bare"): "<= 1.4",
    ("files, 256 remembered, after 20", "bare"): "<= 2.2",
    ("SQLite, 256 remembered, after 20", "bare"): "<= 2.2",
    ("memory, all 256 remembered", "memory, 256 remembered, after 20"): "<= 1.05",
    ("memory, nothing remembered, websockets", "bare websockets"): "<= 1.25",
}
_AGAINST = {
    "bare": "the barest loop",
    "bare websockets": "the barest loop on websockets",
    "memory, 256 remembered, after 20": "after 20",
}
# By a sampling profiler and tracemalloc, of what is added to the barest loop
_BACK_BOUND = (
    "without sockets it takes half of what is added here: a fifth of that reads the record, an "
    "eighth makes the session, a sixth records the Resume before its answer, and RESUMED, a sixth "
    "takes the frames; the other half is what the same calls of aiohttp take among all that"
)
_MEMORY_BOUND = (
    "1.5 kB of it are the runner, its coroutines and its timer, 1.7 the session and its watermark, "
    "1.5 the account in the store and its task, which ends when a window was quiet"
)
_EVENT_BOUND = (
    "of what is added, a third watches the handler, a third takes the frame, and a third is the "
    "write for every second or third event"
)


def lines(settings: Settings) -> list[Row]:
    """What do hundreds of real lines cost?"""
    with temporary_directory(settings.disk) as directory:
        rows = asyncio.run(_lines(settings, directory))
        rows += _at_once.rows(settings, directory)
    return rows


async def _lines(settings: Settings, directory: Path) -> list[Row]:
    async with gateway() as here:
        rows = await _coming_back(settings, directory, here)
        rows += await _events(settings, directory, here)
        rows += await _quiet(settings, directory, here)
        rows += await _first_line.rows(settings, directory, here)
        return rows + await _growth(settings, directory, here)


# Clients


@dataclass(frozen=True)
class Client:
    """A process with lines, and what it prints."""

    name: str
    process: asyncio.subprocess.Process

    async def said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 120)
        if not line:
            raise RuntimeError(f"the client {self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def client(
    here: Gateway,
    kind: str,
    count: int,
    storage: str = "memory",
    remembered: int = 0,
    *,
    frozen: bool = False,
) -> AsyncIterator[Client]:
    """Start a client with so many lines; kill it at the end."""
    name = f"{kind}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "benchmarks._client", kind, str(count)]
    command += [f"{here.url}/line/{name}", storage, str(remembered)]
    command += [FROZEN] * frozen
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, cwd=_ROOT)
    try:
        yield Client(name, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def fill(named: str, count: int) -> None:
    """Write sessions to be resumed."""
    storage: Storage = storage_of(named)
    now = time.time()
    records = {
        f"{app}-0-1": encode(_session(app, now), 5, now) for app in map(app_id, range(count))
    }
    for at in range(0, count, 128):
        await storage.commit(dict(list(records.items())[at : at + 128]))
    await storage.aclose()


def _session(app: str, now: float) -> SessionState:
    return SessionState(
        account_id=f"{app}-0-1",
        session_id="0f3b9a52-7c1e-4d6a-9d7e-3f0c1a2b4c5d",
        last_connected_at=now,
        app_id=app,
        intents=INTENTS,
        shard=(0, 1),
        established_at=now,
    )


# Coming back


async def _coming_back(settings: Settings, directory: Path, here: Gateway) -> list[Row]:
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in _BACK}
    for _ in range(settings.repeats(5)):
        for name, (kind, place) in _BACK.items():
            storage = place.format(directory)
            if storage:
                await fill(storage, _LINES)
            async with client(here, kind, _LINES, storage, 256) as it:
                seen[name].append(await it.said())
    return _back_rows(seen)


def _back_rows(seen: dict[str, list[dict[str, float]]]) -> list[Row]:
    def of(name: str, key: str) -> list[float]:
        return [turn[key] for turn in seen[name]]

    def row(what: str, name: str, base: str, key: str, target: str = "") -> Row:
        return Row(
            question=f"{what}, {name}",
            against=_AGAINST[base],
            values=ratios(of(name, key), of(base, "kb" if key == "kb" else "cpu")),
            target=target,
            bound=_MEMORY_BOUND if key == "kb" else _BACK_BOUND,
        )

    back, memory = f"{_LINES} lines come back, CPU", "memory of a line"
    return [
        row(back, "files", "bare", "cpu", "<= 1.8"),
        row(back, "SQLite", "bare", "cpu", "<= 1.8"),
        row(back, "files, websockets", "bare websockets", "cpu", "<= 1.8"),
        row(f"{back}, and are on storage", "files", "bare", "stored"),
        row(f"{back}, and are on storage", "SQLite", "bare", "stored"),
        row(memory, "files", "bare", "kb", "<= 1.25"),
        row(memory, "SQLite", "bare", "kb", "<= 1.25"),
        row(memory, "files, websockets", "bare websockets", "kb", "<= 1.25"),
        *(
            Row(question=f"{what}, {name}", values=of(name, key), unit=unit)
            for what, key, unit in ((back, "cpu", "s"), (memory, "kb", "kB"))
            for name in _BACK
        ),
    ]


# Events


async def _events(settings: Settings, directory: Path, here: Gateway) -> list[Row]:
    """Let clients that stay connected take turns."""
    count, turns = (50, 2) if settings.quick else (_FEW, 3)
    seen: dict[str, list[float]] = {name: [] for name in _EVENTS}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for name, (kind, place, remembered, before) in _EVENTS.items():
            starting = client(here, kind, count, place.format(directory), remembered)
            clients[name] = await stack.enter_async_context(starting)
            await clients[name].said()
            await asyncio.sleep(0.2)
            await here.drive(clients[name].name, before)
        await asyncio.sleep(_OLD)
        for _ in range(turns):
            for name, it in clients.items():
                seen[name].append(await _cost(here, it))
    what = f"an event, {count} lines, CPU"
    return [
        Row(
            question=f"{what}, {name}",
            against=_AGAINST[base],
            values=ratios(seen[name], seen[base]),
            target=target,
            bound=_EVENT_BOUND,
        )
        for (name, base), target in _EVENT_TARGETS.items()
    ] + [
        Row(question=f"{what}, {name}", values=[v * 1e6 for v in values], unit="µs")
        for name, values in seen.items()
    ]


async def _cost(here: Gateway, it: Client) -> float:
    """Return the seconds that an event costs when every account has two a second."""
    await here.drive(it.name, 2, 2.0)  # until the windows follow each other
    await here.tell(it.name, GO)
    await here.drive(it.name, 6, 2.0)
    await here.tell(it.name, END)
    said = await it.said()
    await asyncio.sleep(_WINDOW)
    cost: float = said["cpu"] / said["events"]
    return cost


# A quiet bot


async def _quiet(settings: Settings, directory: Path, here: Gateway) -> list[Row]:
    """Count the writes of a lone message, and what a kill after its answer brings again."""
    bots = 60
    turns = range(1 if settings.quick else 3)
    kept = await asyncio.gather(
        *(_quiet_turn(here, str(directory / f"quiet{turn}"), bots) for turn in turns)
    )
    return [
        Row(
            question="writes per event of a quiet bot",
            values=[writes for writes, _ in kept],
            unit="writes",
            target="<= 1.05",
        ),
        Row(
            question="a quiet bot killed within the second after its answer: repeated answers",
            values=[again for _, again in kept],
            unit="per kill",
            target="<= 0.09",
            note=f"{bots * len(turns)} bots; 0.9 if the receipt takes the write due at once",
        ),
    ]


async def _quiet_turn(here: Gateway, storage: str, bots: int) -> tuple[float, float]:
    await fill(storage, bots)
    async with client(here, "quiet-aiohttp", bots, storage, 256) as it:
        open_lines = await here.all_up(it.name, bots)
        await asyncio.sleep(_OLD + _WINDOW)
        before = await _messages(it, open_lines)
        await asyncio.sleep(2 * _WINDOW)
        after = await _messages(it, open_lines, kill=True)
    answered = {said["line"]: said["seq"] for said in after if said["answered"]}
    async with AsyncSessionStore(storage) as store:
        kept = {state.app_id: state.last_seq or 0 for state in await store.load_all()}
    again = sum(kept[app_id(number)] < seq for number, seq in answered.items())
    writes = after[0]["writes"] - before[0]["writes"]
    return writes / bots, again / len(answered)


async def _messages(
    it: Client, open_lines: list[Line], *, kill: bool = False
) -> list[dict[str, Any]]:
    """Send one message to each within a second; return what is said of them until the kill."""
    said: list[dict[str, Any]] = []

    async def listen() -> None:
        while len(said) < 2 * len(open_lines):
            said.append(await it.said())

    listening = asyncio.create_task(listen())
    random.shuffle(open_lines)
    for line in open_lines:
        await line.send("C2C_MESSAGE_CREATE", random.getrandbits(40))
        await asyncio.sleep(1 / len(open_lines))
    await asyncio.sleep(0.1)  # the last handler's
    if kill:
        it.process.kill()
        await it.process.wait()
    with contextlib.suppress(RuntimeError):  # it has ended
        await listening
    return said


# Growth


async def _growth(settings: Settings, directory: Path, here: Gateway) -> list[Row]:
    """Measure a line's costs at each count; draw them."""
    counts = _COUNTS[:2] if settings.quick else _COUNTS
    kinds = {"ours": (_AIOHTTP, False), "the barest loop": (_BARE, False)}
    kinds |= {f"{who}, after `gc.freeze()`": (kind, True) for who, (kind, _) in kinds.items()}
    seen: dict[tuple[str, str], list[float]] = {}
    for count in counts:
        for who, (kind, frozen) in kinds.items():
            async with client(here, kind, count, frozen=frozen) as it:
                said = await it.said()
                await asyncio.sleep(_OLD if kind == _AIOHTTP else 0.2)
                event = await _cost(here, it)
            values = {"event": event * 1e6}
            if not frozen:
                values |= {"cpu": said["cpu"] / count * 1e6, "kb": said["kb"]}
            for what, value in values.items():
                seen.setdefault((who, what), []).append(value)
    if not settings.quick:
        lines = [Series(who, _COSTS[what], counts, each) for (who, what), each in seen.items()]
        PLOT.write_text(plot(lines, x="lines", y="per line or event"))
    return [
        Row(
            question=f"{_COSTS[what].partition(',')[0]}, one of {count:,} lines",
            against=f"one of {counts[0]}",
            values=[values[at] / values[0]],
            note=who,
        )
        for (who, what), values in seen.items()
        for at, count in enumerate(counts)
        if at
    ]


if __name__ == "__main__":
    main(lines)
