#!/usr/bin/env bash
# Guess: as the README of Echo's hooks lists them, `reconnecting` is what laravel-echo's `connectionStatus()` says after the
# connection was lost, and `failed` that it will not be tried again.
# Found: with `reverb` (and `pusher`) 2.5.0 never says `reconnecting`. For a second after the loss it is still `connected`,
# then `connecting`, and `failed` after ten seconds, while pusher-js goes on trying: it is `connected` again once it can be.
# A page that gives up at `failed` gives up in any outage of ten seconds.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . laravel-echo@2.5.0 @laravel/echo-react@2.5.0 pusher-js@8.6.0 \
    react@19.2.0 ws@8.18.3 >/dev/null
cat >status.mjs <<'JS'
import { once } from "node:events";
import { readFileSync } from "node:fs";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { WebSocketServer } from "ws";

const version = (name) => `${name} ${JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version}`;
console.error(`node ${process.version}, ${version("laravel-echo")}, ${version("pusher-js")}`);

// As much of a Pusher server as a client needs to be connected.
async function serve(port) {
    const server = new WebSocketServer({ host: "127.0.0.1", port });
    server.on("connection", (socket) => {
        const hello = { socket_id: "1.1", activity_timeout: 120 };
        socket.send(JSON.stringify({ event: "pusher:connection_established", data: JSON.stringify(hello) }));
    });
    await once(server, "listening");
    return server;
}

const server = await serve(0);
const { port } = server.address();
const options = { wsHost: "127.0.0.1", wsPort: port, forceTLS: false, cluster: "", enabledTransports: ["ws"] };
const echo = new Echo({ broadcaster: "reverb", key: "key", client: new Pusher("key", options) });
let told = [];
echo.connector.onConnectionChange((status) => told.push(status));
const { connection } = echo.connector.pusher;

/** Waits for pusher-js to come to `state` and prints what Echo said on the way there. */
async function until(state) {
    while (connection.state !== state) await new Promise((done) => setTimeout(done, 20));
    await new Promise((done) => setTimeout(done, 100));
    console.log(`pusher-js is ${state}: told ${told.join(", ")}; connectionStatus() ${echo.connectionStatus()}`);
    told = [];
}

await until("connected");
server.clients.forEach((socket) => socket.terminate());
server.close();
await new Promise((lost) => connection.bind("error", lost));
console.log(`the connection is lost: connectionStatus() ${echo.connectionStatus()}`);
await until("connecting");
await until("unavailable");
await serve(port);
await until("connected");
process.exit();
JS
readme=node_modules/@laravel/echo-react/README.md
grep -q '^- .*"reconnecting"' "$readme" && grep -q '^- .*"failed".*won.t retry' "$readme" && echo 'README: both are listed' | tee seen
node status.mjs | tee -a seen
cat >expected <<'TEXT'
README: both are listed
pusher-js is connected: told connected, connected; connectionStatus() connected
the connection is lost: connectionStatus() connected
pusher-js is connecting: told connecting; connectionStatus() connecting
pusher-js is unavailable: told failed; connectionStatus() failed
pusher-js is connected: told connected, connected; connectionStatus() connected
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
