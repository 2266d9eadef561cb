"""`velm duplicates`: groups of images of an index that look the same, and the one of each to keep."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from velm.search import Index
    from velm.search.duplicates import Copy, Group

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm duplicates`; needs no model.

    Raises:
        SearchError: the index or the threshold cannot be used; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    from velm.search import Index
    from velm.search.duplicates import KEPT, THRESHOLD, find_duplicates
    from velm.util import progress_bar

    index = Index.open(args.index)
    threshold = THRESHOLD if args.threshold is None else args.threshold
    groups = find_duplicates(index, threshold, progress_bar("images"))
    for group in groups:
        print(_as_json(index, group) if args.json else _as_text(index, group))
    extra = sum(len(group.others) for group in groups)
    facts = f"{extra:,} of {len(index):,} images are duplicates at {threshold:g}, in {len(groups):,} groups"
    if not args.json:
        print(f"{facts}. Kept: {KEPT}.")
    if args.html is not None:
        _write_page(args.html, index, groups, f"{facts}. Marked: {KEPT}.")
    return 0


def _as_text(index: Index, group: Group) -> str:
    lines = [f"keep\t{index.path(group.kept.row)}\t{_size(group.kept)}"]
    lines += [f"{copy.score:.4f}\t{index.path(copy.row)}\t{_size(copy)}" for copy in group.others]
    return "\n".join(lines) + "\n"


def _as_json(index: Index, group: Group) -> str:
    def fields(copy: Copy) -> dict[str, object]:
        return {**copy._asdict(), "path": index.path(copy.row), "score": round(copy.score, 6)}

    content = {"keep": fields(group.kept), "others": [fields(copy) for copy in group.others]}
    return json.dumps(content, ensure_ascii=False)


def _size(copy: Copy) -> str:
    return f"{copy.width} x {copy.height}, {copy.size:,} bytes"


def _write_page(path: str, index: Index, groups: Sequence[Group], facts: str) -> None:
    from velm.report.gallery import Item, Section, gallery

    sections = [
        Section(
            f"{1 + len(group.others)} images",
            [
                Item(index.path(copy.row), copy.path, f"{copy.score:.3f}, {_size(copy)}", marked=copy is group.kept)
                for copy in (group.kept, *group.others)
            ],
        )
        for group in groups
    ]
    page = gallery(f"Duplicates of {index.folder}", facts, sections)
    Path(path).expanduser().write_text(page, encoding="utf-8", errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm duplicates",
        description="Groups of images of an index that look the same: the one to keep, then the others with their "
        "cosine to it. Deletes nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("index", metavar="INDEX", help="folder of `velm index`")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="cosine from which two images are duplicates (default 0.97)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per group")
    parser.add_argument("--html", metavar="PAGE", help="also write a page with thumbnails")
    return parser
