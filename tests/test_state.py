"""`SessionState` and its record: what is refused, what is kept, what any bytes decode to."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import types
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qqbot_session import InvalidRecordError, SessionState
from qqbot_session.state import (
    MAX_ACCOUNT_ID,
    MAX_EXTRA_BYTES,
    MAX_INTEGER,
    MAX_RECORD_BYTES,
    account_of,
    check_account_id,
    check_app_id,
    check_intents,
    check_last_seq,
    check_shard,
    check_state,
    decode,
    encode,
    extra_length,
    known_valid,
    read_only,
)

FULL = SessionState(
    account_id="机器人😀",
    session_id='5f1c "quoted"',
    last_seq=41,
    last_connected_at=1_699_999_990.007,
    intent_level_index=2,
    saved_at=1_700_000_000.123,
    app_id="102005927",
    intents=1 << 30,
    shard=(1, 4),
    established_at=1_699_999_000.5,
    failed_resumes=1,
    extra={"vendor": {"list": [1, 2.5, None, True, [], {}], "文": "é"}},
)

# What a hypothesis strategy may say of every field.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
integers = st.integers(0, MAX_INTEGER)
seconds = st.floats(0, 4e12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),  # lone surrogates too
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KNOWN = set(json.loads(encode(FULL))) - {"vendor"}
states = st.builds(
    SessionState,
    account_id=texts,
    session_id=st.none() | st.just("") | texts,
    last_seq=st.none() | integers,
    last_connected_at=seconds,
    intent_level_index=integers,
    saved_at=seconds,
    app_id=st.none() | texts,
    intents=st.none() | integers,
    shard=st.none() | st.tuples(st.integers(0, 9), st.integers(10, MAX_INTEGER)),
    established_at=st.none() | seconds,
    failed_resumes=integers,
    extra=st.dictionaries(st.text(st.characters()).filter(lambda n: n not in KNOWN), json_values),
)

# --- what is refused -------------------------------------------------------------------------

NO_TEXT = [5, True, b"a", ["a"]], ["", "a\0b", "a\ud800", "\udfff"]
NO_INTEGER = [True, 1.0, "1", [1]], [-1, MAX_INTEGER + 1]
NO_SECONDS = ["1", True, [1]], [-0.001, float("nan"), float("inf"), float("-inf"), 1e300]
REFUSED = {
    "account_id": ([None, *NO_TEXT[0]], NO_TEXT[1]),
    "session_id": (NO_TEXT[0], NO_TEXT[1][1:]),  # empty: the original's "no session"
    "app_id": NO_TEXT,
    "last_seq": NO_INTEGER,
    "intents": NO_INTEGER,
    "intent_level_index": ([None, *NO_INTEGER[0]], NO_INTEGER[1]),
    "failed_resumes": ([None, *NO_INTEGER[0]], NO_INTEGER[1]),
    "last_connected_at": ([None, *NO_SECONDS[0]], NO_SECONDS[1]),
    "saved_at": ([None, *NO_SECONDS[0]], NO_SECONDS[1]),
    "established_at": NO_SECONDS,
    "shard": (
        [[0, 1], (0,), (0, 1, 2), "01", 3, (True, 2), (0, 1.0), (None, 1)],
        [(1, 1), (2, 1), (-1, 1), (0, 0), (0, MAX_INTEGER + 1)],
    ),
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (name, value, error)
        for name, groups in REFUSED.items()
        for error, values in zip((TypeError, ValueError), groups, strict=True)
        for value in values
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any, error: type[Exception]) -> None:
    """A wrong type is a TypeError, a wrong value a ValueError; both name it."""  # promise 10
    with pytest.raises(error) as caught:
        SessionState(**{"account_id": "a", name: value})
    assert name in str(caught.value)
    named = [value, *value] if isinstance(value, tuple) else [value]
    assert any(repr(offending).strip("'") in str(caught.value) for offending in named)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (check_account_id, "account_id"),
        (check_app_id, "app_id"),
        (check_last_seq, "last_seq"),
        (check_intents, "intents"),
        (check_shard, "shard"),
    ],
)
def test_the_checks_of_arguments_refuse_what_a_state_refuses(check: Any, name: str) -> None:
    """`load(shard=…)` and its like judge as `SessionState` does."""  # promise 10
    for error, values in zip((TypeError, ValueError), REFUSED[name], strict=True):
        for value in values:
            with pytest.raises(error, match=name):
                check(value)


def test_an_account_id_has_at_most_1024_characters() -> None:
    """Also in a record: what could not be asked for need not be kept."""  # promise 10
    for make in (check_account_id, lambda value: SessionState(account_id=value)):
        with pytest.raises(ValueError, match="at most 1024 characters, not 1025: '中中"):
            make("中" * 1025)
    with pytest.raises(InvalidRecordError, match="account_id"):
        decode(b'{"accountId": "%s"}' % (b"x" * 1025))


def test_an_error_names_a_huge_or_unprintable_value_in_one_short_line() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    for value in (Unprintable(), ["x" * 100_000], b"x" * 100_000):
        with pytest.raises(TypeError) as caught:
            SessionState(account_id=value)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="last_seq") as refused:
        check_last_seq(10**4000)
    assert len(str(refused.value)) < 200


# --- subclasses mean their plain value -------------------------------------------------------


class Bot(str, enum.Enum):  # noqa: UP042 - unlike a StrEnum, its str() is "Bot.MAIN"
    MAIN = "main"


class Level(enum.IntEnum):
    FULL = 2


class Odd(str):
    """Looks, compares and hashes like something else."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "another"

    __repr__ = __format__ = __str__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def encode(self, *_: object) -> bytes:  # type: ignore[override]
        return b"another"


class OddNumber(int):
    def __int__(self) -> int:
        return -1

    __index__ = __int__

    def __str__(self) -> str:
        return "another"

    __repr__ = __str__

    def __mul__(self, other: object) -> int:
        return -1

    def __eq__(self, other: object) -> bool:
        return False

    def __le__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class OddSeconds(float):
    def __mul__(self, other: object) -> float:
        return -1.0


class Pair(tuple[int, int]):
    __slots__ = ()


def test_subclasses_of_text_and_numbers_are_their_plain_value_from_the_start() -> None:
    """In the state, in the record and so in the file's name too."""  # promise 12
    given_values: dict[str, Any] = {
        "account_id": Odd("main"),
        "session_id": Odd("s-1"),
        "last_seq": OddNumber(7),
        "last_connected_at": OddNumber(8),
        "intent_level_index": Level.FULL,
        "saved_at": OddSeconds(9.5),
        "app_id": Bot.MAIN,
        "intents": OddNumber(513),
        "shard": Pair((OddNumber(1), Level.FULL)),
        "established_at": OddSeconds(10.5),
        "failed_resumes": OddNumber(1),
        "extra": {Odd("x"): [Bot.MAIN, OddNumber(3), OddSeconds(1.5), {Bot.MAIN: Level.FULL}]},
    }
    plain: dict[str, Any] = {
        "account_id": "main",
        "session_id": "s-1",
        "last_seq": 7,
        "last_connected_at": 8.0,
        "intent_level_index": 2,
        "saved_at": 9.5,
        "app_id": "main",
        "intents": 513,
        "shard": (1, 2),
        "established_at": 10.5,
        "failed_resumes": 1,
        "extra": {"x": ("main", 3, 1.5, {"main": 2})},
    }
    state = SessionState(**given_values)
    assert state == SessionState(**plain)
    assert repr(state) == repr(SessionState(**plain))
    assert encode(state) == encode(SessionState(**plain))
    assert decode(encode(state)) == state
    for name, value in plain.items():
        assert type(getattr(state, name)) is type(value) or name == "extra"
    assert [type(number) for number in state.shard or ()] == [int, int]
    (values,) = state.extra.values()
    assert [type(value) for value in values[:3]] == [str, int, float]
    assert [(type(name), type(value)) for name, value in values[3].items()] == [(str, int)]


def test_the_checks_return_the_plain_value() -> None:
    account_id, number = check_account_id(Bot.MAIN), check_last_seq(OddNumber(7))
    assert (account_id, type(account_id), number, type(number)) == ("main", str, 7, int)
    assert type(check_app_id(Odd("x"))) is str
    assert type(check_intents(Level.FULL)) is int
    assert type(check_shard(Pair((0, 1)))) is tuple


@pytest.mark.parametrize("value", [Odd(""), Odd("a\0b"), Odd("\ud800")])
def test_a_subclass_is_judged_by_its_plain_value(value: str) -> None:
    with pytest.raises(ValueError, match="account_id"):
        SessionState(account_id=value)
    with pytest.raises(ValueError, match="last_seq"):
        SessionState(account_id="a", last_seq=OddNumber(-1))


def test_what_only_pretends_to_be_text_is_refused() -> None:
    class Pretender:
        __class__ = str  # type: ignore[assignment]

    with pytest.raises(TypeError, match="account_id must be a str"):
        SessionState(account_id=Pretender())  # type: ignore[arg-type]


def test_a_state_of_a_subclass_that_skips_the_checks_is_checked_before_it_is_kept() -> None:
    class Unchecked(SessionState):
        def __post_init__(self) -> None:
            pass

    assert check_state(FULL) is FULL
    plain = check_state(Unchecked(account_id=Bot.MAIN, last_seq=1))
    assert (type(plain), plain) == (SessionState, SessionState(account_id="main", last_seq=1))
    with pytest.raises(ValueError, match="last_seq"):
        check_state(Unchecked(account_id="a", last_seq=-1))
    with pytest.raises(TypeError, match="must be a SessionState, not None"):
        check_state(None)


# --- what is shown ---------------------------------------------------------------------------


def test_a_repr_shows_what_is_set_and_the_session_id_only_shortened() -> None:  # promise 15
    assert repr(SessionState(account_id="a")) == "SessionState(account_id='a', session_id=None)"
    shown = repr(SessionState(account_id="a", session_id="5f1c-secret", last_seq=0, shard=(0, 2)))
    assert shown == "SessionState(account_id='a', session_id='5f1c…', last_seq=0, shard=(0, 2))"
    for name, value in asdict(FULL).items():
        assert name == "session_id" or f"{name}={value!r}" in repr(FULL)


@pytest.mark.parametrize(
    "value", [b"5f1c9e0d-secret", ["5f1c9e0d-secret"], "5f1c9e0d\0secret", "5f1c9e0d\udfffsecret"]
)
def test_an_error_shows_the_session_id_only_shortened(value: Any) -> None:  # promise 15
    with pytest.raises((TypeError, ValueError), match="session_id") as caught:
        SessionState(account_id="a", session_id=value)
    assert "secret" not in str(caught.value)


def test_the_limits_themselves_are_allowed() -> None:
    state = SessionState(
        account_id="x" * MAX_ACCOUNT_ID,
        session_id="",
        last_seq=MAX_INTEGER,
        intents=0,
        shard=(0, 1),
        saved_at=0,
    )
    assert decode(encode(state)) == state


def test_only_the_account_id_is_required_and_nothing_is_positional() -> None:
    assert SessionState(account_id="a").last_seq is None
    with pytest.raises(TypeError):
        SessionState()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SessionState("a")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("session_id", "last_seq", "resumable"),
    [("s", 0, True), ("s", None, False), ("", 1, False), (None, 1, False), (None, None, False)],
)
def test_resumable_needs_a_session_id_and_a_number_and_zero_is_one(
    session_id: str | None, last_seq: int | None, resumable: bool
) -> None:
    state = SessionState(account_id="a", session_id=session_id, last_seq=last_seq)
    assert state.resumable is resumable


# --- a value ---------------------------------------------------------------------------------


def test_a_state_cannot_be_changed() -> None:
    for name in asdict(FULL):
        with pytest.raises(FrozenInstanceError):
            setattr(FULL, name, None)
        with pytest.raises(FrozenInstanceError):
            delattr(FULL, name)
    with pytest.raises((AttributeError, TypeError)):
        FULL.nonsense = 1  # type: ignore[attr-defined]


def test_extra_is_a_copy_down_to_its_leaves() -> None:
    inner = {"list": [1, {"deep": 1}]}
    given_extra: dict[str, Any] = {"x": inner}
    state = SessionState(account_id="a", extra=given_extra)
    before = encode(state)
    inner["list"][1]["deep"] = 2  # type: ignore[index]
    inner["list"].append(3)
    given_extra["y"] = 4
    assert encode(state) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda extra: extra.update(a=1),
        lambda extra: extra.__setitem__("a", 1),
        lambda extra: extra.__delitem__("vendor"),
        lambda extra: extra.__ior__({"a": 1}),
        lambda extra: extra.pop("vendor"),
        lambda extra: extra.popitem(),
        lambda extra: extra.clear(),
        lambda extra: extra.setdefault("a", 1),
        lambda extra: extra["vendor"].update(a=1),
        lambda extra: extra["vendor"]["list"].append(1),
        lambda extra: extra["vendor"]["list"][5].update(a=1),
    ],
)
def test_extra_cannot_be_changed_at_any_depth(change: Any) -> None:
    before = encode(FULL)
    with pytest.raises((TypeError, AttributeError)):
        change(FULL.extra)
    assert encode(FULL) == before


def _cyclic() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    return loop


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("extra", "error", "says"),
    [
        ([("a", 1)], TypeError, "mapping"),
        (None, TypeError, "None"),
        ({"x": object}, ValueError, "object"),
        ({"x": b"bytes"}, ValueError, "bytes"),
        ({"x": {1, 2}}, ValueError, "{1, 2}"),
        ({"x": float("nan")}, ValueError, "nan"),
        ({"x": [{"y": float("-inf")}]}, ValueError, "-inf"),
        ({1: "x"}, ValueError, "1"),
        ({"x": {None: 1}}, ValueError, "None"),
        ({"x": _nested(100_000)}, ValueError, "deep"),
        (_cyclic(), ValueError, "deep"),
        ({"x": "y" * MAX_EXTRA_BYTES}, ValueError, "32768"),
        ({"x": "é" * (MAX_EXTRA_BYTES // 2)}, ValueError, "32768"),
        ({"x": _nested(400)}, ValueError, ""),  # its indentation is too much
    ]
    + [({name: None}, ValueError, name) for name in sorted(KNOWN)],
)
def test_extra_that_is_not_json_too_large_or_repeats_a_name_is_refused(
    extra: Any, error: type[Exception], says: str
) -> None:  # promise 10
    with pytest.raises(error) as caught:
        SessionState(account_id="a", extra=extra)
    assert says in str(caught.value)


def test_extra_may_be_any_mapping_and_use_known_names_further_down() -> None:
    extra = types.MappingProxyType({"copy": {"sessionId": "s"}, "pair": (1, 2)})
    state = SessionState(account_id="a", extra=extra)
    assert json.loads(encode(state))["copy"] == {"sessionId": "s"}
    assert decode(encode(state)) == state


def test_extra_just_within_its_limit_is_kept_next_to_long_names() -> None:
    room = MAX_EXTRA_BYTES - len(json.dumps({"x": ""}, indent=2))
    state = SessionState(account_id="a" * 512, extra={"x": "y" * room})
    assert decode(encode(state)) == state
    with pytest.raises(ValueError, match="extra"):
        replace(state, extra={"x": "y" * (room + 1)})


@pytest.mark.parametrize("state", [FULL, SessionState(account_id="a")])
@pytest.mark.parametrize(
    "remake",
    [
        copy.copy,
        copy.deepcopy,
        replace,
        lambda state: pickle.loads(pickle.dumps(state)),
        lambda state: SessionState(**asdict(state)),
    ],
)
def test_a_state_survives_copying_pickling_and_asdict(state: SessionState, remake: Any) -> None:
    again = remake(state)
    assert again == state
    assert hash(again) == hash(state)
    assert encode(again) == encode(state)
    with pytest.raises(TypeError):
        again.extra["x"] = 1


# --- the record ------------------------------------------------------------------------------


def test_the_layout_is_that_of_json_stringify_with_two_spaces() -> None:
    assert encode(FULL).decode() == (
        "{\n"
        '  "sessionId": "5f1c \\"quoted\\"",\n'
        '  "lastSeq": 41,\n'
        '  "lastConnectedAt": 1699999990007,\n'
        '  "intentLevelIndex": 2,\n'
        '  "accountId": "机器人😀",\n'
        '  "savedAt": 1700000000123,\n'
        '  "appId": "102005927",\n'
        '  "intents": 1073741824,\n'
        '  "shard": [\n    1,\n    4\n  ],\n'
        '  "establishedAt": 1699999000500,\n'
        '  "failedResumes": 1,\n'
        '  "vendor": {\n'
        '    "list": [\n      1,\n      2.5,\n      null,\n'
        "      true,\n      [],\n      {}\n    ],\n"
        '    "文": "é"\n'
        "  }\n"
        "}"
    )


def test_what_is_unset_beyond_the_six_of_the_original_is_left_out() -> None:
    assert json.loads(encode(SessionState(account_id="a"))) == {
        "sessionId": None,
        "lastSeq": None,
        "lastConnectedAt": 0,
        "intentLevelIndex": 0,
        "accountId": "a",
        "savedAt": 0,
    }


def test_subclasses_of_numbers_are_written_as_numbers() -> None:
    class Intents(enum.IntFlag):
        GROUP = 1 << 25

    state = SessionState(account_id="a", intents=Intents.GROUP, extra={"i": Intents.GROUP})
    fields = json.loads(encode(state))
    assert (fields["intents"], fields["i"]) == (1 << 25, 1 << 25)


def test_a_newer_number_and_stamp_replace_those_of_the_state() -> None:
    expected = replace(FULL, last_seq=99, saved_at=1_700_000_500.001)
    assert encode(FULL, 99, 1_700_000_500.0011) == encode(expected)
    assert json.loads(encode(FULL, 0, 0.0))["lastSeq"] == 0


@given(states)
def test_every_state_is_laid_out_as_json_dumps_would_and_reads_back_equal(
    state: SessionState,
) -> None:
    """Also with the longest number and stamp the store may put in, it is within the bound."""
    record = encode(state)
    text = record.decode()
    fields = json.loads(text)
    assert text in (
        json.dumps(fields, indent=2, ensure_ascii=False),
        json.dumps(fields, indent=2),
    )
    assert decode(record) == state
    assert account_of(record) == state.account_id
    stamped = encode(state, MAX_INTEGER, 4e12)
    assert len(stamped) <= MAX_RECORD_BYTES
    assert decode(stamped) == replace(state, last_seq=MAX_INTEGER, saved_at=4e12)


@given(
    st.sampled_from(["a", "\x01", "中", "😀", '"']),
    st.tuples(*[st.integers(0, 22_000)] * 3),
    st.tuples(st.sampled_from(["", "\ud800", "中", "\x7f"]), st.integers(0, 33_000)),
)
def test_a_state_of_any_size_is_refused_or_fits_in_a_record(
    unit: str, lengths: tuple[int, int, int], extra: tuple[str, int]
) -> None:
    """What we write we can read back; and nothing is refused that would fit."""  # promise 14
    names = dict(zip(["account_id", "session_id", "app_id"], lengths, strict=True))
    names["account_id"] %= MAX_ACCOUNT_ID + 1
    fields = {name: unit * max(count, 1) for name, count in names.items()}
    try:
        state = SessionState(**fields, extra={"x": extra[0] + "y" * extra[1]})  # type: ignore[arg-type]
    except ValueError:
        dump = json.dumps(
            {**fields, "x": extra[0] + "y" * extra[1]}, indent=2, ensure_ascii=extra[0] == "\ud800"
        )
        assert extra[1] > MAX_EXTRA_BYTES - 32 or len(dump.encode()) > MAX_RECORD_BYTES - 300
    else:
        record = encode(state, MAX_INTEGER, 4e12)
        assert len(record) <= MAX_RECORD_BYTES
        assert decode(record).account_id == state.account_id


def test_a_session_id_as_long_as_it_may_be_leaves_room_for_the_longest_number_and_stamp() -> None:
    """They are put in when the record is encoded, long after the state was checked."""
    longest = None
    for length in range(MAX_RECORD_BYTES - 400, MAX_RECORD_BYTES):
        try:
            longest = SessionState(account_id="a", session_id="x" * length)
        except ValueError:
            break
    assert longest is not None
    record = encode(longest, MAX_INTEGER, 4e12)
    assert len(record) <= MAX_RECORD_BYTES
    assert decode(record) == replace(longest, last_seq=MAX_INTEGER, saved_at=4e12)


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_keep_their_millisecond(milliseconds: int) -> None:
    record = b'{"accountId": "a", "savedAt": %d, "establishedAt": %d}' % (
        milliseconds,
        milliseconds,
    )
    fields = json.loads(encode(decode(record)))
    assert (fields["savedAt"], fields["establishedAt"]) == (milliseconds, milliseconds)


@pytest.mark.parametrize("milliseconds", [4_398_093_190_077_901, 4_450_892_245_070_095])
def test_a_time_too_far_off_to_keep_its_millisecond_is_refused(milliseconds: int) -> None:
    """Whatever is accepted is written and read back unchanged."""
    with pytest.raises(InvalidRecordError):
        decode(b'{"accountId": "a", "savedAt": %d}' % milliseconds)


# --- hostile bytes ---------------------------------------------------------------------------


def judge(data: bytes) -> SessionState | None:
    """Decode; whatever is read must survive being written and read again."""
    try:
        state = decode(data)
    except InvalidRecordError:
        assert account_of(data) is None
        return None
    record = encode(state)
    assert len(record) <= MAX_RECORD_BYTES
    assert decode(record) == state
    assert account_of(data) == state.account_id
    return state


GOOD = encode(FULL)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[]",
        b'"accountId"',
        b"7",
        b"{}",
        b'{"accountId": null}',
        b'{"sessionId": "s", "lastSeq": 1}',
        b"\xff\xfe" + GOOD,
        b"\xef\xbb\xbf" * 2 + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD + GOOD,
        GOOD + b"x",
        b"[" * 100_000,
        b'{"accountId": "a", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"accountId": "a", "x": ' + b'{"x":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"accountId": "a", "x": ' + b"9" * 5_000 + b"}",
        b'{"accountId": "a", "x": 1e999}',
        b'{"accountId": "a", "x": "' + b"y" * 33_000 + b'"}',
        GOOD + b" " * (MAX_RECORD_BYTES + 1 - len(GOOD)),
    ],
    ids=lambda data: repr(data[:40]),
)
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:  # promise 14
    with pytest.raises(InvalidRecordError):
        decode(data)
    assert account_of(data) is None


def test_a_record_cut_off_anywhere_is_refused() -> None:  # promise 14
    for length in range(len(GOOD)):
        assert judge(GOOD[:length]) is None


def test_a_record_padded_up_to_the_bound_is_read() -> None:
    assert judge(GOOD + b"\n" * (MAX_RECORD_BYTES - len(GOOD))) == FULL


TEXTS = {"sessionId", "accountId", "appId"}
HOSTILE_VALUES = [
    "true",
    "false",
    '"1"',
    "-1",
    "1.5",
    "1e999",
    "-1e999",
    "1" + "0" * 400,
    str(2**53),
    "NaN",
    "Infinity",
    "-Infinity",
    "[]",
    "{}",
    "[[[]]]",
    "[0, true]",
    "[3, 2]",
    '"\\u0000"',
    '"\\ud800"',
    "[" * 20_000,
    "",
]


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda value: value[:12])
def test_a_wrong_value_in_any_field_makes_the_record_corrupt(name: str, value: str) -> None:
    """Among them `true` as a number and NaN."""  # promise 14
    fields = {"accountId": '"a"', name: value}
    text = "{" + ", ".join(f'"{key}": {field}' for key, field in fields.items()) + "}"
    right = {"1.5": {"lastConnectedAt", "savedAt", "establishedAt"}, '"1"': TEXTS}
    if name in right.get(value, ()):
        assert judge(text.encode()) is not None
    else:
        with pytest.raises(InvalidRecordError):
            decode(text.encode())


@pytest.mark.parametrize("name", ["lastConnectedAt", "savedAt", "establishedAt"])
def test_a_time_of_minus_ten_to_the_400_is_corrupt(name: str) -> None:  # promise 14
    with pytest.raises(InvalidRecordError):
        decode(b'{"accountId": "a", "%s": -1%s}' % (name.encode(), b"0" * 400))


def test_a_field_that_is_null_counts_as_unset() -> None:
    text = ", ".join(f'"{name}": null' for name in sorted(KNOWN - {"accountId"}))
    assert judge(f'{{"accountId": "a", {text}}}'.encode()) == SessionState(account_id="a")


@given(st.binary(max_size=400))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:  # promise 14
    judge(data)


@given(states, st.data())
def test_a_mutated_record_decodes_or_is_refused(state: SessionState, data: st.DataObject) -> None:
    """Some bytes replaced, inserted or taken out anywhere."""  # promise 14
    record = bytearray(encode(state))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(record)))
        length = data.draw(st.integers(0, 4))
        pieces = st.binary(max_size=3) | st.sampled_from([b'"', b"null", b"-", b"1e9", b"{", b"]"])
        record[start : start + length] = data.draw(pieces)
    judge(bytes(record))


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)) | st.text(), json_values))
def test_any_json_object_decodes_or_is_refused(fields: dict[str, Any]) -> None:  # promise 14
    data = json.dumps({"accountId": "a", **fields}).encode()
    assume(len(data) <= MAX_RECORD_BYTES)
    judge(data)


@pytest.mark.parametrize("session_id", ["abcdefgh-secret\\u0000", "abcdefgh-secret\\ud800"])
def test_the_reason_why_a_record_is_corrupt_does_not_hold_the_session_id(session_id: str) -> None:
    """The store logs the reason; `session_id` is logged only shortened."""  # promise 15
    with pytest.raises(InvalidRecordError) as caught:
        decode(b'{"accountId": "a", "sessionId": "%s"}' % session_id.encode())
    assert "secret" not in str(caught.value)


@given(states, states)
def test_what_is_known_to_be_valid_becomes_what_replace_makes_of_it(
    state: SessionState, other: SessionState
) -> None:
    changes = {name: getattr(other, name) for name in SessionState.__slots__}
    made = known_valid(state, **changes | {"account_id": state.account_id})
    assert made == replace(other, account_id=state.account_id)
    assert known_valid(state) == state
    assert encode(made) == encode(replace(other, account_id=state.account_id))


def test_an_extra_made_read_only_is_the_one_that_a_state_makes() -> None:
    made = read_only({"é": "x", "n": (1, 2)})
    assert made == SessionState(account_id="a", extra={"é": "x", "n": [1, 2]}).extra
    with pytest.raises(TypeError):
        made["é"] = "y"  # type: ignore[index]
    assert read_only({}) is SessionState(account_id="a").extra


def test_a_text_that_is_known_to_need_no_escapes_is_encoded_like_any_other() -> None:
    extra = {"t": "12-40,45:0 0f", 'n"': 'é"', "i": 1}
    state = SessionState(account_id="a", extra=extra)
    made = known_valid(state, extra=read_only(extra, plain=("t",)))
    assert made == state
    assert encode(made) == encode(state)
    for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert copied == state
        assert encode(copied) == encode(state)


@pytest.mark.parametrize("text", ["x", "é", "\ud800é"], ids=ascii)
def test_the_length_of_an_extra_is_the_one_that_is_judged(text: str) -> None:
    spare = MAX_EXTRA_BYTES - extra_length({"t": text})
    fits = {"t": text + "x" * spare}
    assert extra_length(fits) == MAX_EXTRA_BYTES
    assert SessionState(account_id="a", extra=fits).extra == fits
    with pytest.raises(ValueError, match="longer"):
        SessionState(account_id="a", extra={"t": fits["t"] + "x"})
