#!/usr/bin/env bash
# Guess: a secret in an app's `.env` is the same to all that read the file: a `#` opens a comment only after a blank, and
# what has special characters is safe in double quotes.
# Found: unquoted, a `#` inside the value ends it for Node.js (`--env-file`) and its dotenv, and is part of it for Python's,
# Go's and Docker Compose's. In double quotes `$name` is a variable to Compose, `${name}` to Python too, and Go's drops a
# backslash. Server and backend then sign with two secrets. Single quotes mean the same to all but Python's, to which
# `${name}` is a variable there too.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit --prefix . dotenv@18.0.10 >/dev/null
python3 -m venv venv
venv/bin/pip --quiet --disable-pip-version-check install python-dotenv==1.2.4
export GOPATH=$folder/path GOFLAGS='-modcacherw -mod=mod' GOTOOLCHAIN=local
cat >go.mod <<'MOD'
module finding

go 1.24

require (
	github.com/compose-spec/compose-go/v2 v2.9.0
	github.com/joho/godotenv v1.5.1
)
MOD
cat >.env <<'ENV'
PLAIN_HASH=ab#cd
PLAIN_DOLLAR=ab$cd
DOUBLE_HASH="ab#cd"
DOUBLE_DOLLAR="ab$cd"
DOUBLE_BRACES="ab${cd}ef"
DOUBLE_BACKSLASH="ab\cd"
SINGLE_HASH='ab#cd'
SINGLE_DOLLAR='ab$cd'
SINGLE_BRACES='ab${cd}ef'
SINGLE_BACKSLASH='ab\cd'
ENV
cat >main.go <<'GO'
package main

import (
	"encoding/json"
	"fmt"
	"os"

	compose "github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/joho/godotenv"
)

func tell(name string, values map[string]string, err error) {
	if err != nil {
		panic(err)
	}
	text, _ := json.Marshal(values)
	fmt.Printf("%s\t%s\n", name, text)
}

func main() {
	values, err := godotenv.Read(".env")
	tell("godotenv 1.5.1", values, err)
	file, err := os.Open(".env")
	if err != nil {
		panic(err)
	}
	values, err = compose.Parse(file)
	tell("compose-go 2.9.0", values, err)
}
GO
cat >readers.js <<'JS'
const { readFileSync } = require("node:fs");
const values = require("dotenv").parse(readFileSync(".env"));
const own = Object.fromEntries(Object.keys(values).map((name) => [name, process.env[name]]));
console.log(`dotenv 18.0.10\t${JSON.stringify(values)}`);
console.log(`node ${process.version}\t${JSON.stringify(own)}`);
JS
cat >readers.py <<'PYTHON'
import json

import dotenv

print("python-dotenv 1.2.4", json.dumps(dotenv.dotenv_values(".env")), sep="\t")
PYTHON
cat >compare.py <<'PYTHON'
import json
import sys

# What each is written to be, and whether all readers take it for that.
MEANT = {
    "PLAIN_HASH": ("ab#cd", False), "PLAIN_DOLLAR": ("ab$cd", False),
    "DOUBLE_HASH": ("ab#cd", True), "DOUBLE_DOLLAR": ("ab$cd", False),
    "DOUBLE_BRACES": ("ab${cd}ef", False), "DOUBLE_BACKSLASH": (r"ab\cd", False),
    "SINGLE_HASH": ("ab#cd", True), "SINGLE_DOLLAR": ("ab$cd", True),
    "SINGLE_BRACES": ("ab${cd}ef", False), "SINGLE_BACKSLASH": (r"ab\cd", True),
}
readers = {name: json.loads(values) for name, values in (line.rstrip("\n").split("\t") for line in sys.stdin)}
assert len(readers) == 5, readers
print("readers:", ", ".join(readers))
lines = dict(line.rstrip("\n").split("=", 1) for line in open(".env"))
changed = False
for name, (meant, alike) in MEANT.items():
    others = {reader: values[name] for reader, values in readers.items() if values[name] != meant}
    said = ", ".join(f"{value} to {reader}" for reader, value in others.items()) or "the same to all"
    print(f"{lines[name]:14} {said}")
    if alike == bool(others):
        print("    this has changed")
        changed = True
sys.exit(changed)
PYTHON
go build -o readers .
{ ./readers 2>/dev/null; node --env-file=.env readers.js; venv/bin/python readers.py; } | python3 compare.py
