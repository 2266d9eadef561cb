"""Memory per row of a table, on thousands of rows; benchmarks/rows.py measures millions."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples
from velm.data.formats.delimited import CSV
from velm.training.data import VisionLanguageData

ROWS = 6000
OPTIONS: dict[str, Any] = {"split_column": None, "image_id_column": None, "check_files": False}


def write(folder: Path, captions: int = 1, scattered: bool = False) -> tuple[str, int]:
    """The path of a table, and the bytes of its texts."""
    images = ROWS // captions
    numbers = [i % images if scattered else i // captions for i in range(ROWS)]
    rows = [(f"images/{number:06d}.jpg", f"a dog and {i} cats") for i, number in enumerate(numbers)]
    path = folder / "data.csv"
    path.write_text("image_path,text\n" + "".join(f"{image},{text}\n" for image, text in rows))
    return str(path), sum(len(image) + len(text) for image, text in rows)


def arrays(thing: object) -> int:
    """Bytes of the arrays among its attributes."""
    return sum(value.nbytes for value in vars(thing).values() if isinstance(value, np.ndarray))


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("scattered", [False, True])
def test_a_row_takes_its_text_and_a_few_bytes(tmp_path: Path, captions: int, scattered: bool) -> None:
    """The ends of two texts, the row's number and its place in the order: 32 bytes; 8 more per record."""
    path, text = write(tmp_path, captions, scattered)
    records = CSV(path=path, **OPTIONS).split("train")
    assert len(records) == ROWS // captions
    assert len(pickle.dumps(records)) <= text + 40 * ROWS + 5000
    assert sum(records.text_counts) == ROWS


@pytest.mark.parametrize("captions", ["random", "first", "all"])
@pytest.mark.parametrize("per_image", [1, 5])
def test_a_sample_takes_a_few_bytes(tmp_path: Path, captions: Any, per_image: int) -> None:
    records = CSV(path=write(tmp_path, per_image)[0], **OPTIONS).split("train")
    items = CaptionSamples(records, tokenizer=None, transform=None, captions=captions)  # type: ignore[arg-type]
    sampler = ImageBatchSampler(image_of=items.image_of, batch_size=60)
    assert arrays(items) + arrays(sampler) <= 32 * ROWS


def test_memory_does_not_grow_from_epoch_to_epoch(tmp_path: Path) -> None:
    data = VisionLanguageData(
        dataset={"name": "csv", "path": write(tmp_path)[0], **OPTIONS}, tokenizer="byte", batch_size=100, seed=0
    )
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, CaptionSamples)
    loader.dataset.transform = None
    traced = []
    tracemalloc.start()
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch.tokens) for batch in loader) == ROWS
        gc.collect()
        traced.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert traced[3] - traced[1] < 20_000
