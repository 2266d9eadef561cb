"""COCO's own annotation files: captions_train2017.json and the like."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from velm.data.bad_samples import BadSample
from velm.data.formats.captioned import CaptionedImage, CaptionedImages, find_root
from velm.data.formats.split_folders import split_word
from velm.data.images.names import is_hidden
from velm.data.tables.layouts import suggest_layout
from velm.errors import DataError

__all__ = ["COCO"]


@dataclass(kw_only=True, eq=False, repr=False)
class COCO(CaptionedImages):
    """Captions in COCO's layout (Chen et al. 2015, "Microsoft COCO Captions"): images and annotations apart.

    Args:
        path: an annotation file, or COCO's folder of them. The files of the other splits beside a file are read too:
            captions_val2017.json beside captions_train2017.json.
        root: folder of the images, or of the folders train2017 and val2017; None: looked for beside the annotations.
        val_fraction: share of the images in 'val', in [0, 1), if the file's name says no split.
        test_fraction: share of the images in 'test', in [0, 1), likewise.
        check_files: check that every image of a split exists when the split is opened.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.1

    def image_root(self, images: Sequence[CaptionedImage]) -> str:
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        return find_root(images, folder if self.root is None else self.root)

    def images(self, bad_samples: list[BadSample]) -> Sequence[CaptionedImage]:
        return [image for split, file in self._files().items() for image in _read(file, split, bad_samples)]

    def _files(self) -> dict[str | None, str]:
        """The annotation file of each split; of None if the names say none.

        Raises:
            DataError: a folder has no file of captions, or several of one split.
        """
        if os.path.isdir(self.path):
            folder = os.path.join(self.path, "annotations")
            folder = folder if os.path.isdir(folder) else self.path
            names = [name for name in sorted(os.listdir(folder)) if name.endswith(".json")]
            names = [name for name in names if split_word(name) and not is_hidden(name)]
            names = [name for name in names if name.startswith("captions")] or names
            if not names:
                raise DataError(f"{folder!r} has no annotations named by split, such as captions_train2017.json.")
            parts = [(split_word(name), name) for name in names]
        else:
            folder, name = os.path.split(self.path)
            own = split_word(name)
            if own is None:
                return {None: self.path}
            beside = ((split_word(other), other) for other in sorted(os.listdir(folder or ".")))
            parts = [(other, n) for other, n in beside if other is not None and other[::2] == own[::2]]
        files: dict[str | None, str] = {}
        for part, name in parts:
            split = part[1] if part is not None else None
            if split in files:
                first = os.path.basename(files[split])
                raise DataError(f"{folder!r} has {first!r} and {name!r}, both of {split!r}: set path to one of them.")
            files[split] = os.path.join(folder, name)
        return files


def _read(path: str, split: str | None, bad_samples: list[BadSample]) -> Iterator[CaptionedImage]:
    images, annotations = _load(path)
    captions: dict[Any, list[str]] = {number: [] for number in images}
    for annotation in annotations:
        number = annotation["image_id"]
        if number in captions:
            captions[number].append(annotation["caption"].strip())
        else:
            bad_samples.append(BadSample(f"{path}, image_id {number}", "there is no image with this id"))
    for number, name in images.items():
        yield CaptionedImage(name, captions[number], str(number), split)


def _load(path: str) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    """The file name of each image id, and the annotations.

    Raises:
        DataError: the file has another layout; the message names it if it is known.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
        images = {image["id"]: image["file_name"] for image in content["images"]}
        annotations: list[dict[str, Any]] = content["annotations"]
        for annotation in annotations:
            annotation["image_id"], annotation["caption"].strip()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        other = suggest_layout(path, name="coco")
        objects = " Annotations of objects have no captions; those are in captions_*.json."
        raise DataError(
            other
            or f"{path!r} is not one of COCO's files of captions, "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}: '
            f"{type(error).__name__}: {error}.{objects if str(error) == repr('caption') else ''}"
        ) from error
    return images, annotations
