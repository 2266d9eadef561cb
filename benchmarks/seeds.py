"""Metrics of one recipe over several seeds, with intervals; or what one recipe gains over another, seed by seed.

    python -m benchmarks.seeds runs/seed0/evaluation runs/seed1/evaluation runs/seed2/evaluation
    python -m benchmarks.seeds runs/seed?/evaluation --base runs/seed?/five_beams --metrics caption/cider caption/bleu4

The arguments are folders of `velm evaluate`, of the same split. An interval is of 95%, by a bootstrap of two levels: a
draw has seeds and images, drawn with replacement (Efron and Tibshirani 1993). Of three seeds it says little beyond the
images: the figures of each are printed beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.joint import interval
from velm.comparison.evaluations import paired_draws

METRICS = [
    *(f"{side}/recall@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "caption/bleu4",
    "caption/cider",
]


def table(folders: Sequence[Path], base: Sequence[Path], metrics: Sequence[str]) -> str:
    """Markdown: of each metric that all evaluations have its mean, interval and values; with `base`, of the gain.

    Raises:
        SystemExit: `base` has not as many folders, a metric of all evaluations cannot be paired, or they share none.
        ComparisonError: an evaluation cannot be read.
    """
    if base and len(base) != len(folders):
        raise SystemExit(f"{len(folders)} evaluations and {len(base)} of --base; give one of each seed, in one order.")
    firsts = base or folders
    pairs = [paired_draws(first, second) for first, second in zip(firsts, folders, strict=True)]
    draws = [drawn for drawn, _ in pairs]
    notes = [f"{folder}: {note}" for folder, (_, found) in zip(folders, pairs, strict=True) for note in found]
    values = [(_metrics(first), _metrics(second)) for first, second in zip(firsts, folders, strict=True)]
    head = "| metric | base | mean | gain | 95% interval | of each seed |" if base else (
        "| metric | mean | 95% interval | of each seed |"
    )  # fmt: skip
    lines = [head, "| --- " * head.count(" |") + "|"]
    given = [name for name in metrics if all(name in each for pair in values for each in pair)]
    shared = [name for name in given if all(name in each for pair in draws for each in pair)]
    if notes and shared != given:
        raise SystemExit("\n".join(notes))
    if not shared:
        raise SystemExit("The evaluations share none of the metrics: choose others by --metrics.")
    for note in notes:
        print(note, file=sys.stderr)
    for name in shared:
        before, after = (np.array([pair[index][name] for pair in values]) for index in (0, 1))
        low, high = interval([pair[1][name] - (pair[0][name] if base else 0) for pair in draws])
        if base:
            each = ", ".join(f"{gain:+.3f}" for gain in after - before)
            means = f"{before.mean():.3f} | {after.mean():.3f} | {(after - before).mean():+.3f}"
            lines.append(f"| {name} | {means} | {low:+.3f} to {high:+.3f} | {each} |")
        else:
            each = ", ".join(f"{value:.3f}" for value in after)
            lines.append(f"| {name} | {after.mean():.3f} | {low:.3f} to {high:.3f} | {each} |")
    return "\n".join(lines)


def _metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders of velm evaluate, one of each seed")
    parser.add_argument("--base", type=Path, nargs="+", default=[], help="those of another recipe, in the same order")
    parser.add_argument("--metrics", nargs="+", default=METRICS, help="names in metrics.json")
    args = parser.parse_args(arguments)
    print(table(args.evaluations, args.base, args.metrics))


if __name__ == "__main__":
    main()
