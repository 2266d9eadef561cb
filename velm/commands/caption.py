"""`velm caption`: one line per image (or per text, without images): path or text, tab, caption; or Parquet parts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from velm.commands.bulk import add_bulk, refuse_bulk_options, run_bulk
from velm.commands.options import add_loading, add_writing, load_pipeline, spelt_out, writing
from velm.data.images.names import find_images
from velm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from velm.pipeline import Caption, Pipeline

__all__ = ["find_images", "main"]


class Source(NamedTuple):
    """The input of a caption: the path of an image, a text, or both."""

    image: str | None
    text: str | None


def main(argv: Sequence[str]) -> int:
    """Run `velm caption`; 0, or 1 if some images could not be read.

    Raises:
        CheckpointError, PipelineError, DataError: nothing can be captioned; `velm` prints the message.
    """
    args = _parser().parse_intermixed_args(argv)
    texts = None if args.texts is None else spelt_out(args.texts, "--text")
    if args.output is not None:
        return _write(args, texts)
    refuse_bulk_options(args)
    images = find_images(args.images) or None
    if images is None and texts is None:
        raise DataError("Nothing to caption: give images or folders, --text if the decoder reads texts, or both.")
    pipeline = load_pipeline(args)
    pipeline.require_decoder()
    options = writing(args)
    pipeline.generation_config(**options)  # errors in the options come before any work
    if images is not None and texts is not None and len(texts) != len(images):
        raise DataError(f"--text is given {len(texts)} times for {len(images)} images; it takes one per image.")
    failed = 0
    for start in range(0, len(images or texts or ()), args.batch_size):
        part = slice(start, start + args.batch_size)
        for source, found in _captions(pipeline, images and images[part], texts and texts[part], options):
            if isinstance(found, DataError):
                failed += 1
                print(f"velm caption: {found}", file=sys.stderr)
            else:
                print("\n".join(_lines(source, found, as_json=args.json)), flush=True)
    return 1 if failed else 0


def _write(args: argparse.Namespace, texts: list[str] | None) -> int:
    """Captions in Parquet parts below --output."""
    if args.json:
        raise ConfigError("--json prints, --output writes Parquet: leave one of them out.")
    if texts is not None and len(texts) != 1:
        raise DataError(f"--text is given {len(texts)} times; with --output it takes one text for all images.")
    return run_bulk("caption", args, "captions", {"text": texts and texts[0], **writing(args)})


def _captions(
    pipeline: Pipeline, images: list[str] | None, texts: list[str] | None, options: dict[str, Any]
) -> Iterator[tuple[Source, list[Caption] | DataError]]:
    """Candidates for each source of a batch; if an image cannot be read, the others are still captioned."""
    count = len(images or texts or ())
    absent: list[None] = [None] * count
    sources = [Source(*each) for each in zip(images or absent, texts or absent, strict=True)]
    try:
        yield from zip(sources, pipeline.caption_candidates(images, texts, batch_size=count, **options), strict=True)
    except DataError as error:
        if count == 1:
            yield sources[0], error
            return
        for image, text in sources:
            one_image, one_text = None if image is None else [image], None if text is None else [text]
            yield from _captions(pipeline, one_image, one_text, options)


def _lines(source: Source, captions: list[Caption], as_json: bool) -> list[str]:
    if as_json:
        named = {key: value for key, value in source._asdict().items() if value is not None}
        return [json.dumps({**named, "captions": [_as_json(each) for each in captions]}, ensure_ascii=False)]
    return [f"{source.text if source.image is None else source.image}\t{each.text}" for each in captions]


def _as_json(caption: Caption) -> dict[str, Any]:
    """A caption for JSON, six digits after the point."""
    return {"caption": caption.text, **{k: None if v is None else round(v, 6) for k, v in caption.numbers.items()}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm caption",
        description="Describe images, translate or summarise texts, answer questions about images: one line each, path "
        "(without images: the text), tab, generated text.",
        allow_abbrev=False,
    )
    add_loading(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="images, or folders of images; with --output also tar shards, or '{name: ...}', the config of a dataset",
    )
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        metavar="TEXT",
        help="text to translate, summarise or answer, for a decoder that attends over text; one per image if it also "
        "attends over images; @FILE for one per line; with --output one for all",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line each, with scores")
    add_writing(parser)
    add_bulk(parser, required=False)
    return parser
