"""`velm embed`: the embeddings of images, written as Parquet parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from velm.commands.bulk import add_bulk, run_bulk
from velm.commands.options import add_loading

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm embed`; 0, or 1 if some images could not be read.

    Raises:
        InputError, RunFailedError: see `velm.bulk.run.run`; `velm` prints the message.
    """
    args = _parser().parse_intermixed_args(argv)
    args.seed = None
    return run_bulk("embed", args, "embeddings", {"dtype": args.dtype})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm embed",
        description="Write the joint embeddings of images, L2-normalised, as Parquet: columns part, row, id, embedding "
        "and error.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="folders of images, images, tar shards, folders of shards, or '{name: ...}', the config of a dataset",
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="of the numbers; Spark reads no float16 (default float16)",
    )
    add_bulk(parser, required=True)
    return parser
