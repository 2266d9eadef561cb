"""The options of `velm embed` and `velm caption --output`, and their run."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Literal

from velm.commands.options import at_least_one, folder_path
from velm.errors import ConfigError

__all__ = ["add_bulk", "refuse_bulk_options", "run_bulk"]

PART_SIZE = 5000
_DEFAULTS = {"split": None, "part_size": PART_SIZE, "shard": None, "devices": 1, "verify": False}


def add_bulk(parser: argparse.ArgumentParser, required: bool) -> None:
    """--output, --split, --part_size, --shard, --devices, --verify."""
    group = parser.add_argument_group(
        "bulk",
        "Parts of the input are files of the folder: finished ones are kept, and a run that was killed goes on when it "
        "is started again. Processes of torchrun and SLURM share the parts.",
    )
    group.add_argument(
        "--output", type=folder_path, required=required, metavar="DIR", help="write part-00000.parquet ... to a folder"
    )
    group.add_argument("--split", metavar="NAME", help="split of the dataset, or of the pack (default all its shards)")
    group.add_argument(
        "--part_size",
        type=at_least_one,
        default=PART_SIZE,
        metavar="N",
        help=f"images per part (default {PART_SIZE}); a tar shard is a part",
    )
    group.add_argument("--shard", metavar="I/N", help="this process does shard I of N, counted from 0, such as 0/4")
    group.add_argument(
        "--devices", type=at_least_one, default=1, metavar="N", help="processes on this machine (default 1)"
    )
    group.add_argument("--verify", action="store_true", help="read finished parts and compare their checksums")


def run_bulk(
    command: str, args: argparse.Namespace, writes: Literal["captions", "embeddings"], options: dict[str, Any]
) -> int:
    """Write the parts and print a summary; 0, or 1 if images could not be read, by this run or an earlier one.

    Args:
        command: for messages.
        args: of `add_loading`, `add_bulk`, and `images`.
        writes, options: see `velm.bulk.run.Job`.

    Raises:
        InputError, RunFailedError: see `velm.bulk.run.run`.
    """
    from velm.bulk.ranks import read_shard
    from velm.bulk.run import Job, run

    summary = run(
        Job(
            checkpoint=args.checkpoint,
            sources=tuple(args.images),
            output=args.output,
            writes=writes,
            options=options,
            split=args.split,
            part_size=args.part_size,
            batch_size=args.batch_size,
            share=read_shard(args.shard),
            devices=args.devices,
            device=args.device,
            precision=args.precision,
            image_size=args.image_size,
            plugins=tuple(args.plugins.split(",")) if args.plugins else (),
            seed=args.seed,
            verify=args.verify,
        )
    )
    before = f", {summary.finished_before} of them from an earlier run" if summary.finished_before else ""
    print(f"{summary.images:,} images in {summary.parts} parts of {args.output}{before}")
    if summary.errors:
        print(
            f"velm {command}: {summary.errors:,} images could not be read; the column `error` says why.",
            file=sys.stderr,
        )
    return 1 if summary.errors else 0


def refuse_bulk_options(args: argparse.Namespace) -> None:
    """Raise ConfigError if there is an option of `add_bulk`, but no --output."""
    for name, default in _DEFAULTS.items():
        if getattr(args, name) != default:
            raise ConfigError(f"--{name} is of a run that writes Parquet: give --output DIR, or leave it out.")
