#!/usr/bin/env python3
"""Measures what an idle socket takes: in the server's process, and in the kernel.

Opens --count sockets to a server on this machine, subscribes each to a channel of its own, and looks before and
after at VmRSS of --pid and, as root, at /proc/slabinfo. Both ends are on this machine, so that the kernel's objects
are halved. Prints bytes a socket."""

import argparse
import re
import socket
import ssl
import time

SLABS = ("TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi", "dentry")

# One for all: to make it reads every authority, which takes longer than a socket.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) * 1024


def slabs():
    """Bytes of the objects that are in use, by the name of their slab."""
    with open("/proc/slabinfo", encoding="ascii") as lines:
        rows = [line.split() for line in lines]
    return {row[0]: int(row[1]) * int(row[3]) for row in rows if row[0] in SLABS}


def read_until(stream, word):
    heard = b""
    while word not in heard:
        part = stream.recv(4096)
        if not part:
            raise SystemExit(f"the server closed a socket: {heard!r}")
        heard += part


def subscribe(options, number):
    host, port = options.addr.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)))
    if options.tls:
        stream = CONTEXT.wrap_socket(stream)
    lines = [
        f"GET /app/{options.key}?protocol=7 HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    stream.sendall("\r\n".join([*lines, "", ""]).encode())
    read_until(stream, b"connection_established")
    frame = b'{"event":"pusher:subscribe","data":{"channel":"c-%d"}}' % number
    # Masked by zeros, which leaves the bytes as they are.
    stream.sendall(bytes([0x81, 0x80 | len(frame)]) + bytes(4) + frame)
    read_until(stream, b"subscription_succeeded")
    return stream


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", required=True)
    parser.add_argument("--pid", required=True, type=int)
    parser.add_argument("--key", required=True)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    for first in [subscribe(options, number) for number in range(64)]:
        first.close()
    time.sleep(2)
    before, kernel_before = resident(options.pid), slabs()
    crowd = [subscribe(options, number) for number in range(options.count)]
    time.sleep(3)
    after, kernel_after = resident(options.pid), slabs()
    print(f"process {(after - before) / len(crowd):.0f}")
    parts = {name: (kernel_after[name] - kernel_before.get(name, 0)) / len(crowd) / 2 for name in kernel_after}
    print(f"kernel {sum(parts.values()):.0f}", *(f"{name}={part:.0f}" for name, part in parts.items()))


main()
