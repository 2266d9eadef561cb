"""Options of the commands that use a checkpoint: loading it, generating text, and metrics on request."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from velm.data.base import Dataset
    from velm.evaluation.extras import Extras
    from velm.evaluation.prompts import Templates
    from velm.pipeline import Pipeline

__all__ = [
    "add_computing",
    "add_device",
    "add_extras",
    "add_loading",
    "add_prompts",
    "add_writing",
    "at_least_one",
    "extras_of",
    "folder_path",
    "load_pipeline",
    "prompts_of",
    "spelt_out",
    "writing",
]

_GENERATION: dict[str, tuple[type, str]] = {
    "num_beams": (int, "beams of the search; 1 is greedy"),
    "num_beam_groups": (int, "groups of beams that are penalised for repeating each other"),
    "diversity_penalty": (float, "cost of a token per beam of an earlier group with the same token at that step"),
    "max_length": (int, "most tokens of a text (default: the longest of the training)"),
    "min_length": (int, "fewest tokens of a text"),
    "length_penalty": (float, "above 1 favours long texts, below 1 short ones"),
    "temperature": (float, "sample at this temperature instead of searching"),
    "top_k": (int, "sample among the k most probable tokens"),
    "top_p": (float, "sample among the most probable tokens whose probabilities sum to this"),
    "min_p": (float, "sample among the tokens at least this fraction as probable as the most probable one"),
    "no_repeat_ngram": (int, "no n-gram of this many tokens occurs twice in a text"),
    "prefix": (str, "beginning of every text"),
    "num_return": (int, "captions per image"),
    "rerank_by_alignment": (float, "order all beams (or samples) by score + this * cosine with the image"),
}
_PHRASES = {
    "forbidden": "a phrase that does not occur; repeatable, @FILE for one per line",
    "must_include": "a phrase that every text contains; repeatable, @FILE for one per line",
    "answers": "one of the only possible texts; repeatable, @FILE for one per line",
}


def add_loading(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT, --device, --precision, --batch_size, --image_size, --plugins."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt written by `velm fit`")
    add_computing(parser)


def add_computing(parser: argparse.ArgumentParser) -> None:
    """--device, --precision, --batch_size, --image_size, --plugins."""
    add_device(parser)
    parser.add_argument(
        "--batch_size", type=at_least_one, default=32, metavar="N", help="images per batch (default 32)"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """--device, --precision, --image_size, --plugins."""
    parser.add_argument("--device", default="cpu", help="where to compute, e.g. cuda (default cpu)")
    parser.add_argument(
        "--precision",
        choices=["32", "bf16"],
        default="32",
        help="bf16: half the memory, and about half the time where the hardware multiplies it (default 32)",
    )
    parser.add_argument(
        "--image_size",
        type=at_least_one,
        metavar="N",
        help="side of the square that images are resized to, in pixels (default: as in validation)",
    )
    parser.add_argument(
        "--plugins", metavar="A,B.py", help="modules or .py files whose decorators register parts, if they have moved"
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The fields of `GenerationConfig`, and --seed; absent ones keep their default."""
    group = parser.add_argument_group("text generation")
    for name, (kind, text) in _GENERATION.items():
        group.add_argument(f"--{name}", type=kind, metavar={int: "N", float: "X", str: "TEXT"}[kind], help=text)
    for name, text in _PHRASES.items():
        group.add_argument(f"--{name}", action="append", metavar="TEXT", help=text)
    group.add_argument("--seed", type=int, metavar="N", help="of samples")


def writing(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `GenerationConfig` among the arguments."""
    options = {name: getattr(args, name) for name in (*_GENERATION, *_PHRASES) if getattr(args, name) is not None}
    return {name: spelt_out(value, f"--{name}") if name in _PHRASES else value for name, value in options.items()}


def spelt_out(values: Sequence[str], option: str) -> list[str]:
    """The values, with each @FILE replaced by the lines of that file that are not blank.

    Raises:
        DataError: a file cannot be read or has no such line; the message names the option and the file.
    """
    texts: list[str] = []
    for value in values:
        if not value.startswith("@"):
            texts.append(value)
            continue
        try:
            with open(value[1:], encoding="utf-8") as file:
                lines = [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise DataError(f"{option} {value}: cannot read the file {value[1:]!r}: {cause}.") from error
        if not lines:
            raise DataError(f"{option} {value}: the file {value[1:]!r} has no line with text.")
        texts += lines
    return texts


def load_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline of the options of `add_loading`; sets --seed, if there is one.

    On a CPU the process keeps the memory that it frees: image towers run up to 2.4 times as fast.
    """
    from velm.allocation import keep_freed_memory
    from velm.pipeline import load

    keep_freed_memory(args.device)
    if args.seed is not None:
        import torch

        torch.manual_seed(args.seed)
    plugins = args.plugins.split(",") if args.plugins else ()
    return load(
        args.checkpoint, device=args.device, plugins=plugins, image_size=args.image_size, precision=args.precision
    )


def at_least_one(text: str) -> int:
    """argparse type of a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; it is at least 1")
    return value


def folder_path(text: str) -> Path:
    """argparse type of a folder; `~` is the home folder."""
    return Path(text).expanduser()


def add_extras(parser: argparse.ArgumentParser) -> None:
    """The metrics on request: --folds, --clip_score, ..., and --template, --templates, --class_names of classes."""
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
    group.add_argument("--blind", action="store_true", help="the caption metrics with an image without content, too")
    add_prompts(group)
    group.add_argument(
        "--probe",
        action="store_true",
        help="nearest neighbours and a linear probe, fitted on the classes of split 'train'",
    )


def add_prompts(parser: argparse._ActionsContainer) -> None:
    """--template, --templates and --class_names of zero-shot classification."""
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="prompt of zero-shot classification, {} for the class; may be repeated",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help="prompts of zero-shot classification: a text file, a .json file, FILE.json#KEY, open_clip:imagenet or "
        "open_clip:simple",
    )
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help="words for the classes: a text or .json file in the order of the sorted folders, a JSON mapping "
        "{folder: name}, FILE.json#KEY or open_clip:imagenet",
    )


def prompts_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields `templates` and `class_names` of `Extras`, by the options of `add_prompts`.

    Raises:
        DataError: a file cannot be read.
        ConfigError: there are both --template and --templates.
    """
    from velm.evaluation.prompts import read_class_names

    names = None if args.class_names is None else read_class_names(args.class_names)
    return {"templates": _templates(args), "class_names": names}


def extras_of(args: argparse.Namespace, dataset: Dataset) -> Extras:
    """The `Extras` of the options; loads the judge and opens the split 'train' if they are needed.

    Raises:
        CheckpointError, DataError: they cannot be loaded.
        ConfigError: there are both --template and --templates.
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
        blind=args.blind,
        **prompts_of(args),
        probe=args.probe,
        train=dataset.split("train") if args.novelty or args.probe else None,
    )


def _templates(args: argparse.Namespace) -> Templates | None:
    """The templates that were typed or named."""
    from velm.evaluation.prompts import Templates, read_templates

    if args.template and args.templates is not None:
        raise ConfigError(
            f"--template {args.template[0]!r} and --templates {args.templates} both name the prompts: give one of them."
        )
    if args.templates is not None:
        return read_templates(args.templates)
    return Templates.of(args.template) if args.template else None
