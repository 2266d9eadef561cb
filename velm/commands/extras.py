"""Figures of `velm evaluate` that are there only where they are asked for, or where the data has classes."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from velm.registry import SpecError

if TYPE_CHECKING:
    from velm.data.base import Dataset, Record
    from velm.evaluation.predictions import Predictions
    from velm.pipeline import Pipeline

__all__ = ["add_extras", "check_extras", "extra_figures"]

_JAVA = ("meteor", "spice")


def add_extras(parser: argparse.ArgumentParser) -> None:
    """--folds, --clip_score, --novelty, --meteor, --spice, --compositional, --template, --probe."""
    group = parser.add_argument_group("figures to ask for")
    group.add_argument("--folds", type=int, metavar="K", help="retrieval as the mean over K folds of the pictures")
    group.add_argument("--clip_score", action="store_true", help="CLIPScore of the captions by the model's own towers")
    group.add_argument("--novelty", action="store_true", help="share of the captions that the split 'train' has not")
    group.add_argument("--meteor", action="store_true", help="METEOR; needs Java and pip install 'velm[metrics]'")
    group.add_argument("--spice", action="store_true", help="SPICE; needs Java and pip install 'velm[metrics]'")
    group.add_argument("--compositional", action="store_true", help="captions against the same with words exchanged")
    group.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="prompt of zero-shot classification, {} for the class; may come several times",
    )
    group.add_argument(
        "--probe", action="store_true", help="nearest neighbours and a linear probe, of the classes of split 'train'"
    )


def check_extras(args: argparse.Namespace, pipeline: Pipeline, records: Sequence[Record]) -> None:
    """Raise, before anything is computed, where what was asked for cannot be had.

    Raises:
        PipelineError, DataError, SpecError: the model, the data or the machine has not what it takes.
    """
    from velm.evaluation.caption_fit import check_clip_score
    from velm.evaluation.zero_shot import check_templates, require_classes
    from velm.metrics.folds import check_folds
    from velm.metrics.java import JavaMissingError, require_java

    try:
        if args.folds is not None:
            check_folds(args.folds, len(records))
        for name in _JAVA:
            if getattr(args, name):
                require_java(name.upper(), f"{name}.{name}")
    except (ValueError, JavaMissingError) as error:
        raise SpecError(str(error)) from error
    if args.folds is not None:
        pipeline.require_alignment()
    if args.compositional:
        pipeline.require_alignment()
    if args.clip_score:
        check_clip_score(pipeline)
    if args.novelty or args.meteor or args.spice:
        pipeline.require_decoder()
    if args.probe or args.template is not None:
        require_classes(records)
    if args.template is not None:
        pipeline.require_alignment()
        check_templates(args.template)


def extra_figures(
    args: argparse.Namespace, pipeline: Pipeline, dataset: Dataset, records: Sequence[Record], found: Predictions
) -> dict[str, float]:
    """What was asked for, and zero-shot figures wherever records have classes and the model aligns."""
    from velm import metrics
    from velm.evaluation.caption_fit import clip_score_figures, novelty_figures
    from velm.evaluation.compositional import compositional_figures
    from velm.evaluation.probing import probe_figures
    from velm.evaluation.zero_shot import TEMPLATES, classes_of, zero_shot_figures

    figures: dict[str, float] = {}
    if args.folds is not None:
        folded = metrics.fold_metrics(found.image_embeds, found.text_embeds, found.image_ids, folds=args.folds)
        figures |= {f"folds/{name}": value for name, value in folded.items()}
    if args.clip_score:
        figures |= clip_score_figures(pipeline, found)
    if args.novelty:
        figures |= novelty_figures(found, dataset.split("train"))
    for name in _JAVA:
        if getattr(args, name):
            figures |= _java_figure(name, found)
    if found.image_embeds is not None and classes_of(records) is not None:
        figures |= zero_shot_figures(pipeline, records, found.image_embeds, templates=args.template or TEMPLATES)
    if args.probe:
        figures |= probe_figures(pipeline, dataset.split("train"), records, batch_size=args.batch_size)
    if args.compositional:
        figures |= compositional_figures(pipeline, records, found, batch_size=args.batch_size)
    return figures


def _java_figure(name: str, found: Predictions) -> dict[str, float]:
    """METEOR or SPICE; a warning where Java fails, so that the other figures are not lost."""
    from velm import metrics
    from velm.metrics.java import JavaMissingError

    assert found.written is not None
    captions, references = zip(*((row.caption, row.references) for row in found.written), strict=True)
    try:
        return {f"caption/{name}": getattr(metrics, name)(captions, references)}
    except JavaMissingError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}
