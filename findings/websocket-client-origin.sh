#!/usr/bin/env bash
# Guess: a client that is no browser sends no Origin unless it is told to, so that a server's list of allowed origins does
# not concern it.
# Found: Python's websocket-client makes one up of the address it connects to (`Origin: http://HOST:PORT`), and so do Pysher
# and python-socketio's client by threads, which are built on it. A server that lets clients without an Origin in refuses
# these if its own address is not on its list. websockets, aiohttp and python-socketio's asyncio client send none.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install websocket-client==1.9.0 Pysher==1.0.8 \
    python-socketio==5.16.0 websockets==16.0 aiohttp==3.13.3 requests==2.32.5
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import logging
import os
import sys
from importlib.metadata import version

import aiohttp
import pysher
import socketio
import websocket
import websockets

logging.disable()
heads = None


async def answer(reader, writer):
    # What is asked is all that counts here: every client is refused.
    heads.put_nowait((await reader.readuntil(b"\r\n\r\n")).decode())
    writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def main():
    global heads
    heads = asyncio.Queue()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    web, address = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/app/key"

    def websocket_client():
        websocket.create_connection(address)

    def pysher_client():
        pysher.Pusher("key", custom_host="127.0.0.1", port=port, secure=False, reconnect_interval=60).connect()

    def socketio_client():
        socketio.Client(reconnection=False).connect(web, transports=["websocket"])

    async def socketio_async_client():
        await socketio.AsyncClient(reconnection=False).connect(web, transports=["websocket"])

    async def websockets_client():
        await websockets.connect(address)

    async def aiohttp_client():
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(address)

    changed = False
    for package, connect, sends in [
        ("websocket-client", websocket_client, True),
        ("pysher", pysher_client, True),
        ("python-socketio", socketio_client, True),
        ("python-socketio", socketio_async_client, False),
        ("websockets", websockets_client, False),
        ("aiohttp", aiohttp_client, False),
    ]:
        try:
            if asyncio.iscoroutinefunction(connect):
                await connect()
            else:
                await asyncio.to_thread(connect)
        except Exception:
            pass  # Refused, as intended.
        head = await asyncio.wait_for(heads.get(), 20)
        origin = next((line for line in head.split("\r\n") if line.lower().startswith("origin:")), "no Origin")
        origin = origin.replace(str(port), "PORT")
        print(f"{package} {version(package)} ({connect.__name__}): {origin}")
        if origin != ("Origin: http://127.0.0.1:PORT" if sends else "no Origin"):
            print("    this has changed")
            changed = True
    sys.stdout.flush()
    os._exit(changed)


asyncio.run(main())
PYTHON
