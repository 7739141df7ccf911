#!/usr/bin/env bash
# Guess: asyncpusher "auto handles reconnection", so that after a lost connection a program goes on hearing its channels, as
# with pusher-js and pusher-java-client; `subscribe` of a channel that it should have lost asks for it again.
# Found: 0.2.5 reconnects and subscribes to nothing unless it was made with `auto_sub=True`, which its README leaves out. And
# `subscribe` of a channel that it knows sends nothing: only `unsubscribe` before it brings the channel back.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install asyncpusher==0.2.5 aiohttp==3.14.5
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import importlib.metadata
import json
import logging
import sys

import asyncpusher
from aiohttp import web

logging.disable()
connections = []


async def serve(request):
    """As much of a Pusher server as one client needs. It notes what it is asked, connection by connection."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    asked = []
    connections.append((request.transport, asked))
    hello = {"socket_id": "1.1", "activity_timeout": 120}
    await socket.send_json({"event": "pusher:connection_established", "data": json.dumps(hello)})
    async for message in socket:
        frame = json.loads(message.data)
        asked.append(frame["event"].removeprefix("pusher:"))
        if asked[-1] == "subscribe":
            await socket.send_json({"event": "pusher_internal:subscription_succeeded",
                                    "channel": frame["data"]["channel"], "data": "{}"})
    return socket


async def until(reached):
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.05)


async def look(port, **options):
    """What a client asks on its first connection, and on the second after the first was lost."""
    connections.clear()
    client = asyncpusher.Pusher("key", custom_host="127.0.0.1", custom_port=port, secure=False, **options)
    await client.connect()
    await client.subscribe("news")
    await until(lambda: connections[0][1])
    connections[0][0].abort()
    await until(lambda: len(connections) == 2)
    await asyncio.sleep(2)
    found = [list(connections[1][1])]
    for again in [client.subscribe], [client.unsubscribe, client.subscribe]:
        connections[1][1].clear()
        for call in again:
            await call("news")
        await asyncio.sleep(1)
        found.append(list(connections[1][1]))
    await client.disconnect()
    return [", ".join(asked) or "nothing" for asked in found]


async def main():
    app = web.Application()
    app.router.add_get("/app/key", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    print("asyncpusher", importlib.metadata.version("asyncpusher"))
    about = importlib.metadata.metadata("asyncpusher").get_payload().lower()
    changed = "reconnection" not in about or "auto_sub" in about
    print("its README promises reconnection and is silent of auto_sub:", not changed)
    for options, expected in [
        ({}, ["nothing", "nothing", "unsubscribe, subscribe"]),
        ({"auto_sub": True}, ["subscribe", "nothing", "unsubscribe, subscribe"]),
    ]:
        found = await look(port, **options)
        print(f"{options or 'by default'}: asked on the second connection: {found[0]}; "
              f"by subscribe: {found[1]}; by unsubscribe and subscribe: {found[2]}")
        if found != expected:
            print("    this has changed")
            changed = True
    sys.exit(changed)


asyncio.run(main())
PYTHON
