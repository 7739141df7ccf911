#!/usr/bin/env bash
# Guess: with `namespace: ''` (or `false`) laravel-echo takes names of events as they are, as an app without Laravel wants.
# Found: `listen('order.paid')` still turns dots into backslashes and waits for `order\paid`; only a dot in front
# (`.order.paid`) leaves the name alone. And with `''` `listenToAll` cuts off the first letter of each name.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . laravel-echo@2.5.0 pusher-js@8.6.0 >/dev/null
cat >names.mjs <<'JS'
import Echo from "laravel-echo";
import Pusher from "pusher-js";

for (const namespace of [undefined, "", false]) {
    const client = new Pusher("key", { wsHost: "127.0.0.1", cluster: "", enabledTransports: ["ws"] });
    client.disconnect();
    const chosen = namespace === undefined ? {} : { namespace };
    const channel = new Echo({ broadcaster: "pusher", key: "key", client, ...chosen }).channel("orders");
    let heard;
    channel.listenToAll((name) => heard.push(`listenToAll as ${name}`));
    channel.listen("order.paid", () => heard.push("listen('order.paid')"));
    channel.listen(".order.paid", () => heard.push("listen('.order.paid')"));
    for (const event of ["order.paid", "order\\paid"]) {
        heard = [];
        client.channel("orders").emit(event, {});
        console.log(`namespace ${JSON.stringify(namespace)}: ${event} is heard by ${heard.join(" and ")}`);
    }
}
process.exit();
JS
echo "node $(node --version), laravel-echo 2.5.0, pusher-js 8.6.0"
node names.mjs | tee seen
cat >expected <<'TEXT'
namespace undefined: order.paid is heard by listenToAll as .order.paid and listen('.order.paid')
namespace undefined: order\paid is heard by listenToAll as .order\paid
namespace "": order.paid is heard by listenToAll as rder.paid and listen('.order.paid')
namespace "": order\paid is heard by listenToAll as rder\paid and listen('order.paid')
namespace false: order.paid is heard by listenToAll as .order.paid and listen('.order.paid')
namespace false: order\paid is heard by listenToAll as .order\paid and listen('order.paid')
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
