"""`velm doctor`: check data and config before training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from velm.commands.options import at_least_one
from velm.util import progress_bar

__all__ = ["main"]

IMAGES = 20_000


def main(argv: Sequence[str]) -> int:
    """Run `velm doctor`: 0 without warnings and errors, 1 with warnings, 2 with errors."""
    args, rest = _parser().parse_known_args(argv)
    from velm.doctor.examine import examine
    from velm.findings import as_dict, exit_code, table
    from velm.training.run import parse_fit

    findings = examine(parse_fit(rest), images=args.pictures, progress=progress_bar("images"))
    code = exit_code(findings)
    print(json.dumps(as_dict(findings, code), indent=2, ensure_ascii=False) if args.json else table(findings))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm doctor",
        usage="velm doctor --config X.yaml [options of velm fit] [--pictures N] [--json]",
        description="Check data and config before training. Nothing is trained, nothing is written.",
        epilog="Takes every option of `velm fit`. Exit code: 0 without warnings and errors, 1 with warnings, 2 with "
        "errors.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pictures", type=at_least_one, default=IMAGES, metavar="N", help=f"images to decode (default {IMAGES:,})"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser
