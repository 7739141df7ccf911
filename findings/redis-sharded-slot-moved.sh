#!/usr/bin/env bash
# Guess: a client for Redis Cluster that follows MOVED and subscribes anew after a lost connection also follows a sharded
# channel (`SSUBSCRIBE`) to the node that its slot is moved to; the server tells subscribers by `sunsubscribe`.
# Found: Node.js's two do. redis-py (sync and asyncio) and go-redis hand the program a `sunsubscribe` at the most, go-redis's
# `Channel()` not even that, and then hear nothing more: the connection is well, so nothing subscribes anew.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get update -qq >/dev/null
apt-get download -qq -o APT::Sandbox::User=root redis-tools=5:7.0.15-1~deb12u10 >/dev/null
dpkg-deb -x redis-tools_*.deb .
ln -s redis-check-rdb usr/bin/redis-server # One program, which goes by its name.
npm install --silent --no-fund --no-audit --prefix . ioredis@6.0.0 redis@6.3.1 >/dev/null
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install redis==8.1.0
export GOPATH=$folder/path GOFLAGS='-modcacherw -mod=mod' GOTOOLCHAIN=local
cat >go.mod <<'MOD'
module finding

go 1.24

require github.com/redis/go-redis/v9 v9.23.0
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/redis/go-redis/v9"
)

func main() {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:" + os.Args[1]}})
	for told := range cluster.SSubscribe(context.Background(), os.Args[2]).ChannelWithSubscriptions() {
		switch told := told.(type) {
		case *redis.Subscription:
			fmt.Println(told.Kind)
		case *redis.Message:
			fmt.Println("message", told.Payload)
		}
	}
}
GO
cat >ioredis.js <<'JS'
const { Cluster } = require("ioredis");
const [port, channel] = process.argv.slice(2);
const cluster = new Cluster([{ host: "127.0.0.1", port: Number(port) }], { shardedSubscribers: true });
cluster.on("smessage", (_, text) => console.log("message", text));
cluster.once("ready", () => cluster.ssubscribe(channel).then(() => console.log("ssubscribe")));
JS
cat >node-redis.js <<'JS'
const { createCluster } = require("redis");
const [port, channel] = process.argv.slice(2);
const cluster = createCluster({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] });
cluster.connect()
    .then(() => cluster.sSubscribe(channel, (text) => console.log("message", text)))
    .then(() => console.log("ssubscribe"));
JS
cat >redis-py.py <<'PYTHON'
import asyncio
import sys

import redis.asyncio.cluster
import redis.cluster

port, channel = int(sys.argv[1]), sys.argv[2]


def tell(told):
    if told:
        text = told["data"].decode() if told["type"] == "smessage" else ""
        print("message" if text else told["type"], text, flush=True)


def sync():
    pubsub = redis.cluster.RedisCluster(host="127.0.0.1", port=port).pubsub()
    pubsub.ssubscribe(channel)
    while True:
        tell(pubsub.get_sharded_message(timeout=1))


async def in_asyncio():
    cluster = await redis.asyncio.cluster.RedisCluster(host="127.0.0.1", port=port).initialize()
    pubsub = cluster.pubsub()
    await pubsub.ssubscribe(channel)
    while True:
        tell(await pubsub.get_sharded_message(timeout=1))


if sys.argv[3] == "sync":
    sync()
asyncio.run(in_asyncio())
PYTHON
cat >move.py <<'PYTHON'
import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time

import redis

CHANNEL, SLOTS = "news", 16384
FOLLOW = {"ioredis 6.0.0": True, "node-redis 6.3.1": True, "redis-py 8.1.0": False, "redis-py 8.1.0, asyncio": False,
          "go-redis 9.23.0": False}
CLIENTS = [["node", "ioredis.js"], ["node", "node-redis.js"], [sys.executable, "redis-py.py"],
           [sys.executable, "redis-py.py"], ["./go-redis"]]


def free_port():
    # The bus of a server is 10,000 above its port.
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 55_000:
                with contextlib.suppress(OSError):
                    second.bind(("127.0.0.1", port + 10_000))
                    return port


def eventually(fact):
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(redis.RedisError):
            if fact():
                return
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


class Node:
    def __init__(self, name, first, last):
        os.mkdir(name)
        self.port = free_port()
        self.process = subprocess.Popen(
            ["usr/bin/redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", name, "--save", "",
             "--cluster-enabled", "yes", "--logfile", "log"])
        self.redis = redis.Redis(port=self.port, decode_responses=True)
        eventually(self.redis.ping)
        self.cluster("ADDSLOTSRANGE", first, last)
        self.id = self.cluster("MYID")

    def cluster(self, *words):
        return self.redis.execute_command("CLUSTER", *words)


class Client:
    def __init__(self, name, command, port):
        kind = ["asyncio" if "asyncio" in name else "sync"]
        self.name, self.told = name, queue.Queue()
        self.process = subprocess.Popen([*command, str(port), CHANNEL, *(kind if "redis-py" in name else [])],
                                        stdout=subprocess.PIPE, text=True)
        threading.Thread(target=lambda: [self.told.put(line.strip()) for line in self.process.stdout], daemon=True).start()

    def wait_for(self, line):
        while (told := self.told.get(timeout=30)) != line:
            print(f"{self.name}: told {told}")

    def rest(self):
        told = []
        while not self.told.empty():
            told.append(self.told.get())
        return told


nodes, clients = [], []
try:
    nodes += [Node("first", 0, SLOTS // 2 - 1), Node("second", SLOTS // 2, SLOTS - 1)]
    nodes[1].cluster("SET-CONFIG-EPOCH", 2)
    nodes[0].cluster("MEET", "127.0.0.1", nodes[1].port)
    eventually(lambda: all("cluster_state:ok" in node.cluster("INFO") for node in nodes))
    eventually(lambda: all(len(node.cluster("SLOTS")) == 2 for node in nodes))
    slot = nodes[0].cluster("KEYSLOT", CHANNEL)
    old, new = nodes if slot < SLOTS // 2 else reversed(nodes)
    print(f"Redis {old.redis.info('server')['redis_version']}, channel {CHANNEL} in slot {slot}")
    for name, command in zip(FOLLOW, CLIENTS):
        clients.append(Client(name, command, nodes[0].port))
        clients[-1].wait_for("ssubscribe")
    assert old.redis.execute_command("SPUBLISH", CHANNEL, "before") == len(clients)
    for client in clients:
        client.wait_for("message before")
    for node in (new, old):
        node.cluster("SETSLOT", slot, "NODE", new.id)
    # Who follows is there after some tenths of a second; the others have ten to come.
    for _ in range(10):
        time.sleep(1)
        heard_by = new.redis.execute_command("SPUBLISH", CHANNEL, "after")
    print(f"ten seconds after the slot has moved, {heard_by} of {len(clients)} are subscribed")
    changed = heard_by != sum(FOLLOW.values())
    for client in clients:
        told = client.rest()
        hears = "message after" in told
        besides = sorted(set(told) - {"message after"})
        print(f"{client.name}: {'hears the channel' if hears else 'hears nothing more'}{', told: ' if besides else ''}"
              + ", ".join(besides))
        if hears != FOLLOW[client.name]:
            print("    this has changed")
            changed = True
    sys.exit(changed)
finally:
    for one in clients + nodes:
        one.process.kill()
        one.process.wait()
PYTHON
go build -o go-redis .
venv/bin/python move.py
