"""`velm caption`: one line a picture: path, tab, caption."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.options import add_loading, add_writing, load_pipeline, writing
from velm.data.base import DataError

if TYPE_CHECKING:
    from velm.pipeline import Caption, Pipeline

__all__ = ["find_pictures", "main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm caption`; 0 when every picture has its caption, 1 when some could not be read.

    Raises:
        CheckpointError, PipelineError, DataError: nothing can be captioned; `velm` prints the message.
    """
    args = _parser().parse_intermixed_args(argv)
    pictures = find_pictures(args.images)
    pipeline = load_pipeline(args)
    pipeline.require_decoder()
    pipeline.generation_config(**writing(args))  # what is wrong with the options is said before any work
    if args.texts is not None and len(args.texts) != len(pictures):
        raise DataError(
            f"--text is given {len(args.texts)} times for {len(pictures)} pictures; it takes one a picture."
        )
    failed = 0
    for start in range(0, len(pictures), args.batch_size):
        stop = start + args.batch_size
        texts = None if args.texts is None else args.texts[start:stop]
        for picture, found in _captions(pipeline, pictures[start:stop], texts, writing(args)):
            if isinstance(found, DataError):
                failed += 1
                print(f"velm caption: {found}", file=sys.stderr)
            else:
                print("\n".join(_lines(picture, found, as_json=args.json)), flush=True)
    return 1 if failed else 0


def find_pictures(paths: Sequence[str]) -> list[str]:
    """The paths as they are, and for a folder the pictures in it and below, by name.

    Raises:
        DataError: a path leads nowhere, or a folder has no pictures; the message names it.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            if not Path(path).exists():
                raise DataError(f"There is no picture or folder {path!r}.")
            found.append(path)
            continue
        below = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in _suffixes() and p.is_file())
        if not below:
            raise DataError(f"The folder {path!r} has no pictures; looked for {', '.join(sorted(_suffixes()))}.")
        found += below
    return found


def _suffixes() -> set[str]:
    from velm.data.folder import PICTURES

    return set(PICTURES)


def _captions(
    pipeline: Pipeline, pictures: list[str], texts: list[str] | None, options: dict[str, Any]
) -> Iterator[tuple[str, list[Caption] | DataError]]:
    """Candidates for each picture of a batch; one that cannot be read does not take the others down."""
    try:
        yield from zip(
            pictures, pipeline.caption_candidates(pictures, texts, batch_size=len(pictures), **options), strict=True
        )
    except DataError as error:
        if len(pictures) == 1:
            yield pictures[0], error
            return
        for i, picture in enumerate(pictures):
            yield from _captions(pipeline, [picture], None if texts is None else texts[i : i + 1], options)


def _lines(picture: str, found: list[Caption], as_json: bool) -> list[str]:
    if as_json:
        captions = [_numbers(each) for each in found]
        return [json.dumps({"image": picture, "captions": captions}, ensure_ascii=False)]
    return [f"{picture}\t{each.text}" for each in found]


def _numbers(caption: Caption) -> dict[str, Any]:
    """A caption for JSON, which knows no infinity: what could not be written has null for its numbers."""
    numbers = {"score": caption.score, "log_prob": caption.log_prob}
    if caption.cosine is not None:
        numbers["cosine"] = caption.cosine
    return {"caption": caption.text, **{k: round(v, 6) if isfinite(v) else None for k, v in numbers.items()}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm caption", description="Describe pictures: one line each, path, tab, caption.", allow_abbrev=False
    )
    add_loading(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        metavar="SENTENCE",
        help="what to translate or answer, where the decoder attends over the text; once a picture",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON a picture, with scores")
    add_writing(parser)
    return parser
