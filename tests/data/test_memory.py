"""What millions of rows may take, as laws on thousands; benchmarks/rows.py measures the millions."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples
from velm.data.formats.delimited import CSV
from velm.data.tables.records import TableRecords
from velm.training.data import VisionLanguageData

ROWS = 6000
OPTIONS: dict[str, Any] = {"split_column": None, "image_id_column": None, "check_files": False}


def write(folder: Path, captions: int = 1, scattered: bool = False) -> tuple[str, int]:
    """A table and the bytes of its text."""
    images = ROWS // captions
    numbers = [i % images if scattered else i // captions for i in range(ROWS)]
    rows = [(f"images/{number:06d}.jpg", f"a dog and {i} cats") for i, number in enumerate(numbers)]
    path = folder / "data.csv"
    path.write_text("image_path,text\n" + "".join(f"{image},{text}\n" for image, text in rows))
    return str(path), sum(len(image) + len(text) for image, text in rows)


def arrays(thing: object) -> int:
    """Bytes of the arrays among its attributes, and theirs."""
    values = [each for value in vars(thing).values() for each in (value, *getattr(value, "__dict__", {}).values())]
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


@pytest.mark.parametrize(
    ("captions", "scattered", "a_row"),
    [(1, False, 8), (5, False, 8 + 1), (5, True, 8 + 1 + 4)],  # the ends of two texts; a fifth of a record's; the order
)
def test_beside_its_text_a_row_takes_a_few_bytes(tmp_path: Path, captions: int, scattered: bool, a_row: int) -> None:
    path, text = write(tmp_path, captions, scattered)
    records = CSV(path=path, **OPTIONS).split("train")
    assert isinstance(records, TableRecords)
    assert len(records) == ROWS // captions
    assert records.nbytes <= text + a_row * ROWS + 1000
    assert sum(records.text_counts) == ROWS


@pytest.mark.parametrize(("captions", "a_sample"), [("random", 0), ("first", 0), ("all", 4)])
def test_samples_of_images_with_one_sentence_take_next_to_nothing(tmp_path: Path, captions: Any, a_sample: int) -> None:
    records = CSV(path=write(tmp_path)[0], **OPTIONS).split("train")
    items = CaptionSamples(records, tokenizer=None, transform=None, captions=captions)  # type: ignore[arg-type]
    sampler = ImageBatchSampler(image_of=items.image_of, batch_size=60)
    assert arrays(items) <= a_sample * ROWS
    assert arrays(sampler) <= 8 * len(sampler)


def test_samples_of_images_with_several_sentences_take_eight_bytes(tmp_path: Path) -> None:
    records = CSV(path=write(tmp_path, captions=5)[0], **OPTIONS).split("train")
    items = CaptionSamples(records, tokenizer=None, transform=None, captions="all")  # type: ignore[arg-type]
    sampler = ImageBatchSampler(image_of=items.image_of, batch_size=60)
    assert len(items) == ROWS
    assert arrays(items) + arrays(sampler) <= 8 * ROWS


def test_memory_does_not_grow_from_epoch_to_epoch(tmp_path: Path) -> None:
    data = VisionLanguageData(
        dataset={"name": "csv", "path": write(tmp_path)[0], **OPTIONS}, tokenizer="byte", batch_size=100, seed=0
    )
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, CaptionSamples)
    loader.dataset.transform = None
    taken = []
    tracemalloc.start()
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch.tokens) for batch in loader) == ROWS
        gc.collect()
        taken.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert taken[3] - taken[1] < 20_000
