#!/usr/bin/env bash
# Guess: Pusher's server SDK for Python refuses an event's data by its length in bytes or characters, at Pusher's 10 KB or
# wherever else, so that a text that is taken may have one character exchanged for another.
# Found: it asks how much memory the string takes (`sys.getsizeof`), which in CPython follows from its widest character.
# 30,000 Latin letters pass, 16,000 with one '€' among them do not, nor 8,000 with one character beyond U+FFFF; by
# `trigger_batch` it is a third of that. A server that is set to take more never gets to see it.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
./venv/bin/pip --quiet --disable-pip-version-check install pusher==3.3.4
cat >sizes.py <<'PYTHON'
import http.server
import sys
import threading
from importlib.metadata import version

import pusher


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = pusher.Pusher("1", "key", "secret", host="127.0.0.1", port=server.server_port, ssl=False)


def trigger(data):
    client.trigger("news", "said", data)


def trigger_batch(data):
    client.trigger_batch([{"channel": "news", "name": "said", "data": data}])


print(f"pusher {version('pusher')} on Python {sys.version.split()[0]}")
changed = False
for send, length, other, taken in [
    (trigger, 30000, "", True),
    (trigger, 31000, "", False),
    (trigger, 15000, "\u20ac", True),
    (trigger, 16000, "\u20ac", False),
    (trigger, 7000, "\U0001f600", True),
    (trigger, 8000, "\U0001f600", False),
    (trigger_batch, 10000, "", True),
    (trigger_batch, 10500, "", False),
    (trigger_batch, 5500, "\u20ac", False),
    (trigger_batch, 3000, "\U0001f600", False),
]:
    data = "a" * (length - len(other)) + other
    try:
        send(data)
        answer = "taken"
    except ValueError as error:
        answer = f"refused: {error}"
    among = f" with {ascii(other)} among them" if other else ""
    print(f"{send.__name__}, {length} characters{among}, {len(data.encode())} bytes: {answer}")
    if answer != ("taken" if taken else "refused: Too much data"):
        print("    this has changed")
        changed = True
sys.exit(changed)
PYTHON
./venv/bin/python sizes.py
