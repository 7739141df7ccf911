#!/usr/bin/env bash
# Guess: Apache carries a WebSocket over HTTP/2 (`H2WebSockets on`, `upgrade=websocket`) as it does over HTTP/1.1: what the
# server sends together with its 101 reaches the client, as Pusher's `connection_established` does that servers begin with.
# Found: over HTTP/2 2.4.71 passes the answer on and keeps what came in one piece with the 101 until the server sends more.
# A client that waits for the greeting before it says anything waits until then. What is sent a moment later comes at once.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get update -qq >/dev/null
apt-get download -qq -o APT::Sandbox::User=root apache2-bin=2.4.71-1~deb12u1 libapr1 libaprutil1 libnghttp2-14 >/dev/null
for package in *.deb; do
    dpkg-deb -x "$package" .
done
LD_LIBRARY_PATH=$(echo usr/lib/*-linux-gnu) usr/sbin/apache2 -v | head -1
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install h2==4.4.1
cat >greeting.py <<'PYTHON'
import asyncio
import base64
import glob
import hashlib
import os
import pwd
import socket
import subprocess
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived

HERE = os.getcwd()
GREETING, MORE = b"\x81\x05hello", b"\x81\x04more"  # Text messages.
# What the client has seen two seconds after the answer, before the server sends more.
CASES = [
    ("HTTP/1.1, with the 101", False, 0, GREETING),
    ("HTTP/2, with the 101", True, 0, b""),
    ("HTTP/2, half a second later", True, 0.5, GREETING),
]
PROBE = (b"GET /app/key HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
         b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n")
EXTENDED_CONNECT = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/app/key"),
                    (":authority", "localhost"), ("sec-websocket-version", "13")]


async def connect(port):
    async with asyncio.timeout(30):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)


async def read_http1(port, seen, answered):
    reader, writer = await connect(port)
    writer.write(PROBE)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    answered.set()
    while data := await reader.read(4096):
        seen.append(data)


async def read_http2(port, seen, answered):
    reader, writer = await connect(port)
    # The library does not know what extended CONNECT (RFC 8441) may send.
    http2 = H2Connection(H2Configuration(validate_outbound_headers=False))
    http2.initiate_connection()
    writer.write(http2.data_to_send())
    asked = False
    while data := await reader.read(65536):
        for event in http2.receive_data(data):
            if isinstance(event, ResponseReceived):
                assert (b":status", b"200") in event.headers, event.headers
                answered.set()
            elif isinstance(event, DataReceived):
                seen.append(event.data)
        if not asked:
            http2.send_headers(1, EXTENDED_CONNECT)
            asked = True
        writer.write(http2.data_to_send())


async def ask(port, http2, delay, more):
    """What the client has seen two seconds after the answer, and once the server has sent more."""
    seen, answered = [], asyncio.Event()
    client = asyncio.create_task((read_http2 if http2 else read_http1)(port, seen, answered))
    more.clear()
    settings["delay"] = delay
    await asyncio.wait_for(answered.wait(), 20)
    await asyncio.sleep(2)
    first = b"".join(seen)
    more.set()
    async with asyncio.timeout(20):
        while b"".join(seen) != GREETING + MORE:
            await asyncio.sleep(0.05)
    client.cancel()
    return first


settings = {}


async def main():
    more = asyncio.Event()

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line.split(b":")[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        if settings["delay"]:
            writer.write(head)
            await asyncio.sleep(settings["delay"])
            head = b""
        writer.write(head + GREETING)
        await more.wait()
        writer.write(MORE)

    backend = await asyncio.start_server(answer, "127.0.0.1", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    modules = os.path.join(HERE, "usr/lib/apache2/modules")
    loaded = "".join(f"LoadModule {name}_module {modules}/mod_{name}.so\n"
                     for name in ("mpm_event", "authz_core", "proxy", "proxy_http", "http2"))
    user = "User nobody\n" if pwd.getpwuid(os.getuid()).pw_name == "root" else ""
    with open("apache.conf", "w") as file:
        file.write(f"ServerRoot {HERE}\nServerName localhost\nPidFile {HERE}/pid\nErrorLog {HERE}/log\n"
                   f"DefaultRuntimeDir {HERE}\nListen 127.0.0.1:{port}\n{loaded}{user}"
                   "Protocols h2c http/1.1\nH2WebSockets on\n"
                   f"ProxyPass / http://127.0.0.1:{backend.sockets[0].getsockname()[1]}/ upgrade=websocket\n")
    apache = subprocess.Popen(["usr/sbin/apache2", "-f", f"{HERE}/apache.conf", "-D", "FOREGROUND"],
                              env={**os.environ, "LD_LIBRARY_PATH": glob.glob(f"{HERE}/usr/lib/*-linux-gnu")[0]})
    changed = False
    try:
        for name, http2, delay, expected in CASES:
            first = await ask(port, http2, delay, more)
            print(f"{name}: the greeting {'came at once' if first else 'came only when the server sent more'}")
            if first != expected:
                print("    this has changed")
                changed = True
    finally:
        apache.terminate()
        apache.wait()
    sys.stdout.flush()
    os._exit(changed)


asyncio.run(main())
PYTHON
venv/bin/python greeting.py
