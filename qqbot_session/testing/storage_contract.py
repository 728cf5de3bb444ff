"""What every `Storage` must do, as checks for the storage you wrote.

    import asyncio, pytest
    from qqbot_session.testing.storage_contract import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_storage_keeps_the_contract(check, tmp_path):
        asyncio.run(check(lambda: MyStorage(tmp_path / "records")))

A check is a coroutine function. It takes a function that opens your storage: each call makes
another storage object on the same records, of which there are none when the check begins. The
check closes what it opened; a failure is an `AssertionError`. Nothing but the standard library is
needed, and no plugin: any test runner will do.

`LEASING_CHECKS` are for a `LeasingStorage`, beside `CHECKS`. They take a second in all, because
leases are waited for until they end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import wraps

from ..errors import LeaseLostError
from ..state import MAX_RECORD_BYTES, SessionState, encode
from ..storages.base import (
    READ_LIMIT,
    ExchangingStorage,
    LeasingStorage,
    RecordChangedError,
    Storage,
)

__all__ = ["CHECKS", "LEASING_CHECKS", "ODD_IDS", "Check", "Opener"]

Opener = Callable[[], Storage]
Check = Callable[[Opener], Awaitable[None]]

CHECKS: list[Check] = []
"""Every check of the `Storage` contract."""

LEASING_CHECKS: list[Check] = []
"""What a `LeasingStorage` must do beyond that."""

_PATIENCE = 20.0  # seconds until what should answer hangs
_SHORT = 0.2  # seconds: a lease that a check waits for
_BRIEF = 1.0  # one that is used before its end, also on a busy machine, and then waited for
_LONG = 60.0

ODD_IDS = [
    *("default", "DEFAULT", "Default", "a.b", "a_b", "a-b", "a/b", "a\\b", "a b", "a:b", "a\nb"),
    *(".", "..", "...", "/", "../../escape", "/etc/passwd", "~", "-", "_", "__", "%00", "*", "?"),
    *("session-a.json", "session-a", ".json", "a.json", ".qqbot-session-0-0.tmp", "CON", "nul"),
    *("é", "e\u0301", "中文", "机器人", "😀", "😀😀", "\U0010ffff", "\x01", "\x7f", "\u2028"),
    *("\ufeff", "x" * 241, "x" * 243, "x" * 10_000, "x" * 9_999 + "y", "x" * 9_999 + "Y"),
    *("中" * 10_000, "😀" * 10_000, "%E4%B8%AD", "%e4%b8%ad", "a%2Fb", "}a", "{a}", "{", "}{"),
    *("$HOME", "a*", "KEYS", "'; DROP TABLE", '"', "0", "00", "1e3", "null", "None", "a:lease"),
]
"""Account ids that no storage may mix up, drop or let out of its place."""


@asynccontextmanager
async def _closing(open_storage: Opener) -> AsyncIterator[Opener]:
    """Give an opener whose storages are closed at the end."""
    opened: list[Storage] = []

    def open_another() -> Storage:
        opened.append(open_storage())
        return opened[-1]

    try:
        yield open_another
    finally:
        for storage in opened:
            await storage.aclose()


def _listed_in(checks: list[Check]) -> Callable[[Check], Check]:
    """Add a check to a list, closing what it opens."""

    def add(check: Check) -> Check:
        @wraps(check)
        async def run(open_storage: Opener) -> None:
            async with _closing(open_storage) as open_another:
                await check(open_another)

        checks.append(run)
        return run

    return add


_check = _listed_in(CHECKS)
_leasing_check = _listed_in(LEASING_CHECKS)


async def _contents(storage: Storage) -> list[bytes]:
    return sorted([data async for _, data in storage.scan()])


async def _key_of(storage: Storage, data: bytes) -> str:
    (key,) = [key async for key, found in storage.scan() if found == data]
    return key


@_check
async def it_is_a_storage(open_storage: Opener) -> None:
    assert isinstance(open_storage(), Storage)


@_check
async def what_is_not_there_is_none_and_no_error(open_storage: Opener) -> None:
    """Reading, deleting, discarding and sweeping find nothing, also before the first write."""
    storage = open_storage()
    assert await storage.read("missing") is None
    assert await _contents(storage) == []
    assert await storage.commit({"missing": None}) == {}
    assert await storage.discard("missing", b"x") is False
    assert await storage.sweep(0.0) == 0
    assert await storage.commit({}) == {}
    assert await _contents(storage) == []


@_check
async def what_is_committed_is_read_replaced_and_deleted(open_storage: Opener) -> None:
    """By another storage object on the same records as well."""
    storage, other = open_storage(), open_storage()
    for data in (b'{"a": 1}', b"", b"longer than before, then short", b"\0\xff", b"x"):
        assert await storage.commit({"a": data}) == {}
        assert await storage.read("a") == await other.read("a") == data
        assert await _contents(storage) == await _contents(other) == [data]
    assert await other.commit({"a": None}) == {}
    assert await storage.read("a") is None
    assert await _contents(storage) == []


@_check
async def one_batch_writes_and_deletes(open_storage: Opener) -> None:
    storage = open_storage()
    await storage.commit({"a": b"a1", "b": b"b1", "c": b"c1"})
    assert await storage.commit({"a": None, "b": b"b2", "d": b"d1", "missing": None}) == {}
    assert await _contents(storage) == [b"b2", b"c1", b"d1"]
    assert [await storage.read(name) for name in "abcd"] == [None, b"b2", b"c1", b"d1"]


@_check
async def no_two_ids_share_a_record(open_storage: Opener) -> None:
    """Dots, slashes, case, Chinese, astral characters, ten thousand of them."""  # promise 12
    storage, again = open_storage(), open_storage()
    batch = {id_: id_.encode() for id_ in ODD_IDS}
    assert await storage.commit(batch) == {}
    for id_, data in batch.items():
        assert await again.read(id_) == data, id_[:50]
    assert await _contents(again) == sorted(batch.values())
    kept = set(ODD_IDS[1::2])
    assert await storage.commit(dict.fromkeys(ODD_IDS[::2])) == {}
    assert await _contents(storage) == sorted(id_.encode() for id_ in kept)
    for id_ in ODD_IDS:
        assert await storage.discard(id_, id_.encode()) is (id_ in kept), id_[:50]
    assert await _contents(storage) == []


@_check
async def a_batch_of_any_length_is_written_whole(open_storage: Opener) -> None:
    storage = open_storage()
    for number in (1, 63, 64, 65, 300, 301):
        batch = {f"account-{index}": f"{index}".encode() for index in range(number)}
        assert await storage.commit(batch) == {}
        assert await _contents(storage) == sorted(batch.values())
        assert await storage.commit(dict.fromkeys(batch)) == {}
        assert await _contents(storage) == []


@_check
async def reading_is_bounded_to_one_byte_more_than_a_record(open_storage: Opener) -> None:
    """So an oversize record shows, and can be discarded as what was read of it."""  # promise 14
    assert READ_LIMIT == MAX_RECORD_BYTES + 1
    storage = open_storage()
    for length in (READ_LIMIT - 1, READ_LIMIT, READ_LIMIT + 1, 3_000_000):
        await storage.commit({"large": b"x" * length})
        data = await storage.read("large")
        assert data == b"x" * min(length, READ_LIMIT), length
        assert await _contents(storage) == [data]
        assert await storage.discard("large", data[:-1]) is False
        assert await storage.discard("large", data) is True
        assert await storage.read("large") is None


@_check
async def discard_deletes_only_what_was_judged(open_storage: Opener) -> None:
    """A compare-and-delete, by account id or by a key of `scan`."""  # promise 13
    storage, other = open_storage(), open_storage()
    for account_id in ("plain", "a.b", "../机器人", "x" * 10_000):
        for by_scan_key in (True, False):
            await storage.commit({account_id: b"old", "bystander": b"bystander"})
            key = await _key_of(storage, b"old") if by_scan_key else account_id
            for judged in (b"ol", b"older", b"", b"OLD", b"bystander"):
                assert await storage.discard(key, judged) is False
            await other.commit({account_id: b"renewed"})
            assert await storage.discard(key, b"old") is False
            assert await storage.read(account_id) == b"renewed"
            assert await storage.discard(key, b"renewed") is True
            assert await storage.discard(key, b"renewed") is False
            assert await storage.read(account_id) is None
            assert await _contents(storage) == [b"bystander"]


@_check
async def an_empty_record_is_one_and_can_be_discarded(open_storage: Opener) -> None:
    storage = open_storage()
    await storage.commit({"a": b""})
    assert await storage.read("a") == b""
    assert await storage.discard(await _key_of(storage, b""), b"") is True
    assert await storage.read("a") is None


@_check
async def of_two_discards_at_once_one_deletes(open_storage: Opener) -> None:
    storage, other = open_storage(), open_storage()
    await storage.commit({"a": b"old"})
    deleted = await asyncio.gather(*[s.discard("a", b"old") for s in (storage, other) * 5])
    assert deleted.count(True) == 1
    assert await _contents(storage) == []


@_check
async def commits_take_effect_in_the_order_of_their_calls(open_storage: Opener) -> None:
    storage = open_storage()
    for first, last in ((b"1", b"2"), (b"1", None), (None, b"2")):
        async with asyncio.TaskGroup() as group:
            for data in (first, last) * 10:
                group.create_task(_commit(storage, {"a": data, "b": data}))
        assert await storage.read("a") == await storage.read("b") == last


async def _commit(storage: Storage, changes: Mapping[str, bytes | None]) -> Mapping[str, Exception]:
    return await storage.commit(changes)


@_check
async def the_order_holds_when_callers_are_cancelled(open_storage: Opener) -> None:
    """A cancelled commit has taken effect before the next one or never does."""  # promise 9
    storage = open_storage()
    for steps in range(8):
        cancelled = []
        for index in range(8):
            batch = {f"{account}": b"stale-%d" % index for account in range(50)}
            cancelled.append(asyncio.ensure_future(storage.commit(batch)))
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled[-1].cancel()
        assert await storage.commit({"0": b"newest", "1": None}) == {}
        await asyncio.wait(cancelled)
        assert await storage.read("0") == b"newest"
        assert await storage.read("1") is None
        await storage.commit({"last": b"one more"})  # whatever is queued has run now
        assert await storage.read("0") == b"newest"
        assert await storage.read("1") is None


@_check
async def a_reader_meets_no_record_that_is_half_written(open_storage: Opener) -> None:
    """At every moment `read` and `scan` see an old or a newer complete one."""  # promise 7
    storage, other = open_storage(), open_storage()
    complete = [b"%d" % digit * 40_000 for digit in range(10)]
    await storage.commit({"a.b": complete[0]})
    writes = [asyncio.ensure_future(storage.commit({"a.b": data})) for data in complete]
    while not all(write.done() for write in writes):
        await asyncio.sleep(0)
        assert await other.read("a.b") in complete
        assert all([data in complete async for _, data in other.scan()])
    assert await other.read("a.b") == complete[-1]


@_check
async def scanning_bears_with_records_that_come_and_go(open_storage: Opener) -> None:
    storage, other = open_storage(), open_storage()
    batch = {f"a{index}": b"%d" % index for index in range(300)}
    await storage.commit(batch)
    seen: list[bytes] = []
    async for _, data in storage.scan():
        if not seen:
            await other.commit(dict.fromkeys(batch) | {"late": b"late"})
        seen.append(data)
    assert set(seen) <= {*batch.values(), b"late"}
    assert len(seen) == len(set(seen)), "a record was listed twice"
    assert await _contents(storage) == [b"late"]


@_check
async def a_scan_yields_what_reading_would_return_for_some_account(open_storage: Opener) -> None:
    """Not a record that names another account; but a corrupt one, which names nobody."""
    # promises 3, 12
    storage = open_storage()
    kept = {account_id: encode(SessionState(account_id=account_id)) for account_id in ODD_IDS[:30]}
    corrupt = {"corrupt": b"{", "no-account": b"{}"}
    copies = {
        "copy": encode(SessionState(account_id="bot", session_id="s", last_seq=1)),
        "nested": b'{"accountId": "bot", "copy": {"accountId": "nested"}}',
        "escaped": b'{"acc\\u006funtId": "bot", "x": {"accountId": "escaped"}}',
    }
    assert await storage.commit({**kept, **corrupt, **copies}) == {}
    assert await _contents(storage) == sorted([*kept.values(), *corrupt.values()])
    for account_id, data in copies.items():
        assert await storage.read(account_id) == data


@_check
async def a_scan_that_is_broken_off_leaves_nothing_behind(open_storage: Opener) -> None:
    storage = open_storage()
    await storage.commit({f"a{index}": b"x" for index in range(200)})
    records = storage.scan()
    async for _ in records:
        break
    await records.aclose()  # type: ignore[attr-defined]
    assert await storage.commit({"a0": None}) == {}
    assert len(await _contents(storage)) == 199


@_check
async def a_record_of_another_account_is_not_listed(open_storage: Opener) -> None:
    """As nobody could load it; a corrupt one, which names nobody, is listed and can go."""
    # promise 3
    storage = open_storage()
    states = [SessionState(account_id=name, session_id="s", last_seq=1) for name in ("a", 'b"中')]
    own = {state.account_id: encode(state, 1, 1000.0) for state in states}
    await storage.commit({**own, "c": own["a"], "d": b"{}", "e": own['b"中']})
    assert await _contents(storage) == sorted([*own.values(), b"{}"])
    assert await storage.read("c") == own["a"]


@_check
async def an_exchange_overwrites_nothing_but_what_was_read(open_storage: Opener) -> None:
    """Where a storage can compare and write in one step, as `copy` wants it."""  # promise 25
    storage, other = open_storage(), open_storage()
    if not isinstance(storage, ExchangingStorage):
        return
    await storage.commit({"a": b"a", "b": b"b", "empty": b""})
    read: dict[str, bytes | None] = {"a": b"a", "b": b"b", "empty": b"", "c": None, "d": None}
    await other.commit({"b": b"newer", "d": b"newer"})
    changes = {id_: (data, b"copied") for id_, data in read.items()}
    failures = await storage.exchange(changes)
    assert set(failures) == {"b", "d"}
    assert all(isinstance(error, RecordChangedError) for error in failures.values())
    found = {account_id: await other.read(account_id) for account_id in read}
    assert found == dict.fromkeys(read, b"copied") | {"b": b"newer", "d": b"newer"}
    assert set(await storage.exchange({"b": (None, b"x"), "c": (b"cop", b"x")})) == {"b", "c"}


@_check
async def any_number_of_reads_at_once_is_answered(open_storage: Opener) -> None:
    """Whatever is short (connections, descriptors, threads) is waited for."""  # promise 27
    storage, other = open_storage(), open_storage()
    batch = {f"account-{index}": b"%d" % index for index in range(600)}
    await storage.commit(batch)
    for reader in (storage, other):
        found = await asyncio.gather(*[reader.read(account_id) for account_id in batch])
        assert found == list(batch.values())
    assert await _contents(other) == sorted(batch.values())


@_check
async def any_number_of_discards_at_once_is_answered(open_storage: Opener) -> None:
    storage = open_storage()
    batch = {f"account-{index}": b"%d" % index for index in range(300)}
    await storage.commit(batch)
    deleted = await asyncio.gather(*[storage.discard(id_, data) for id_, data in batch.items()])
    assert all(deleted)
    assert await _contents(storage) == []


@_check
async def a_read_that_is_cancelled_takes_no_other_with_it(open_storage: Opener) -> None:
    """Neither those under way at the same time nor any later one."""  # promise 27
    storage = open_storage()
    await storage.commit({"a": b"a", "b": b"b"})
    for steps in range(8):
        torn, other = (asyncio.ensure_future(storage.read(name)) for name in "ab")
        for _ in range(steps):
            await asyncio.sleep(0)
        torn.cancel()
        late = asyncio.ensure_future(storage.read("a"))
        async with asyncio.timeout(_PATIENCE):
            assert await other == b"b", steps
            assert await late == b"a", steps
            assert await storage.read("a") == b"a", steps
        await asyncio.wait([torn])


@_check
async def a_read_that_fails_takes_no_other_with_it(open_storage: Opener) -> None:
    """Reading what no account id can be may fail, but alone."""  # promise 27
    storage = open_storage()
    await storage.commit({"a": b"a"})
    for _ in range(3):
        async with asyncio.timeout(_PATIENCE):
            names = ["a", "\ud800", "a", "\0" * 70_000, "a"]
            answers = await asyncio.gather(
                *[storage.read(name) for name in names], return_exceptions=True
            )
            assert answers[::2] == [b"a"] * 3
            assert await storage.read("a") == b"a"


@_check
async def cancelling_all_tasks_leaves_a_storage_that_works(open_storage: Opener) -> None:
    """Some programs cancel every task there is, those that a storage made included."""
    # promise 9
    storage = open_storage()
    await storage.commit({"a": b"a"})
    for steps in range(6):
        mine = {asyncio.current_task()}
        calls = [
            asyncio.ensure_future(storage.read("a")),
            asyncio.ensure_future(_commit(storage, {"b": b"%d" % steps})),
            asyncio.ensure_future(storage.discard("a", b"not this")),
        ]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - mine:
            task.cancel()
        _, hanging = await asyncio.wait(calls, timeout=_PATIENCE)
        assert not hanging, steps
        async with asyncio.timeout(_PATIENCE):
            assert await storage.commit({"b": b"after"}) == {}
            assert await storage.read("a") == b"a"
            assert await storage.read("b") == b"after"


@_check
async def a_storage_serves_one_loop_after_another(open_storage: Opener) -> None:
    """As when it stands at a module's top and each test, or each cell, has a loop of its own."""
    # promise 25
    storage = open_storage()

    async def use(number: int) -> None:
        before = None if number == 0 else b"%d" % (number - 1)
        assert await storage.read("a") == before
        assert await storage.commit({"a": b"%d" % number}) == {}
        assert await _contents(storage) == [b"%d" % number]
        await storage.aclose()

    for number in range(3):
        await asyncio.to_thread(asyncio.run, asyncio.wait_for(use(number), _PATIENCE))
    assert await storage.read("a") == b"2"


@_check
async def a_forked_process_uses_the_storage_as_if_it_were_its_own(open_storage: Opener) -> None:
    """And so does its parent, before, meanwhile and afterwards."""  # promise 25
    if not hasattr(os, "fork"):
        return
    used, unused = open_storage(), open_storage()
    await used.commit({"parent": b"before", "child-0": b"", "child-1": b""})
    for number, storage in enumerate((used, unused)):
        child = _fork(storage, number)
        for step in range(5):
            assert await used.commit({"parent": b"%d" % step}) == {}
            assert await used.read("parent") == b"%d" % step
        assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
        if type(storage).__name__ != "MemoryStorage":
            assert await used.read(f"child-{number}") == b"4"
    assert await used.read("parent") == b"4"


def _fork(storage: Storage, number: int) -> int:
    """Start a process that commits through the very object, with its own loop."""

    async def use() -> None:
        for step in range(5):
            assert await storage.commit({f"child-{number}": b"%d" % step}) == {}
            assert await storage.read(f"child-{number}") == b"%d" % step
        await storage.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        asyncio.set_event_loop(None)
        signal.alarm(int(_PATIENCE))  # rather die than hang
        asyncio.run(use())
        status = 0
    finally:
        os._exit(status)


@_check
async def sweeping_takes_no_record(open_storage: Opener) -> None:
    storage = open_storage()
    await storage.commit({"a": b"a", "a.b": b"a.b"})
    assert await storage.sweep(0.0) == 0
    assert await _contents(storage) == [b"a", b"a.b"]


@_check
async def closing_keeps_the_records_and_can_be_repeated(open_storage: Opener) -> None:
    storage = open_storage()
    await open_storage().aclose()  # never used
    await storage.commit({"a": b"a"})
    await storage.aclose()
    await storage.aclose()
    assert await open_storage().read("a") == b"a"


@_check
async def closing_lets_the_commits_under_way_end(open_storage: Opener) -> None:
    storage = open_storage()
    writes = [asyncio.ensure_future(storage.commit({f"{i}": b"x"})) for i in range(20)]
    await asyncio.sleep(0)
    await storage.aclose()
    assert await asyncio.gather(*writes) == [{}] * 20
    assert len(await _contents(open_storage())) == 20


def _two(open_storage: Opener) -> tuple[LeasingStorage, LeasingStorage]:
    one, other = open_storage(), open_storage()
    assert isinstance(one, LeasingStorage)
    assert isinstance(other, LeasingStorage)
    return one, other


async def _until_held(storage: LeasingStorage, account_id: str, token: str, ttl: float) -> None:
    async with asyncio.timeout(_PATIENCE):
        while not await storage.acquire(account_id, token, ttl):  # noqa: ASYNC110
            await asyncio.sleep(_SHORT / 10)


def _is_refused(failures: Mapping[str, Exception], *account_ids: str) -> bool:
    return set(failures) == set(account_ids) and all(
        isinstance(error, LeaseLostError) for error in failures.values()
    )


@_leasing_check
async def a_lease_has_one_holder_until_it_is_released(open_storage: Opener) -> None:
    # promise 23
    one, other = _two(open_storage)
    assert await one.acquire("a", "one", _LONG) is True
    assert await one.acquire("a", "one", _LONG) is True
    assert await other.acquire("a", "other", _LONG) is False
    assert await other.acquire("b", "other", _LONG) is True
    await other.release("a", "other")  # not the holder
    assert await other.acquire("a", "other", _LONG) is False
    await one.release("a", "one")
    assert await other.acquire("a", "other", _LONG) is True
    assert await one.acquire("a", "one", _LONG) is False


@_leasing_check
async def of_many_candidates_one_gets_the_lease(open_storage: Opener) -> None:
    candidates = [storage for _ in range(5) for storage in _two(open_storage)]
    got = await asyncio.gather(
        *[storage.acquire("a", f"{number}", _LONG) for number, storage in enumerate(candidates)]
    )
    assert got.count(True) == 1


@_leasing_check
async def any_number_of_leases_is_taken_and_given_up_at_once(open_storage: Opener) -> None:
    # promise 27
    one, other = _two(open_storage)
    ids = [f"account-{index}" for index in range(600)]
    assert all(await asyncio.gather(*[one.acquire(id_, "one", _LONG) for id_ in ids]))
    assert await one.renew(dict.fromkeys(ids, "one"), _LONG) == {}
    assert not any(await asyncio.gather(*[other.acquire(id_, "other", _LONG) for id_ in ids]))
    await asyncio.gather(*[one.release(id_, "one") for id_ in ids])
    assert all(await asyncio.gather(*[other.acquire(id_, "other", _LONG) for id_ in ids]))


@_leasing_check
async def giving_up_overtakes_no_acquiring_that_was_cancelled(open_storage: Opener) -> None:
    """Or the lease would be held by nobody until its end."""
    one, other = _two(open_storage)
    for steps in range(8):
        token = f"one-{steps}"
        torn = asyncio.ensure_future(_acquire(one, "a", token))
        for _ in range(steps):
            await asyncio.sleep(0)
        torn.cancel()
        await one.release("a", token)
        assert await other.acquire("a", f"other-{steps}", _LONG), steps
        await other.release("a", f"other-{steps}")
        await asyncio.wait([torn])


async def _acquire(storage: LeasingStorage, account_id: str, token: str) -> bool:
    return await storage.acquire(account_id, token, _LONG)


@_leasing_check
async def an_exchange_respects_a_lease(open_storage: Opener) -> None:
    one, other = _two(open_storage)
    if not isinstance(other, ExchangingStorage):
        return
    await one.commit({"a": b"a", "b": b"b"})
    assert await one.acquire("a", "one", _LONG)
    failures = await other.exchange({"a": (b"a", b"x"), "b": (b"b", b"x")})
    assert _is_refused(failures, "a")
    assert (await one.read("a"), await one.read("b")) == (b"a", b"x")


@_leasing_check
async def a_forked_process_has_no_lease_of_its_parents(open_storage: Opener) -> None:
    # promise 28
    if not hasattr(os, "fork"):
        return
    one, _ = _two(open_storage)
    assert await one.acquire("child-0", "one", _LONG)
    child = _fork(one, 0)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status, "the child has written an account whose lease is its parent's"
    assert await one.commit({"child-0": b"mine"}) == {}
    assert await one.renew({"child-0": "one"}, _LONG) == {}


@_leasing_check
async def a_lease_ends_unless_it_is_renewed(open_storage: Opener) -> None:
    one, other = _two(open_storage)
    assert await one.acquire("a", "one", _BRIEF)
    assert await one.acquire("b", "one", _BRIEF)
    assert await one.renew({"a": "one"}, _LONG) == {}
    await _until_held(other, "b", "other", _LONG)
    assert await other.acquire("a", "other", _LONG) is False
    assert _is_refused(await one.renew({"a": "one", "b": "one"}, _LONG), "b")
    assert _is_refused(await one.renew({"a": "another"}, _LONG), "a")


@_leasing_check
async def only_the_holder_writes(open_storage: Opener) -> None:
    """Others' writes are refused for this account alone; reading and tidying go on."""
    # promise 23
    one, other = _two(open_storage)
    await other.commit({"a": b"before", "b": b"before", "c": b"before"})
    assert await one.acquire("a", "one", _LONG)
    many = {f"{number}": b"x" for number in range(400)}
    batches: list[dict[str, bytes | None]] = [{"b": b"b"}, {"b": b"b", "c": None}, {**many}]
    for bystanders in batches:
        assert _is_refused(await other.commit({**bystanders, "a": b"stolen"}), "a")
        assert _is_refused(await other.commit({**bystanders, "a": None}), "a")
        assert await other.read("a") == b"before"
        for account_id, data in bystanders.items():
            assert await other.read(account_id) == data
    assert await one.commit({"a": b"mine", "b": b"anybody's"}) == {}
    assert await other.read("a") == b"mine"
    assert b"mine" in await _contents(other)
    assert await other.discard("a", b"mine") is True
    assert await one.commit({"a": b"again"}) == {}
    assert await one.commit({"a": None}) == {}
    assert await other.read("a") is None


@_leasing_check
async def a_former_holder_writes_nothing_any_more(open_storage: Opener) -> None:
    """Whether its successor still holds the lease or has given it up."""
    # promise 23
    one, other = _two(open_storage)
    assert await one.acquire("a", "one", _BRIEF)
    assert await one.commit({"a": b"first"}) == {}
    await _until_held(other, "a", "other", _LONG)
    assert _is_refused(await one.commit({"a": b"late", "b": b"b"}), "a")
    assert await other.commit({"a": b"second"}) == {}
    assert _is_refused(await one.commit({"a": b"late"}), "a")
    await other.release("a", "other")
    assert _is_refused(await one.commit({"a": None}), "a")
    assert await other.read("a") == b"second"


@_leasing_check
async def a_holder_whose_lease_ended_writes_until_somebody_takes_it(open_storage: Opener) -> None:
    """Nobody else can have written: what is fenced off is a successor's record."""
    one, other = _two(open_storage)
    assert await one.acquire("a", "one", _SHORT)
    await asyncio.sleep(_SHORT * 1.5)
    failures = await one.commit({"a": b"a"})
    assert failures == {} or set(failures) == {"a"}  # refusing it as well is stricter
    assert await other.acquire("a", "other", _LONG) is True


@_leasing_check
async def after_its_release_an_account_is_anybodys_to_write(open_storage: Opener) -> None:
    one, other = _two(open_storage)
    assert await one.acquire("a", "one", _LONG)
    await one.commit({"a": b"1"})
    await one.release("a", "one")
    await one.release("a", "one")
    assert await other.commit({"a": b"2"}) == {}
    assert await one.commit({"a": b"3"}) == {}
    assert await other.read("a") == b"3"
