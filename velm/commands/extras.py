"""Options of `velm evaluate` for the metrics of `velm.evaluation.extras`, computed on request only."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from velm.data.base import Dataset
    from velm.evaluation.extras import Extras

__all__ = ["add_extras", "extras_of"]


def add_extras(parser: argparse.ArgumentParser) -> None:
    """--folds, --clip_score, --clip_score_model, --novelty, --meteor, --spice, --compositional, --template, --probe."""
    group = parser.add_argument_group("metrics on request")
    group.add_argument("--folds", type=int, metavar="K", help="retrieval as the mean over K folds of the images")
    group.add_argument(
        "--clip_score", action="store_true", help="CLIPScore of the captions by the model's own embeddings"
    )
    group.add_argument(
        "--clip_score_model",
        metavar="CHECKPOINT",
        help="CLIPScore of the captions by the embeddings of another checkpoint",
    )
    group.add_argument(
        "--novelty", action="store_true", help="fraction of the captions that do not occur in the split 'train'"
    )
    group.add_argument("--meteor", action="store_true", help="METEOR; needs Java and pip install 'velm[metrics]'")
    group.add_argument("--spice", action="store_true", help="SPICE; needs Java and pip install 'velm[metrics]'")
    group.add_argument(
        "--compositional", action="store_true", help="captions against hard negatives, with words exchanged"
    )
    group.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="prompt of zero-shot classification, {} for the class; may be repeated",
    )
    group.add_argument(
        "--probe",
        action="store_true",
        help="nearest neighbours and a linear probe, fitted on the classes of split 'train'",
    )


def extras_of(args: argparse.Namespace, dataset: Dataset) -> Extras:
    """The `Extras` of the options; loads the judge and opens the split 'train' if they are needed.

    Raises:
        CheckpointError, DataError: they cannot be loaded.
    """
    from velm.evaluation.extras import Extras
    from velm.pipeline import load

    judge = args.clip_score_model
    return Extras(
        folds=args.folds,
        clip_score=args.clip_score,
        judge=None if judge is None else load(judge, device=args.device),
        novelty=args.novelty,
        meteor=args.meteor,
        spice=args.spice,
        compositional=args.compositional,
        templates=args.template,
        probe=args.probe,
        train=dataset.split("train") if args.novelty or args.probe else None,
    )
