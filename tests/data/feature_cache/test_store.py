"""Features are read as they were written, by row; an image that cannot be read is told when it is asked for."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from velm.data.base import Record
from velm.data.batches.collate import Collate
from velm.data.batches.samples import CaptionSamples
from velm.data.feature_cache.store import FeatureReader, Images, remove_stale, write_features
from velm.data.images.transforms import EvalTransform
from velm.data.text.word import WordTokenizer
from velm.errors import DataError
from velm.outputs import Batch, EncodedImages, EncoderOutput


class Repeated(list):
    """Records of which the first and the third show the same image."""

    image_indices = (7, 3, 7, 5, 9)


def records() -> Repeated:
    images = [np.full((4, 4, 3), 40 * n, np.uint8) for n in (1, 2, 1)] + [np.zeros((4, 4), np.int64), None]
    return Repeated(Record(str(n), image, (f"a {n}", f"b {n}")) for n, image in enumerate(images))


def encode(pixels: Tensor) -> EncoderOutput:
    """Four positions, of one number each: the image's own times 0, 1, 2, 3."""
    value = pixels[:, 0, 0, 0].float()[:, None, None] * torch.ones(4, 1)
    return EncoderOutput(value * torch.arange(4)[:, None], value[:, 0].bfloat16(), None, (2, 2))


def written(folder: Path, positions: bool = True, encode: Any = encode) -> FeatureReader:
    reader = FeatureReader(records())
    transform = EvalTransform(image_size=4)
    write_features(
        folder, reader.images, encode=encode, transform=transform, batch_size=2, positions=positions, about={}
    )
    reader.open(folder, positions)
    return reader


def test_each_image_is_there_once_and_a_black_one_besides() -> None:
    images = Images(records())
    assert images.indices.tolist() == [0, 1, 3, 4]
    assert [row for row, _ in images] == [0, 1, 2, 3, 4]
    assert images[4] == (4, None)


@pytest.mark.parametrize("positions", [True, False])
def test_rows_are_read_as_they_were_written(tmp_path: Path, positions: bool) -> None:
    reader = written(tmp_path / "key", positions)
    for sent in (reader, pickle.loads(pickle.dumps(reader))):
        read = sent.read([sent.row(1), None, sent.row(0)])
        assert read.pooled.tolist() == [[80.0], [0.0], [40.0]]
        assert read.grid == (2, 2)
        output = read.output()
        assert (output.features.dtype, output.pooled.dtype) == (torch.float32, torch.bfloat16)
        assert output.features.shape == (3, 4 if positions else 0, 1)
        if positions:
            assert output.features[0, :, 0].tolist() == [0.0, 80.0, 160.0, 240.0]
    assert pickle.loads(pickle.dumps(FeatureReader(records())))._folder is None


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_features(
        tmp_path / "key", Images(records()), encode=encode, transform=EvalTransform(image_size=4), batch_size=2,
        positions=False, about={}, progress=lambda *done: told.append(done),
    )  # fmt: skip
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_a_batch_carries_them(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    tokenizer.train(text for record in records() for text in record.texts)
    reader = written(tmp_path / "key")
    items = CaptionSamples(
        records(), tokenizer=tokenizer, transform=EvalTransform(image_size=4), captions_per_image=2, features=reader
    )
    batch = Collate(tokenizer.pad_id, reader)(items.__getitems__([2, 4, 1]))
    assert batch.images is None
    assert batch.encoded is not None
    assert batch.encoded.pooled.flatten().tolist() == [40.0, 0.0, 0.0, 80.0]  # the third record shows the first one's
    assert batch.image_rows is not None
    rows = batch.encoded.pooled[batch.image_rows].flatten()
    assert rows.tolist() == [40.0, 40.0, 0.0, 0.0, 80.0, 80.0]
    with pytest.raises(DataError, match="An image array must be uint8"):
        items[3]


def test_a_batch_moves_and_slices_them() -> None:
    mask = torch.tensor([[True], [False]])
    encoded = EncodedImages(torch.ones(2, 1, 3).half(), torch.ones(2, 3).half(), mask, (1, 1))
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(2), encoded=encoded)
    first = batch[:1].encoded
    assert first is not None
    assert (first.features.shape, first.pooled.shape) == ((1, 1, 3), (1, 3))
    assert first.mask is not None
    assert first.mask.tolist() == [[True]]
    moved = batch.to("meta").encoded
    assert moved is not None
    assert moved.features.device.type == moved.pooled.device.type == "meta"
    assert Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(2)).to("meta").encoded is None


# --- what is wrong


def test_what_is_not_there_yet_is_told() -> None:
    for ask in (lambda reader: reader.row(0), lambda reader: reader.read([None])):
        with pytest.raises(RuntimeError, match=r"requested before they were computed: a VisionLanguageTask encodes"):
            ask(FeatureReader(records()))


def test_features_beyond_half_precision_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"features reach 80000, .* up to 65504: set data.cache_features: false"):
        written(tmp_path / "key", encode=lambda pixels: EncoderOutput(*[encode(pixels).features * 1e3 / 3] * 2))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=20))
    with pytest.raises(DataError, match=r"The features of 5 images take 0.00 GB, and .* has 0.00 GB free: name a"):
        written(tmp_path / "key")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_images_is_not_opened(tmp_path: Path) -> None:
    written(tmp_path / "key")
    with pytest.raises(ValueError, match="has 5 rows, the split 2"):
        FeatureReader(records()[:1]).open(tmp_path / "key", True)


def test_somebody_else_may_be_first(tmp_path: Path) -> None:
    """Two runs that encode the same: the second one's work is dropped, and no half of it is left."""

    def slow(pixels: Tensor) -> EncoderOutput:
        if not (tmp_path / "key").is_dir():
            written(tmp_path / "other")
            (tmp_path / "other").rename(tmp_path / "key")
        return encode(pixels)

    reader = written(tmp_path / "key", encode=slow)
    assert reader.read([None]).pooled.tolist() == [[0.0]]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_only_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    import socket

    host = socket.gethostname()
    ended = subprocess.Popen(["true"])
    ended.wait()
    child = ended.pid
    names = {f"key.{host}-{child}.part": False, f"key.{host}-{os.getppid()}.part": True, f"key.far-{child}.part": True}
    for name in names:
        (tmp_path / name).mkdir()
    remove_stale(tmp_path / "key")
    assert {name: (tmp_path / name).is_dir() for name in names} == names
