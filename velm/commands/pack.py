"""`velm pack`: a dataset as tar shards, which read fast from any disk and travel well."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from velm.errors import ConfigError, DataError
from velm.registry import datasets, load_plugins, split_config

__all__ = ["main"]

USUAL = ("train", "val", "test")


def main(argv: Sequence[str]) -> int:
    """Run `velm pack`; prints what was written.

    Raises:
        ConfigError, PluginError, DataError: nothing can be packed; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    spec = _spec(args.dataset)
    plugins = args.plugins.split(",") if args.plugins else []
    load_plugins(plugins)
    splits = args.splits.split(",") if args.splits else _splits(spec)

    from velm.data.shards.packing import pack

    manifest = pack(
        spec, args.output, splits=splits, shard_size=args.shard_size, workers=args.workers, plugins=plugins,
        progress=_show_progress if sys.stderr.isatty() else None,
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


def _spec(text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of --dataset is no YAML: {text!r}.") from error
    name, options = split_config(value, "dataset")
    return {"name": name, **options}


def _splits(spec: dict[str, Any]) -> list[str]:
    """The usual splits that can be opened; why another cannot is said, since it may be a fault and not a lack."""
    dataset = datasets.build(spec)
    found = []
    for split in USUAL:
        try:
            dataset.split(split)
            found.append(split)
        except DataError as error:
            print(f"velm pack: the split {split!r} is left out: {error}", file=sys.stderr)
    if not found:
        raise DataError(f"The dataset has none of the splits {', '.join(USUAL)}. Name its own: --splits mine,other.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm pack",
        description="Write a dataset as tar shards with a manifest. An interrupted pack goes on where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, metavar="SPEC", help="'{name: csv, path: captions.csv}'")
    parser.add_argument("--output", required=True, metavar="DIR", help="for DIR/train-00000.tar ..., DIR/manifest.json")
    parser.add_argument("--shard_size", type=int, default=1000, metavar="N", help="samples in a shard (default 1000)")
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help=f"processes (default {cores})")
    parser.add_argument("--splits", metavar="A,B", help="splits to write (default those of train, val, test there are)")
    parser.add_argument(
        "--plugins", metavar="A,B.py", help="modules or .py files whose decorators register the dataset"
    )
    return parser


def _show_progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} shards", end="\n" if done == total else "", file=sys.stderr, flush=True)
