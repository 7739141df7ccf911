#!/usr/bin/env bash
# Guess: laravel-echo's build for script tags (dist/echo.iife.js) defines the class `Echo` in all of 2.x, as in 1.x, so
# that a page may say `new Echo({…})` whichever 2.x it loads.
# Found: 2.0.2 does. From 2.1.0 on `Echo` is an object with the class as `Echo.default`, and `new Echo()` throws.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
node --version
found=
for version in 1.19.0 2.0.2 2.1.0 2.5.0; do
    npm pack --silent "laravel-echo@$version" >/dev/null
    mkdir "$version"
    tar xzf "laravel-echo-$version.tgz" -C "$version"
    kind=$(node -e '
        const vm = require("node:vm");
        const page = vm.createContext({});
        const script = require("node:fs").readFileSync(process.argv[1], "utf8");
        vm.runInContext(`${script}\nglobalThis.seen = Echo;`, page);
        let made = "cannot be made with new";
        try { new page.seen({ broadcaster: "null" }); made = "is a class"; } catch (error) { made += ` (${error.message})`; }
        console.log(`${typeof page.seen}, default: ${typeof page.seen.default}, ${made}`);
    ' "$version/package/dist/echo.iife.js")
    echo "laravel-echo $version: Echo is a(n) $kind"
    found+="$version ${kind%%,*};"
done
[[ $found == '1.19.0 function;2.0.2 function;2.1.0 object;2.5.0 object;' ]] || { echo "this has changed: $found"; exit 1; }
