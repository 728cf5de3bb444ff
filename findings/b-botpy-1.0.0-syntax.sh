#!/usr/bin/env bash
# b-botpy 1.0.0, a fork of botpy on PyPI, cannot be imported by any Python: two statements stand on one line of
# botpy/message.py (line 258). 1.0.2 and 1.0.3 can. A range such as b-botpy<1.0.2 gets the broken one.
# Seen on Python 3.11.7: "SyntaxError: invalid syntax (message.py, line 258)".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q b-botpy==1.0.0
"$folder/venv/bin/python" - <<'P'
try:
    import botpy
except SyntaxError as error:
    print(f"b-botpy 1.0.0: {type(error).__name__}: {error}")
    assert (error.filename.rpartition("/")[2], error.lineno) == ("message.py", 258)
else:
    raise SystemExit("it can be imported: the finding no longer holds")
P
