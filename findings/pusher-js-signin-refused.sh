#!/usr/bin/env bash
# Guess: `pusher:signin_error`, new in pusher-js 8.6.0 and made after `pusher:subscription_error`, is told as that one is:
# when the backend does not authenticate the user, and when the server does not take what the backend signed.
# Found: in the first case alone. What a server says to a bad sign-in, `pusher:error` with 4009, is an `error` of the
# connection like any other; the page is connected, and `pusher.user` neither signed in nor failed. A subscription that the
# server refuses is told.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher-js@8.6.0 ws@8.18.3 >/dev/null
cat >signin.mjs <<'JS'
import { once } from "node:events";
import Pusher from "pusher-js";
import { WebSocketServer } from "ws";

// As much of a Pusher server as this needs: it takes no signature.
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
server.on("connection", (socket) => {
    const send = (frame) => socket.send(JSON.stringify(frame));
    const hello = { socket_id: "1.1", activity_timeout: 120 };
    send({ event: "pusher:connection_established", data: JSON.stringify(hello) });
    socket.on("message", (text) => {
        const { event, data: { channel } } = JSON.parse(text);
        const why = JSON.stringify({ type: "AuthError", error: "refused", status: 401 });
        if (event === "pusher:signin") send({ event: "pusher:error", data: { code: 4009, message: "refused" } });
        else send({ event: "pusher:subscription_error", channel, data: why });
    });
});
await once(server, "listening");

/** What a page is told that signs in and subscribes, while the backend authenticates it or not. */
async function look(backend) {
    const told = [];
    const answer = backend === "signs" ? [null, { auth: "key:bad", user_data: '{"id":"7"}' }] : [new Error("refused"), null];
    const customHandler = (_, done) => done(...answer);
    const pusher = new Pusher("key", {
        wsHost: "127.0.0.1", wsPort: server.address().port, forceTLS: false, cluster: "", enabledTransports: ["ws"],
        userAuthentication: { customHandler }, channelAuthorization: { customHandler },
    });
    pusher.user.bind("pusher:signin_error", () => told.push("signin_error"));
    pusher.connection.bind("error", ({ data }) => told.push(`error ${data.code} of the connection`));
    pusher.signin();
    pusher.subscribe("private-room").bind("pusher:subscription_error", () => told.push("subscription_error"));
    await new Promise((done) => setTimeout(done, 1000));
    console.log(`the backend ${backend}: ${told.sort().join(", ")}; ${pusher.connection.state}`);
    pusher.disconnect();
}

await look("refuses");
await look("signs");
process.exit();
JS
echo "node $(node --version), pusher-js 8.6.0"
node signin.mjs | tee seen
cat >expected <<'TEXT'
the backend refuses: signin_error, subscription_error; connected
the backend signs: error 4009 of the connection, subscription_error; connected
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
