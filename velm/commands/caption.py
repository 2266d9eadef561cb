"""`velm caption`: one line a picture, or a text where there are no pictures: path or text, tab, caption."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from velm.commands.options import add_loading, add_writing, load_pipeline, spelt_out, writing
from velm.data.base import DataError

if TYPE_CHECKING:
    from velm.pipeline import Caption, Pipeline

__all__ = ["find_pictures", "main"]


class Source(NamedTuple):
    """What a caption is written for: the path of a picture, a text, or both."""

    image: str | None
    text: str | None


def main(argv: Sequence[str]) -> int:
    """Run `velm caption`; 0 when every picture or text has its caption, 1 when some pictures could not be read.

    Raises:
        CheckpointError, PipelineError, DataError: nothing can be captioned; `velm` prints the message.
    """
    args = _parser().parse_intermixed_args(argv)
    pictures = find_pictures(args.images) or None
    texts = None if args.texts is None else spelt_out(args.texts, "--text")
    if pictures is None and texts is None:
        raise DataError(
            "Nothing to write for: give pictures or folders, --text where the decoder reads texts, or both."
        )
    pipeline = load_pipeline(args)
    pipeline.require_decoder()
    options = writing(args)
    pipeline.generation_config(**options)  # what is wrong with the options is said before any work
    if pictures is not None and texts is not None and len(texts) != len(pictures):
        raise DataError(f"--text is given {len(texts)} times for {len(pictures)} pictures; it takes one a picture.")
    failed = 0
    for start in range(0, len(pictures or texts or ()), args.batch_size):
        part = slice(start, start + args.batch_size)
        shown, read = None if pictures is None else pictures[part], None if texts is None else texts[part]
        for source, found in _captions(pipeline, shown, read, options):
            if isinstance(found, DataError):
                failed += 1
                print(f"velm caption: {found}", file=sys.stderr)
            else:
                print("\n".join(_lines(source, found, as_json=args.json)), flush=True)
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
    pipeline: Pipeline, pictures: list[str] | None, texts: list[str] | None, options: dict[str, Any]
) -> Iterator[tuple[Source, list[Caption] | DataError]]:
    """Candidates for each source of a batch; a picture that cannot be read does not take the others down."""
    count = len(pictures or texts or ())
    nothing: list[None] = [None] * count
    names = [Source(*each) for each in zip(pictures or nothing, texts or nothing, strict=True)]
    try:
        yield from zip(names, pipeline.caption_candidates(pictures, texts, batch_size=count, **options), strict=True)
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
        description="Describe pictures, translate or sum up texts, answer questions on pictures: one line each, path "
        "(of texts alone: the text), tab, what is written.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="pictures, or folders of pictures")
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        metavar="SENTENCE",
        help="what to translate, sum up or answer, where the decoder attends over the text; once a picture, where it "
        "attends over pictures; @FILE for one a line",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON each, with scores")
    add_writing(parser)
    return parser
