#!/usr/bin/env bash
# Guess: WebSocket clients for asyncio answer a server's ping by themselves, as their documentation says, so that a program
# which awaits something for long before it reads the next message is not taken for dead: the event loop is free.
# Found: aiohttp answers from within `receive()` alone, so nothing is answered between two calls, nor by asyncpusher, built
# on it, while a callback awaits. websockets does answer, until more messages wait to be read than its `max_queue` of 16.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install aiohttp==3.14.5 asyncpusher==0.2.5 websockets==17.4
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import base64
import hashlib
import json
import os
import sys
from importlib.metadata import version

import aiohttp
import asyncpusher
import websockets

HELLO = json.dumps({"event": "pusher:connection_established",
                    "data": json.dumps({"socket_id": "1.1", "activity_timeout": 120})})
SAID = json.dumps({"event": "said", "data": "{}"})
PING, PONG = b"\x89\x00", 0x8A


def text(message):
    return bytes([0x81, len(message)]) + message.encode()


async def is_answered(connect, waiting):
    """Whether a ping is answered within 2 s that comes behind the greeting and so many messages."""
    answered = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        key = next(line.split(": ")[1] for line in head if line.lower().startswith("sec-websocket-key:"))
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + text(HELLO) + text(SAID) * waiting)
        await asyncio.sleep(0.5)
        writer.write(PING)
        try:
            async with asyncio.timeout(2):
                answered.set_result((await reader.readexactly(1))[0] == PONG)
        except TimeoutError:
            answered.set_result(False)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = asyncio.create_task(connect(server.sockets[0].getsockname()[1]))
    found = await answered
    client.cancel()
    server.close()
    return found


async def aiohttp_reads(port):
    async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://127.0.0.1:{port}/") as socket:
        async for _ in socket:
            pass


async def aiohttp_works(port):
    async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://127.0.0.1:{port}/") as socket:
        await socket.receive()
        await asyncio.sleep(60)


async def asyncpusher_works(port):
    client = asyncpusher.Pusher("key", custom_host="127.0.0.1", custom_port=port, secure=False)

    async def works(_):
        await asyncio.sleep(60)

    client.connection.bind("said", works)
    await client.connect()


async def websockets_works(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}/") as socket:
        await socket.recv()
        await asyncio.sleep(60)


async def main():
    changed = False
    for package, what, connect, waiting, expected in [
        ("aiohttp", "reads on", aiohttp_reads, 1, True),
        ("aiohttp", "awaits something else", aiohttp_works, 0, False),
        ("asyncpusher", "awaits something else in a callback", asyncpusher_works, 1, False),
        ("websockets", "awaits something else", websockets_works, 10, True),
        ("websockets", "awaits something else", websockets_works, 30, False),
    ]:
        found = await is_answered(connect, waiting)
        print(f"{package} {version(package)}, {what}, {waiting} messages wait: "
              f"the ping is {'answered' if found else 'not answered'}")
        if found != expected:
            print("    this has changed")
            changed = True
    sys.stdout.flush()
    os._exit(changed)


asyncio.run(main())
PYTHON
