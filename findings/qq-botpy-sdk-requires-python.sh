#!/usr/bin/env bash
# qq-botpy-sdk 2.1.2 says "Requires-Python: >=3.10, <4.0", but can only be imported by 3.12 and later: it has f-strings
# with a backslash in an expression (PEP 701). So pip installs it on 3.10 and 3.11 without a word, and the import is a
# SyntaxError. 2.0.0 to 2.1.1 are the same; 2.2.0 is the first that works there. Needs a `python3` of 3.10 or 3.11.
# Seen on Python 3.11.7: "SyntaxError: f-string expression part cannot include a backslash".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' || { echo "needs python3 to be 3.10 or 3.11"; exit 2; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qq-botpy-sdk==2.1.2
"$folder/venv/bin/python" - <<'P'
from importlib import metadata
said = metadata.metadata("qq-botpy-sdk")["Requires-Python"]
try:
    import botpy
except SyntaxError as error:
    print(f"qq-botpy-sdk 2.1.2, Requires-Python {said}: {type(error).__name__}: {error.msg}")
    assert said.startswith(">=3.10") and "backslash" in error.msg
else:
    raise SystemExit("it can be imported: the finding no longer holds")
P
