"""`velm explain`: attention, similarity and saliency maps of a caption, as images and as arrays."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.options import add_loading, add_writing, folder_path, load_pipeline, writing

if TYPE_CHECKING:
    from velm.explain.explanation import Explanation

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm explain`: NAME.png and NAME.npz for each text, and explanations.json with all of them.

    Raises:
        CheckpointError, PipelineError, DataError: nothing can be explained; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    pipeline = load_pipeline(args)

    from velm.explain.explanation import explain

    found = explain(pipeline, args.image, args.texts, saliency=args.saliency, **writing(args))
    args.output.mkdir(parents=True, exist_ok=True)
    name = Path(args.image).stem
    names = [name] + [f"{name}-{number}" for number in range(2, len(found) + 1)]
    listed = [_write(args.output, each, explanation) for each, explanation in zip(names, found, strict=True)]
    (args.output / "explanations.json").write_text(
        json.dumps(listed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
    for each in listed:
        print(f"{args.output / each['picture']}\t{each['text']}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm explain",
        description="Where the decoder attends for each word of a caption, and where in the image a text is found.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument("image", metavar="IMAGE", help="an image")
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        metavar="TEXT",
        help="text to explain instead of the model's own caption, or text that the decoder reads; repeatable",
    )
    parser.add_argument(
        "--saliency", action="store_true", help="also which pixels decide, by integrated gradients (needs captum)"
    )
    parser.add_argument("--output", type=folder_path, required=True, metavar="DIR", help="for the images and arrays")
    add_writing(parser)
    return parser


def _write(folder: Path, name: str, explanation: Explanation) -> dict[str, str | list[str]]:
    """Write NAME.png, the maps over the image, and NAME.npz, the maps; return their entry in explanations.json."""
    import numpy as np

    from velm.explain.drawing import sheet

    sheet(explanation).save(folder / f"{name}.png", optimize=True)
    arrays: dict[str, Any] = {"picture": explanation.image, **explanation.arrays()}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    words = list(explanation.words)
    return {"text": explanation.text, "words": words, "picture": f"{name}.png", "arrays": f"{name}.npz"}
