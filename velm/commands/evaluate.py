"""`velm evaluate`: metrics of a checkpoint on a split, all its captions, and an HTML report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.dataset import add_max_bad, dataset_changes, max_bad_of
from velm.commands.options import add_extras, add_loading, add_writing, extras_of, folder_path, load_pipeline, writing
from velm.data.opening import PREFIX, open_dataset

if TYPE_CHECKING:
    from velm.data.bad_samples import BadSample
    from velm.pipeline import Pipeline

__all__ = ["main"]

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

    loggers = _loggers(args)
    pipelines = [_load(args, path) for path in (args.checkpoint, args.compare) if path is not None]
    dataset = open_dataset(args.checkpoint, pipelines[0].data, changes)
    dataset.max_bad = max_bad_of(args.max_bad, pipelines[0].data)
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
    if loggers:
        from velm.evaluation.bootstrap import intervals
        from velm.training.tracking.evaluations import log_evaluation

        log_evaluation(loggers, Path(args.checkpoint), args.split, first.metrics, intervals(models[0].draws))
    print(_table(first.metrics | first.signature))
    retrieval = first.predictions.retrieval
    texts = "" if retrieval is None else f" and {len(retrieval.texts)} texts"
    print(f"\n{count_images(first.records)}{texts} of the split {args.split!r}; results are in {args.output}")
    print(f"Report: {args.output / 'report.html'}")
    return _report_unreadable(unreadable, args.output / "unreadable.jsonl")


def _loggers(args: argparse.Namespace) -> list[Any]:
    """The loggers of `--track`."""
    if not args.track:
        return []
    from velm.training.tracking.evaluations import loggers_of_run

    return loggers_of_run(Path(args.checkpoint))


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


def _report_unreadable(unreadable: Sequence[BadSample], path: Path) -> int:
    """Name unreadable images on stderr; return the exit code."""
    for sample in unreadable[:SHOWN]:
        print(f"velm evaluate: {sample.cause}", file=sys.stderr)
    if unreadable:
        count = f"{len(unreadable):,} image{'s are' if len(unreadable) > 1 else ' is'} left out of all metrics"
        print(f"velm evaluate: {count}; see {path}", file=sys.stderr)
    return 1 if unreadable else 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The options, and the changes to the dataset in their order."""
    rest, changes = dataset_changes(argv)
    return _parser().parse_args(rest), changes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm evaluate",
        description="Recall in both directions, BLEU, ROUGE-L, CIDEr-D and exact match of a checkpoint on a split.",
        epilog=f"The default dataset is that of training. Another: {PREFIX} '{{name: csv, path: captions.csv}}'; "
        f"another option of it: {PREFIX}.path=captions.csv.",
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
        "--track", action="store_true", help="also: send the metrics and their intervals to the loggers of the run"
    )
    add_max_bad(parser)
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
