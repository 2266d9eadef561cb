"""`velm search`: one line per image that was found: path, tab, cosine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from velm.commands.options import add_computing, at_least_one, load_pipeline
from velm.errors import SearchError

if TYPE_CHECKING:
    from velm.search import Index, Match

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm search`.

    Raises:
        CheckpointError, PipelineError, DataError, SearchError: nothing can be found; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    from velm.search import Index

    index = Index.open(args.index)
    weights = _weights(args.weights)
    if args.text is None and args.image is None:
        raise SearchError("Nothing to search for: give a text, --image, or both.")
    args.checkpoint = args.checkpoint or index.about["checkpoint"]
    args.image_size = args.image_size or index.about["image_size"]
    pipeline = load_pipeline(args)
    index.check_model(pipeline)
    query = index.query(pipeline, text=args.text, image=args.image, minus=args.minus, weights=weights)
    (matches,) = index.search(query, args.k, ann=args.ann)
    for match in matches:
        print(_as_json(index, match) if args.json else f"{index.path(match.row)}\t{match.score:.4f}")
    if args.html is not None:
        _write_page(args, index, matches)
    return 0


def _as_json(index: Index, match: Match) -> str:
    fields = {"path": index.path(match.row), "score": round(match.score, 6), "row": match.row}
    return json.dumps(fields, ensure_ascii=False)


def _write_page(args: argparse.Namespace, index: Index, matches: Sequence[Match]) -> None:
    from velm.report.gallery import Item, Section, gallery

    parts = [args.text, args.image and f"like {args.image}", args.minus and f"without {args.minus}"]
    title = ", ".join(part for part in parts if part)
    items = [Item(index.path(match.row), match.path, f"{match.score:.3f}") for match in matches]
    facts = f"{len(matches)} of the {len(index):,} images of {args.index}"
    page = gallery(title, facts, [Section("Best first", items)])
    Path(args.html).expanduser().write_text(page, encoding="utf-8", errors="replace")


def _weights(text: str | None) -> dict[str, float]:
    """{'text': 1.0, 'image': 0.5} of 'text=1,image=0.5'; SearchError if it is not of this form."""
    from velm.search.index import check_weights

    weights = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError as error:
            raise SearchError(
                f"--weights {part!r} has no number; write --weights text=1,image=0.5,minus=0.5."
            ) from error
    return check_weights(weights)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm search",
        description="Find images of an index by a text, an image, or both: path, tab, cosine, best first.",
        allow_abbrev=False,
    )
    parser.add_argument("index", metavar="INDEX", help="folder of `velm index`")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to find")
    parser.add_argument("--image", metavar="FILE", help="an image to resemble")
    parser.add_argument("--minus", metavar="TEXT", help="what to be far from")
    parser.add_argument(
        "--weights", metavar="text=X,image=Y,minus=Z", help="of the normalised parts of the query (default 1 each)"
    )
    parser.add_argument("-k", type=at_least_one, default=20, metavar="N", help="images to find (default 20)")
    parser.add_argument("--checkpoint", metavar="CHECKPOINT", help="of the index, if it has moved")
    parser.add_argument(
        "--ann", choices=["hnsw", "ivfpq"], help="search in what velm index --ann wrote (default exact)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line each")
    parser.add_argument("--html", metavar="PAGE", help="also write a page with thumbnails")
    add_computing(parser)
    parser.set_defaults(seed=None)
    return parser
