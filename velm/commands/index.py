"""`velm index`: write an index of images, or make it follow their folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.dataset import dataset_changes
from velm.commands.options import add_loading, folder_path, load_pipeline
from velm.data.opening import PREFIX, dataset_config, open_dataset

if TYPE_CHECKING:
    from velm.pipeline import Pipeline
    from velm.search import Index, Updated
    from velm.search.sources import Source

__all__ = ["main"]

SHOWN = 10
"""Maximal number of bad images that are named on stderr."""


def main(argv: Sequence[str]) -> int:
    """Run `velm index`; 0, or 1 if some images could not be read: they are named and kept apart.

    Raises:
        CheckpointError, PipelineError, ConfigError, DataError, SearchError: `velm` prints the message.
    """
    args, changes = _parse(argv)
    from velm.search import Index, update
    from velm.util import progress_bar

    pipeline = load_pipeline(args)
    done = update(
        pipeline,
        _source(args, changes, pipeline),
        args.output,
        checkpoint=_lasting(args.checkpoint),
        image_size=args.image_size,
        batch_size=args.batch_size,
        verify=args.verify,
        compact=args.compact,
        progress=progress_bar("images"),
    )
    index = Index.open(args.output)
    print(f"{len(index):,} images of {args.output}: {_counts(done)}")
    if args.ann is not None:
        _approximate(index, args.ann)
    return _report_bad(done)


def _source(args: argparse.Namespace, changes: Sequence[tuple[str, Any]], pipeline: Pipeline) -> Source:
    """The folder, or the split of the dataset that the second argument, the options or the checkpoint name."""
    from velm.registry import datasets
    from velm.registry.scalars import read_config
    from velm.search.sources import folder_source, records_source
    from velm.search.store import ABOUT, read_about

    place = args.place
    if place is not None and (place.startswith("{") or (place in datasets.names() and not os.path.isdir(place))):
        changes, place = [("", read_config(place, "DATASET")), *changes], None
    if place is not None:
        exclude = args.exclude
        if exclude is None and (args.output / ABOUT).is_file():
            exclude = read_about(args.output)["exclude"]
        return folder_source(place, exclude or ())
    dataset = open_dataset(args.checkpoint, pipeline.data, changes)
    config = dataset_config(pipeline.data.get("dataset"), changes)
    return records_source(dataset.split(args.split), {"dataset": config, "split": args.split})


def _lasting(checkpoint: str) -> str:
    """The checkpoint as `velm search` finds it from any folder: an absolute path, or a name that is no path."""
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.exists() else checkpoint


def _counts(done: Updated) -> str:
    names = ("added", "changed", "renamed", "deleted", "unchanged")
    counts = ", ".join(f"{getattr(done, name):,} {name}" for name in names)
    return counts + (", compacted" if done.compacted else "")


def _approximate(index: Index, kind: str) -> None:
    """Write the approximate index, and print what it finds of exact search."""
    from velm.search.approximate import build
    from velm.search.recall import NEAREST, QUERIES, recall_of

    build(index.folder, kind, index.about, index.vectors)
    recall = recall_of(index, kind)
    print(
        f"{kind}: recall@{NEAREST} against exact search {recall:.3f}, on {min(QUERIES, len(index))} of its own images"
    )


def _report_bad(done: Updated) -> int:
    """Name bad images and folders on stderr; return the exit code."""
    for path, reason in [*done.unreadable.items(), *done.bad.items()][:SHOWN]:
        print(f"velm index: {path}: {reason}", file=sys.stderr)
    if done.unreadable:
        print(f"velm index: {len(done.unreadable)} folders cannot be listed; their rows are kept", file=sys.stderr)
    if done.bad:
        print(f"velm index: {len(done.bad):,} images cannot be read and are never found", file=sys.stderr)
    return 1 if done.bad or done.unreadable else 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The options, and the changes to the dataset in their order."""
    rest, changes = dataset_changes(argv)
    return _parser().parse_args(rest), changes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm index",
        description="Write an index of images for `velm search`. Called again, it reads what is new or has changed, "
        "recognises renamed files, and forgets deleted ones; an interrupted call is continued.",
        epilog=f"Without FOLDER: the dataset of the training, which {PREFIX}... changes.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.set_defaults(seed=None)
    parser.add_argument(
        "place", metavar="FOLDER|DATASET", nargs="?", help="a folder of images, or '{name: csv, path: captions.csv}'"
    )
    parser.add_argument("--output", type=folder_path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--split", default="test", help="of the dataset (default test)")
    parser.add_argument(
        "--exclude",
        action="append",
        metavar="PATTERN",
        help="names or paths to leave out: thumbs, '*.gif', 'trips/*/raw'; repeatable (default: as the last time)",
    )
    parser.add_argument("--verify", action="store_true", help="hash every file, also those of the same size and time")
    parser.add_argument("--compact", action="store_true", help="write the index again without deleted rows")
    parser.add_argument(
        "--ann", choices=["hnsw", "ivfpq"], help="also an approximate index, for millions of images (needs faiss)"
    )
    return parser
