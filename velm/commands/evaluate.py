"""`velm evaluate`: the figures of a checkpoint on a split, every caption it wrote, and a report to look at."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.extras import add_extras, extras_of
from velm.commands.options import add_loading, add_writing, load_pipeline, writing
from velm.data.base import Dataset
from velm.errors import ConfigError
from velm.registry import datasets, split_config

if TYPE_CHECKING:
    from velm.data.bad_samples import BadSample
    from velm.data.base import Record
    from velm.data.images.transforms import Resize
    from velm.evaluation.evaluate import Measured
    from velm.evaluation.predictions import Written
    from velm.pipeline import Pipeline

__all__ = ["dataset_spec", "main"]

_PREFIX = "--data.dataset"
SHOWN = 10
"""Images that cannot be read are named on the screen up to so many."""


def main(argv: Sequence[str]) -> int:
    """Run `velm evaluate`: prints a table, writes metrics.json, captions.jsonl, report.html and intervals.json.

    Returns:
        0, or 1 where images could not be read: the figures are of the others, unreadable.jsonl names these.

    Raises:
        CheckpointError, PipelineError, ConfigError, DataError: nothing can be measured; `velm` prints the message.
    """
    args, changes = _parse(argv)
    from velm.report.thumbnails import counted

    pipelines = [_checked(args, path) for path in (args.checkpoint, args.compare) if path is not None]
    spec = dataset_spec(pipelines[0].data.get("dataset"), changes)
    dataset: Dataset = datasets.build(spec)
    dataset.max_bad = _max_bad(args, pipelines[0])
    records = dataset.split(args.split)
    measured = _measured(args, pipelines, dataset, records)
    left_out = list(dict.fromkeys(bad_sample for each in measured for bad_sample in each.predictions.left_out.values()))
    if left_out:
        measured = [replace(each, figures={**each.figures, "left_out": float(len(left_out))}) for each in measured]
    found, figures = measured[0].predictions, measured[0].figures
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if found.written is not None:
        _write_captions(args.output / "captions.jsonl", found.written)
    _write_unreadable(args.output / "unreadable.jsonl", left_out)
    _write_report(args, measured, left_out, pipelines[0].transform.resize)
    print(_table(figures))
    texts = "" if found.text_embeds is None else f" and {len(found.text_embeds)} texts"
    print(f"\n{counted(measured[0].records)}{texts} of the split {args.split!r}; written to {args.output}")
    print(f"To look at: {args.output / 'report.html'}")
    return _tell(left_out, args.output / "unreadable.jsonl")


def _checked(args: argparse.Namespace, checkpoint: str) -> Pipeline:
    """The pipeline of a checkpoint; what it cannot do is said before any work."""
    pipeline = load_pipeline(argparse.Namespace(**{**vars(args), "checkpoint": checkpoint}))
    if pipeline.writes:
        pipeline.generation_config(**writing(args))
    if args.rerank is not None:
        from velm.evaluation.reranking import check_rerank

        check_rerank(pipeline, args.rerank)
    return pipeline


def _max_bad(args: argparse.Namespace, pipeline: Pipeline) -> float:
    """The share of the data that may be bad: as typed, else as in training, else as in a dataset that nobody asked."""
    found = pipeline.data.get("max_bad", Dataset.max_bad) if args.max_bad is None else args.max_bad
    if not 0 <= found <= 1:
        raise ConfigError(f"data.max_bad is a share of the data, between 0 and 1; got {found}.")
    return float(found)


def _measured(
    args: argparse.Namespace, pipelines: Sequence[Pipeline], dataset: Dataset, records: Sequence[Record]
) -> list[Measured]:
    """Every checkpoint on the same records: those that all of them can read."""
    from velm.evaluation.evaluate import measure
    from velm.evaluation.extras import check_extras

    extras = extras_of(args, dataset)
    for pipeline in pipelines:
        check_extras(extras, pipeline, records)  # before anything is computed

    def measured(pipeline: Pipeline, records: Sequence[Record]) -> Measured:
        return measure(
            pipeline,
            records,
            batch_size=args.batch_size,
            texts_per_image=args.texts_per_image,
            rerank=args.rerank,
            extras=extras,
            max_bad=dataset.max_bad,
            attention=True,
            progress=_show_progress if sys.stderr.isatty() else None,
            **writing(args),
        )

    found: list[Measured] = []
    for pipeline in pipelines:
        found.append(measured(pipeline, found[-1].records if found else records))
    if len(found[0].records) > len(found[-1].records):  # the second looks at images, the first does not
        found[0] = measured(pipelines[0], found[-1].records)
    return found


def _write_report(
    args: argparse.Namespace, measured: Sequence[Measured], left_out: Sequence[BadSample], resize: Resize
) -> None:
    from velm.report.report import side, write_report

    names = [args.checkpoint, args.compare]
    sides = [side(name, each) for name, each in zip(names, measured, strict=False)]
    missing = [bad_sample.cause for bad_sample in left_out]
    write_report(args.output, sides, measured[0].records, split=args.split, resize=resize, left_out=missing)


def _write_unreadable(path: Path, left_out: Iterable[BadSample]) -> None:
    """One line of JSON an image that was left out: path, cause; no file where there is none."""
    path.unlink(missing_ok=True)
    lines = [json.dumps({"path": each.path, "cause": each.cause}, ensure_ascii=False) + "\n" for each in left_out]
    if lines:
        path.write_text("".join(lines), encoding="utf-8", errors="replace")


def _tell(left_out: Sequence[BadSample], path: Path) -> int:
    """Name what was left out on stderr; the exit code."""
    for bad_sample in left_out[:SHOWN]:
        print(f"velm evaluate: {bad_sample.cause}", file=sys.stderr)
    if left_out:
        count = f"{len(left_out):,} image{'s are' if len(left_out) > 1 else ' is'} left out of every figure"
        print(f"velm evaluate: {count}; see {path}", file=sys.stderr)
    return 1 if left_out else 0


def dataset_spec(stored: Any, changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The dataset's spec: what the checkpoint stores, changed by what was typed, in the order typed.

    Args:
        stored: the spec of the checkpoint; None where it has none.
        changes: (path below `data.dataset`, value); an empty path stands for the whole spec. Another name than
            the stored one begins a new spec: options of one dataset mean nothing to another.

    Raises:
        ConfigError: there is neither a stored spec nor a typed one, or a path leads into something that has no parts.
    """
    spec: dict[str, Any] = {}
    if stored:
        name, options = split_config(stored, "dataset")
        spec = {"name": name, **options}
    for path, value in changes:
        if not path or (path == "name" and value != spec.get("name")):
            name, options = split_config(value, "dataset")
            spec = {"name": name, **options}
            continue
        *outer, last = path.split(".")
        place = spec
        for key in outer:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{_PREFIX}.{path}: {key!r} is {place!r}, which has no parts.")
        place[last] = value
    if "name" not in spec:
        raise ConfigError(f"The checkpoint stores no dataset. Name one: {_PREFIX} '{{name: csv, path: captions.csv}}'.")
    return spec


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, Any]]]:
    """The options, and the changes to the dataset in the order typed."""
    import yaml

    rest, changes = [], []
    words = iter(argv)
    for word in words:
        if word != _PREFIX and not word.startswith((f"{_PREFIX}.", f"{_PREFIX}=")):
            rest.append(word)
            continue
        key, equals, text = word.partition("=")
        value = text if equals else next(words, None)
        if value is None:
            raise ConfigError(f"{key} needs a value, e.g. {_PREFIX}.path=captions.csv.")
        try:
            changes.append((key.removeprefix(_PREFIX).lstrip("."), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key} is no YAML: {value!r}.") from error
    return _parser().parse_args(rest), changes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm evaluate",
        description="Recall both ways, BLEU, ROUGE-L, CIDEr-D and exact match of a checkpoint on a split.",
        epilog=f"The dataset is the one trained on. Another: {_PREFIX} '{{name: csv, path: captions.csv}}'; another "
        f"option of it: {_PREFIX}.path=captions.csv.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument("--split", default="test", help="split of the dataset (default test)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for metrics.json, report.html ...")
    parser.add_argument("--compare", metavar="CHECKPOINT", help="another one, to be set beside it in the report")
    parser.add_argument(
        "--texts_per_image",
        type=int,
        metavar="K",
        help="sentences of an image, the first ones, in the gallery (default all)",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="K",
        help="also: retrieval with the K nearest of a query put in order by how likely the captioner holds them",
    )
    parser.add_argument(
        "--data.max_bad",
        dest="max_bad",
        type=float,
        metavar="X",
        help="share of the images, 0 to 1, that may be unreadable and are then left out (default as in training)",
    )
    add_extras(parser)
    add_writing(parser)
    return parser


def _write_captions(path: Path, written: Sequence[Written]) -> None:
    """One line of JSON a caption: image_id, text (what was attended to, if any), caption, references."""
    with path.open("w", encoding="utf-8") as file:
        for row in written:
            kept = {key: value for key, value in asdict(row).items() if value is not None}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def _table(measured: Mapping[str, float]) -> str:
    width = max(map(len, measured))
    return "\n".join(f"{name.ljust(width)}  {value:9.4f}" for name, value in measured.items())


def _show_progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
