"""`Ledger`: what is known about every account, and what of that is not on storage yet.

Rules:

* Pure: no I/O, no asyncio, no clock, no log. Every `now` is seconds since the epoch.
* Time is counted in moments: every read, change and acknowledgement has its own. The result of a
  read is accepted only if nothing newer became known after the read began.
* An account is unsaved if it changed after it was last encoded, or if what was encoded has not been
  acknowledged. An exception between any two statements does not change that.
* Whether an account has a session to Resume, and whether `load` *denied* it one, are two things.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .state import SessionState, encode, known_valid

_ABSENT = 1024  # accounts without a record that are remembered, so that nobody asks storage again


class Source(Protocol):
    """What knows a session's newest state, as `GatewaySession` does; asked once per batch."""

    @property
    def account_id(self) -> str:
        """The account whose session it is."""
        ...

    @property
    def shard(self) -> tuple[int, int]:
        """`(shard id, shard count)`: always the same for one account."""
        ...

    @property
    def generation(self) -> int:
        """Unique in the process, and higher than that of every source made earlier."""
        ...

    @property
    def turn(self) -> int:
        """Changes with what a crash must not undo: the session and the count of its Resumes."""
        ...

    @property
    def handled(self) -> object:
        """Changes when events are handled: with what the gateway would repeat after a crash."""
        ...

    @property
    def state(self) -> SessionState | None:
        """The newest state; `None` means there is no session."""
        ...


class Mark:
    """Which source recorded an account last.

    Attributes:
        source: what to ask for the newest state; `None` while nothing is due.
        turn: the source's `turn` when it was last asked or recorded.
        handled: the source's `handled` when the account was last encoded.
        session_id: the account's at that time; `None` without a session.
        outdated: the newest generation that was refused.
    """

    __slots__ = ("generation", "handled", "outdated", "session_id", "shard", "source", "turn")

    def __init__(self, source: Source) -> None:
        self.source: Source | None = None
        self.turn = source.turn
        self.handled = source.handled
        self.generation = source.generation
        self.shard = source.shard
        self.session_id: str | None = None
        self.outdated = 0


class Account:
    """What is known about one account.

    Attributes:
        state: `None` means there is no record.
        last_seq: the newest number; may be ahead of the state's own.
        stamp: `saved_at` of what was last read or encoded, in seconds since the epoch.
        moment: when all this became known.
        was_read: it became known through a read, so another read may know better.
        denied: `load` returned nothing, so only a new session counts.
        changed: it is newer than what was last encoded.
        moved: the change is more than a sign of life.
        handed: what was last encoded has not been acknowledged.
        is_others: what is known was read, and somebody else has written it.
        is_ours: this store changed it, so what was acknowledged is on storage.
        turned: its session began or ended here.
        touched: its signs of life are reported here, so silence means something, too.
        born: when it was first written here, on the loop's clock in seconds.
        mark: which source recorded it last; `None` if none did.
    """

    __slots__ = (
        "born",
        "changed",
        "denied",
        "handed",
        "id",
        "is_others",
        "is_ours",
        "last_seq",
        "mark",
        "moment",
        "moved",
        "stamp",
        "state",
        "touched",
        "turned",
        "was_read",
    )

    def __init__(self, account_id: str) -> None:
        self.id = account_id
        self.state: SessionState | None = None
        self.last_seq: int | None = None
        self.stamp = 0.0
        self.moment = 0
        self.denied = self.changed = self.moved = self.handed = False
        self.is_ours = self.turned = self.was_read = self.touched = False
        self.is_others = False
        self.born: float | None = None
        self.mark: Mark | None = None

    @property
    def unsaved(self) -> bool:
        return self.changed or self.handed

    @property
    def has_session(self) -> bool:
        """Whether `update_last_seq` and `touch` find a session."""
        return (
            self.state is not None
            and not self.denied
            and bool(self.state.session_id)
            and self.last_seq is not None
        )

    def is_as_read(self, state: SessionState | None) -> bool:
        """Whether exactly this was read, and has not changed since."""
        if state is None or self.state is None:
            return state is self.state
        known = (self.state, self.last_seq, self.stamp)
        return known == (state, state.last_seq, state.saved_at)

    def ask(self) -> object:
        """Fetch the newest state from the source, unless it has begun another session.

        Returns:
            What the source has `handled`; `None` if there is nobody to ask.
        """
        mark = self.mark
        if mark is None or self.state is None or (source := mark.source) is None:
            return None
        state = source.state
        handled = source.handled
        if state is not None and state.session_id == self.state.session_id:
            self.state, self.last_seq = state, state.last_seq
            self.moved |= mark.handled != handled
        return handled

    def newest(self, now: float) -> SessionState | None:
        """Return the state as it is on storage, or as it would be written now."""
        self.ask()
        if self.state is None:
            return None
        stamp = now if self.changed else self.stamp
        return known_valid(self.state, last_seq=self.last_seq, saved_at=round(stamp * 1000) / 1000)


class Ledger:
    """Every known account, by its id.

    Attributes:
        due: accounts with a session, and without failed Resumes, that moved and have not been
            encoded since: to change one, it is enough to assign `state` and `last_seq`.
        marked: likewise, accounts whose source will be asked: nothing has to be assigned.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.due: dict[str, Account] = {}
        self.marked: dict[str, Mark] = {}
        self._absent: dict[str, None] = {}  # accounts that had no record, the oldest first
        self._forgotten = 0  # the moment until which an account may have been known,
        self._forgotten_ours = 0  # and one that is ours
        self._moment = 0
        self._turnover = 0  # how many accounts have come and gone

    def moment(self) -> int:
        """Return the next moment: what becomes known later has a higher one."""
        self._moment += 1
        return self._moment

    def each(self) -> Iterator[Account]:
        """Yield every account; some twice if accounts come and go meanwhile.

        To list 100,000 of them at once would hold the loop for milliseconds.
        """
        before = self._turnover
        for account in self.accounts.values():
            yield account
            if self._turnover != before:
                break
        else:
            return
        yield from list(self.accounts.values())

    def account(self, account_id: str) -> Account:
        """Return the account, a new one if need be, which becomes known with its first change."""
        return self.accounts.get(account_id) or Account(account_id)

    def unsaved(self) -> list[Account]:
        """Return the accounts whose newest state is not on storage."""
        return [account for account in self.accounts.values() if account.changed or account.handed]

    def change(
        self,
        account: Account,
        state: SessionState | None,
        last_seq: int | None,
        *,
        moves: bool = True,
        warm: bool,
    ) -> None:
        """Make this the account's newest state; `None` means no record.

        Args:
            last_seq: the newest number, in place of the state's own.
            moves: whether the change is more than a sign of life.
            warm: whether the next change may use `due`.
        """
        turned = account.state is not state and session_of(account.state) != session_of(state)
        if state is None or not state.session_id or last_seq is None or state.failed_resumes:
            warm = False
        if not warm:
            self.due.pop(account.id, None)
        self._moment = account.moment = self._moment + 1
        if account.id not in self.accounts:
            self._turnover += 1
        self.accounts[account.id] = account
        # One statement: whatever is raised before or after it, what is unsaved is known as such.
        account.state, account.last_seq, account.changed = state, last_seq, True
        account.denied = account.was_read = account.is_others = False
        account.is_ours = True
        account.moved |= moves
        account.turned |= turned
        if account.mark is not None:  # last: until then the source's news must not be lost
            self._stop_asking(account, account.mark)
        if warm and account.moved:
            self.due[account.id] = account

    def note(self, account: Account, source: Source) -> Mark:
        """Note which source recorded the account last."""
        mark = account.mark
        if mark is None or mark.generation != source.generation:
            mark = account.mark = Mark(source)
        mark.turn = source.turn
        mark.session_id = session_of(account.state)
        return mark

    def noted(self, account: Account, source: Source) -> Mark | None:
        """Return the account's mark if its session is the one that this source has now."""
        mark, state = account.mark, account.state
        if (
            mark is not None
            and state is not None
            and mark.generation == source.generation
            and mark.turn == source.turn
            and mark.session_id == state.session_id  # else another was saved or read since
            and account.has_session
        ):
            return mark
        return None

    def mark(self, account: Account, source: Source, *, warm: bool) -> None:
        """Let the source be asked for the state when the account, just changed, is encoded."""
        self._ask_later(account, self.note(account, source), source, warm=warm)

    def renew(
        self, account: Account, mark: Mark, source: Source, *, moves: bool, warm: bool
    ) -> None:
        """Do what `change` and `mark` do when there is news of a source that is noted."""
        self._moment = account.moment = self._moment + 1
        account.changed = account.is_ours = True
        account.denied = account.was_read = False
        account.moved |= moves
        self._ask_later(account, mark, source, warm=warm)

    def _ask_later(self, account: Account, mark: Mark, source: Source, *, warm: bool) -> None:
        self.due.pop(account.id, None)
        mark.source = source
        if warm and account.moved:
            self.marked[account.id] = mark

    def quiet(self, before: float) -> list[Account]:
        """Return this store's accounts that have a session and whose signs of life nobody reports.

        Args:
            before: return only those stamped before this time, in seconds since the epoch.
        """
        return [
            account
            for account in self.accounts.values()
            if account.is_ours and account.has_session and account.stamp < before
            if not (account.unsaved or account.touched or account.mark or account.is_others)
        ]

    def take(self, account: Account, now: float) -> bytes | None:
        """Encode what is to be written; a retry of an unchanged state keeps its stamp."""
        handled = account.ask()
        if handled is not None and account.mark is not None:
            account.mark.handled = handled
        self._settle(account)
        stamp = now if account.changed else account.stamp
        state = account.state
        data = None if state is None else encode(state, account.last_seq, stamp)
        account.stamp, account.handed, account.changed = stamp, True, False
        return data

    def acknowledge(self, account: Account, moment: int) -> None:
        """Note that what was handed over is on storage.

        Args:
            moment: when that became known; the same for all accounts of a commit.
        """
        if account.handed:
            account.moment = moment
            account.handed = account.was_read = False
            if account.state is None:
                self._note_absent(account)

    def learn(
        self, account_id: str, state: SessionState | None, began: int, ended: int | None = None
    ) -> bool:
        """Accept what was read, unless something newer became known after the read began.

        Args:
            began: the moment at which the read began.
            ended: the moment at which it ended, the same for all that a listing found; `None`
                means now.

        Returns:
            Whether it is what is known now.
        """
        account = self.accounts.get(account_id)
        if account is None:
            # One that was only read keeps no read from being learned: of many absent accounts at
            # once, each would make all others be read again. Nobody reads a listing again.
            if began < (self._forgotten_ours if ended is None else self._forgotten):
                return False
            self._turnover += 1
            account = self.accounts[account_id] = Account(account_id)
        elif account.unsaved:
            return False
        elif account.moment > began:  # as by another read: which of them is the older?
            return account.is_as_read(state)
        elif account.is_ours and account.mark is None and state != account.newest(0.0):
            account.is_others = True
        account.moment = self.moment() if ended is None else ended
        account.was_read = True
        account.stamp = 0.0 if state is None else state.saved_at
        account.state, account.last_seq = state, None if state is None else state.last_seq
        if state is None:
            self._note_absent(account)
        return True

    def deny(self, account: Account) -> None:
        """Treat the account as having no session until `load` returns one or one is saved."""
        account.denied = True
        self._settle(account)

    def forget(self, account_id: str) -> None:
        """Forget everything about the account, saved or not."""
        self._absent.pop(account_id, None)
        account = self.accounts.pop(account_id, None)
        if account is not None:
            self._turnover += 1
            self._forgotten = max(self._forgotten, account.moment)
            if account.is_ours:
                self._forgotten_ours = max(self._forgotten_ours, account.moment)
            self._settle(account)
            account.changed = account.handed = False

    def freeze(self) -> None:
        """Close the short way for every later call."""
        self.due.clear()
        self.marked.clear()

    def _settle(self, account: Account) -> None:
        """Close the short way for the account's next change."""
        if self.due:
            self.due.pop(account.id, None)
            if not self.due:
                self.due.clear()  # an emptied dictionary keeps its table until then
        if account.mark is not None:
            self._stop_asking(account, account.mark)

    def _stop_asking(self, account: Account, mark: Mark) -> None:
        self.marked.pop(account.id, None)
        mark.source = None

    def _note_absent(self, account: Account) -> None:
        """Remember the account as absent, but only so many of them."""
        self._absent.pop(account.id, None)
        if account.unsaved:
            return
        self._absent[account.id] = None
        if len(self._absent) > _ABSENT:
            oldest = next(iter(self._absent))
            known = self.accounts.get(oldest)
            if known is None or (known.state is None and not known.unsaved):
                self.forget(oldest)
            else:
                del self._absent[oldest]


def session_of(state: SessionState | None) -> str | None:
    """Return the session id, or `None` if there is no session."""
    return None if state is None else state.session_id


def is_turn(known: SessionState | None, state: SessionState | None) -> bool:
    """Whether a crash must not undo the change: a new session, none, or a new Resume count."""
    if known is None or state is None:
        return True
    if known is state:
        return False
    return known.session_id != state.session_id or known.failed_resumes != state.failed_resumes
