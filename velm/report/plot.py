"""A plot of lines as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from velm.report.curves import LEFT, Points, drawn

__all__ = ["write_plot"]

COLOURS = ("#2f6fde", "#d9822b", "#4a9d5b")
STYLE = (
    "text{font:10px system-ui,sans-serif;fill:#777}.title{font-weight:600;fill:#333}.rule{stroke:#ddd}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}.mark{stroke:none}"
)


def write_plot(path: Path, title: str, lines: Mapping[str, Points], labels: tuple[str, str]) -> None:
    """Write lines over a common axis, with a title and a key.

    Args:
        path: of the .svg.
        title: above the lines.
        lines: by name, at most three.
        labels: of the left and the right end of the horizontal axis.
    """
    height = 174 + 14 * len(lines)
    colours = "".join(
        f".line{n}{{stroke:{colour}}}.mark.line{n},.key{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS)
    )
    keys = "".join(
        f'<rect class="key{n}" x="{LEFT}" y="{182 + 14 * n}" width="12" height="3"/>'
        f'<text x="{LEFT + 18}" y="{187 + 14 * n}">{escape(name)}</text>'
        for n, name in enumerate(lines)
    )
    content = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 {height}" width="640" role="img">'
        f"<style>{STYLE}{colours}</style><rect width='320' height='{height}' fill='#fff'/>"
        f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>'
        f'<g transform="translate(0 20)">{drawn(lines, labels, marks=True)}</g>{keys}</svg>\n'
    )
    path.write_text(content, encoding="utf-8")
