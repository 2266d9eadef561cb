"""Options that several commands share: which checkpoint, on which device, and how to write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from velm.errors import DataError

if TYPE_CHECKING:
    from velm.pipeline import Pipeline

__all__ = ["add_loading", "add_writing", "at_least_one", "load_pipeline", "spelt_out", "writing"]

_WRITING: dict[str, tuple[type, str]] = {
    "num_beams": (int, "beams of the search; 1 is greedy"),
    "num_beam_groups": (int, "groups of beams that keep away from each other"),
    "diversity_penalty": (float, "how far: what a token costs for each beam of another group that wrote it there"),
    "max_length": (int, "most tokens to write; as long as the sentences trained with, if left out"),
    "min_length": (int, "fewest tokens to write"),
    "length_penalty": (float, "above 1 favours long sentences, below 1 short ones"),
    "temperature": (float, "sample at this temperature in place of searching"),
    "top_k": (int, "sample among the k likeliest tokens only"),
    "top_p": (float, "sample among the likeliest tokens that have this probability together"),
    "min_p": (float, "sample among the tokens at least this share as likely as the likeliest"),
    "no_repeat_ngram": (int, "no sequence of so many tokens comes twice in a sentence"),
    "prefix": (str, "what every sentence begins with"),
    "num_return": (int, "sentences for each image"),
    "rerank_by_alignment": (float, "order all beams (or samples) by score + this * cosine with the image"),
}
_WORDS = {
    "forbidden": "a word or phrase that is not written; may be given again, @FILE for one a line",
    "must_include": "a word or phrase that every sentence has; may be given again, @FILE for one a line",
    "answers": "one of the only sentences there are; given for each, or @FILE for one a line",
}


def add_loading(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT, --device, --precision, --batch_size, --image_size, --plugins."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt that `velm fit` wrote")
    parser.add_argument("--device", default="cpu", help="where to compute, e.g. cuda (default cpu)")
    parser.add_argument(
        "--precision",
        choices=["32", "bf16"],
        default="32",
        help="bf16: half the memory, and about half the time where the hardware multiplies it (default 32)",
    )
    parser.add_argument(
        "--batch_size", type=at_least_one, default=32, metavar="N", help="images at a time (default 32)"
    )
    parser.add_argument(
        "--image_size",
        type=at_least_one,
        metavar="N",
        help="side of the square that images become, in pixels (default as validated)",
    )
    parser.add_argument(
        "--plugins", metavar="A,B.py", help="modules or .py files whose decorators register parts, if they have moved"
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The fields of `GenerationConfig`, and --seed; what is left out keeps its default."""
    group = parser.add_argument_group("how to write")
    for name, (kind, text) in _WRITING.items():
        group.add_argument(f"--{name}", type=kind, metavar={int: "N", float: "X", str: "TEXT"}[kind], help=text)
    for name, text in _WORDS.items():
        group.add_argument(f"--{name}", action="append", metavar="TEXT", help=text)
    group.add_argument("--seed", type=int, metavar="N", help="of samples")


def writing(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `GenerationConfig` that were given."""
    given = {name: getattr(args, name) for name in (*_WRITING, *_WORDS) if getattr(args, name) is not None}
    return {name: spelt_out(value, f"--{name}") if name in _WORDS else value for name, value in given.items()}


def spelt_out(values: Sequence[str], option: str) -> list[str]:
    """The values themselves, and in place of each @FILE the lines of that file, blank ones left out.

    Raises:
        DataError: a file cannot be read, or has no line; the message names the option and the file.
    """
    found: list[str] = []
    for value in values:
        if not value.startswith("@"):
            found.append(value)
            continue
        try:
            with open(value[1:], encoding="utf-8") as file:
                lines = [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise DataError(f"{option} {value}: cannot read the file {value[1:]!r}: {cause}.") from error
        if not lines:
            raise DataError(f"{option} {value}: the file {value[1:]!r} has no line with text.")
        found += lines
    return found


def load_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that the options of `add_loading` name; --seed, if any, is set."""
    from velm.pipeline import load

    if args.seed is not None:
        import torch

        torch.manual_seed(args.seed)
    plugins = args.plugins.split(",") if args.plugins else ()
    return load(
        args.checkpoint, device=args.device, plugins=plugins, image_size=args.image_size, precision=args.precision
    )


def at_least_one(text: str) -> int:
    """The type of an option that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small; it is at least 1")
    return value
