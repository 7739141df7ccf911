#!/usr/bin/env bash
# Guess: a Redis subscriber whose connection has gone silent without being closed, as after a lost network or with a frozen
# server, subscribes anew by itself once the check that its client documents is set to some seconds: a ping without an answer
# is a lost connection.
# Found: none does. redis-py (`health_check_interval`), go-redis (its channel's pings) and node-redis (`pingInterval`) send
# pings and miss no answer; ioredis counts `socketTimeout` from a command, and a subscriber sends none. Once the connection is
# closed all are back in a moment. A program can find out by a message that it publishes to itself.
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
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + os.Args[1]})
	messages := client.Subscribe(context.Background(), os.Args[2]).Channel(
		redis.WithChannelHealthCheckInterval(time.Second), redis.WithChannelPingTimeout(time.Second))
	for message := range messages {
		fmt.Println(message.Payload)
	}
}
GO
cat >ioredis.js <<'JS'
const { Redis } = require("ioredis");
const [port, channel] = process.argv.slice(2);
const redis = new Redis({ host: "127.0.0.1", port: Number(port), socketTimeout: 3000 });
redis.on("error", () => {}); // It reconnects.
redis.on("message", (_, text) => console.log(text));
redis.subscribe(channel);
JS
cat >node-redis.js <<'JS'
const { createClient } = require("redis");
const [port, channel] = process.argv.slice(2);
const redis = createClient({ url: `redis://127.0.0.1:${port}`, pingInterval: 1000 });
redis.on("error", () => {}); // It reconnects.
redis.connect().then(() => redis.subscribe(channel, (text) => console.log(text)));
JS
cat >redis-py.py <<'PYTHON'
import asyncio
import sys

import redis
import redis.asyncio

kind, port, channel = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def tell(told):
    if told and told["type"] == "message":
        print(told["data"].decode(), flush=True)


def sync():
    pubsub = redis.Redis(port=port, health_check_interval=1).pubsub()
    pubsub.subscribe(channel)
    while True:
        tell(pubsub.get_message(timeout=1))


async def in_asyncio():
    pubsub = redis.asyncio.Redis(port=port, health_check_interval=1).pubsub()
    await pubsub.subscribe(channel)
    while True:
        tell(await pubsub.get_message(timeout=1))


if kind == "sync":
    sync()
asyncio.run(in_asyncio())
PYTHON
cat >silence.py <<'PYTHON'
import asyncio
import contextlib
import socket
import subprocess
import sys

import redis
import redis.asyncio

CHANNEL, SILENCE, RETURN = "news", 25, 20
CLIENTS = {"redis-py 8.1.0": [sys.executable, "redis-py.py", "sync"],
           "redis-py 8.1.0, asyncio": [sys.executable, "redis-py.py", "asyncio"],
           "go-redis 9.23.0": ["./go-redis"], "ioredis 6.0.0": ["node", "ioredis.js"],
           "node-redis 6.3.1": ["node", "node-redis.js"]}
connections = []


class Connection:
    """A client's connection by way of this program, which can make it silent."""

    def __init__(self, client, server):
        self.silent, self.writers = False, (client[1], server[1])
        self.tasks = [asyncio.create_task(self.pass_on(client[0], server[1])),
                      asyncio.create_task(self.pass_on(server[0], client[1]))]

    async def pass_on(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(data)
            self.close()

    def close(self):
        for writer in self.writers:
            writer.close()


class Client:
    async def start(self, command, port):
        self.heard = set()
        self.process = await asyncio.create_subprocess_exec(*command, str(port), CHANNEL, stdout=subprocess.PIPE)
        self.task = asyncio.create_task(self.listen())
        return self

    async def listen(self):
        while line := await self.process.stdout.readline():
            self.heard.add(line.decode().strip())


async def publish(publisher, clients, text, seconds):
    """Says so for so long, or until all have heard it."""
    for _ in range(seconds * 5):
        if all(text in client.heard for client in clients.values()):
            break
        await publisher.publish(CHANNEL, text)
        await asyncio.sleep(0.2)


async def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["usr/bin/redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                               "--logfile", "log"])
    clients = {}

    async def accept(*client):
        connections.append(Connection(client, await asyncio.open_connection("127.0.0.1", port)))

    relay = await asyncio.start_server(accept, "127.0.0.1", 0)
    publisher = redis.asyncio.Redis(port=port)
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    version = (await publisher.info("server"))["redis_version"]
                    break
                await asyncio.sleep(0.1)
        print(f"Redis {version}")
        for name, command in CLIENTS.items():
            clients[name] = await Client().start(command, relay.sockets[0].getsockname()[1])
        await publish(publisher, clients, "first", 30)
        assert all("first" in client.heard for client in clients.values()), "not all have subscribed"
        gone = list(connections)
        for connection in gone:
            connection.silent = True
        await publish(publisher, clients, "in the silence", SILENCE)
        opened = len(connections) - len(gone)
        for connection in gone:
            connection.close()
        await publish(publisher, clients, "closed", RETURN)
    finally:
        for client in clients.values():
            client.process.kill()
            await client.process.wait()
        server.kill()
        server.wait()
    print(f"connections opened while the old ones were silent: {opened}")
    changed = opened != 0
    for name, client in clients.items():
        silence, closed = ("in the silence" in client.heard), ("closed" in client.heard)
        print(f"{name}: silent for {SILENCE} seconds: {'back' if silence else 'nothing done'}; "
              f"then closed: {'back' if closed else 'not back'}")
        changed = changed or silence or not closed
    print("this has changed" if changed else "as found")
    sys.exit(changed)


asyncio.run(main())
PYTHON
go build -o go-redis .
venv/bin/python silence.py
