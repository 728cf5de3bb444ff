#!/usr/bin/env bash
# qq-botpy-sdk 2.0.4 to 2.0.7: whoever has made one HTTP call cannot close the client any more. ApiClient.close() calls
# `close` on an httpx.AsyncClient, which only has `aclose`, so Client.close() and leaving `async with client` raise
# AttributeError, and a bot that is stopped in order ends with a traceback. 2.0.8 is the first without. Needs a `python3`
# of 3.12 or later, or PYTHON=python3.12: see qq-botpy-sdk-requires-python.sh. Seen on Python 3.12.1 with httpx 0.28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { echo "needs Python 3.12 or later: set PYTHON"; exit 2; }
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qq-botpy-sdk==2.0.7
cd "$folder"
"$folder/venv/bin/python" - <<'P'
import asyncio, logging
logging.disable(logging.CRITICAL)
from botpy.protocol.http import ApiClient


class Provider:
    async def get_access_token(self, *, force_refresh=False):
        return "token"


async def main():
    client = ApiClient(Provider(), base_url="http://127.0.0.1:9", max_retries=0)
    try:
        await client.get("/users/@me")  # nobody listens there; the call makes the session
    except Exception as error:
        print("the call:", type(error).__name__)
    try:
        await client.close()
    except AttributeError as error:
        print("qq-botpy-sdk 2.0.7, close():", error)
    else:
        raise SystemExit("close() works: the finding no longer holds")


asyncio.run(main())
P
