#!/usr/bin/env bash
# Guess: a Socket.IO client in Python that polls hears whatever Node.js's Socket.IO server emits, however much at a time.
# Found: python-engineio takes at most 16 packets in one answer, in the client too, and the server puts all it has into one.
# After a larger burst the client gives the connection up (`transport error`), and what was in the answer is lost. Unless
# told otherwise it polls until its WebSocket is open, so that a burst right after connecting is enough.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . socket.io@4.8.1 >/dev/null
python3 -m venv venv
./venv/bin/pip --quiet --disable-pip-version-check install python-socketio==5.16.0 python-engineio==4.12.3 requests==2.32.5
cat >server.js <<'JS'
const { createServer } = require("node:http");
const { Server } = require("socket.io");

const web = createServer();
new Server(web, { transports: ["polling"] }).on("connection", (socket) => {
    // The first event ends the poll that waits; the others come in one answer to the next.
    socket.on("burst", (events) => {
        setTimeout(() => { for (let n = 1; n <= events; n++) socket.emit("news", n); }, 300);
    });
});
web.listen(0, "127.0.0.1", () => console.log(web.address().port));
JS
cat >client.py <<'PYTHON'
import logging
import sys
import threading
from importlib.metadata import version

import socketio

logging.disable()
print(f"python-socketio {version('python-socketio')}, python-engineio {version('python-engineio')}")
for events in (17, 18):
    ended = threading.Event()
    heard, reason = [], []
    client = socketio.Client(reconnection=False)

    @client.on("news")
    def news(number):
        heard.append(number)
        if number == events:
            ended.set()

    @client.event
    def disconnect(why):
        reason.append(why)
        ended.set()

    client.connect(f"http://127.0.0.1:{sys.argv[1]}", transports=["polling"])
    client.emit("burst", events)
    ended.wait(20)
    print(f"{events} events: heard up to {max(heard)}, {reason[0] if reason else 'still connected'}", flush=True)
    if client.connected:
        client.disconnect()
PYTHON
node server.js >port &
server=$!
until [[ -s port ]]; do sleep 0.1; done
echo "node $(node --version), socket.io 4.8.1"
./venv/bin/python client.py "$(cat port)" | tee seen
cat >expected <<'TEXT'
python-socketio 5.16.0, python-engineio 4.12.3
17 events: heard up to 17, still connected
18 events: heard up to 1, transport error
TEXT
diff expected seen || { echo 'this has changed'; exit 1; }
