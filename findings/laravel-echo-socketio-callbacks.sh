#!/usr/bin/env bash
# Guess: laravel-echo's callbacks of a channel are called with either broadcaster: with `socket.io` too `subscribed()` once
# the channel is entered, or at the least the socket connected, and `error()` for a `subscription_error` of the server.
# Found: neither ever is in 2.5.0. `subscribed()` listens for `connect` as if it were an event of the channel and came with its
# name, and `error()` does nothing. `here()` of a presence channel tells the one, the socket's own event the other.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . laravel-echo@2.5.0 pusher-js@8.6.0 socket.io@4.8.1 socket.io-client@4.8.1 >/dev/null
cat >callbacks.mjs <<'JS'
import { once } from "node:events";
import { createServer } from "node:http";
import Echo from "laravel-echo";
import { Server } from "socket.io";
import { io } from "socket.io-client";

// As much of laravel-echo-server as this needs: all may enter the room, nobody the vault.
const web = createServer();
new Server(web).on("connection", (socket) => {
    socket.on("subscribe", ({ channel }) => {
        if (channel === "presence-vault") socket.emit("subscription_error", channel, 403);
        else socket.emit("presence:subscribed", channel, [{ user_id: 7, user_info: {} }]);
    });
});
web.listen(0, "127.0.0.1");
await once(web, "listening");

const settle = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const echo = new Echo({ broadcaster: "socket.io", client: io, host: `http://127.0.0.1:${web.address().port}` });
const called = [];
let refused = false;
echo.connector.socket.on("subscription_error", () => { refused = true; });
echo.join("room").here(() => called.push("here")).subscribed(() => called.push("subscribed"));
echo.join("vault").error(() => called.push("error"));
await settle(2);
console.log(`called: ${called.join(", ")}; the refusal came: ${refused}`);
const later = [];
echo.join("lobby").here(() => later.push("here")).subscribed(() => later.push("subscribed"));
await settle(1);
console.log(`called, once connected: ${later.join(", ")}`);
process.exit();
JS
echo "node $(node --version), laravel-echo 2.5.0, socket.io and socket.io-client 4.8.1"
node callbacks.mjs | tee seen
cat >expected <<'TEXT'
called: here; the refusal came: true
called, once connected: here
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
