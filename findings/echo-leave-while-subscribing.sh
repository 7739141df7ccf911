#!/usr/bin/env bash
# Guess: laravel-echo's `leave()` forgets a channel and its listeners whenever it is called, so that a page that leaves and
# comes back within a moment, as between two views, hears each event once.
# Found: not while the subscription is under way, until the backend has authorized it and the server has answered; a public
# channel too. 2.5.0 forgets its own object, but pusher-js keeps its channel with what was bound, and takes it up again. The
# old callbacks are called besides the new ones, for events and `here()`, once more for each time it was left that early.
# `stopListening` before `leave` helps.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . laravel-echo@2.5.0 pusher-js@8.6.0 ws@8.18.3 >/dev/null
cat >leave.mjs <<'JS'
import { once } from "node:events";
import Echo from "laravel-echo";
import Pusher from "pusher-js";
import { WebSocketServer } from "ws";

// What is in the server's or the backend's hands, until the test lets it go.
const held = { answers: [], authorizations: [] };
let asked, page, publish;
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
await once(server, "listening");
server.on("connection", (socket) => {
    const send = (event, channel, data) => socket.send(JSON.stringify({ event, channel, data: JSON.stringify(data) }));
    publish = (channel) => send("Written", channel, {});
    send("pusher:connection_established", undefined, { socket_id: "1.1", activity_timeout: 120 });
    socket.on("message", (message) => {
        const { event, data } = JSON.parse(message);
        if (event !== "pusher:subscribe") return;
        const presence = { count: 1, ids: ["1"], hash: { 1: {} } };
        held.answers.push(() => send("pusher_internal:subscription_succeeded", data.channel, { presence }));
        asked?.();
    });
});
const client = new Pusher("key", {
    wsHost: "127.0.0.1", wsPort: server.address().port, cluster: "", forceTLS: false, enabledTransports: ["ws"],
    channelAuthorization: {
        customHandler: (_, callback) => {
            const authorization = { auth: "key:signature", channel_data: JSON.stringify({ user_id: "1" }) };
            held.authorizations.push(() => callback(null, authorization));
            asked?.();
        },
    },
});
await new Promise((connected) => client.connection.bind("connected", connected));
const echo = new Echo({ broadcaster: "reverb", key: "key", client });
const next = () => new Promise((resolve) => { asked = resolve; });

let heard;
const listener = () => { heard += 1; };
const PAGES = {
    "a public channel": ["room", () => echo.channel("room").listen(".Written", listener)],
    "a private channel": ["private-room", () => echo.private("room").listen(".Written", listener)],
    "a presence channel": ["presence-room", () => echo.join("room").listen(".Written", listener)],
};

/** Comes to the page, leaves it and comes back twice, and tells what one event is worth in the end. */
async function visit(kind, early, stops) {
    const [name, come] = PAGES[kind];
    const subscribed = async () => {
        // What waits for the backend goes to the server then, which answers.
        while (!client.channel(name).subscribed) {
            const waiting = held.authorizations.length ? held.authorizations : held.answers;
            if (!waiting.length) await next();
            waiting.splice(0).forEach((release) => release());
            await new Promise((resolve) => setTimeout(resolve, 50));
        }
    };
    let channel = come();
    for (let time = 0; time < 2; time += 1) {
        if (!early) await subscribed();
        if (stops) channel.stopListening(".Written", listener);
        echo.leave("room");
        channel = come();
    }
    await subscribed();
    heard = 0;
    publish(name);
    await new Promise((resolve) => setTimeout(resolve, 300));
    echo.leave("room");
    const when = `left twice ${early ? "early" : "once subscribed"}${stops ? ", after stopListening" : ""}`;
    console.log(`${kind}, ${when}: an event is heard ${heard}×`);
}

for (const kind of Object.keys(PAGES)) {
    await visit(kind, false, false);
    await visit(kind, true, false);
    await visit(kind, true, true);
}
process.exit();
JS
echo "node $(node --version), laravel-echo 2.5.0, pusher-js 8.6.0"
node leave.mjs | tee seen
cat >expected <<'TEXT'
a public channel, left twice once subscribed: an event is heard 1×
a public channel, left twice early: an event is heard 3×
a public channel, left twice early, after stopListening: an event is heard 1×
a private channel, left twice once subscribed: an event is heard 1×
a private channel, left twice early: an event is heard 3×
a private channel, left twice early, after stopListening: an event is heard 1×
a presence channel, left twice once subscribed: an event is heard 1×
a presence channel, left twice early: an event is heard 3×
a presence channel, left twice early, after stopListening: an event is heard 1×
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
