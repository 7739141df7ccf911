#!/usr/bin/env bash
# Guess: `promtool check metrics`, made to lint a page of metrics in CI, refuses what the text format forbids: a series that is
# there twice, a metric in two places, a histogram whose buckets fall, that has none for +Inf, or another number in it than
# in `_count`.
# Found: promtool 2.42.0 (Debian 12) says nothing to any of these and exits with 0; with two different values for one series
# it keeps quiet too. It looks at names and texts, and at the syntax of lines: that a page is sound has to be tested elsewhere.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get update -qq >/dev/null
apt-get download -qq -o APT::Sandbox::User=root prometheus=2.42.0+ds-5+deb12u1 >/dev/null
dpkg-deb -x prometheus_*.deb .
./usr/bin/promtool --version 2>&1 | head -1
cat >check.py <<'PYTHON'
import subprocess
import sys

HISTOGRAM = """# HELP wait_seconds How long.
# TYPE wait_seconds histogram
{buckets}wait_seconds_sum 7
wait_seconds_count 4
"""
GAUGES = "# HELP {0}_sockets How many.\n# TYPE {0}_sockets gauge\n"
PAGES = {
    "a sound page": (0, HISTOGRAM.format(buckets='wait_seconds_bucket{le="1"} 3\nwait_seconds_bucket{le="+Inf"} 4\n')),
    "a counter without _total": (3, "# HELP events How many.\n# TYPE events counter\nevents 1\n"),
    "a second HELP": (1, (GAUGES.format("open") + 'open_sockets{app="a"} 1\n') + (
        GAUGES.format("open") + 'open_sockets{app="b"} 1\n')),
    "a series twice": (0, GAUGES.format("open") + "open_sockets 1\nopen_sockets 2\n"),
    "a metric in two places": (0, GAUGES.format("open") + 'open_sockets{app="a"} 1\n' + GAUGES.format("lost")
                               + 'lost_sockets 1\nopen_sockets{app="b"} 1\n'),
    "buckets that fall": (0, HISTOGRAM.format(
        buckets='wait_seconds_bucket{le="1"} 3\nwait_seconds_bucket{le="2"} 1\nwait_seconds_bucket{le="+Inf"} 4\n')),
    "no bucket for +Inf": (0, HISTOGRAM.format(buckets='wait_seconds_bucket{le="1"} 3\n')),
    "+Inf other than _count": (0, HISTOGRAM.format(
        buckets='wait_seconds_bucket{le="1"} 3\nwait_seconds_bucket{le="+Inf"} 9\n')),
}
changed = False
for name, (expected, page) in PAGES.items():
    told = subprocess.run(["usr/bin/promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    print(f"{name}: exits with {told.returncode}: {(told.stdout + told.stderr).strip() or 'nothing said'}")
    if told.returncode != expected:
        print(f"    this has changed: it was {expected}")
        changed = True
sys.exit(changed)
PYTHON
python3 check.py
