"""The Karpathy splits: dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from velm.data.bad_samples import BadSample
from velm.data.formats.captioned import CaptionedImage, CaptionedImages
from velm.data.tables.layouts import suggest_layout
from velm.errors import DataError

__all__ = ["Karpathy"]


@dataclass(kw_only=True, eq=False, repr=False)
class Karpathy(CaptionedImages):
    """Images and captions in the format of Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments".

    Args:
        path: the JSON file.
        root: folder of the images (for COCO the one that holds train2014 and val2014); None: the
            folder of the file.
        restval_to_train: add COCO's 'restval' (validation images that are in no split) to 'train', as most papers do.
        check_files: check that every image of a split exists when the split is opened.
    """

    restval_to_train: bool = True

    def image_root(self, images: Sequence[CaptionedImage]) -> str:
        return os.path.dirname(os.path.abspath(self.path)) if self.root is None else self.root

    def images(self, bad_samples: list[BadSample]) -> Sequence[CaptionedImage]:
        try:
            with open(self.path, encoding="utf-8") as file:
                return [
                    CaptionedImage(
                        path=os.path.join(image.get("filepath", ""), image["filename"]),
                        texts=[each["raw"].strip() for each in image["sentences"]],
                        image_id=str(image.get("cocoid", image["filename"])),
                        split="train" if image["split"] == "restval" and self.restval_to_train else image["split"],
                    )
                    for image in json.load(file)["images"]
                ]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                suggest_layout(self.path, self.root)
                or f"{self.path!r} is not one of Karpathy's files, "
                '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}: '
                f"{type(error).__name__}: {error}"
            ) from error
