#!/usr/bin/env bash
# Guess: a text given to `trigger` of one of Pusher's server SDKs is the event's data as it stands, so that who has JSON
# already passes it on, and it is the same for a `private-encrypted-` channel, where it is only encrypted besides.
# Found: so it is in Python. Node.js's SDK leaves the text as it is for a plain channel and encodes it once more for an
# encrypted one; Java's encodes it once more for both. Subscribers parse that and hold a text where they expect an object.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . pusher@5.3.4 >/dev/null
python3 -m venv venv
./venv/bin/pip --quiet --disable-pip-version-check install pusher==3.3.4 PyNaCl==1.6.2
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>trigger</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.pusher</groupId>
      <artifactId>pusher-http-java</artifactId>
      <version>1.3.4</version>
    </dependency>
  </dependencies>
</project>
XML
mvn --quiet --batch-mode -Dstyle.color=never -Dmaven.repo.local=repository \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=jars >/dev/null
cat >trigger.js <<'JS'
const Pusher = require("pusher");

const [port, key, channel, data] = process.argv.slice(2);
const options = { appId: "1", key: "key", secret: "secret", host: "127.0.0.1", port, encryptionMasterKeyBase64: key };
new Pusher(options).trigger(channel, "said", data);
JS
cat >Trigger.java <<'JAVA'
import com.pusher.rest.Pusher;

public class Trigger {
    public static void main(String[] arguments) {
        Pusher pusher = new Pusher("1", "key", "secret", arguments[1]);
        pusher.setHost("127.0.0.1:" + arguments[0]);
        pusher.setEncrypted(false);
        pusher.trigger(arguments[2], "said", arguments[3]);
    }
}
JAVA
cat >trigger.py <<'PYTHON'
import base64
import hashlib
import http.server
import json
import queue
import subprocess
import sys
import threading
from importlib.metadata import version

import nacl.secret
import pusher

KEY = bytes(32)
TEXT = '{"unread":3}'
posted = queue.Queue()


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
port, key = server.server_port, base64.b64encode(KEY).decode()


def python(channel):
    pusher.Pusher("1", "key", "secret", host="127.0.0.1", port=port, ssl=False,
                  encryption_master_key_base64=key).trigger(channel, "said", TEXT)


def program(*command):
    return lambda channel: subprocess.run([*command, str(port), key, channel, TEXT], check=True)


def read(event):
    """The event's data as a subscriber has it before it parses it."""
    channel, data = event["channels"][0], event["data"]
    if not channel.startswith("private-encrypted-"):
        return data
    sealed = json.loads(data)
    secret = hashlib.sha256(channel.encode() + KEY).digest()
    nonce, text = (base64.b64decode(sealed[part]) for part in ("nonce", "ciphertext"))
    return nacl.secret.SecretBox(secret).decrypt(text, nonce).decode()


with open("node_modules/pusher/package.json") as package:
    node = f"pusher {json.load(package)['version']} of Node.js"
changed = False
for name, trigger, encoded_again in [
    (f"pusher {version('pusher')} of Python", python, (False, False)),
    (node, program("node", "trigger.js"), (False, True)),
    ("pusher-http-java 1.3.4", program("java", "-cp", "jars/*", "Trigger.java"), (True, True)),
]:
    for channel, again in zip(("private-room", "private-encrypted-room"), encoded_again):
        trigger(channel)
        data = read(posted.get(timeout=20))
        print(f"{name}, {channel}: {TEXT} is sent as {data}")
        if data != (json.dumps(TEXT) if again else TEXT):
            print("    this has changed")
            changed = True
sys.exit(changed)
PYTHON
./venv/bin/python trigger.py
