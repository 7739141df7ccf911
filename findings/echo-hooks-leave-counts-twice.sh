#!/usr/bin/env bash
# Guess: of two components that use the same channel with `useEcho`, one that calls `leave()` and is unmounted later counts
# once, and the other goes on hearing events until it is unmounted itself.
# Found: @laravel/echo-react and @laravel/echo-vue count it twice, by hand and at unmounting, so that the channel is left while
# the other component is there; it hears nothing any more. Who calls `leave()` has to be the only one on that channel.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . @laravel/echo-react@2.5.0 @laravel/echo-vue@2.5.0 pusher-js@8.6.0 \
    react@19.2.0 react-test-renderer@19.2.0 vue@3.5.22 @vue/runtime-core@3.5.22 >/dev/null
cat >client.mjs <<'JS'
// A pusher-js that is never connected; it tells by itself which channels it has.
import Pusher from "pusher-js";

export const client = new Pusher("key", { wsHost: "127.0.0.1", cluster: "", enabledTransports: ["ws"] });
client.disconnect();
export const options = { broadcaster: "reverb", key: "key", client, namespace: "App.Events" };
export function tell(library, when) {
    console.log(`${library}: ${when}: ${client.channel("news") ? "subscribed" : "not subscribed"}`);
}
JS
cat >react.mjs <<'JS'
import { createElement, Fragment } from "react";
import { act, create } from "react-test-renderer";
import { configureEcho, useEchoPublic } from "@laravel/echo-react";
import { options, tell } from "./client.mjs";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
console.error = () => {}; // That react-test-renderer is deprecated.
configureEcho(options);
let leave;
function Leaves() {
    leave = useEchoPublic("news", "Written", () => {}).leave;
    return null;
}
function Stays() {
    useEchoPublic("news", "Written", () => {});
    return null;
}
const both = createElement(Fragment, null, createElement(Stays, { key: 1 }), createElement(Leaves, { key: 2 }));
const one = createElement(Fragment, null, createElement(Stays, { key: 1 }));
let page;
await act(async () => { page = create(both); });
tell("react", "two components");
await act(async () => leave());
tell("react", "one called leave()");
await act(async () => page.update(one));
tell("react", "and was unmounted, the other stays");
process.exit();
JS
cat >vue.mjs <<'JS'
import { createRenderer } from "@vue/runtime-core";
import { h, nextTick, ref } from "vue";
import { configureEcho, useEchoPublic } from "@laravel/echo-vue";
import { options, tell } from "./client.mjs";

const node = () => ({});
const { createApp } = createRenderer({
    insert: node, remove: node, patchProp: node, createElement: node, createText: node, createComment: node,
    setText: node, setElementText: node, parentNode: node, nextSibling: node,
});
configureEcho(options);
let leave;
const Leaves = {
    setup() {
        leave = useEchoPublic("news", "Written", () => {}).leave;
        return () => h("p");
    },
};
const Stays = {
    setup() {
        useEchoPublic("news", "Written", () => {});
        return () => h("p");
    },
};
const both = ref(true);
createApp({ render: () => [h(Stays), both.value ? h(Leaves) : h("p")] }).mount({});
await nextTick();
tell("vue", "two components");
leave();
tell("vue", "one called leave()");
both.value = false;
await nextTick();
tell("vue", "and was unmounted, the other stays");
process.exit();
JS
echo "node $(node --version), @laravel/echo-react 2.5.0, @laravel/echo-vue 2.5.0, pusher-js 8.6.0"
{ node react.mjs; node vue.mjs; } | tee seen
cat >expected <<'TEXT'
react: two components: subscribed
react: one called leave(): subscribed
react: and was unmounted, the other stays: not subscribed
vue: two components: subscribed
vue: one called leave(): subscribed
vue: and was unmounted, the other stays: not subscribed
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
