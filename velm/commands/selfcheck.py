"""`velm selfcheck`: check laws of training, decoding and checkpoints for a config, on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

__all__ = ["main"]

CHECKS = ("processes", "micro_batch", "decoding", "resume", "checkpoint")


def main(argv: Sequence[str]) -> int:
    """Run `velm selfcheck`: 0 if every check passed or was skipped, 1 if one failed."""
    args, rest = _parser().parse_known_args(argv)
    from velm.doctor.laws import run_checks
    from velm.findings import as_dict, table
    from velm.training.run import parse_fit

    findings = list(run_checks(parse_fit(rest), args.only or CHECKS))
    code = int(any(finding.severity == "error" for finding in findings))
    print(json.dumps(as_dict(findings, code), indent=2, ensure_ascii=False) if args.json else table(findings))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm selfcheck",
        usage="velm selfcheck --config X.yaml [options of velm fit] [--only CHECK] [--json]",
        description="Check laws of training for a config, on the CPU of this machine: gradients of one process and of "
        "two, of micro-batches and of the whole batch; decoding with and without a cache; a resumed run; a checkpoint "
        "saved and loaded. Nothing is left behind.",
        epilog="Takes every option of `velm fit`. Exit code: 0 if all checks pass or do not apply, 1 if one fails, 2 "
        "if the config cannot be trained.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", action="append", choices=CHECKS, metavar="CHECK", help=f"{', '.join(CHECKS)}; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser
