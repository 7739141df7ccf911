#!/usr/bin/env python3
"""What single operations of a node ask of Redis.

Needs Python 3.10, redis-server and redis-cli. Starts two nodes, and a Redis of its own on PORT:

    benches/redis_cost.py BINARY [PORT]

Of each operation it prints scripts, commands (those inside scripts count), and CPU of Redis's main thread; what two
idle nodes do meanwhile is taken off. Then the bytes of a channel and of a member, and how long after a node
was killed its members leave.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import socket
import subprocess
import sys
import time

BINARY = sys.argv[1]
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 7930
KEY, SECRET = "key", "a-secret-of-benches"
COUNT = 500
EVENTS = 1000
# Of one node that has nothing to do: scripts and commands a second.
IDLE = (0.4, 2.1)


def redis(*words):
    command = ["redis-cli", "-p", str(PORT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def info(section):
    lines = redis("INFO", section).splitlines()
    return dict(line.strip().split(":", 1) for line in lines if ":" in line)


def start_node(port):
    settings = {
        "SERVER__PORT": port,
        "SERVER__WORKERS": 1,
        "METRICS__PORT": 0,
        "CLUSTER__REDIS": f"redis://127.0.0.1:{PORT}",
        "APPS__0__ID": "1",
        "APPS__0__KEY": KEY,
        "APPS__0__SECRET": SECRET,
        "APPS__0__MAX_PRESENCE_MEMBERS": 100_000,
    }
    names = {f"FANFARE_{name}": str(value) for name, value in settings.items()}
    quiet = subprocess.DEVNULL
    node = subprocess.Popen([BINARY], env=os.environ | names, stdout=quiet, stderr=quiet)
    end = time.time() + 20
    while time.time() < end:
        try:
            server = http.client.HTTPConnection("127.0.0.1", port)
            server.request("GET", "/ready")
            if server.getresponse().status == 200:
                return node
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit("a node is not ready")


class Client:
    """A WebSocket that sends short frames under a mask of zeros."""

    def __init__(self, port):
        self.stream = socket.create_connection(("127.0.0.1", port))
        nonce = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            f"GET /app/{KEY}?protocol=7 HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n\r\n".encode()
        )
        self.ahead = b""
        while b"\r\n\r\n" not in self.ahead:
            self.read()
        self.ahead = self.ahead.split(b"\r\n\r\n", 1)[1]
        self.id = json.loads(self.hear()["data"])["socket_id"]

    def read(self):
        more = self.stream.recv(1 << 16)
        if not more:
            sys.exit("a connection has ended")
        self.ahead += more

    def take(self, count):
        while len(self.ahead) < count:
            self.read()
        taken, self.ahead = self.ahead[:count], self.ahead[count:]
        return taken

    def hear(self):
        size = self.take(2)[1] & 127
        if size > 125:
            size = int.from_bytes(self.take(2 if size == 126 else 8), "big")
        return json.loads(self.take(size))

    def until(self, event):
        while self.hear()["event"] != event:
            pass

    def say(self, event, data):
        text = json.dumps({"event": event, "data": data}).encode()
        size = len(text)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self.stream.sendall(b"\x81" + head + bytes(4) + text)

    def subscribe(self, channel, user=None):
        data, signed = {"channel": channel}, f"{self.id}:{channel}"
        if user:
            data["channel_data"] = json.dumps({"user_id": user, "user_info": {"name": user}})
            signed += ":" + data["channel_data"]
            data["auth"] = f"{KEY}:{sign(signed)}"
        self.say("pusher:subscribe", data)


def sign(text):
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


def all_subscribe(clients, name, user=None):
    for number, client in enumerate(clients):
        client.subscribe(name(number), user and user(number))
    for client in clients:
        client.until("pusher_internal:subscription_succeeded")


def publish(port):
    server = http.client.HTTPConnection("127.0.0.1", port)
    for number in range(EVENTS):
        body = json.dumps({"name": "e", "channel": f"c{number % 100}", "data": "x" * 256})
        query = f"auth_key={KEY}&auth_timestamp={int(time.time())}&auth_version=1.0"
        query += f"&body_md5={hashlib.md5(body.encode()).hexdigest()}"
        query += f"&auth_signature={sign(f'POST{chr(10)}/apps/1/events{chr(10)}{query}')}"
        server.request("POST", f"/apps/1/events?{query}", body)
        answer = server.getresponse()
        answer.read()
        assert answer.status == 200, answer.status


def cpu():
    used = info("cpu")
    return sum(float(used[f"used_cpu_{kind}_main_thread"]) for kind in ("sys", "user"))


def commands():
    scripts = total = 0
    for name, words in info("commandstats").items():
        calls = int(words.split(",")[0].removeprefix("calls="))
        if name in ("cmdstat_info", "cmdstat_config|resetstat"):
            continue
        total += calls
        scripts += calls if name == "cmdstat_evalsha" else 0
    return scripts, total


def measure(what, count, operation):
    time.sleep(1.2)
    redis("CONFIG", "RESETSTAT")
    before, begun = cpu(), time.time()
    operation()
    # What is told in parts is told by then.
    time.sleep(1)
    took, used = time.time() - begun, cpu() - before
    scripts, total = (seen - 2 * idle * took for seen, idle in zip(commands(), IDLE))
    figures = f"{max(scripts, 0) / count:6.3f} scripts {max(total, 0) / count:6.2f} commands"
    print(f"{what:40} {figures} {used * 1e6 / count:6.1f} us", flush=True)


def memory():
    return int(info("memory")["used_memory"])


def leave(clients):
    for client in clients:
        client.say("pusher:unsubscribe", {"channel": "presence-x"})
    time.sleep(0.5)


def wait_for_the_dead(nodes, ports):
    watcher = Client(ports[0])
    watcher.subscribe("presence-y", "watcher")
    watcher.until("pusher_internal:subscription_succeeded")
    times = []
    for number in range(3):
        doomed = Client(ports[1])
        doomed.subscribe("presence-y", f"user-{number}")
        watcher.until("pusher_internal:member_added")
        time.sleep(2 * number)
        killed = time.time()
        nodes[1].kill()
        nodes[1].wait()
        watcher.until("pusher_internal:member_removed")
        times.append(f"{time.time() - killed:.1f} s")
        nodes[1] = start_node(ports[1])
    print("members of a killed node leave after", ", ".join(times))


def main():
    server = ["redis-server", "--port", str(PORT), "--save", "", "--appendonly", "no"]
    store = subprocess.Popen(server, stdout=subprocess.DEVNULL)
    nodes = []
    try:
        time.sleep(1)
        ports = [PORT + 1, PORT + 2]
        nodes.extend(start_node(port) for port in ports)
        clients = []
        connect = lambda: clients.extend(Client(ports[0]) for _ in range(COUNT))
        measure("connect", COUNT, connect)
        before = memory()
        first = lambda: all_subscribe(clients, lambda number: f"c{number}")
        measure("subscribe, first on the node", COUNT, first)
        print(f"bytes of a channel with one subscription: {(memory() - before) / COUNT:.0f}")
        measure("subscribe, heard already", COUNT, lambda: all_subscribe(clients, lambda _: "one"))
        join = lambda: all_subscribe(clients, lambda _: "presence-x", lambda number: f"user-{number}")
        measure("join one channel", COUNT, join)
        keys = [key for key in redis("KEYS", "*presence-x}:*").split() if key[-1] in "mrkv"]
        used = sum(int(redis("MEMORY", "USAGE", key)) for key in keys)
        print(f"bytes of a member: {used / COUNT:.0f}")
        measure("publish 256 bytes, one after the other", EVENTS, lambda: publish(ports[0]))
        measure("leave it", COUNT, lambda: leave(clients))
        wait_for_the_dead(nodes, ports)
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
        store.terminate()


main()
