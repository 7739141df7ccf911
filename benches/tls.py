#!/usr/bin/env python3
"""What TLS costs a delivery: subscribers over TLS or plain, events by the API, the server's CPU from /proc.

Needs Python 3.10 and nothing else. The certificate is not checked. With --unread the subscribers read an event only when
the server has come to rest, so that it wakes nobody: a reader that is busy deciphering is woken less often than one
that only reads, which makes TLS look cheaper than it is. One line is printed:

    benches/tls.py --addr 127.0.0.1:8443 --tls --pid PID --id ID --key KEY --secret SECRET [--batch 10]
"""

import argparse
import hashlib
import hmac
import http.client
import json
import os
import selectors
import socket
import ssl
import time

MARK = b'"event":"bench"'


def insecure():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def subscriber(args, context):
    stream = socket.create_connection(args.addr)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context:
        stream = context.wrap_socket(stream)
    head = (f"GET /app/{args.key}?protocol=7 HTTP/1.1\r\nHost: {args.addr[0]}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    stream.sendall(head.encode())
    read_until(stream, b"connection_established")
    text = b'{"event":"pusher:subscribe","data":{"channel":"bench"}}'
    # A mask of zeros leaves the payload as it is.
    stream.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    read_until(stream, b"subscription_succeeded")
    stream.setblocking(False)
    return stream


def read_until(stream, text):
    seen = b""
    while text not in seen:
        some = stream.recv(65536)
        if not some:
            raise SystemExit(f"closed before {text!r}: {seen!r}")
        seen += some


def cpu(pid):
    """Seconds that its threads have run."""
    spent = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as schedstat:
            spent += int(schedstat.read().split()[0])
    return spent / 1e9


def rests(pid):
    """Waits until it has run less than a millisecond within 20."""
    before = cpu(pid)
    while True:
        time.sleep(0.02)
        now = cpu(pid)
        if now - before < 0.001:
            return
        before = now


def drain(stream):
    got = 0
    while True:
        try:
            some = stream.recv(1 << 18)
        except (BlockingIOError, ssl.SSLWantReadError):
            return got
        if not some:
            raise SystemExit("the server closed a subscriber")
        got += some.count(MARK)


def trigger(args, api):
    event = {"name": "bench", "channel": "bench", "data": "x" * args.size}
    body = json.dumps({"batch": [event] * args.batch} if args.batch > 1 else event)
    path = f"/apps/{args.id}/{'batch_events' if args.batch > 1 else 'events'}"
    query = (f"auth_key={args.key}&auth_timestamp={int(time.time())}&auth_version=1.0"
             f"&body_md5={hashlib.md5(body.encode()).hexdigest()}")
    signed = f"POST\n{path}\n{query}".encode()
    signature = hmac.new(args.secret.encode(), signed, hashlib.sha256).hexdigest()
    api.request("POST", f"{path}?{query}&auth_signature={signature}", body)
    answer = api.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {text!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addr", required=True)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--unread", action="store_true")
    parser.add_argument("--pid", type=int, required=True)
    for name in ("id", "key", "secret"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--conns", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    host, port = args.addr.rsplit(":", 1)
    args.addr = (host, int(port))
    context = insecure() if args.tls else None
    streams = [subscriber(args, context) for _ in range(args.conns)]
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream, selectors.EVENT_READ)
    api = (http.client.HTTPSConnection(*args.addr, context=context) if context
           else http.client.HTTPConnection(*args.addr))
    trigger(args, api)
    expected, got, before = args.conns * args.batch, 0, None
    for request in range(args.requests + 1):
        if args.unread:
            rests(args.pid)
        deadline = time.monotonic() + 30
        while got < expected:
            if time.monotonic() > deadline:
                raise SystemExit(f"{got} of {expected} arrived")
            for ready, _ in selector.select(1):
                got += drain(ready.fileobj)
        # The first request warms up.
        if before is None:
            before, got, expected = cpu(args.pid), 0, 0
        if request < args.requests:
            trigger(args, api)
            expected += args.conns * args.batch
    spent = cpu(args.pid) - before
    print(json.dumps({"tls": args.tls, "unread": args.unread, "conns": args.conns, "batch": args.batch, "size": args.size,
                      "deliveries": got, "cpu_us_per_delivery": round(spent * 1e6 / got, 2)}))


if __name__ == "__main__":
    main()
