#!/usr/bin/env bash
# Guess: `HTTP_PROXY` and `HTTPS_PROXY` never concern an address of the machine itself, as Go has it: no proxy elsewhere can
# reach 127.0.0.1, and a backend that publishes to a server beside it needs no `NO_PROXY`.
# Found: Pusher's SDK for Python asks the proxy for 127.0.0.1 too, with the whole signed request, and so do two of Python's
# WebSocket clients, by CONNECT even for `ws://`. Pusher's SDKs for Go and Node.js and aiohttp go straight there; Go goes to
# the proxy for any other name, Node.js and aiohttp never do. With NO_PROXY all six go straight.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher@5.3.4 >/dev/null
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install pusher==3.3.4 requests==2.34.2 websockets==17.4 \
    websocket-client==1.9.2 aiohttp==3.14.5
export GOPATH=$folder/path GOFLAGS='-modcacherw -mod=mod' GOTOOLCHAIN=local
cat >go.mod <<'MOD'
module finding

go 1.21

require github.com/pusher/pusher-http-go/v5 v5.1.1
MOD
cat >main.go <<'GO'
package main

import (
	"os"

	"github.com/pusher/pusher-http-go/v5"
)

func main() {
	client := pusher.Client{AppID: "1", Key: "key", Secret: "secret", Host: os.Args[1] + ":" + os.Args[2]}
	_ = client.Trigger("news", "written", "") // Refused, as intended.
}
GO
cat >trigger.js <<'JS'
const Pusher = require("pusher");
const [host, port] = process.argv.slice(2);
const pusher = new Pusher({ appId: "1", key: "key", secret: "secret", host, port, useTLS: false });
pusher.trigger("news", "written", "").catch(() => {}); // Refused, as intended.
JS
cat >clients.py <<'PYTHON'
import asyncio
import contextlib
import sys

import aiohttp
import pusher
import websocket
import websockets

library, host, port = sys.argv[1:]
address = f"ws://{host}:{port}/app/key"


async def connect():
    if library == "websockets":
        await websockets.connect(address)
    elif library == "aiohttp":
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(address)


with contextlib.suppress(Exception):  # Refused, as intended.
    if library == "pusher":
        pusher.Pusher(app_id="1", key="key", secret="secret", host=host, port=int(port), ssl=False).trigger("news", "written", "")
    elif library == "websocket-client":
        websocket.create_connection(address)
    else:
        asyncio.run(connect())
PYTHON
cat >ask.py <<'PYTHON'
import asyncio
import os
import sys

PYTHON, OTHER = ["venv/bin/python", "clients.py"], "fanout.example"  # A name that only the proxy could know.
CASES = [
    ("pusher 3.3.4, Python", [*PYTHON, "pusher"], ("proxy", "proxy", "server")),
    ("websockets 17.4", [*PYTHON, "websockets"], ("proxy", "proxy", "server")),
    ("websocket-client 1.9.2", [*PYTHON, "websocket-client"], ("proxy", "proxy", "server")),
    ("aiohttp 3.14.5", [*PYTHON, "aiohttp"], ("server", "nobody", "server")),
    ("pusher-http-go 5.1.1", ["./trigger"], ("server", "proxy", "server")),
    ("pusher 5.3.4, Node.js", ["node", "trigger.js"], ("server", "nobody", "server")),
]


async def listen(name, asked):
    async def answer(reader, writer):
        # What is asked of whom is all that counts here: everybody is refused.
        asked.append((name, (await reader.readuntil(b"\r\n\r\n")).split(b"?")[0].split(b" HTTP")[0].decode()))
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, str(server.sockets[0].getsockname()[1])


async def main():
    asked = []
    server, port = await listen("server", asked)
    proxy, proxy_port = await listen("proxy", asked)
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    address = f"http://127.0.0.1:{proxy_port}"
    proxied = {**plain, **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address)}
    spared = {**proxied, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    changed = False
    for name, command, expected in CASES:
        found = []
        for host, environment in [("127.0.0.1", proxied), (OTHER, proxied), ("127.0.0.1", spared)]:
            asked.clear()
            process = await asyncio.create_subprocess_exec(*command, host, port, env=environment)
            assert await asyncio.wait_for(process.wait(), 30) == 0
            by, first = asked[0] if asked else ("nobody", "")
            found.append(by)
            if environment is proxied and host != OTHER:
                print(f"{name}: for 127.0.0.1 the {by} is asked: {first.replace(port, 'PORT')}")
        print(f"    for {OTHER}: {found[1]}; for 127.0.0.1 with NO_PROXY: {found[2]}")
        if tuple(found) != expected:
            print(f"    this has changed: it was {expected}")
            changed = True
    server.close()
    proxy.close()
    sys.exit(changed)


asyncio.run(main())
PYTHON
go build -o trigger .
python3 ask.py
