#!/usr/bin/env bash
# Guess: Caddy's `reverse_proxy` passes on each piece of a chunked answer as it comes, with `encode gzip` too, at the least
# for text/event-stream or with `flush_interval -1`, as nginx and Apache do when they compress.
# Found: Caddy 2.6.2 (Debian 12) compresses such an answer and holds it back until it ends: a client sees nothing while it
# is open. `Cache-Control: no-transform` changes nothing. An answer whose first piece is under 512 bytes is not compressed at
# all and comes piece by piece, and so a test with small pieces finds nothing wrong.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get update -qq >/dev/null
apt-get download -qq -o APT::Sandbox::User=root caddy=2.6.2-5 >/dev/null
dpkg-deb -x caddy_*.deb .
./usr/bin/caddy version
cat >streams.py <<'PYTHON'
import asyncio
import os
import socket
import subprocess
import sys
import zlib

PIECES = 3
EVENT_STREAM, SCRIPT = "text/event-stream", "application/javascript; charset=UTF-8"
# What is tried: name, type of the answer, size of a piece, whether the client takes gzip, more of the proxy's settings.
CASES = [
    ("no gzip wanted", SCRIPT, 2048, False, ""),
    ("gzip", SCRIPT, 2048, True, ""),
    ("gzip, event stream", EVENT_STREAM, 2048, True, ""),
    ("gzip, flush_interval -1", SCRIPT, 2048, True, "flush_interval -1"),
    ("gzip, small pieces", SCRIPT, 100, True, ""),
]
EXPECTED = ["3 of 3, plain", "0 of 3, gzip", "0 of 3, gzip", "0 of 3, gzip", "3 of 3, plain"]


async def ask(kind, size, gzip, settings):
    """How many pieces the client saw while the answer was still open, and how they came."""
    seen = asyncio.Queue()
    in_time = 0

    async def answer(reader, writer):
        nonlocal in_time
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store, no-transform\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n".encode())
        total = 0
        for _ in range(PIECES):
            total += size
            writer.write(b"%x\r\n%s\r\n" % (size, b"x" * size))
            await writer.drain()
            try:
                async with asyncio.timeout(1):
                    while await seen.get() < total:
                        pass
                in_time += 1
            except TimeoutError:
                pass
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    backend = await asyncio.start_server(answer, "127.0.0.1", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open("Caddyfile", "w") as file:
        file.write(f"{{\n admin off\n auto_https off\n}}\nhttp://:{port} {{\n bind 127.0.0.1\n encode gzip\n"
                   f" reverse_proxy 127.0.0.1:{backend.sockets[0].getsockname()[1]} {{\n  {settings}\n }}\n}}\n")
    caddy = subprocess.Popen(["usr/bin/caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
                             env={**os.environ, "HOME": os.getcwd()}, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            wanted = "Accept-Encoding: gzip\r\n" if gzip else ""
            writer.write(f"GET / HTTP/1.1\r\nHost: localhost\r\n{wanted}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            packed = b"content-encoding: gzip" in head.lower()
            unpack = zlib.decompressobj(31) if packed else None
            total = 0
            while size_line := await reader.readline():
                chunk = await reader.readexactly(int(size_line, 16))
                await reader.readexactly(2)
                if not chunk:
                    break
                total += len(unpack.decompress(chunk) if packed else chunk)
                seen.put_nowait(total)
            writer.close()
            assert total == PIECES * size
            return f"{in_time} of {PIECES}, {'gzip' if packed else 'plain'}"
    finally:
        caddy.terminate()
        caddy.wait()
        backend.close()


async def main():
    changed = False
    for (name, *case), expected in zip(CASES, EXPECTED):
        found = await ask(*case)
        print(f"{name}: seen while the answer was open: {found}")
        if found != expected:
            print(f"    this has changed: it was {expected}")
            changed = True
    sys.exit(changed)


asyncio.run(main())
PYTHON
python3 streams.py
