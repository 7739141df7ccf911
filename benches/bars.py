#!/usr/bin/env python3
"""Draws the bar chart at the top of docs/benchmarks.md from the table of figures there.

Run without arguments it writes docs/benchmarks/bars.svg; with --check it fails if that is not what the table says."""

import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGE, CHART = DOCS / "benchmarks.md", DOCS / "benchmarks" / "bars.svg"

# The row's first words, what people call it, and its unit.
ROWS = (
    ("fan-out, calm:", "An event reaches one of 1,000 clients", "µs of CPU"),
    ("fan-out as fast as it goes: CPU", "The same, as fast as it goes", "µs of CPU"),
    ("100 channels × 10:", "500 events a second to 10 clients each", "µs of CPU"),
    ("publishing one event:", "A backend publishes one event", "µs of CPU"),
    ("connect and subscribe:", "A client connects and subscribes", "µs of CPU"),
    ("idle: bytes", "A client that is connected and quiet", "bytes"),
)
SERVERS = ("Fanfare", "Soketi 1.6.1", "Sockudo 5.2.0")
COLOURS = ("#0072b2", "#999", "#ccc")
LEFT, WIDTH, BAR, GAP, TOP = 268, 380, 11, 16, 58


def table():
    """The figures by row and server."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head = next(row for row in cells if all(server in row for server in SERVERS))
    figures = {}
    for words, name, unit in ROWS:
        row = next(row for row in cells if row[0].startswith(words) and len(row) == len(head))
        figures[name, unit] = [row[head.index(server)] for server in SERVERS]
    return figures


def number(text):
    return float(re.sub(r"[ ,]", "", text))


def draw(figures):
    height = TOP + len(figures) * (len(SERVERS) * BAR + GAP) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" font-size="12">',
        "<title>What one of each costs: shorter is better</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<text x="16" y="24" font-size="15" font-weight="bold">What one of each costs: shorter is better</text>',
    ]
    for index, (server, colour) in enumerate(zip(SERVERS, COLOURS)):
        x = LEFT + index * 130
        out.append(f'<rect x="{x}" y="36" width="11" height="11" fill="{colour}"/>')
        out.append(f'<text x="{x + 16}" y="46">{server}</text>')
    y = TOP
    for (name, unit), texts in figures.items():
        most = max(map(number, texts))
        out.append(f'<text x="{LEFT - 8}" y="{y + 21}" text-anchor="end">{name}</text>')
        for text, colour in zip(texts, COLOURS):
            width = max(WIDTH * number(text) / most, 1)
            out.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>')
            shown = f"{text} {unit}" if colour == COLOURS[0] else text
            out.append(f'<text x="{LEFT + width + 5:.1f}" y="{y + 9}" font-size="10">{shown}</text>')
            y += BAR
        y += GAP
    return "\n".join(out + ["</svg>", ""])


def main():
    chart = draw(table())
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if CHART.read_text(encoding="utf-8") == chart else f"{CHART} is not what the table says")
    CHART.write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
