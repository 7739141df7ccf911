#!/usr/bin/env bash
# Guess: a webhook whose key and signature are right is valid in any of Pusher's server SDKs, whenever it is looked at: so one
# may be kept in a queue, or sent again as it was.
# Found: Python's answers None for one whose `time_ms` is more than five minutes from its clock, either way; Node.js's takes
# it at any age. Who keeps webhooks has to validate them before, and who sends one again has to date and sign it anew.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher@5.3.4 >/dev/null
python3 -m venv venv
./venv/bin/pip --quiet --disable-pip-version-check install pusher==3.3.4
cat >validate.js <<'JS'
const Pusher = require("pusher");

const [signature, rawBody] = process.argv.slice(2);
const headers = { "x-pusher-key": "key", "x-pusher-signature": signature, "content-type": "application/json" };
const pusher = new Pusher({ appId: "1", key: "key", secret: "secret", host: "127.0.0.1" });
console.log(pusher.webhook({ headers, rawBody }).isValid());
JS
cat >validate.py <<'PYTHON'
import hashlib
import hmac
import json
import subprocess
import sys
import time
from importlib.metadata import version

import pusher

with open("node_modules/pusher/package.json") as package:
    print(f"pusher {version('pusher')} of Python, pusher {json.load(package)['version']} of Node.js")
client = pusher.Pusher(app_id="1", key="key", secret="secret", host="127.0.0.1")
changed = False
for minutes, python_takes_it in [(0, True), (-4, True), (-6, False), (6, False), (-1440, False)]:
    made = int((time.time() + 60 * minutes) * 1000)
    body = json.dumps({"time_ms": made, "events": [{"name": "channel_occupied", "channel": "news"}]})
    signature = hmac.new(b"secret", body.encode(), hashlib.sha256).hexdigest()
    in_python = client.validate_webhook("key", signature, body) is not None
    told = subprocess.run(["node", "validate.js", signature, body], capture_output=True, text=True, check=True)
    in_node = told.stdout.strip() == "true"
    print(f"made {minutes:+} minutes from now: valid in Python: {in_python}, in Node.js: {in_node}")
    if (in_python, in_node) != (python_takes_it, True):
        print("    this has changed")
        changed = True
sys.exit(changed)
PYTHON
./venv/bin/python validate.py
