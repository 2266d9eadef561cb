"""The Karpathy splits: dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import pyarrow as pa

from velm.data.bad_samples import check_bad_share, usable_texts
from velm.data.base import Dataset
from velm.data.tables.paths import find_images
from velm.data.tables.records import TableRecords, records_from_texts
from velm.data.tables.validate import existing_path
from velm.errors import DataError, MissingSplitError

__all__ = ["Karpathy"]


class Karpathy(Dataset):
    """Images and captions in the format of Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments".

    Args:
        path: the JSON file.
        root: folder of the images (for COCO the one that holds train2014 and val2014); None: the
            folder of the file.
        restval_to_train: add COCO's 'restval' (validation images that are in no split) to 'train', as most papers do.
        check_files: check that every image of a split exists when the split is opened.
    """

    def __init__(
        self, *, path: str, root: str | None = None, restval_to_train: bool = True, check_files: bool = True
    ) -> None:
        self.path = existing_path(path)
        self.root = os.path.dirname(os.path.abspath(path)) if root is None else root
        if not os.path.isdir(self.root):
            raise DataError(f"root {self.root!r}, the folder of the images, does not exist.")
        self.restval_to_train, self.check_files = restval_to_train, check_files
        self._images: list[dict[str, Any]] | None = None

    def split(self, name: str) -> TableRecords:
        images = self._read()
        splits = {name, "restval"} if name == "train" and self.restval_to_train else {name}
        chosen = [image for image in images if image["split"] in splits]
        if not chosen:
            counts = Counter(image["split"] for image in images)
            listed = ", ".join(f"{split!r} ({count} images)" for split, count in counts.items())
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed or 'no images at all'}.")
        where, bad_samples = f"split {name!r} of {self.path!r}", []
        paths, ids, texts = [], [], []
        for image in chosen:
            path = os.path.join(image.get("filepath", ""), image["filename"])
            usable, bad = usable_texts(
                [each["raw"].strip() for each in image["sentences"]], os.path.join(self.root, path)
            )
            bad_samples += bad
            if usable:
                paths.append(path)
                ids.append(str(image.get("cocoid", image["filename"])))
                texts.append(usable)
        if self.check_files:
            files, missing = find_images(self.root, pa.array(paths, pa.large_string()))
            paths = [files.get(path, path) for path in paths]
            bad_samples += missing
        check_bad_share(bad_samples, len(paths), self.max_bad, where)
        records = records_from_texts(texts, paths, self.root, ids)
        records.bad_samples = bad_samples
        return records

    def _read(self) -> list[dict[str, Any]]:
        if self._images is None:
            try:
                with open(self.path, encoding="utf-8") as file:
                    images = json.load(file)["images"]
                for image in images:
                    image["split"], image["filename"], [s["raw"] for s in image["sentences"]]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path!r} is not one of Karpathy's files, "
                    '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}: '
                    f"{type(error).__name__}: {error}"
                ) from error
            self._images = images
        return self._images
