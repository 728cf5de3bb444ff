"""`ShardLog`: the log lines of one shard's line.

Rules:

* Every connect, Resume, Identify, close, failed try, skipped frame (at most one line a minute) and
  event let go has a line, with the fields of the record in `qqbot_…`.
* The content of an event, a token or a secret is in no line and no field: an event is its type,
  number and id.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from ..errors import GatewayProtocolError, describe
from ..gateway import CloseRule, Dispatch, Event, Next, Ready, Refusal, Resumed
from ..logs import LOG, say

_QUIET = 60.0  # seconds between two lines about skipped frames
_LEVELS = {Next.IDENTIFY: logging.WARNING, Next.STOP: logging.ERROR}


class ShardLog:
    """What is said about one shard.

    Args:
        account_id: the shard's account; every line begins with it.
    """

    __slots__ = (
        "_account_id",
        "_has_renumbered",
        "_quiet_until",
        "_skipped",
    )

    def __init__(self, account_id: str) -> None:
        self._account_id = account_id
        self._skipped = 0  # frames since the last line about them
        self._quiet_until = 0.0  # on the loop's clock
        self._has_renumbered = False

    def connected(self) -> None:
        self._say(logging.INFO, "connected", reason="connected")

    def no_line(self, error: BaseException) -> None:
        self._say(logging.WARNING, "no line: %s", describe(error), reason="no_line")

    def waiting(self, wait: float, refusal: Refusal | None) -> None:
        """Log that the next Identify waits, until when, and why."""
        until = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time.time() + wait))
        if refusal is None:
            why = "the budget of Identifies is spent, which holds across restarts"
        else:
            code = "" if refusal.code is None else f" (code {refusal.code})"
            why = (
                f"QQ refused the bot: {refusal.reason.rstrip('.')}{code}. With another secret, "
                "other intents or another app id, or after "
                f"`qqbot-session clear {self._account_id}`, the bot tries at once"
            )
        text = "no Identify before %s: %s"
        fields = {"code": refusal.code} if refusal is not None else {}
        self._say(logging.WARNING, text, until, why, reason="waiting", wait=wait, **fields)

    def handshake(self, name: Literal["Identify", "Resume"], settled: int | None) -> None:
        """Log the handshake that goes out; a Resume is from `settled`."""
        seq = settled if name == "Resume" else None
        text = name if seq is None else f"{name} from {seq}"
        self._say(logging.INFO, "%s", text, reason=name.lower(), seq=seq)

    def short_interval(self, seconds: float) -> None:
        text = "the gateway asks for a heartbeat every %g s: sending one every second"
        self._say(logging.WARNING, text, seconds, reason="short_interval")

    def session(self, event: Ready | Resumed) -> None:
        name = type(event).__name__.upper()
        self._say(logging.INFO, "%s, number %s", name, event.seq, reason=name.lower())

    def broken(self, error: BaseException) -> None:
        self._say(logging.INFO, "the line broke: %s", describe(error), reason="broken")

    def closing(self, error: BaseException) -> None:
        self._say(logging.DEBUG, "closing: %s", describe(error), reason="closing")

    def closed(self, code: int | None, rule: CloseRule) -> None:
        level = _LEVELS.get(rule.next, logging.INFO)
        how = "closed" if code is None else f"closed with {code}"
        text = "%s: %s Next: %s in %.1f s"
        fields = {"code": code, "next": rule.next.value, "wait": rule.wait}
        self._say(
            level, text, how, rule.meaning, rule.next.value, rule.wait, reason="closed", **fields
        )

    def skipped(self, error: GatewayProtocolError, now: float) -> None:
        """Log a malformed frame, unless such a line was written less than a minute ago.

        Args:
            now: seconds on the loop's clock.
        """
        self._skipped += 1
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET
            count, self._skipped = self._skipped, 0
            self._say(logging.WARNING, "skipped %d frame(s): %s", count, error, reason="skipped")

    def renumbered(self, event: Dispatch) -> None:
        """Log that the gateway gave a known number to a new event; once."""
        if not self._has_renumbered:
            self._has_renumbered = True
            text = "the gateway used number %s again, for a new event: it is handled all the same"
            self._say(logging.WARNING, text, event.seq, reason="renumbered", event=named(event))

    def deadly(self, event: Dispatch) -> None:
        text = "%d processes died while they handled %s, number %s: it is skipped from now on"
        fields = {"reason": "deadly", "event": named(event)}
        self._say(logging.WARNING, text, event.deaths, event.type, event.seq, **fields)

    def crowd(self, count: int) -> None:
        text = (
            "%d handlers are in flight: they wait for something that hangs, or events come faster "
            "than they are handled"
        )
        self._say(logging.WARNING, text, count, reason="crowd")

    def released(self, numbers: tuple[int, ...]) -> None:
        shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
        text = "%d event(s) were open for too long, and a crash may lose them now: number %s"
        fields = {"reason": "released", "seqs": numbers}
        self._say(logging.WARNING, text, len(numbers), shown, **fields)

    def observer_failed(self, event: Event, error: BaseException) -> None:
        text = "observe raised on %s: %r"
        fields = {"reason": "observe", "exc_info": error}
        if isinstance(event, Dispatch):
            fields["event"] = named(event)
        self._say(logging.ERROR, text, type(event).__name__, error, **fields)

    def handler(self, level: int, event: Dispatch, what: str, error: BaseException) -> None:
        """Log what became of an event's handler."""
        text = "the handler of %s, number %s, %s"
        fields = {"reason": "handler", "event": named(event), "exc_info": error}
        self._say(level, text, event.type, event.seq, what, **fields)

    def cancelling(self, count: int, grace: float) -> None:
        text = "cancelling %d handler(s): their events stay open"
        self._say(logging.WARNING, text, count, reason="grace", grace=grace)

    def _say(
        self, level: int, text: str, *values: object, exc_info: Any = None, **fields: object
    ) -> None:
        if not LOG.isEnabledFor(level):
            return
        extra: dict[str, object] = {f"qqbot_{name}": value for name, value in fields.items()}
        extra["qqbot_account"] = self._account_id
        options: Any = {"exc_info": exc_info, "extra": extra, "stacklevel": 3}  # the runner's line
        say(level, f"%s: {text}", self._account_id, *values, **options)


def named(event: Dispatch) -> dict[str, object]:
    """Return what a log may say of an event: its type, number and id, and not its content."""
    return {"type": event.type, "seq": event.seq, "id": event.id}
