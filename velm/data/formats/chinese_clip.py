"""The layout of Chinese-CLIP: images in base64 in a TSV, texts in JSON lines."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from velm.data.bad_samples import BadSample, check_bad_share, usable_texts
from velm.data.base import Dataset, EncodedImage
from velm.data.formats.split_folders import split_word
from velm.data.images.names import is_hidden
from velm.data.shards.tar import FileSlice
from velm.data.tables.json_rows import json_rows
from velm.data.tables.records import TableRecords
from velm.data.tables.validate import ROW
from velm.errors import DataError, MissingSplitError

__all__ = ["ChineseCLIP"]

IMAGES, TEXTS = "_imgs.tsv", "_texts.jsonl"


class ChineseCLIP(Dataset):
    """`train_imgs.tsv`, lines 'id<TAB>base64', with `train_texts.jsonl`, {"text_id", "text", "image_ids": [...]}.

    The layout of Yang et al. 2022, "Chinese CLIP", of MUGE and Flickr30k-CN. Splits are the files' first words; 'valid'
    is 'val'. The TSV is scanned once when its split is opened; images are then read by their offset.

    Args:
        path: the folder of the files, or one of them.
    """

    def __init__(self, *, path: str) -> None:
        folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
        if not os.path.exists(path):
            raise DataError(f"There is no folder {path!r}.")
        self.path = folder
        names = [name for name in sorted(os.listdir(folder)) if name.endswith(IMAGES) and not is_hidden(name)]
        self.files = {(split_word(name) or ("", name.removesuffix(IMAGES), ""))[1]: name for name in names}
        if not names:
            raise DataError(
                f"{folder!r} has no images as Chinese-CLIP: train{IMAGES} with lines 'id<TAB>base64', and "
                f'train{TEXTS} with lines {{"text_id", "text", "image_ids"}}.'
            )

    def split(self, name: str) -> TableRecords:
        if name not in self.files:
            listed = ", ".join(f"{split!r} ({file})" for split, file in self.files.items())
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed}.")
        images = os.path.join(self.path, self.files[name])
        texts = images.removesuffix(IMAGES) + TEXTS
        if not os.path.exists(texts):
            raise DataError(f"There is no file {texts!r}, the texts of {images!r}.")
        bad_samples: list[BadSample] = []
        offsets = _index(images, bad_samples)
        by_image = _texts(texts, offsets, bad_samples)
        rows: list[tuple[int, str, str]] = []  # number of the image, its id and a text
        for number, (image, found) in enumerate(by_image.items()):
            usable, bad = usable_texts(found, f"{images}, image {image}")
            bad_samples += bad
            rows += [(number, image, text) for text in usable]
        check_bad_share(
            bad_samples, len({number for number, *_ in rows}), self.max_bad, f"split {name!r} of {images!r}"
        )
        return _records(images, offsets, rows, bad_samples)


def _index(path: str, bad_samples: list[BadSample]) -> dict[str, tuple[int, int]]:
    """(offset, size) in bytes of the base64 of each image id of a TSV."""
    offsets: dict[str, tuple[int, int]] = {}
    position = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            image, tab, content = line.partition(b"\t")
            key = image.decode("utf-8", errors="replace").strip()
            if not line.strip():
                pass
            elif not tab or not key or key in offsets:
                cause = f"the id {key!r} comes twice" if tab and key else "the line is not 'id<TAB>base64'"
                bad_samples.append(BadSample(f"{path}, line {number}", cause))
            else:
                offsets[key] = (position + len(image) + 1, len(content.rstrip(b"\r\n")))
            position += len(line)
    return offsets


def _texts(path: str, images: dict[str, tuple[int, int]], bad_samples: list[BadSample]) -> dict[str, list[str]]:
    """The texts of each image; lines that cannot be used, and ids without an image, are added to `bad_samples`."""
    texts: dict[str, list[str]] = {image: [] for image in images}
    for number, row in json_rows(path):
        where = f"{path}, row {number}"
        if isinstance(row, str):
            bad_samples.append(BadSample(where, row))
            continue
        text, ids = row.get("text"), row.get("image_ids")
        if not isinstance(text, str) or not isinstance(ids, list):
            bad_samples.append(BadSample(where, "the row lacks 'text', or a list of 'image_ids'"))
            continue
        absent = [each for each in ids if str(each) not in texts]
        if absent:
            bad_samples.append(BadSample(where, f"there is no image with the id {absent[0]!r}"))
        for each in ids:
            if str(each) in texts:
                texts[str(each)].append(text.strip())
    return texts


def _records(
    path: str, offsets: dict[str, tuple[int, int]], rows: Sequence[tuple[int, str, str]], bad_samples: list[BadSample]
) -> TableRecords:
    places = np.array(list(offsets.values()), np.int64).reshape(-1, 2)
    ids = pa.array([image for _, image, _ in rows], pa.large_string())
    numbers = np.array([number for number, *_ in rows], np.int64)
    columns = {
        "image": ids,
        "image_id": ids,
        "text": pa.array([text for *_, text in rows], pa.large_string()),
        ROW: pa.array(numbers + 1),
    }
    _, index = np.unique(numbers, return_inverse=True)
    names = pa.array(list(offsets), pa.large_string())
    records = TableRecords(columns, index, encoded_image=Base64Images(path, names, places))
    records.bad_samples = bad_samples
    return records


class Base64Images:
    """Images in base64 as byte ranges of a file, by index.

    Args:
        path: the file.
        names: large_string (images,), their ids.
        places: int64 (images, 2), offset and size in bytes.
    """

    def __init__(self, path: str, names: pa.Array, places: np.ndarray) -> None:
        self._path, self._names, self._places = path, names, places

    def __call__(self, index: int) -> EncodedImage:
        offset, size = self._places[index].tolist()
        name = f"{self._path}, image {self._names[index].as_py()}"
        return EncodedImage(name, Base64Slice(FileSlice(self._path, offset, size)))


@dataclass(frozen=True)
class Base64Slice:
    """Returns the bytes of an image that a file holds in base64, of the usual or of the URL alphabet; picklable."""

    content: FileSlice

    def __call__(self) -> bytes:
        return base64.b64decode(self.content().translate(bytes.maketrans(b"-_", b"+/")))
