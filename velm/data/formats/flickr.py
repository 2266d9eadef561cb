"""Flickr8k and Flickr30k: the files of captions as their authors and as Kaggle distribute them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from velm.data.bad_samples import BadSample
from velm.data.formats.captioned import CaptionedImage, CaptionedImages, find_root
from velm.data.formats.split_folders import split_word
from velm.data.images.names import is_hidden
from velm.data.tables.layouts import suggest_layout
from velm.errors import DataError

__all__ = ["Flickr"]

#: Lines 'image.jpg#0<TAB>caption', and 'image.jpg| 0| caption', where Kaggle's file lacks a separator once.
TOKEN = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<text>.*)")
PIPES = re.compile(r"\s*(?P<image>[^|]+?)\s*\|\s*\d+\s*\|?\s*(?P<text>.*)")
FILES = re.compile(r"(?!.*lemma).*\.token(\.txt)?$|captions\.(txt|csv)$|results\.csv$")


@dataclass(kw_only=True, eq=False, repr=False)
class Flickr(CaptionedImages):
    """Flickr8k.token.txt, results_20130124.token (Young et al. 2014), Kaggle's captions.txt and results.csv.

    Lists of images beside the captions, Flickr_8k.trainImages.txt and the like, are the splits; images in none of them
    are left out. Without lists the split of an image is a function of a hash of its name.

    Args:
        path: the file of captions, or the folder that holds it.
        root: folder of the images; None: looked for beside the captions.
        val_fraction: share of the images in 'val', in [0, 1), if there are no lists.
        test_fraction: share of the images in 'test', in [0, 1), likewise.
        check_files: check that every image of a split exists when the split is opened.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if os.path.isdir(self.path):
            self.path = _captions_in(self.path)

    def image_root(self, images: Sequence[CaptionedImage]) -> str:
        return find_root(images, os.path.dirname(self.path) if self.root is None else self.root)

    def images(self, bad_samples: list[BadSample]) -> Sequence[CaptionedImage]:
        texts: dict[str, list[str]] = {}
        for image, text in _rows(self.path, bad_samples):
            texts.setdefault(image, []).append(text)
        splits = _splits(os.path.dirname(self.path) or ".", texts)
        return [
            CaptionedImage(image, each, split=splits.get(image))
            for image, each in texts.items()
            if not splits or image in splits
        ]


def _captions_in(folder: str) -> str:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found = [name for name in sorted(files) if FILES.match(name) and not is_hidden(name)]
        if found:
            return os.path.join(parent, found[0])
    raise DataError(f"{folder!r} has none of Flickr8k.token.txt, results_20130124.token, captions.txt, results.csv.")


def _rows(path: str, bad_samples: list[BadSample]) -> Iterator[tuple[str, str]]:
    """(image, caption) of each line; the others are added to `bad_samples`."""
    lines: list[tuple[int, str]] = []
    with open(path, "rb") as file:
        for number, content in enumerate(file, start=1):
            try:
                lines.append((number, content.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")))
            except UnicodeDecodeError as error:
                bad_samples.append(BadSample(f"{path}, line {number}", f"the line is not UTF-8: {error}"))
    first = lines[0][1] if lines else ""
    if first.replace(" ", "").startswith(("image,caption", "image_name,")):
        columns = len(first.split(","))
        for row in filter(None, csv.reader(text for _, text in lines[1:])):
            if len(row) < columns:
                bad_samples.append(BadSample(f"{path}, row {row!r}", f"the row has {len(row)} columns, not {columns}"))
            else:
                yield row[0].strip(), ",".join(row[columns - 1 :]).strip()
        return
    pattern = PIPES if first.startswith("image_name") else TOKEN
    if pattern is TOKEN and not TOKEN.match(first):
        raise DataError(
            suggest_layout(path, name="flickr8k")
            or f"{path!r} is not a file of Flickr8k or Flickr30k: its first line is neither 'image.jpg#0<TAB>caption', "
            f"'image,caption' nor 'image_name| comment_number| comment', but {first[:60]!r}."
        )
    for number, line in lines[1:] if pattern is PIPES else lines:
        match = pattern.fullmatch(line)
        if match is not None:
            yield match["image"], match["text"].strip()
        elif line.strip():
            bad_samples.append(BadSample(f"{path}, line {number}", f"it names no image and caption: {line[:60]!r}"))


def _splits(folder: str, images: dict[str, list[str]]) -> dict[str, str]:
    """The split of each image that a list beside the captions names: files of image names, by line."""
    names = {os.path.splitext(image)[0]: image for image in images}
    splits: dict[str, str] = {}
    for file in sorted(os.listdir(folder)):
        part = split_word(file)
        if part is None or not file.endswith(".txt") or is_hidden(file):
            continue
        with open(os.path.join(folder, file), encoding="utf-8-sig", errors="replace") as lines:
            listed = [os.path.splitext(line.strip())[0] for line in lines if line.strip()]
        for name in listed if listed and listed[0] in names else ():
            if splits.setdefault(names.get(name, name), part[1]) != part[1]:
                raise DataError(f"The lists of {folder!r} name {name!r} in {splits[names[name]]!r} and in {part[1]!r}.")
    return splits
