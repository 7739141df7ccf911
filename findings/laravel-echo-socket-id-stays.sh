#!/usr/bin/env bash
# Guess: `Echo.socketId()` is the id of the connection that there is, and undefined while there is none, as it is before the
# first; so the `X-Socket-ID` by which `toOthers()` leaves a page out is right, or missing.
# Found: laravel-echo 2.5.0 goes on giving the last id, in an outage and after `disconnect()` too, as pusher-js 8.6.0 keeps it.
# A request made meanwhile names a connection that is gone for good: nobody is left out, and a page that is connected again
# by the time the event is published (from a queue, say) hears its own.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . laravel-echo@2.5.0 pusher-js@8.6.0 ws@8.18.3 >/dev/null
cat >ids.mjs <<'JS'
import { once } from "node:events";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { WebSocketServer } from "ws";

// As much of a Pusher server as a client needs to be connected: each connection has an id of its own.
let connections = 0;
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
server.on("connection", (socket) => {
    connections += 1;
    const hello = { socket_id: `1.${connections}`, activity_timeout: 120 };
    socket.send(JSON.stringify({ event: "pusher:connection_established", data: JSON.stringify(hello) }));
});
await once(server, "listening");
const options = {
    wsHost: "127.0.0.1", wsPort: server.address().port, forceTLS: false, cluster: "", enabledTransports: ["ws"],
};
const pusher = new Pusher("key", options);
const echo = new Echo({ broadcaster: "reverb", key: "key", client: pusher });
const look = (when) => console.log(`${when}: ${pusher.connection.state}, socketId() ${echo.socketId()}`);

async function until(state) {
    while (pusher.connection.state !== state) await new Promise((done) => setTimeout(done, 1));
}

look("at first");
await until("connected");
look("then");
const changes = [];
pusher.connection.bind("state_change", ({ current }) => changes.push(`${current} ${echo.socketId()}`));
server.clients.forEach((socket) => socket.terminate());
await until("connecting");
await until("connected");
console.log(`cut, and come back: ${changes.join(", ")}`);
pusher.disconnect();
look("after disconnect()");
process.exit();
JS
echo "node $(node --version), laravel-echo 2.5.0, pusher-js 8.6.0"
node ids.mjs | tee seen
cat >expected <<'TEXT'
at first: connecting, socketId() undefined
then: connected, socketId() 1.1
cut, and come back: connecting 1.1, connected 1.2
after disconnect(): disconnected, socketId() 1.2
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
