#!/usr/bin/env python3
"""What clients that may come back cost a server of its own.

Needs Python 3.10 and 25,000 files (ulimit -n). Servers with and without `resume` are run in turn, the same clients, with
tokens in their paths, before both:

    benches/resume.py BINARY [ROUNDS]

Prints CPU a delivery at 10 events a second to 1,000, bytes a connection, how late events to others are while 10,000
sessions end within a second and come back, and what memory is left once nobody may come back any more.
"""

import base64
import hashlib
import hmac
import http.client
import json
import multiprocessing
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import time

BINARY = sys.argv[1]
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
KEY, SECRET = "key", "a-secret-of-benches"
PING = b'"event":"pusher:ping"'
MANY = 10_000
CROWD, RATE, SECONDS = 1_000, 10, 15
TICKS = os.sysconf("SC_CLK_TCK")


def frame(text):
    """A short one, under a mask of zeros."""
    data = text.encode()
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


PONG = frame('{"event":"pusher:pong","data":{}}')


class Server:
    def __init__(self, resume):
        # From another place each time: what was closed there lingers.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = {
            "SERVER__PORT": self.port,
            "SERVER__WORKERS": 1,
            "SERVER__SHUTDOWN_GRACE": "0s",
            "METRICS__PORT": 0,
            "APPS__0__ID": "1",
            "APPS__0__KEY": KEY,
            "APPS__0__SECRET": SECRET,
            "APPS__0__RESUME": resume,
        }
        names = {f"FANFARE_{name}": str(value) for name, value in settings.items()}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([BINARY], env=os.environ | names, stdout=quiet, stderr=quiet)
        end = time.time() + 20
        while time.time() < end:
            try:
                self.get("/ready")
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("the server is not ready")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", path)
        return connection.getresponse().read().decode()

    def metric(self, name):
        lines = self.get("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{") or line.startswith(name + " "))

    def cpu(self):
        """Seconds."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        with open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
        return 1024 * (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Publisher:
    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def publish(self, channel, data):
        body = json.dumps({"name": "e", "channel": channel, "data": data}).encode()
        digest = hashlib.md5(body).hexdigest()
        query = f"auth_key={KEY}&auth_timestamp={int(time.time())}&auth_version=1.0&body_md5={digest}"
        signed = f"POST\n/apps/1/events\n{query}"
        signature = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/apps/1/events?{query}&auth_signature={signature}", body, headers)
        answer = self.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status


class Swarm:
    """Clients that are one loop: they subscribe, and answer what they are asked."""

    def __init__(self, server, count, channel, tokens=True):
        self.server, self.count, self.channel, self.tokens = server, count, channel, tokens
        self.loop = select.epoll()
        self.streams = {}
        self.ready = self.events = 0

    def open(self, begin=0, end=None):
        made = int(time.time())
        for number in range(begin, self.count if end is None else end):
            stream = socket.create_connection(("127.0.0.1", self.server.port))
            nonce = base64.b64encode(number.to_bytes(16, "big")).decode()
            token = f"/resume/{made}-{os.getpid():08d}{number:08d}" if self.tokens is True else self.tokens and self.tokens(number)
            stream.sendall(
                f"GET {token or ''}/app/{KEY}?protocol=7 HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n\r\n".encode()
                + frame(json.dumps({"event": "pusher:subscribe", "data": {"channel": self.channel(number)}}))
            )
            stream.setblocking(False)
            self.streams[stream.fileno()] = stream
            self.loop.register(stream, select.EPOLLIN)
            if number % 200 == 199:
                self.turn(0)

    def turn(self, timeout, late=None):
        for number, _ in self.loop.poll(timeout):
            stream = self.streams[number]
            try:
                data = stream.recv(1 << 16)
            except BlockingIOError:
                continue
            if not data:
                self.loop.unregister(number)
                continue
            self.ready += data.count(b"subscription_succeeded")
            self.events += data.count(b'"event":"e"')
            if PING in data:
                stream.sendall(PONG)
            if late is not None:
                now = time.time_ns()
                for part in data.split(b'"data":"')[1:]:
                    sent = part.split(b'"')[0]
                    if sent.isdigit():
                        late.append((now - int(sent)) / 1e6)

    def wait(self, count):
        while self.ready < count:
            self.turn(1)

    def cut(self):
        for stream in self.streams.values():
            # Reset: nothing of it lingers here.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            stream.close()
        self.streams.clear()
        self.loop.close()
        self.loop = select.epoll()
        self.ready = 0


def delivery_cost(resume):
    """Microseconds of CPU a delivery."""
    server = Server(resume)
    swarm = Swarm(server, CROWD, lambda _: "c")
    swarm.open()
    swarm.wait(CROWD)
    publisher = Publisher(server)

    def load(seconds):
        begin = time.time()
        for turn in range(seconds * RATE):
            publisher.publish("c", "x" * 100)
            while (left := begin + (turn + 1) / RATE - time.time()) > 0:
                swarm.turn(left)

    load(3)
    before, events = server.cpu(), swarm.events
    load(SECONDS)
    cost = 1e6 * (server.cpu() - before) / (swarm.events - events)
    swarm.cut()
    server.end()
    return cost


def connection_bytes(resume, channel):
    server = Server(resume)
    # What the first ones bring about is none of theirs.
    first = Swarm(server, 100, channel)
    first.open()
    first.wait(100)
    before = server.memory()
    swarm = Swarm(server, MANY, lambda number: channel(number + 100))
    swarm.tokens = lambda number: f"/resume/{int(time.time())}-{number:016d}"
    swarm.open()
    swarm.wait(MANY)
    time.sleep(3)
    size = (server.memory() - before) / MANY
    for one in (first, swarm):
        one.cut()
    server.end()
    return size


def observe(server, channel, seconds, begins, results):
    """How late events are to twenty clients without tokens, in milliseconds."""
    begins.wait()
    swarm = Swarm(server, 20, lambda _: channel, tokens=False)
    swarm.open()
    swarm.wait(20)
    results.put("ready")
    late, publisher = [], Publisher(server)
    begin = time.time()
    for turn in range(100 * seconds):
        publisher.publish(channel, str(time.time_ns()))
        # Also where the answer came so late that the next one is due.
        swarm.turn(0, late)
        while (left := begin + (turn + 1) / 100 - time.time()) > 0:
            swarm.turn(left, late)
    results.put((begin, late))


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def come_back(resume):
    """How late events to others are in quiet and while all end and come back; and what memory there was and is."""
    server = Server(resume)
    tokens = [f"/resume/{int(time.time())}-{number:016d}" for number in range(MANY)]
    # Begun before there is a swarm, whose sockets they would hold open.
    observers = []
    for _ in range(2):
        begins, results = multiprocessing.Event(), multiprocessing.Queue()
        process = multiprocessing.Process(target=observe, args=(server, "o", 8, begins, results))
        process.start()
        observers.append((process, begins, results))
    swarm = Swarm(server, MANY, lambda _: "c", tokens=tokens.__getitem__)
    swarm.open()
    swarm.wait(MANY)
    publisher = Publisher(server)
    figures = []
    for what, (process, begins, results) in zip(("quiet", "storm"), observers):
        begins.set()
        results.get()
        if what == "quiet":
            end = time.time() + 8
            while time.time() < end:
                swarm.turn(0.1)
        else:
            time.sleep(1)
            begin = time.time()
            swarm.cut()
            ended = time.time() - begin
            # What they miss.
            for number in range(10):
                publisher.publish("c", "x" * 100)
            begin = time.time()
            swarm.open()
            swarm.wait(MANY)
            back = time.time() - begin
            figures.append((ended, back))
        _, late = results.get()
        process.join()
        figures.append((percentile(late, 0.5), percentile(late, 0.99), max(late)))
    end = time.time() + 2
    while time.time() < end:
        swarm.turn(0.1)
    replayed = server.metric("fanfare_resume_replayed_total")
    swarm.cut()
    server.end()
    return figures, replayed


def memory_back():
    """Bytes before there was anybody, with all of them waiting, and once their time is over."""
    server = Server("5s")
    first = Swarm(server, MANY, lambda _: "c", tokens=False)
    first.open()
    first.wait(MANY)
    first.cut()
    time.sleep(4)
    before = server.memory()
    swarm = Swarm(server, MANY, lambda number: f"c{number}")
    swarm.open()
    swarm.wait(MANY)
    publisher = Publisher(server)
    for number in range(0, MANY, 10):
        publisher.publish(f"c{number}", "x" * 1000)
    swarm.cut()
    time.sleep(3)
    waiting, bytes_kept, held = server.metric("fanfare_resume_waiting"), server.metric("fanfare_resume_log_bytes"), server.memory()
    time.sleep(8)
    left = server.metric("fanfare_resume_waiting"), server.metric("fanfare_resume_log_bytes")
    print(f"before {before / 1e6:.1f} MB; {waiting:.0f} wait with {bytes_kept / 1e6:.1f} MB of events: {held / 1e6:.1f} MB; "
          f"after their time {left[0]:.0f} wait with {left[1]:.0f} bytes: {server.memory() / 1e6:.1f} MB")
    server.end()


def main():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    costs = {"0s": [], "2m": []}
    for _ in range(ROUNDS):
        for resume, all_costs in costs.items():
            all_costs.append(delivery_cost(resume))
    off, on = (statistics.median(costs[resume]) for resume in ("0s", "2m"))
    ratios = [b / a for a, b in zip(costs["0s"], costs["2m"])]
    shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"CPU a delivery: off {off:.2f} µs, on {on:.2f} µs; on/off of each pair {shown}, median {statistics.median(ratios):.2f}")
    for what, channel in (("one channel", lambda _: "c"), ("a channel each", lambda number: f"c{number}")):
        off, on = (connection_bytes(resume, channel) for resume in ("0s", "2m"))
        print(f"bytes a connection, {what}: off {off:.0f}, on {on:.0f}, {on - off:.0f} more")
    for resume in ("0s", "2m"):
        (quiet, (ended, back), storm), replayed = come_back(resume)
        print(f"resume {resume}: events to others p50/p99/max {quiet[0]:.1f}/{quiet[1]:.1f}/{quiet[2]:.1f} ms in quiet, "
              f"{storm[0]:.1f}/{storm[1]:.1f}/{storm[2]:.1f} ms while {MANY} end within {ended:.1f} s and come back within "
              f"{back:.1f} s, {replayed:.0f} events replayed")
    memory_back()


main()
