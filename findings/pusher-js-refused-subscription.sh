#!/usr/bin/env bash
# Guess: once the server has refused a subscription (`pusher:subscription_error`), pusher-js asks for it again when the page
# calls `subscribe` again, with a new signature say, or `unsubscribe` and then `subscribe`: as after a refusal by the backend.
# Found: only after one by the backend. 8.6.0 takes a subscription that the server refused for one that is still under way:
# neither call sends anything, whatever the order, until the connection is made anew. laravel-echo's `leave` changes nothing.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher-js@8.6.0 laravel-echo@2.5.0 ws@8.18.3 >/dev/null
cat >again.mjs <<'JS'
import { once } from "node:events";
import { readFileSync } from "node:fs";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { WebSocketServer } from "ws";

const version = (name) => `${name} ${JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version}`;
console.error(`node ${process.version}, ${version("pusher-js")}, ${version("laravel-echo")}`);

// As much of a Pusher server as this needs: it refuses any signature but a good one, and notes what it is asked.
let asked = [];
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
server.on("connection", (socket) => {
    const send = (frame, data) => socket.send(JSON.stringify({ ...frame, data: JSON.stringify(data) }));
    send({ event: "pusher:connection_established" }, { socket_id: "1.1", activity_timeout: 120 });
    socket.on("message", (text) => {
        const { event, data: { channel, auth } } = JSON.parse(text);
        asked.push(event.slice("pusher:".length));
        if (event !== "pusher:subscribe") return;
        if (auth === "key:good") send({ event: "pusher_internal:subscription_succeeded", channel }, {});
        else send({ event: "pusher:subscription_error", channel }, { type: "AuthError", error: "refused", status: 401 });
    });
});
await once(server, "listening");

const settle = () => new Promise((done) => setTimeout(done, 500));
async function look(what, act) {
    await act();
    await settle();
    console.log(`${what}: the server is asked: ${asked.join(", ") || "nothing"}`);
    asked = [];
}

/** A page whose first authorization goes wrong, by the backend or at the server, and all others are good. */
function open(byBackend) {
    let first = true;
    const options = {
        wsHost: "127.0.0.1", wsPort: server.address().port, forceTLS: false, cluster: "", enabledTransports: ["ws"],
        channelAuthorization: {
            customHandler: (_, answer) => {
                if (!first) answer(null, { auth: "key:good" });
                else if (byBackend) answer(new Error("refused"), null);
                else answer(null, { auth: "key:bad" });
                first = false;
            },
        },
    };
    return new Pusher("key", options);
}

let pusher = open(true);
await look("refused by the backend", () => pusher.subscribe("private-room"));
await look("  subscribe again", () => pusher.subscribe("private-room"));
pusher.disconnect();

pusher = open(false);
await look("refused by the server", () => pusher.subscribe("private-room"));
await look("  subscribe again", () => pusher.subscribe("private-room"));
await look("  unsubscribe", () => pusher.unsubscribe("private-room"));
await look("  subscribe again", () => pusher.subscribe("private-room"));
await look("  disconnect and connect", async () => {
    pusher.disconnect();
    await settle();
    pusher.connect();
});
pusher.disconnect();

const echo = new Echo({ broadcaster: "reverb", key: "key", client: open(false) });
await look("refused by the server, in Echo", () => echo.private("room"));
await look("  leave, and private again", () => {
    echo.leave("room");
    echo.private("room");
});
process.exit();
JS
node again.mjs | tee seen
cat >expected <<'TEXT'
refused by the backend: the server is asked: nothing
  subscribe again: the server is asked: subscribe
refused by the server: the server is asked: subscribe
  subscribe again: the server is asked: nothing
  unsubscribe: the server is asked: nothing
  subscribe again: the server is asked: nothing
  disconnect and connect: the server is asked: subscribe
refused by the server, in Echo: the server is asked: subscribe
  leave, and private again: the server is asked: nothing
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
