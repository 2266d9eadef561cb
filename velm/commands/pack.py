"""`velm pack`: write a dataset as tar shards, which are fast to read and easy to copy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from velm.errors import DataError
from velm.registry import datasets, load_plugins, split_config
from velm.registry.locate import locate
from velm.registry.scalars import read_config
from velm.util import progress_bar

__all__ = ["main"]

DEFAULT_SPLITS = ("train", "val", "test")


def main(argv: Sequence[str]) -> int:
    """Run `velm pack`; prints what was written.

    Raises:
        ConfigError, PluginError, DataError: nothing can be packed.
    """
    args = _parser().parse_args(argv)
    config = dataset_config(args.dataset)
    plugins = args.plugins.split(",") if args.plugins else []
    load_plugins(plugins)
    splits = args.splits.split(",") if args.splits else _splits(config)

    from velm.data.shards.packing import pack

    manifest = pack(
        config, args.output, splits=splits, shard_size=args.shard_size, workers=args.workers, plugins=plugins,
        progress=progress_bar("shards"),
    )  # fmt: skip
    for split in splits:
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        samples, size = (sum(shard[key] for shard in shards) for key in ("samples", "bytes"))
        print(f"{split:<6} {samples} samples in {len(shards)} shards, {size / 1e6:.1f} MB")
    left_out = [each for shard in manifest["shards"] for each in shard["left_out"]]
    if left_out:
        print(f"{len(left_out)} records are left out, see manifest.json; the first: {left_out[0]['cause']}")
    print(f"\nRead it: dataset: {{name: webdataset, path: {args.output}}}")
    return 0


def dataset_config(text: str) -> dict[str, Any]:
    name, options = split_config(read_config(text, "--dataset"), "dataset")
    config: dict[str, Any] = locate({"name": name, **options}, [])
    return config


def _splits(config: dict[str, Any]) -> list[str]:
    """Those of train, val and test that can be opened; prints why the others cannot."""
    dataset = datasets.build(config)
    available = []
    for split in DEFAULT_SPLITS:
        try:
            dataset.split(split)
            available.append(split)
        except DataError as error:
            print(f"velm pack: the split {split!r} is left out: {error}", file=sys.stderr)
    if not available:
        raise DataError(
            f"The dataset has none of the splits {', '.join(DEFAULT_SPLITS)}. Name its own: --splits mine,other."
        )
    return available


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm pack",
        description="Write a dataset as tar shards with a manifest. An interrupted pack resumes where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, metavar="SPEC", help="'{name: csv, path: captions.csv}'")
    parser.add_argument(
        "--output",
        type=os.path.expanduser,
        required=True,
        metavar="DIR",
        help="for DIR/train-00000.tar ..., DIR/manifest.json",
    )
    parser.add_argument("--shard_size", type=int, default=1000, metavar="N", help="samples in a shard (default 1000)")
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"processes (default {cores})")
    parser.add_argument("--splits", metavar="A,B", help="splits to write (default those of train, val, test there are)")
    parser.add_argument(
        "--plugins", metavar="A,B.py", help="modules or .py files whose decorators register the dataset"
    )
    return parser
