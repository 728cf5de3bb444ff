#!/usr/bin/env bash
# With trust_env=True, aiohttp 3.14.5 sends https:// through HTTPS_PROXY and wss:// past it: for wss:// it reads WSS_PROXY
# alone. websockets 17.4 takes HTTPS_PROXY for wss://. So a bot whose HTTP calls and socket are both aiohttp's leaves by two
# ways, and the server sees two addresses. Both libraries are asked for one valid address; nothing is contacted but a
# loopback proxy.
# Seen on Python 3.11.7: "aiohttp: https through the proxy: True, wss: False" and "websockets: wss through the proxy: True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q aiohttp==3.14.5 websockets==17.4
"$folder/venv/bin/python" - <<'P'
import asyncio, os

for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]

import aiohttp
from websockets.asyncio.client import connect

async def main():
    seen = []

    async def proxy(reader, writer):  # notes the CONNECT, and refuses it
        seen.append((await reader.readline()).split()[0])
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    os.environ["HTTPS_PROXY"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def through_proxy(call):
        seen.clear()
        try:
            async with asyncio.timeout(10):
                await call
        except Exception:  # refused by the proxy, or nobody at port 9
            pass
        return seen == [b"CONNECT"]

    async with aiohttp.ClientSession(trust_env=True) as http:
        https = await through_proxy(http.get("https://127.0.0.1:9/"))
        wss = await through_proxy(http.ws_connect("wss://127.0.0.1:9/"))
    other = await through_proxy(connect("wss://127.0.0.1:9/").__aenter__())
    print(f"aiohttp: https through the proxy: {https}, wss: {wss}")
    print(f"websockets: wss through the proxy: {other}")
    assert (https, wss, other) == (True, False, True), "the finding no longer holds"

asyncio.run(main())
P
