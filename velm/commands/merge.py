"""`velm merge`: a checkpoint with adapters, or without its base, as an ordinary one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from velm.commands.options import folder_path

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm merge`; prints what was written.

    Raises:
        CheckpointError: a file cannot be used, or the base is another than that of the training.
    """
    args = _parser().parse_args(argv)
    from velm.checkpoint import merge, read_checkpoint, write_checkpoint
    from velm.sources import open_weights

    checkpoint = read_checkpoint(args.checkpoint, open_base=lambda source: open_weights(args.base or source))
    parts = ", ".join(checkpoint.config.get("adapt") or {})
    write_checkpoint(merge(checkpoint), args.output)
    what = f"The adapters of {parts} are merged" if parts else f"{args.checkpoint} has no adapters and is complete now"
    print(f"{what}: {args.output}, {args.output.stat().st_size / 1e6:.1f} MB.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm merge",
        description="Merge LoRA or DoRA adapters into the weights, in float32, and write a complete checkpoint, which "
        "needs neither peft nor the base.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt of a run with model.adapt")
    parser.add_argument("--output", type=folder_path, required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument(
        "--base",
        metavar="SOURCE",
        help="the base of a file written with save: adapters, if it is not where it was in training",
    )
    return parser
