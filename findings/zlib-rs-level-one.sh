#!/usr/bin/env bash
# Guess: a port of zlib makes the same of a text at the same level: zlib-rs at level 1 saves what zlib saves at level 1.
# Found: on JSON of some 1.6 KB zlib-rs 0.6.8 saves clearly less at level 1, since its level 1 is zlib-ng's quick
# strategy. Its level 2 is about zlib's level 1. Who counts on a ratio has to choose the level anew.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cargo --version
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "levels"
version = "0.0.0"
edition = "2021"
[dependencies]
flate2 = { version = "=1.1.11", default-features = false, features = ["zlib-rs"] }
zlib-rs = "=0.6.8"
TOML
cat >src/main.rs <<'RUST'
use std::io::{Read, Write};
fn main() {
    let level = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).unwrap();
    let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
    out.write_all(&text).unwrap();
    println!("{}", out.finish().unwrap().len());
}
RUST
cargo build --quiet --release
python3 - >order.json <<'PYTHON'
import json
items = [{"id": 7000 + n, "sku": f"SKU-{n * 37 % 1000:04}", "name": f"Article {n}", "quantity": n % 4 + 1,
          "price": {"amount": 1999 + 450 * n, "currency": "EUR"}, "tax": 19} for n in range(9)]
order = {"id": 48213, "status": "paid", "customer": {"id": 911, "name": "A. Customer", "email": "customer@example.test"},
         "address": {"street": "1 Example Street", "city": "Exampletown", "country": "DE"}, "items": items}
print(json.dumps({"event": "OrderUpdated", "channel": "private-orders.48213", "data": json.dumps(order)}), end="")
PYTHON
plain=$(wc -c <order.json)
echo "plain: $plain bytes"
size() { ./target/release/levels "$1" <order.json; }
zlib() { python3 -c 'import sys, zlib; c = zlib.compressobj(int(sys.argv[1]), zlib.DEFLATED, -15); d = sys.stdin.buffer.read(); print(len(c.compress(d) + c.flush()))' "$1" <order.json; }
python3 -c 'import zlib; print("zlib", zlib.ZLIB_RUNTIME_VERSION)'
one=$(size 1) two=$(size 2) reference=$(zlib 1)
echo "zlib level 1: $reference bytes; zlib-rs 0.6.8 level 1: $one, level 2: $two"
(( one > reference * 115 / 100 )) || { echo 'this has changed: level 1 is no longer clearly larger'; exit 1; }
(( two < reference * 110 / 100 )) || { echo 'this has changed: level 2 is no longer about as small'; exit 1; }
