#!/usr/bin/env bash
# Guess: when one of the dependencies given to `useEcho` changes, @laravel/echo-react and @laravel/echo-vue exchange the
# listener and leave the subscription as it is.
# Found: both unsubscribe from the channel. React's subscribes again at once, with another request for authorization, so
# that in a presence channel the others see the user go and come. Vue's does not: the component hears nothing any more.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . @laravel/echo-react@2.5.0 @laravel/echo-vue@2.5.0 pusher-js@8.6.0 \
    react@19.2.0 react-test-renderer@19.2.0 vue@3.5.22 @vue/runtime-core@3.5.22 ws@8.18.3 >/dev/null
cat >server.mjs <<'JS'
// As much of a Pusher server as one client needs. It notes what it is asked.
import { createServer } from "node:http";
import { once } from "node:events";
import { WebSocketServer } from "ws";

export async function serve() {
    const asked = [];
    const members = JSON.stringify({ presence: { count: 1, ids: ["7"], hash: { 7: {} } } });
    const web = createServer((request, response) => {
        request.resume().on("end", () => {
            asked.push("authorize");
            response.end(JSON.stringify({ auth: "key:signature", channel_data: '{"user_id":7}' }));
        });
    });
    let socket;
    const subscribed = new Set();
    new WebSocketServer({ server: web }).on("connection", (accepted) => {
        socket = accepted;
        const hello = { socket_id: "1.1", activity_timeout: 30 };
        socket.send(JSON.stringify({ event: "pusher:connection_established", data: JSON.stringify(hello) }));
        socket.on("message", (text) => {
            const { event, data: { channel } } = JSON.parse(text);
            asked.push(event.slice("pusher:".length));
            if (event === "pusher:unsubscribe") return subscribed.delete(channel);
            subscribed.add(channel);
            socket.send(JSON.stringify({ event: "pusher_internal:subscription_succeeded", channel, data: members }));
        });
    });
    web.listen(0, "127.0.0.1");
    await once(web, "listening");
    return {
        port: web.address().port,
        asked: () => asked.splice(0).join(", ") || "nothing",
        publish(channel, event) {
            if (subscribed.has(channel)) socket.send(JSON.stringify({ event, channel, data: "{}" }));
        },
    };
}

export const settle = () => new Promise((done) => setTimeout(done, 700));
export const options = (port) => ({
    broadcaster: "reverb", key: "key", wsHost: "127.0.0.1", wsPort: port, forceTLS: false, enabledTransports: ["ws"],
    authEndpoint: `http://127.0.0.1:${port}/auth`, namespace: "App.Events",
});
JS
cat >react.mjs <<'JS'
import { createElement } from "react";
import { act, create } from "react-test-renderer";
import { configureEcho, useEchoPresence } from "@laravel/echo-react";
import { options, serve, settle } from "./server.mjs";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
console.error = () => {}; // That react-test-renderer is deprecated.
const server = await serve();
configureEcho(options(server.port));
let heard = 0;
function Room({ unread }) {
    useEchoPresence("room", "Said", () => { heard += 1; }, [unread]);
    return null;
}
let page;
await act(async () => { page = create(createElement(Room, { unread: 0 })); });
await settle();
console.log(`react: mounted: ${server.asked()}`);
await act(async () => page.update(createElement(Room, { unread: 1 })));
await settle();
console.log(`react: dependency changed: ${server.asked()}`);
server.publish("presence-room", "App\\Events\\Said");
await settle();
console.log(`react: events heard afterwards: ${heard}`);
process.exit();
JS
cat >vue.mjs <<'JS'
import { createRenderer } from "@vue/runtime-core";
import { ref } from "vue";
import { configureEcho, useEchoPresence } from "@laravel/echo-vue";
import { options, serve, settle } from "./server.mjs";

const node = () => ({});
const { createApp } = createRenderer({
    insert: node, remove: node, patchProp: node, createElement: node, createText: node, createComment: node,
    setText: node, setElementText: node, parentNode: node, nextSibling: node,
});
const server = await serve();
configureEcho(options(server.port));
let heard = 0;
const unread = ref(0);
createApp({
    setup() {
        useEchoPresence("room", "Said", () => { heard += 1; }, [unread]);
        return () => null;
    },
}).mount({});
await settle();
console.log(`vue: mounted: ${server.asked()}`);
unread.value = 1;
await settle();
console.log(`vue: dependency changed: ${server.asked()}`);
server.publish("presence-room", "App\\Events\\Said");
await settle();
console.log(`vue: events heard afterwards: ${heard}`);
process.exit();
JS
echo "node $(node --version), @laravel/echo-react 2.5.0, @laravel/echo-vue 2.5.0, pusher-js 8.6.0"
{ node react.mjs; node vue.mjs; } | tee seen
cat >expected <<'TEXT'
react: mounted: authorize, subscribe
react: dependency changed: unsubscribe, authorize, subscribe
react: events heard afterwards: 1
vue: mounted: authorize, subscribe
vue: dependency changed: unsubscribe
vue: events heard afterwards: 0
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
