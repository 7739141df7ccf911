#!/usr/bin/env bash
# Guess: clients that reconnect by themselves also authorize by themselves again when the backend was away for a moment just
# then (503): after a while, or at the latest with the next connection. Nothing needs to be written for a rolling restart.
# Found: pusher-js 8.6.0 asks once a connection. However long that connection lasts, the channel is silent on it.
# pusher-java-client 2.4.4 removes the channel for good: later connections do not ask for it either.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher-js@8.6.0 ws@8.18.3 >/dev/null
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>authorization</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.pusher</groupId>
      <artifactId>pusher-java-client</artifactId>
      <version>2.4.4</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-nop</artifactId>
      <version>2.0.13</version>
    </dependency>
  </dependencies>
</project>
XML
mvn --quiet --batch-mode -Dstyle.color=never -Dmaven.repo.local=repository \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=jars >/dev/null
cat >client.mjs <<'JS'
import Pusher from "pusher-js";

const wsPort = Number(process.argv[2]);
new Pusher("key", {
    wsHost: "127.0.0.1", wsPort, forceTLS: false, cluster: "", enabledTransports: ["ws"],
    channelAuthorization: { endpoint: `http://127.0.0.1:${wsPort}/authorize` },
}).subscribe("private-room");
JS
cat >Client.java <<'JAVA'
import com.pusher.client.Pusher;
import com.pusher.client.PusherOptions;
import com.pusher.client.util.HttpChannelAuthorizer;

public class Client {
    public static void main(String[] arguments) throws InterruptedException {
        int port = Integer.parseInt(arguments[0]);
        PusherOptions options = new PusherOptions().setHost("127.0.0.1").setWsPort(port).setUseTLS(false);
        options.setChannelAuthorizer(new HttpChannelAuthorizer("http://127.0.0.1:" + port + "/authorize"));
        Pusher pusher = new Pusher("key", options);
        pusher.connect();
        pusher.subscribePrivate("private-room");
        Thread.currentThread().join(); // Until it is ended: the client's own threads are daemons.
    }
}
JAVA
cat >server.mjs <<'JS'
// A Pusher server and a backend in one, for one client: the backend is away during the second connection.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const SECONDS = 10; // How long the second and the third connection last.
const [name, ...command] = process.argv.slice(2);
const asked = [];
const web = createServer((request, response) => {
    request.resume().on("end", () => {
        response.statusCode = asked.length === 2 ? 503 : 200;
        asked.at(-1).push(`authorize (${response.statusCode})`);
        response.end(JSON.stringify({ auth: "key:signature" }));
    });
});
let finish;
const finished = new Promise((done) => { finish = done; });
new WebSocketServer({ server: web }).on("connection", (socket) => {
    asked.push([]);
    const send = (frame, data) => socket.send(JSON.stringify({ ...frame, data: JSON.stringify(data) }));
    send({ event: "pusher:connection_established" }, { socket_id: `${asked.length}.1`, activity_timeout: 120 });
    socket.on("message", (text) => {
        const { event, data: { channel } } = JSON.parse(text);
        if (event === "pusher:ping") return send({ event: "pusher:pong" }, {});
        asked.at(-1).push(event.slice("pusher:".length));
        send({ event: "pusher_internal:subscription_succeeded", channel }, {});
        if (asked.length === 1) socket.terminate();
    });
    if (asked.length > 1) setTimeout(() => (asked.length > 2 ? finish() : socket.terminate()), SECONDS * 1000);
});
web.listen(0, "127.0.0.1");
await once(web, "listening");
const client = spawn(command[0], [...command.slice(1), web.address().port], { stdio: "inherit" });
const late = setTimeout(() => finish(), 60_000);
await finished;
clearTimeout(late);
client.kill();
asked.forEach((all, at) => console.log(`${name}, connection ${at + 1}: ${all.join(", ") || "nothing"}`));
process.exit();
JS
echo "node $(node --version), java $(java -XshowSettings:properties -version 2>&1 | sed -n 's/ *java.version = //p')"
node server.mjs 'pusher-js 8.6.0' node client.mjs | tee seen
node server.mjs 'pusher-java-client 2.4.4' java -cp 'jars/*' Client.java | tee -a seen
cat >expected <<'TEXT'
pusher-js 8.6.0, connection 1: authorize (200), subscribe
pusher-js 8.6.0, connection 2: authorize (503)
pusher-js 8.6.0, connection 3: authorize (200), subscribe
pusher-java-client 2.4.4, connection 1: authorize (200), subscribe
pusher-java-client 2.4.4, connection 2: authorize (503)
pusher-java-client 2.4.4, connection 3: nothing
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
