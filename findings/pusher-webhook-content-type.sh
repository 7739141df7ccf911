#!/usr/bin/env bash
# Guess: Pusher's server SDK for Node.js takes a webhook of JSON whose key and signature are right, whichever usual form its
# Content-Type has; the signature is of the body alone.
# Found: only the very text `application/json`. With `; charset=utf-8` behind it, which many HTTP clients and gateways add,
# `isValid()` is false, as it is for a wrong signature, and nothing says why.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher@5.3.4 >/dev/null
cat >webhook.js <<'JS'
const { createHmac } = require("node:crypto");
const { createServer } = require("node:http");
const Pusher = require("pusher");

const pusher = new Pusher({ appId: "1", key: "key", secret: "secret", host: "127.0.0.1" });
const server = createServer((request, response) => {
    let rawBody = "";
    request.on("data", (part) => { rawBody += part; });
    request.on("end", () => response.end(String(pusher.webhook({ headers: request.headers, rawBody }).isValid())));
});
server.listen(0, "127.0.0.1", async () => {
    const body = JSON.stringify({ time_ms: Date.now(), events: [{ name: "channel_occupied", channel: "news" }] });
    const signature = createHmac("sha256", "secret").update(body).digest("hex");
    for (const type of ["application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8"]) {
        const headers = { "X-Pusher-Key": "key", "X-Pusher-Signature": signature, "Content-Type": type };
        const answer = await fetch(`http://127.0.0.1:${server.address().port}`, { method: "POST", headers, body });
        console.log(`${type}: valid: ${await answer.text()}`);
    }
    process.exit();
});
JS
echo "node $(node --version), pusher $(node -p 'require("pusher/package.json").version')"
node webhook.js | tee seen
cat >expected <<'TEXT'
application/json: valid: true
application/json; charset=utf-8: valid: false
application/json;charset=UTF-8: valid: false
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
