"""Small sets of images and texts that tests of several formats share."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import pickle
import tarfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from velm.data.base import EncodedImage, Record

Members = Mapping[str, bytes | str | dict]


def write_tar(path: Path, members: Members | Iterable[tuple[str, bytes | str | dict]]) -> str:
    """A shard with these members; texts in UTF-8, mappings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def image_bytes(seed: int, kind: str = "JPEG") -> bytes:
    """The file of a small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def told(record: Record) -> tuple:
    """A record with its image as the bytes of its file, to be compared whatever the format."""
    image = record.image
    content = image.load() if isinstance(image, EncodedImage) else image and Path(image).read_bytes()
    return record.image_id, content, record.texts, record.targets


def assert_same_in_any_process(records: Sequence[Record]) -> None:
    """A pickled copy, and a process that is forked, read the same records and images."""
    expected = [told(record) for record in records]
    copied = pickle.loads(pickle.dumps(records))
    assert list(copied) == list(records)
    assert [told(record) for record in copied] == expected
    if "fork" in multiprocessing.get_all_start_methods():
        with warnings.catch_warnings():  # of threads in this process
            warnings.simplefilter("ignore")
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(told, list(records)) == expected


def csv_table(folder: Path) -> dict[str, str]:
    """The config of a csv: eleven images of two texts each with targets, in three splits."""
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["image_path", "text", "to", "split", "image_id"])
        for number in range(11):
            name = f"{number}.{'png' if number % 3 == 0 else 'jpg'}"
            (folder / name).write_bytes(image_bytes(number, "PNG" if number % 3 == 0 else "JPEG"))
            split = ("train", "val", "test")[max(0, number - 8)]
            for text in ("an image", "ein „Bild“"):
                out.writerow([name, f"{text} {number}", f"{number} {text}", split, f"id{number}"])
    return {"name": "csv", "path": str(folder / "captions.csv"), "target_column": "to"}
