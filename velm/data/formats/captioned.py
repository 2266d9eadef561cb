"""The common part of datasets whose captions are few enough to be Python objects: COCO, Flickr8k, Karpathy, LLaVA."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from velm.data.bad_samples import BadSample, check_bad_share, text_problem
from velm.data.base import Dataset, Turn
from velm.data.formats.split_folders import split_word
from velm.data.held_out import check_fractions, hashed_split
from velm.data.tables.paths import find_images, image_folder
from velm.data.tables.records import TableRecords, records_from_texts
from velm.data.tables.validate import existing_path
from velm.errors import DataError, MissingSplitError

__all__ = ["CaptionedImage", "CaptionedImages", "find_root"]

BESIDE = re.compile("annotation|caption|json|label|split|text", re.IGNORECASE)  # in names of folders without images


@dataclass(frozen=True)
class CaptionedImage:
    """An image of a file of annotations.

    Attributes:
        path: from `root`.
        texts: its captions, or the texts that go with `targets`.
        image_id: equal for equal images; None: the path.
        split: its split; None: a function of a hash of its path.
        targets: the text to generate for each of `texts`; None: the captions.
        histories: earlier (question, answer) pairs of each of `texts`; None: there are none.
    """

    path: str
    texts: Sequence[str]
    image_id: str | None = None
    split: str | None = None
    targets: Sequence[str] | None = None
    histories: Sequence[Sequence[Turn]] | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class CaptionedImages(Dataset):
    """Images and their captions from one or a few files, read when the first split is opened.

    Args:
        path: the file of captions.
        root: folder that image paths are relative to.
        check_files: check that every image of a split exists when the split is opened.
    """

    path: str
    root: str | None = None
    check_files: bool = True

    def __post_init__(self) -> None:
        existing_path(self.path)
        if self.root is not None and not os.path.isdir(self.root):
            raise DataError(f"root {self.root!r}, the folder of the images, does not exist.")
        check_fractions(*self._fractions())
        self._images: dict[str, list[CaptionedImage]] | None = None  # by split
        self._unreadable: list[BadSample] = []

    @abstractmethod
    def images(self, bad_samples: list[BadSample]) -> Sequence[CaptionedImage]:
        """Every image, each once; lines and entries that cannot be read are added to `bad_samples`."""

    @abstractmethod
    def image_root(self, images: Sequence[CaptionedImage]) -> str:
        """The folder that the paths of the images of a split start from."""

    def _fractions(self) -> tuple[float, float]:
        return getattr(self, "val_fraction", 0.0), getattr(self, "test_fraction", 0.0)

    def split(self, name: str) -> TableRecords:
        every = self._by_split()
        chosen = every.get(name, [])
        where, bad_samples = f"split {name!r} of {self.path!r}", list(self._unreadable)
        if not chosen:
            if not every:
                check_bad_share(bad_samples, 0, self.max_bad, where)
            listed = ", ".join(f"{split!r} ({len(images)} images)" for split, images in every.items())
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed}.")
        root = self.image_root(chosen)
        usable = []
        for image in chosen:
            image, bad = _usable(image, os.path.join(root, image.path))
            bad_samples += bad
            usable += [image] if image.texts else []
        if self.check_files:
            found, missing = find_images(root, pa.array([image.path for image in usable], pa.large_string()))
            usable = [replace(image, path=found.get(image.path, image.path)) for image in usable]
            bad_samples += missing
        check_bad_share(bad_samples, len(usable), self.max_bad, where)
        records = records_from_texts(
            [image.texts for image in usable],
            [image.path for image in usable],
            root,
            [image.path if image.image_id is None else image.image_id for image in usable],
            None if usable[0].targets is None else [image.targets or () for image in usable],
            None if usable[0].histories is None else [image.histories or () for image in usable],
        )
        records.bad_samples = bad_samples
        return records

    def _by_split(self) -> dict[str, list[CaptionedImage]]:
        if self._images is None:
            unreadable: list[BadSample] = []
            images: dict[str, list[CaptionedImage]] = {}
            for image in self.images(unreadable):
                split = image.split or hashed_split(image.path, *self._fractions())
                images.setdefault(split, []).append(image)
            self._images, self._unreadable = images, unreadable
        return self._images


def _usable(image: CaptionedImage, path: str) -> tuple[CaptionedImage, list[BadSample]]:
    """The image with the texts (and targets) that can be used, and a bad sample for each other or for its lack."""
    if not image.texts:
        return image, [BadSample(path, "it has no text")]
    targets = image.targets or image.texts
    problems = [text_problem(text) or text_problem(target) for text, target in zip(image.texts, targets, strict=True)]
    kept = [index for index, problem in enumerate(problems) if problem is None]
    bad = [(index, problem) for index, problem in enumerate(problems) if problem is not None]
    samples = [
        BadSample(path, f"text {index + 1} {problem}", lost=int(not kept and place == 0))
        for place, (index, problem) in enumerate(bad)
    ]
    if not bad:
        return image, samples
    texts = [image.texts[index] for index in kept]
    kept_targets = image.targets and [targets[index] for index in kept]
    histories = image.histories and [image.histories[index] for index in kept]
    return replace(image, texts=texts, targets=kept_targets, histories=histories), samples


def find_root(images: Sequence[CaptionedImage], folder: str) -> str:
    """The folder of some images: `folder` or the first of its subfolders that has them; `folder` itself if none has.

    Of a folder of annotations, or of one split's images, the folders beside it are looked at too. Others are not: they
    may hold other images of the same names.
    """
    folder = os.path.abspath(folder)
    name, first, last = os.path.basename(folder), images[0].path, images[-1].path
    starts = [folder, os.path.dirname(folder)] if BESIDE.search(name) or split_word(name) else [folder]
    for names in ([first, last], [first], [last]):
        found = image_folder(names, *starts)
        if found is not None:
            return found
    return folder
