"""Fuzz the decoder: whatever the bytes are, they are a state or an `InvalidRecordError`.

Not collected by pytest. Run it as a command, for as long as you like:

    python tests/fuzz_decoder.py              # a minute
    python tests/fuzz_decoder.py 600          # so many seconds
    python tests/fuzz_decoder.py 600 corpus/  # keeping what was found (atheris only)

With `atheris` installed (`pip install atheris`, not on every Python) it is guided by coverage;
without, records are mutated blindly. It stops at the first finding: a crash, a state that does
not survive being written, a record beyond the limit, or more memory than a record may cost.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["qqbot_session", "json"]):
        from qqbot_session import state as module
else:
    from qqbot_session import state as module

PEAK = 16 * 1024 * 1024
"""Bytes one decoding may take at most: a record is 64 KiB."""

SEEDS = (
    b"",
    b"{}",
    b'{"accountId": "bot"}',
    b'{\n  "sessionId": "s",\n  "lastSeq": 1,\n  "lastConnectedAt": 1700000000000,\n'
    b'  "intentLevelIndex": 0,\n  "accountId": "bot",\n  "savedAt": 1700000000000\n}',
    b'{"accountId":"bot","appId":"1","intents":1,"shard":[0,2],"establishedAt":1.5,'
    b'"failedResumes":3,"x":{"y":[1,2.5,"\\ud83d\\ude00",null,true]}}',
    b'{"accountId":"\\ud800","savedAt":1e999,"lastSeq":NaN}',
    b'{"accountId":"bot","savedAt":' + b"9" * 400 + b"}",
    b'{"accountId":"bot","x":' + b"[" * 100 + b"0,0,0,0" + b"]" * 100 + b"}",
)
PIECES = (
    *(b'"accountId"', b'"sessionId"', b'"lastSeq"', b'"savedAt"', b'"shard"', b'"appId"'),
    *(b'"intents"', b'"establishedAt"', b'"failedResumes"', b'"lastConnectedAt"'),
    *(b'"intentLevelIndex"', b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e999", b"-0"),
    *(b"9007199254740992", b"-1" + b"0" * 400, b"\\ud800", b"\\u0000", b"\xef\xbb\xbf", b"\xff"),
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"[" * 1000, b"[0,2]", b"1.0", b"\\", b"\n"),
)


def check(data: bytes) -> None:
    """Raise unless the decoder keeps its word for these bytes."""
    try:
        state = module.decode(data)
    except module.InvalidRecordError:
        assert module.account_of(data) is None
        return
    record = module.encode(state)
    assert len(record) <= module.MAX_RECORD_BYTES, f"{len(record)} bytes written"
    assert module.decode(record) == state, "written and read back it is another state"
    assert module.account_of(data) == state.account_id


def check_memory(data: bytes) -> None:
    """Raise if decoding takes more than `PEAK`; slow, so for some records only."""
    tracemalloc.start()
    try:
        module.account_of(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= PEAK, f"{peak} bytes for a record of {len(data)}"


def mutations(chance: random.Random) -> Iterator[bytes]:
    """Yield mutated seeds without end; keep some of those that still are records."""
    pool = list(SEEDS)
    while True:
        data = bytearray(chance.choice(pool))
        for _ in range(chance.randint(1, 6)):
            start = chance.randint(0, len(data))
            end = min(len(data), start + chance.choice((0, 0, 1, 1, 2, 8, 64)))
            match chance.randrange(5):
                case 0:
                    data[start:end] = bytes(chance.randbytes(end - start))
                case 1:
                    data[start:end] = chance.choice(PIECES)
                case 2:
                    data[start:start] = chance.choice(PIECES) * chance.choice((1, 1, 1, 3, 500))
                case 3:
                    del data[start:end]
                case 4:
                    data[start:start] = data[start:end] * chance.choice((1, 2, 100))
        del data[70_000:]
        mutated = bytes(data)
        if len(pool) < 2000 and module.account_of(mutated) is not None:
            pool.append(mutated)
        yield mutated


def mutate(seconds: float) -> None:
    started = time.monotonic()
    seed = random.randrange(2**32)
    executions = 0
    for data in mutations(random.Random(seed)):
        try:
            check(data)
            if executions % 64 == 0:
                check_memory(data)
        except BaseException:
            sys.stderr.write(f"seed {seed}, execution {executions}: {data!r}\n")
            raise
        executions += 1
        if executions % 64 == 0 and time.monotonic() - started > seconds:
            break
    sys.stdout.write(f"{executions} executions without a finding (seed {seed}, no atheris)\n")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    for data in SEEDS:
        check(data)
        check_memory(data)
    if atheris is None:
        mutate(seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        words = Path(name, "words")
        words.write_text("".join(f'"{escaped(piece)}"\n' for piece in PIECES if len(piece) < 60))
        corpus = Path(name, "seeds")
        corpus.mkdir()
        for index, data in enumerate(SEEDS):
            (corpus / str(index)).write_bytes(data)
        limits = [f"-max_total_time={seconds:.0f}", "-max_len=70000", "-timeout=5"]
        options = [*limits, "-rss_limit_mb=1024", f"-dict={words}", *sys.argv[2:], str(corpus)]
        atheris.Setup([sys.argv[0], *options], check)
        atheris.Fuzz()


def escaped(piece: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in piece)


if __name__ == "__main__":
    main()
