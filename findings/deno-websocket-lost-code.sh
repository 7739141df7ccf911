#!/usr/bin/env bash
# Guess: a WebSocket that was lost, or never came about, ends with code 1006 wherever there is the browsers' `WebSocket`, as
# RFC 6455 and the WHATWG's standard have it: in Node.js (undici), Bun and Deno as in browsers.
# Found: Deno's says 0. Who knows a lost connection by `event.code === 1006`, to open it again, does not there; `wasClean` is
# false in all three. Bun reports an `error` beforehand only where there was no connection yet.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . undici@7.30.2 bun@1.4.5 deno@2.9.6 ws@8.18.3 >/dev/null
export DENO_DIR=$folder/deno
cat >client.mjs <<'JS'
const address = globalThis.Deno ? Deno.args[0] : process.argv[2];
const WebSocket = globalThis.WebSocket ?? (await import("undici")).WebSocket;
for (const how of ["4200", "cut", "refuse"]) {
    const events = [];
    const socket = new WebSocket(`${address}/${how}`);
    socket.addEventListener("error", () => events.push("error"));
    await new Promise((ended) => socket.addEventListener("close", (event) => {
        events.push(`close ${event.code}, wasClean ${event.wasClean}`);
        ended();
    }));
    console.log(`  ${how}: ${events.join(", ")}`);
}
(globalThis.Deno ?? process).exit();
JS
cat >look.mjs <<'JS'
// A server that ends each WebSocket as its path says, and each runtime's client against it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const web = createServer();
const server = new WebSocketServer({ noServer: true });
web.on("upgrade", (request, stream, head) => {
    if (request.url === "/refuse") return stream.end("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    server.handleUpgrade(request, stream, head, (socket) => {
        if (request.url === "/cut") socket.terminate();
        else socket.close(4200, "come again");
    });
});
web.listen(0, "127.0.0.1");
await once(web, "listening");
const address = `ws://127.0.0.1:${web.address().port}`;
for (const [name, ...command] of [
    ["undici 7.30.2", "node", "client.mjs"],
    ["Bun 1.4.5", "npx", "bun", "client.mjs"],
    ["Deno 2.9.6", "npx", "deno", "run", "--no-config", "--allow-net", "client.mjs"],
]) {
    console.log(name);
    const client = spawn(command[0], [...command.slice(1), address], { stdio: ["ignore", "inherit", "inherit"] });
    await once(client, "exit");
}
process.exit();
JS
echo "node $(node --version), bun $(npx bun --version), $(npx deno --version | head -1)"
node look.mjs | tee seen
cat >expected <<'TEXT'
undici 7.30.2
  4200: close 4200, wasClean true
  cut: error, close 1006, wasClean false
  refuse: error, close 1006, wasClean false
Bun 1.4.5
  4200: close 4200, wasClean true
  cut: close 1006, wasClean false
  refuse: error, close 1006, wasClean false
Deno 2.9.6
  4200: close 4200, wasClean true
  cut: error, close 0, wasClean false
  refuse: error, close 0, wasClean false
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
