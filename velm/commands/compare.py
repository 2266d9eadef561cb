"""`velm compare`: runs side by side, in the terminal, as JSON or as a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from velm.comparison.evaluations import evaluation_pairs
from velm.comparison.metrics import HEADLINE, metric_names
from velm.comparison.page import render
from velm.comparison.runs import config_differences, read_runs
from velm.comparison.text import as_data, as_text

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm compare`.

    Raises:
        ComparisonError: a folder is no run, or there is nothing to compare; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    runs = read_runs(args.runs)
    names = metric_names(runs, args.metrics or HEADLINE)
    content = (runs, config_differences(runs), names, evaluation_pairs(runs))
    print(json.dumps(as_data(*content), indent=2, ensure_ascii=False, default=str) if args.json else as_text(*content))
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(render(*content), encoding="utf-8", errors="replace")
        if not args.json:
            print(f"\nPage: {args.html}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm compare",
        description="What differs in the configs of runs, the best and last value of their metrics, their curves, and "
        "the differences of evaluations that they have under one name (RUN/evaluation).",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, with metrics.csv and config.yaml")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show; patterns like 'val/*' (quoted)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the curves of the runs overlaid")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
