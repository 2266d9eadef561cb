"""`velm caption`: one line an image, or a text where there are no images: path or text, tab, caption."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from velm.commands.options import add_loading, add_writing, load_pipeline, spelt_out, writing
from velm.errors import DataError

if TYPE_CHECKING:
    from velm.pipeline import Caption, Pipeline

__all__ = ["find_images", "main"]


class Source(NamedTuple):
    """What a caption is written for: the path of an image, a text, or both."""

    image: str | None
    text: str | None


def main(argv: Sequence[str]) -> int:
    """Run `velm caption`; 0 when every image or text has its caption, 1 when some images could not be read.

    Raises:
        CheckpointError, PipelineError, DataError: nothing can be captioned; `velm` prints the message.
    """
    args = _parser().parse_intermixed_args(argv)
    images = find_images(args.images) or None
    texts = None if args.texts is None else spelt_out(args.texts, "--text")
    if images is None and texts is None:
        raise DataError("Nothing to write for: give images or folders, --text where the decoder reads texts, or both.")
    pipeline = load_pipeline(args)
    pipeline.require_decoder()
    options = writing(args)
    pipeline.generation_config(**options)  # what is wrong with the options is said before any work
    if images is not None and texts is not None and len(texts) != len(images):
        raise DataError(f"--text is given {len(texts)} times for {len(images)} images; it takes one an image.")
    failed = 0
    for start in range(0, len(images or texts or ()), args.batch_size):
        part = slice(start, start + args.batch_size)
        shown, read = None if images is None else images[part], None if texts is None else texts[part]
        for source, found in _captions(pipeline, shown, read, options):
            if isinstance(found, DataError):
                failed += 1
                print(f"velm caption: {found}", file=sys.stderr)
            else:
                print("\n".join(_lines(source, found, as_json=args.json)), flush=True)
    return 1 if failed else 0


def find_images(paths: Sequence[str]) -> list[str]:
    """The paths as they are, and for a folder the images in it and below, by name.

    Raises:
        DataError: a path leads nowhere, or a folder has no images; the message names it.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            if not Path(path).exists():
                raise DataError(f"There is no image or folder {path!r}.")
            found.append(path)
            continue
        below = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in _suffixes() and p.is_file())
        if not below:
            raise DataError(f"The folder {path!r} has no images; looked for {', '.join(sorted(_suffixes()))}.")
        found += below
    return found


def _suffixes() -> set[str]:
    from velm.data.formats.folder import IMAGES

    return set(IMAGES)


def _captions(
    pipeline: Pipeline, images: list[str] | None, texts: list[str] | None, options: dict[str, Any]
) -> Iterator[tuple[Source, list[Caption] | DataError]]:
    """Candidates for each source of a batch; an image that cannot be read does not take the others down."""
    count = len(images or texts or ())
    nothing: list[None] = [None] * count
    names = [Source(*each) for each in zip(images or nothing, texts or nothing, strict=True)]
    try:
        yield from zip(names, pipeline.caption_candidates(images, texts, batch_size=count, **options), strict=True)
    except DataError as error:
        if count == 1:
            yield names[0], error
            return
        for image, text in names:
            alone, read = None if image is None else [image], None if text is None else [text]
            yield from _captions(pipeline, alone, read, options)


def _lines(source: Source, found: list[Caption], as_json: bool) -> list[str]:
    if as_json:
        named = {key: value for key, value in source._asdict().items() if value is not None}
        captions = [_numbers(each) for each in found]
        return [json.dumps({**named, "captions": captions}, ensure_ascii=False)]
    return [f"{source.text if source.image is None else source.image}\t{each.text}" for each in found]


def _numbers(caption: Caption) -> dict[str, Any]:
    """A caption for JSON, which knows no infinity: what could not be written has null for its numbers."""
    numbers = {"score": caption.score, "log_prob": caption.log_prob}
    if caption.cosine is not None:
        numbers["cosine"] = caption.cosine
    return {"caption": caption.text, **{k: round(v, 6) if isfinite(v) else None for k, v in numbers.items()}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm caption",
        description="Describe images, translate or sum up texts, answer questions on images: one line each, path "
        "(of texts alone: the text), tab, what is written.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="images, or folders of images")
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        metavar="SENTENCE",
        help="what to translate, sum up or answer, where the decoder attends over the text; once an image, where it "
        "attends over images; @FILE for one a line",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON each, with scores")
    add_writing(parser)
    return parser
