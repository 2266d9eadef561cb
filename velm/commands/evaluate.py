"""`velm evaluate`: metrics of a checkpoint on a split, all its captions, and an HTML report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.options import add_extras, add_loading, add_writing, extras_of, folder_path, load_pipeline, writing
from velm.data.base import Dataset
from velm.errors import ConfigError
from velm.registry import datasets, split_config
from velm.registry.locate import locate, name_places
from velm.registry.scalars import read_config, read_value

if TYPE_CHECKING:
    from velm.data.bad_samples import BadSample
    from velm.pipeline import Pipeline

__all__ = ["dataset_config", "main"]

_PREFIX = "--data.dataset"
LEVELS = 4
"""Folders above a checkpoint in which its data is looked for: runs/NAME/last.ckpt lies two below the project."""
SHOWN = 10
"""Maximal number of unreadable images that are named on stderr."""


def main(argv: Sequence[str]) -> int:
    """Run `velm evaluate`: prints a table, writes metrics.json, captions.jsonl, report.html and intervals.json.

    Returns:
        0, or 1 if images could not be read: unreadable.jsonl names them, the metrics are of the others.

    Raises:
        CheckpointError, PipelineError, ConfigError, DataError: nothing can be evaluated; `velm` prints the message.
    """
    args, changes = _parse(argv)
    from velm.evaluation.evaluate import measure_all
    from velm.report.report import evaluated_model, write_report
    from velm.report.results import write_results
    from velm.report.thumbnails import count_images

    pipelines = [_load(args, path) for path in (args.checkpoint, args.compare) if path is not None]
    dataset = open_dataset(args.checkpoint, pipelines[0].data, changes)
    dataset.max_bad = _max_bad(args, pipelines[0])
    evaluations, unreadable = measure_all(
        pipelines,
        dataset.split(args.split),
        batch_size=args.batch_size,
        texts_per_image=args.texts_per_image,
        rerank=args.rerank,
        extras=extras_of(args, dataset),
        tokenize=args.tokenize,
        max_bad=dataset.max_bad,
        attention=True,
        show_progress=True,
        **writing(args),
    )
    first = evaluations[0]
    write_results(args.output, first, unreadable)
    models = [evaluated_model(*each) for each in zip((args.checkpoint, args.compare), evaluations, strict=False)]
    resize, causes = pipelines[0].transform.resize, [sample.cause for sample in unreadable]
    write_report(args.output, models, first.records, split=args.split, resize=resize, unreadable=causes)
    print(_table(first.metrics | first.signature))
    retrieval = first.predictions.retrieval
    texts = "" if retrieval is None else f" and {len(retrieval.texts)} texts"
    print(f"\n{count_images(first.records)}{texts} of the split {args.split!r}; results are in {args.output}")
    print(f"Report: {args.output / 'report.html'}")
    return _report_unreadable(unreadable, args.output / "unreadable.jsonl")


def open_dataset(checkpoint: str, data: Mapping[str, Any], changes: Sequence[tuple[str, Any]]) -> Dataset:
    """The dataset of a checkpoint, changed by the command line.

    Its paths start from the working folder; those that are not there are looked for in the folder of the training, and
    in the folders above the checkpoint: a project that was moved as a whole is found.

    Args:
        checkpoint: the file.
        data: the data config in it.
        changes: see `dataset_config`.

    Raises:
        ConfigError, DataError: it cannot be opened; the message says where was looked and which option names a place.
    """
    above = list(Path(checkpoint).expanduser().resolve().parents)[:LEVELS]
    origin = data.get("folder")
    folders = [*([origin] if origin else []), *map(str, above)]
    config = locate(dataset_config(data.get("dataset"), changes), folders, origin)
    with name_places(config, folders, _PREFIX):
        dataset: Dataset = datasets.build(config)
    return dataset


def _load(args: argparse.Namespace, checkpoint: str) -> Pipeline:
    """The pipeline of a checkpoint, after checks of the options that need no data."""
    pipeline = load_pipeline(argparse.Namespace(**{**vars(args), "checkpoint": checkpoint}))
    if pipeline.writes:
        pipeline.generation_config(**writing(args))
    if args.tokenize is not None:
        from velm.metrics.tokenization import tokenize_by

        tokenize_by(args.tokenize)
    if args.rerank is not None:
        from velm.evaluation.reranking import check_rerank

        check_rerank(pipeline, args.rerank)
    return pipeline


def _max_bad(args: argparse.Namespace, pipeline: Pipeline) -> float:
    """The fraction of the data that may be bad: the option, else that of training, else the dataset's default."""
    max_bad = pipeline.data.get("max_bad", Dataset.max_bad) if args.max_bad is None else args.max_bad
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"data.max_bad is a fraction of the data, between 0 and 1; got {max_bad}.")
    return float(max_bad)


def _report_unreadable(unreadable: Sequence[BadSample], path: Path) -> int:
    """Name unreadable images on stderr; return the exit code."""
    for sample in unreadable[:SHOWN]:
        print(f"velm evaluate: {sample.cause}", file=sys.stderr)
    if unreadable:
        count = f"{len(unreadable):,} image{'s are' if len(unreadable) > 1 else ' is'} left out of all metrics"
        print(f"velm evaluate: {count}; see {path}", file=sys.stderr)
    return 1 if unreadable else 0


def dataset_config(stored: Any, changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The config of the dataset: the one of the checkpoint, changed by the command line in the order of its options.

    Args:
        stored: the dataset's config in the checkpoint; None if it has none.
        changes: (path below `data.dataset`, value); an empty path sets the whole config. A name other than the stored
            one starts a new config, because options of one dataset mean nothing to another.

    Raises:
        ConfigError: there is neither a stored config nor one on the command line, or a path leads into a plain value.
    """
    config: dict[str, Any] = {}
    if stored:
        name, options = split_config(stored, "dataset")
        config = {"name": name, **options}
    for path, value in changes:
        if not path or (path == "name" and value != config.get("name")):
            name, options = split_config(value, "dataset")
            config = {"name": name, **options}
            continue
        *outer, last = path.split(".")
        level = config
        for key in outer:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{_PREFIX}.{path}: {key!r} is {level!r}, which has no parts.")
        level[last] = value
    if "name" not in config:
        raise ConfigError(f"The checkpoint stores no dataset. Name one: {_PREFIX} '{{name: csv, path: captions.csv}}'.")
    return config


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The options, and the changes to the dataset in their order."""
    rest, changes = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument != _PREFIX and not argument.startswith((f"{_PREFIX}.", f"{_PREFIX}=")):
            rest.append(argument)
            continue
        key, equals, text = argument.partition("=")
        value = text if equals else next(arguments, None)
        if value is None:
            raise ConfigError(f"{key} needs a value, e.g. {_PREFIX}.path=captions.csv.")
        path = key.removeprefix(_PREFIX).lstrip(".")
        changes.append((path, read_value(value) if path else read_config(value, key)))
    return _parser().parse_args(rest), changes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm evaluate",
        description="Recall in both directions, BLEU, ROUGE-L, CIDEr-D and exact match of a checkpoint on a split.",
        epilog=f"The default dataset is that of training. Another: {_PREFIX} '{{name: csv, path: captions.csv}}'; "
        f"another option of it: {_PREFIX}.path=captions.csv.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument("--split", default="test", help="split of the dataset (default test)")
    parser.add_argument(
        "--output", type=folder_path, required=True, metavar="DIR", help="for metrics.json, report.html ..."
    )
    parser.add_argument("--compare", metavar="CHECKPOINT", help="second checkpoint, to compare in the report")
    parser.add_argument(
        "--texts_per_image",
        type=int,
        metavar="K",
        help="captions of an image, the first ones, in the retrieval gallery (default all)",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="K",
        help="also: retrieval with the K nearest candidates reordered by the captioner's likelihood",
    )
    parser.add_argument(
        "--data.max_bad",
        dest="max_bad",
        type=float,
        metavar="X",
        help="fraction of the images, 0 to 1, that may be unreadable and are then left out (default as in training)",
    )
    parser.add_argument(
        "--metrics.tokenize",
        dest="tokenize",
        metavar="NAME",
        help="words of captions: auto, ptb (pycocoevalcap's), zh, ja, char, 13a, jieba, ... (default as in training)",
    )
    add_extras(parser)
    add_writing(parser)
    return parser


def _table(metrics: Mapping[str, float]) -> str:
    width = max(map(len, metrics))
    return "\n".join(f"{name.ljust(width)}  {value:9.4f}" for name, value in metrics.items())
