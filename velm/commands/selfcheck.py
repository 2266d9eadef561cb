"""`velm selfcheck`: hold laws of training, decoding and checkpoints against a config, on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm selfcheck`: 0 every check passed or was skipped, 1 one failed."""
    args, rest = _parser().parse_known_args(argv)
    from velm.doctor.laws import CHECKS, run_checks
    from velm.doctor.laws.outcome import as_dict, table
    from velm.training.run import parse_fit

    outcomes = list(run_checks(parse_fit(rest), args.only or tuple(CHECKS)))
    told = as_dict(outcomes)
    print(json.dumps(told, indent=2, ensure_ascii=False) if args.json else table(outcomes))
    return 0 if told["passed"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm selfcheck",
        usage="velm selfcheck --config X.yaml [options of velm fit] [--only CHECK] [--json]",
        description="Hold VELM's laws against a config, on the CPU of this machine: gradients of one process and of "
        "two, of pieces and of the whole batch; decoding with and without a cache; a run stopped and gone on; a "
        "checkpoint written and read. Nothing is left behind.",
        epilog="Every option of `velm fit` is taken as `velm fit` takes it. The exit code is 0 where all checks pass "
        "or do not apply, 1 where one fails, 2 where the config cannot be trained.",
        allow_abbrev=False,
    )
    names = ("processes", "micro_batch", "decoding", "resume", "checkpoint")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="CHECK", help=f"of {', '.join(names)}; again for more"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser
