#!/usr/bin/env bash
# Guess: a client takes whatever its server sends, of a megabyte at the least, as browsers do and the clients that Pusher
# makes; the limit that matters is the server's, for an event 10 KB as a rule. A presence channel's roster is one message, too.
# Found: Tomcat's client (which Spring uses) takes 8 KiB unless told otherwise, so not even such an event; coder/websocket 32
# and Jetty's 64 KiB, less than a hundred members with a kilobyte each; Python's websockets 1 MiB and aiohttp 4. Then each
# closes, and a program that reconnects and subscribes again gets the same roster again. The code 1009 arrives, or a reset.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>limits</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.eclipse.jetty.websocket</groupId>
      <artifactId>jetty-websocket-jetty-client</artifactId>
      <version>12.1.14</version>
    </dependency>
    <dependency>
      <groupId>org.apache.tomcat.embed</groupId>
      <artifactId>tomcat-embed-websocket</artifactId>
      <version>11.0.27</version>
    </dependency>
    <dependency>
      <groupId>org.java-websocket</groupId>
      <artifactId>Java-WebSocket</artifactId>
      <version>1.6.0</version>
    </dependency>
  </dependencies>
</project>
XML
mvn --quiet --batch-mode -Dstyle.color=never -Dmaven.repo.local=repository \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=jars >/dev/null
cat >Client.java <<'JAVA'
import jakarta.websocket.ClientEndpointConfig;
import jakarta.websocket.CloseReason;
import jakarta.websocket.ContainerProvider;
import jakarta.websocket.Endpoint;
import jakarta.websocket.EndpointConfig;
import java.net.URI;
import java.util.concurrent.CountDownLatch;
import org.eclipse.jetty.websocket.api.Callback;
import org.eclipse.jetty.websocket.api.Session;
import org.eclipse.jetty.websocket.client.WebSocketClient;
import org.java_websocket.handshake.ServerHandshake;

public class Client {
    static final CountDownLatch closed = new CountDownLatch(1);

    public static class Jetty implements Session.Listener.AutoDemanding {
        public void onWebSocketText(String text) { System.out.println(text.length()); }
        public void onWebSocketClose(int code, String reason, Callback callback) {
            callback.succeed();
            closed.countDown();
        }
    }

    public static class Tomcat extends Endpoint {
        public void onOpen(jakarta.websocket.Session session, EndpointConfig config) {
            session.addMessageHandler(String.class, text -> System.out.println(text.length()));
        }
        public void onClose(jakarta.websocket.Session session, CloseReason reason) { closed.countDown(); }
    }

    static class Plain extends org.java_websocket.client.WebSocketClient {
        Plain(URI uri) { super(uri); }
        public void onOpen(ServerHandshake handshake) {}
        public void onMessage(String text) { System.out.println(text.length()); }
        public void onClose(int code, String reason, boolean remote) { closed.countDown(); }
        public void onError(Exception error) {}
    }

    public static void main(String[] args) throws Exception {
        URI uri = URI.create(args[1]);
        if (args[0].equals("jetty")) {
            WebSocketClient client = new WebSocketClient();
            client.start();
            client.connect(new Jetty(), uri);
        } else if (args[0].equals("tomcat")) {
            ClientEndpointConfig config = ClientEndpointConfig.Builder.create().build();
            ContainerProvider.getWebSocketContainer().connectToServer(new Tomcat(), config, uri);
        } else {
            new Plain(uri).connect();
        }
        closed.await();
        System.exit(0);
    }
}
JAVA
javac -cp 'jars/*' Client.java
export GOPATH=$folder/path GOFLAGS='-modcacherw -mod=mod' GOTOOLCHAIN=local
cat >go.mod <<'MOD'
module finding

go 1.23

require github.com/coder/websocket v1.8.15
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coder/websocket"
)

func main() {
	connection, _, err := websocket.Dial(context.Background(), os.Args[1], nil)
	for err == nil {
		var text []byte
		if _, text, err = connection.Read(context.Background()); err == nil {
			fmt.Println(len(text))
		}
	}
}
GO
go build -o coder .
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install websockets==17.4 aiohttp==3.14.5 websocket-client==1.9.2
cat >client.py <<'PYTHON'
import asyncio
import contextlib
import sys

import aiohttp
import websocket
import websockets

library, address = sys.argv[1:]


def tell(text):
    print(len(text), flush=True)


async def by_websockets():
    async with websockets.connect(address) as connection:
        async for text in connection:
            tell(text)


async def by_aiohttp():
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as connection:
        async for message in connection:
            tell(message.data)


with contextlib.suppress(Exception):  # The server is told why it ends.
    if library == "websockets":
        asyncio.run(by_websockets())
    elif library == "aiohttp":
        asyncio.run(by_aiohttp())
    else:
        connection = websocket.create_connection(address)
        while text := connection.recv():
            tell(text)
PYTHON
cat >serve.py <<'PYTHON'
import asyncio
import base64
import contextlib
import hashlib
import json
import struct
import subprocess
import sys

JAVA = ["java", "-cp", "jars/*:.", "Client"]
PYTHON = ["venv/bin/python", "client.py"]
# How many of MESSAGES each takes.
CASES = [
    ("Tomcat 11.0.27", [*JAVA, "tomcat"], 0),
    ("coder/websocket 1.8.15", ["./coder"], 1),
    ("Jetty 12.1.14", [*JAVA, "jetty"], 1),
    ("websockets 17.4", [*PYTHON, "websockets"], 2),
    ("aiohttp 3.14.5", [*PYTHON, "aiohttp"], 3),
    ("Java-WebSocket 1.6.0", [*JAVA, "plain"], 4),
    ("websocket-client 1.9.2", [*PYTHON, "websocket-client"], 4),
]


def event(size):
    return json.dumps({"event": "written", "channel": "news", "data": "x" * size})


def roster(members):
    people = {str(id): {"about": "x" * 1000} for id in range(members)}
    data = {"presence": {"ids": list(people), "hash": people, "count": members}}
    return json.dumps({"event": "pusher_internal:subscription_succeeded", "channel": "presence-room", "data": json.dumps(data)})


MESSAGES = [("an event of 10 KB", event(10_000)), ("a roster of 100 members", roster(100)),
            ("one of 1,500 members", roster(1500)), ("one of 5,000 members", roster(5000))]


async def frame(reader):
    """The opcode and the content of a frame from the client, which is short and masked."""
    first, second = await reader.readexactly(2)
    mask = await reader.readexactly(4)
    content = await reader.readexactly(second & 0x7F)
    return first & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))


async def main():
    codes, process = asyncio.Queue(), None
    taken = 0

    async def answer(reader, writer):
        nonlocal taken
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line.split(b":")[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while process is None:
            await asyncio.sleep(0.01)
        for _, text in MESSAGES:
            length = struct.pack(">BQ", 127, len(text)) if len(text) > 0xFFFF else struct.pack(">BH", 126, len(text))
            writer.write(b"\x81" + length + text.encode())
            if await process.stdout.readline() != b"%d\n" % len(text):
                break  # The client has ended.
            taken += 1
        else:
            writer.write(b"\x88\x02" + struct.pack(">H", 1000))
        try:
            opcode = 0
            while opcode != 8:
                opcode, content = await frame(reader)
            codes.put_nowait(struct.unpack(">H", content[:2])[0])
        except (OSError, asyncio.IncompleteReadError):
            codes.put_nowait(None)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/app/key"
    for name, text in MESSAGES:
        print(f"{name}: {len(text):,} bytes")
    changed = False
    for name, command, expected in CASES:
        taken, process = 0, None
        process = await asyncio.create_subprocess_exec(*command, address, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        code = await asyncio.wait_for(codes.get(), 60)
        with contextlib.suppress(ProcessLookupError):  # Most have ended.
            process.kill()
        await process.wait()
        what = MESSAGES[taken - 1][0] if taken else "none of these"
        end = "" if taken == len(MESSAGES) else f", then {'resets' if code is None else f'closes with {code}'}"
        print(f"{name}: takes {what}{end}")
        if taken != expected or code not in ((1000,) if taken == len(MESSAGES) else (1009, None)):
            print(f"    this has changed: it took {expected} of them")
            changed = True
    server.close()
    sys.exit(changed)


asyncio.run(main())
PYTHON
python3 serve.py
