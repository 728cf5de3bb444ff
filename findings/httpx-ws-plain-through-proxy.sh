#!/usr/bin/env bash
# httpx-ws 0.9.0 on httpx 0.28.1 and httpcore 1.0.9 cannot open ws:// through an HTTP proxy: httpcore asks the proxy to CONNECT
# and then begins a TLS handshake, as if the address were wss://. The server gets a ClientHello where an Upgrade belongs.
# websockets 17.4 opens the same address through the same proxy.
# Seen on Python 3.11.7: "httpx-ws: ConnectError, the server got 16 03" and "websockets: the server got GET".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q httpx-ws==0.9.0 httpx==0.28.1 httpcore==1.0.9 websockets==17.4
"$folder/venv/bin/python" - <<'P'
import asyncio
import httpx
from httpx_ws import aconnect_ws
from websockets.asyncio.client import connect

async def main():
    got = []

    async def serve(reader, writer):  # notes how the client begins, and hangs up
        got.append(await reader.read(3))
        writer.close()

    async def proxy(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        there, out = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        out.write(await reader.read(4096))
        await there.read()
        writer.close()
        out.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    relay = await asyncio.start_server(proxy, "127.0.0.1", 0)
    way = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    url = f"ws://127.0.0.1:{port}/"
    try:
        async with httpx.AsyncClient(proxy=way) as http, aconnect_ws(url, http):
            pass
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        print(f"httpx-ws: {type(error).__name__}, the server got {got[0][:2].hex(' ')}")
    try:
        async with connect(url, proxy=way):
            pass
    except Exception:
        print(f"websockets: the server got {got[1].decode()}")
    assert (got[0][:2], got[1]) == (b"\x16\x03", b"GET"), "the finding no longer holds"

asyncio.run(main())
P
