"""What a log line may hold: nothing that forges another, moves a cursor, or goes on without end."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, text

from qqbot_session.logs import say
from qqbot_session.words import Secret, shown, without

EVIL = "102\nCRITICAL:root:forged\r\x1b]0;x\x07\x9b\u202e\u2028\x00\ud800"
FORBIDDEN = "\r\x1b\x07\x9b\u202e\u2028\x00\ud800"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What `logging.basicConfig` writes to."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logger = logging.getLogger("qqbot_session")
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def harmless(text: str) -> bool:
    lines = text.splitlines()
    return not any(map(text.__contains__, FORBIDDEN)) and not any(
        line.startswith("CRITICAL:root:forged") for line in lines
    )


# Words


@pytest.mark.parametrize("text", ["", "plain", "空格 和 emoji 🎉", "a\\b", "ünïcode"])
def test_what_prints_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_what_does_not_print_is_escaped() -> None:
    # promise 33
    assert shown("a\nb\x1b[2J\u202ec") == r"a\nb\x1b[2J\u202ec"
    assert shown(EVIL).isprintable()


@pytest.mark.parametrize("text", ["x" * 3_000_000, "\x00" * 3_000_000])
def test_what_is_long_is_cut(text: str) -> None:
    assert len(shown(text)) == 201
    assert shown(text, 10).endswith("…")


@settings(max_examples=500, database=None)
@given(text(), integers(1, 300))
def test_any_text_is_one_line_that_prints(value: str, limit: int) -> None:
    # promise 33
    line = shown(value, limit)
    assert line.isprintable()
    assert len(line) <= limit + 1
    assert shown(line, 10_000) == line


def test_an_object_that_cannot_say_what_it_is_is_shown_by_its_type() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert shown(Broken()) == "Broken"


# Secrets


def test_a_secret_is_masked_for_whoever_looks_and_plain_for_whoever_uses_it() -> None:
    secret = Secret("s3cr3t")
    assert "s3cr3t" not in f"{secret!r} {[secret]!r} {secret[:4]!r} {'QQBot ' + secret!r}"
    assert f"{secret}" == "s3cr3t" == secret
    assert json.dumps({"clientSecret": secret}) == '{"clientSecret": "s3cr3t"}'
    assert "QQBot " + secret == "QQBot s3cr3t"
    for other in (secret[1:], secret + "x", copy.copy(secret), pickle.loads(pickle.dumps(secret))):
        assert type(other) is Secret


@pytest.mark.parametrize("echo", ['a"b/c', r"a\"b/c", "a%22b%2Fc"])
def test_a_secret_is_masked_in_text_however_it_is_written(echo: str) -> None:
    assert without(f"the secret {echo} is wrong", ['a"b/c', ""]) == "the secret *** is wrong"


# The door


def test_no_value_forges_a_line_or_moves_the_cursor(log: io.StringIO) -> None:
    # promise 33
    say(logging.WARNING, "%s: %r: %s", EVIL, EVIL, ValueError(EVIL))
    assert harmless(log.getvalue())
    assert len(log.getvalue().splitlines()) == 1


def test_no_value_makes_a_line_without_end(log: io.StringIO) -> None:
    say(logging.WARNING, "%s %r", "x" * 3_000_000, "y" * 3_000_000)
    assert len(log.getvalue()) < 3000


def test_no_traceback_forges_a_line(log: io.StringIO) -> None:
    try:
        try:
            raise KeyError(EVIL)
        except KeyError as cause:
            error = ValueError(EVIL)
            error.add_note(EVIL)
            raise ExceptionGroup("several", [error]) from cause
    except ExceptionGroup:
        say(logging.ERROR, "it failed", exc_info=True)
    say(logging.ERROR, "it failed", exc_info=ValueError(f"{EVIL} {'x' * 100_000}"))
    assert harmless(log.getvalue())
    assert "ValueError: 102" in log.getvalue()
    assert len(log.getvalue()) < 10_000


def test_a_traceback_of_several_lines_stays_one_that_people_can_read(log: io.StringIO) -> None:
    say(logging.ERROR, "it failed", exc_info=ValueError("one\ntwo"))
    assert log.getvalue().splitlines()[1:] == ["ValueError: one", "    | two"]


def test_the_fields_of_a_record_are_safe_and_numbers_stay_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    extra = {"qqbot_account": EVIL, "qqbot_seqs": (1, 2), "qqbot_more": {"a": [EVIL]}}
    say(logging.WARNING, "%d", 3, extra=extra)
    (record,) = caplog.records
    assert record.qqbot_account.isprintable()  # type: ignore[attr-defined]
    assert record.qqbot_seqs == (1, 2)  # type: ignore[attr-defined]
    assert record.qqbot_more["a"][0].isprintable()  # type: ignore[attr-defined]
    assert record.args == (3,)


def test_a_record_names_the_line_that_spoke(caplog: pytest.LogCaptureFixture) -> None:
    def tell(stacklevel: int) -> None:
        say(logging.WARNING, "here", stacklevel=stacklevel)

    tell(1)
    tell(2)
    assert [record.funcName for record in caplog.records] == [
        "tell",
        "test_a_record_names_the_line_that_spoke",
    ]
    assert {record.filename for record in caplog.records} == {"test_logs.py"}


def test_whatever_a_filter_raises_is_not_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise BaseException(record)

    logger = logging.getLogger("qqbot_session")
    logger.addFilter(broken)
    try:
        say(logging.WARNING, "here")
    finally:
        logger.removeFilter(broken)
    assert not caplog.records
