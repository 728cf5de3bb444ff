"""What a framework's console shows of a line."""

from __future__ import annotations

import logging

import pytest

from qqbot_session import LoadDetails, LoadReason
from qqbot_session.gateway import CloseRule, Dispatch, Hello, Next, Ready, Resumed
from qqbot_session.integrations._console import Console, Language, console_line

ACCOUNT = "102000000-0-1"


class Shown:
    """A console whose lines are kept."""

    def __init__(self, language: Language = "en", loaded: LoadDetails | None = None) -> None:
        self.lines: list[tuple[int, str]] = []
        self.log = Console(
            ACCOUNT,
            language,
            lambda *line: self.lines.append(line[:2]),
            name=lambda: "Robo",
            loaded=loaded,
        )

    @property
    def last(self) -> str:
        return self.lines[-1][1]


def test_a_resume_says_from_where_and_how_many_events_it_caught_up_on() -> None:
    shown = Shown()
    shown.log.count(Hello(45.0))
    shown.log.handshake("Resume", 41)
    assert shown.last == f"{ACCOUNT}: resuming the session from number 41"
    for number in (42, 43):
        shown.log.count(Dispatch("C2C_MESSAGE_CREATE", number, replayed=True))
    shown.log.count(Dispatch("C2C_MESSAGE_CREATE", 40, replayed=True, already_handled=True))
    shown.log.session(Resumed(44))
    assert shown.last == f"{ACCOUNT}: session resumed from number 41, caught up on 2 event(s)"


@pytest.mark.parametrize("reason", [*LoadReason, None])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_identify_says_why(language: Language, reason: LoadReason | None) -> None:
    loaded = reason and LoadDetails(account_id=ACCOUNT, reason=reason, age=400.0, state=None)
    shown = Shown(language, loaded)
    shown.log.handshake("Identify", None)
    assert shown.last.startswith(
        {"en": f"{ACCOUNT}: starting a new session (", "zh": "[botpy]"}[language]
    )
    assert "{" not in shown.last
    if reason is LoadReason.EXPIRED:
        assert "400" in shown.last


def test_after_a_close_that_close_is_why() -> None:
    shown = Shown()
    shown.log.closed(4006, CloseRule(Next.IDENTIFY, wait=5.0, meaning="The session is not valid."))
    assert shown.lines[-1] == (
        logging.WARNING,
        f"{ACCOUNT}: connection closed with code 4006: The session is not valid."
        " Next: identify in 5.0 s",
    )
    shown.log.handshake("Identify", None)
    assert shown.last.endswith("(the last connection ended with code 4006)")


def test_every_other_line_is_shown_as_it_is_and_a_refusal_once() -> None:
    shown = Shown("zh")
    shown.log.session(Ready("S", 1, {}))
    assert shown.last == f"[botpy] 机器人「Robo」启动成功！{ACCOUNT}：新会话已建立"
    shown.log.released((7,))
    assert "open for too long" in shown.last
    before = len(shown.lines)
    shown.log.connected()
    shown.log.closed(4914, CloseRule(Next.STOP, meaning="The bot is off line."))
    assert len(shown.lines) == before
    assert "不再重试：no" in console_line("zh", "refused", error="no")


def test_the_packages_own_logger_gets_the_lines_once_it_has_a_handler() -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, keep, shown = logging.getLogger("qqbot_session"), Keep(), Shown()
    shown.log.no_line(TimeoutError())
    logger.addHandler(keep)
    try:
        shown.log.no_line(TimeoutError())
    finally:
        logger.removeHandler(keep)
    assert [record.qqbot_reason for record in records] == ["no_line"]  # type: ignore[attr-defined]


def test_a_try_that_fails_is_one_line_with_the_wait_that_follows() -> None:
    shown = Shown()
    shown.log.no_line(TimeoutError())
    shown.log.closed(None, CloseRule(Next.RESUME, wait=1.0, meaning="The line dropped."))
    assert shown.lines == [
        (
            logging.WARNING,
            f"{ACCOUNT}: cannot connect to QQ yet, trying again in 1.0 s: TimeoutError",
        )
    ]
    shown.log.closed(None, CloseRule(Next.RESUME, wait=1.0, meaning="The line dropped."))
    assert shown.last.startswith(f"{ACCOUNT}: connection closed: ")


def test_where_botpys_console_is_off_the_packages_own_logger_says_it_in_its_place(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("botpy")
    from qqbot_session.integrations._botpy_life import tell

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging.getLogger("qqbot_session"), "handlers", [])
    for propagates, logger in ((True, "botpy"), (False, "qqbot_session")):
        monkeypatch.setattr(logging.getLogger("botpy"), "propagate", propagates)
        caplog.clear()
        tell(logging.INFO, "resumed")
        assert caplog.record_tuples == [(logger, logging.INFO, "resumed")]
