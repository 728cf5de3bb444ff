"""The ledger: what is known of an account, by the order in which it became known."""

from __future__ import annotations

from typing import Any

import pytest

from qqbot_session import SessionState
from qqbot_session.ledger import Ledger
from qqbot_session.state import decode


def a_state(account_id: str = "bot", last_seq: int | None = 1, **values: Any) -> SessionState:
    return SessionState(account_id=account_id, **{"session_id": "s", "last_seq": last_seq} | values)


def save(ledger: Ledger, state: SessionState) -> None:
    ledger.change(ledger.account(state.account_id), state, state.last_seq, warm=True)


def write(ledger: Ledger, account_id: str = "bot", now: float = 1.0) -> SessionState | None:
    account = ledger.account(account_id)
    data = ledger.take(account, now)
    ledger.acknowledge(account, ledger.moment())
    return None if data is None else decode(data)


def test_what_was_read_is_learned_unless_something_newer_is_known() -> None:
    # promise 3
    ledger = Ledger()
    older, newer = ledger.moment(), ledger.moment()
    assert ledger.learn("bot", a_state(last_seq=2), newer)
    assert not ledger.learn("bot", a_state(last_seq=1), older)
    during_the_change = ledger.moment()
    save(ledger, a_state(last_seq=3))
    assert not ledger.learn("bot", a_state(last_seq=1), during_the_change)
    assert not ledger.learn("bot", a_state(last_seq=1), ledger.moment()), "it is unsaved"
    during_the_write = ledger.moment()
    assert write(ledger) == a_state(last_seq=3, saved_at=1.0)
    assert not ledger.learn("bot", a_state(last_seq=1), during_the_write)
    assert ledger.learn("bot", a_state(last_seq=4), ledger.moment())
    assert ledger.account("bot").last_seq == 4


def test_of_two_reads_at_once_the_second_to_end_is_learned_if_it_says_the_same() -> None:
    """Which of them took effect first is not known."""
    # promise 3
    for first, second in ((1, None), (None, 1), (1, 2), (2, 1), (1, 1), (None, None)):
        ledger = Ledger()
        states = [None if seq is None else a_state(last_seq=seq) for seq in (first, second)]
        began = [ledger.moment(), ledger.moment()]
        assert ledger.learn("bot", states[0], began[0])
        assert ledger.learn("bot", states[1], began[1]) == (first == second)
        assert ledger.account("bot").state == states[0]
        assert ledger.learn("bot", states[1], ledger.moment()), "now it is the newer"
        assert ledger.account("bot").state == states[1]


def test_a_read_is_not_the_same_as_a_state_that_was_moved_up_or_stamped_since() -> None:
    # promise 3
    for last_seq in (1, 2):
        ledger = Ledger()
        began = ledger.moment()
        ledger.learn("bot", a_state(), ledger.moment())
        ledger.change(ledger.account("bot"), ledger.account("bot").state, last_seq, warm=True)
        write(ledger)
        assert not ledger.learn("bot", a_state(), began)


def test_a_denial_outlives_what_is_read_and_ends_with_what_is_saved() -> None:
    # promise 12
    ledger = Ledger()
    ledger.learn("bot", a_state(), ledger.moment())
    account = ledger.account("bot")
    assert account.has_session
    ledger.deny(account)
    assert not account.has_session
    ledger.learn("bot", a_state(last_seq=7), ledger.moment())
    assert not account.has_session
    save(ledger, a_state(last_seq=8))
    assert account.has_session


def test_a_record_without_a_number_denies_nothing() -> None:
    """It is no session for now; what is read next may be one."""
    # promise 6
    ledger = Ledger()
    ledger.learn("bot", a_state(last_seq=None), ledger.moment())
    assert not ledger.account("bot").has_session
    ledger.learn("bot", a_state(last_seq=5), ledger.moment())
    assert ledger.account("bot").has_session


def test_a_retry_keeps_the_stamp_of_what_it_repeats() -> None:
    # promise 8
    ledger = Ledger()
    save(ledger, a_state())
    account = ledger.account("bot")
    for now, stamp in ((10.0, 10.0), (20.0, 10.0)):
        data = ledger.take(account, now)
        assert data is not None
        assert decode(data).saved_at == stamp
        assert account.unsaved
    save(ledger, a_state(last_seq=2))
    assert write(ledger, now=30.0) == a_state(last_seq=2, saved_at=30.0)
    assert not account.unsaved


def test_ids_that_come_and_go_do_not_add_up() -> None:
    """Loaded and not found, or saved and cleared; accounts with a record are all remembered."""
    # promise 10
    ledger = Ledger()
    for number in range(5000):
        ledger.learn(f"absent-{number}", None, ledger.moment())
        save(ledger, a_state(f"cleared-{number}"))
        write(ledger, f"cleared-{number}")
        ledger.change(ledger.account(f"cleared-{number}"), None, None, warm=True)
        write(ledger, f"cleared-{number}")
    for number in range(2000):
        save(ledger, a_state(f"bot-{number}"))
        write(ledger, f"bot-{number}")
    assert 2000 <= len(ledger.accounts) <= 2000 + 1024
    assert not ledger.due


@pytest.mark.parametrize("come", [0, 1, 3000])
@pytest.mark.parametrize("gone", [0, 1, 900])
def test_no_account_is_missed_when_others_come_and_go(come: int, gone: int) -> None:
    # promise 5
    ledger = Ledger()
    ids = {f"{number}" for number in range(1000)}
    for account_id in sorted(ids):
        save(ledger, a_state(account_id))
    each = ledger.each()
    seen = {next(each).id for _ in range(950)}
    left = ids - seen
    for account_id in sorted(seen)[:gone]:
        ledger.forget(account_id)
    for number in range(come):
        ledger.learn(f"new {number}", a_state(f"new {number}"), ledger.moment())
    assert left <= {account.id for account in each}


def test_a_read_that_began_before_an_account_was_forgotten_brings_nothing_back() -> None:
    # promise 4
    ledger = Ledger()
    began = ledger.moment()
    save(ledger, a_state())
    write(ledger)
    ledger.change(ledger.account("bot"), None, None, warm=True)
    write(ledger)
    ledger.forget("bot")
    assert not ledger.learn("bot", a_state(), began)
    assert ledger.learn("bot", None, ledger.moment())
