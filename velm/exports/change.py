"""`--data`: the change of recall@1 and CIDEr-D from a checkpoint to what was written, on a split of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from velm.data.base import Dataset, EncodedImage, Record, Records
from velm.data.opening import open_dataset
from velm.data.text.vocabulary import sampled_indices
from velm.errors import ConfigError, ExportError, MissingSplitError
from velm.evaluation.evaluate import prediction_metrics
from velm.evaluation.predictions import Captions, GeneratedCaption, Predictions, Retrieval, asked_of, predict
from velm.pipeline import Pipeline

__all__ = ["Change", "Exercise", "Model", "Sample", "measure_change", "model_metrics"]

BATCH = 32
METRICS = {
    "image_to_text/recall@1": "recall@1 image to text",
    "text_to_image/recall@1": "recall@1 text to image",
    "caption/cider": "CIDEr-D",
}
SPLITS = ("test", "val")


class Model(Protocol):
    """What was written, as its reader opens it; `velm.Pipeline` is one. Methods that it cannot follow may be absent."""

    def embed_images(self, images: Sequence[Any]) -> Any:
        """float (n, E), L2-normalised, of paths, PIL images or uint8 arrays (H, W, 3)."""

    def embed_texts(self, texts: Sequence[str]) -> Any:
        """float (n, E), L2-normalised."""

    def caption(self, images: Sequence[Any] | None, texts: Sequence[str] | None, *, max_length: int) -> list[str]:
        """Greedy captions of images, of texts, or of the pairs of them, of at most `max_length` tokens."""


@dataclass(frozen=True)
class Sample:
    """The data of `--data`.

    Attributes:
        split: None: 'test', or 'val' where there is no such split.
        size: most records, evenly spaced over the split; None: all.
        changes: to the dataset of the checkpoint, see `velm.data.opening.dataset_config`.
        max_change: largest fall of a metric; a rise is none.
    """

    split: str | None = None
    size: int | None = None
    changes: Sequence[tuple[str, Any]] = ()
    max_change: float = 0.02

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ConfigError(f"--samples {self.size} is too small; it is at least 1, or left out for all.")


@dataclass(frozen=True)
class Change:
    """A metric of the checkpoint and of what was written; `allowed` is the largest fall."""

    name: str
    before: float
    after: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.before - self.after <= self.allowed + 1e-9  # False for NaN

    def __str__(self) -> str:
        verdict = "" if self.passed else f"; allowed is -{self.allowed:g}"
        return f"{self.name} {self.before:.3f} -> {self.after:.3f} ({self.after - self.before:+.3f}){verdict}"


@dataclass(frozen=True)
class Exercise:
    """What a fresh process computes: JSON, so that it opens the data itself.

    Attributes:
        checkpoint, data, changes: arguments of `open_dataset`.
        split: of the dataset.
        rows: its records.
        aligned, writes, sees, reads_text, max_length, tokenize: of the pipeline.
    """

    checkpoint: str
    data: dict[str, Any]
    changes: list[tuple[str, Any]]
    split: str
    rows: list[int]
    aligned: bool
    writes: bool
    sees: bool
    reads_text: bool
    max_length: int
    tokenize: str

    def records(self) -> Records:
        """The records; a dataset may say where it was found."""
        dataset = open_dataset(self.checkpoint, self.data, self.changes)
        dataset.max_bad = self.data.get("max_bad", Dataset.max_bad)
        return _FirstTurns(dataset.split(self.split), self.rows)


def measure_change(
    pipeline: Pipeline, checkpoint: str, sample: Sample, ask: Callable[[dict[str, Any]], dict[str, float]]
) -> list[Change]:
    """The metrics of a pipeline beside those of what was written.

    Args:
        checkpoint: its name, beside which the data may lie.
        ask: `model_metrics` of what was written, of the fields of an `Exercise`, in another process.

    Raises:
        ConfigError, DataError: the data cannot be opened.
        ExportError: the model has neither embeddings nor captions.
    """
    if not (pipeline.aligned or pipeline.writes):
        raise ExportError("--data compares recall@1 and CIDEr-D, and this model neither aligns nor writes.")
    data: dict[str, Any] = {
        name: pipeline.data[name] for name in ("dataset", "folder", "max_bad") if name in pipeline.data
    }
    dataset = open_dataset(checkpoint, data, sample.changes)
    dataset.max_bad = data.get("max_bad", Dataset.max_bad)
    split, records = _split(dataset, sample.split)
    rows = sampled_indices(len(records), sample.size or len(records))
    predictions = predict(pipeline, _FirstTurns(records, rows), batch_size=BATCH, max_bad=dataset.max_bad)
    before = prediction_metrics(predictions, tokenize=pipeline.tokenization)
    exercise = Exercise(
        checkpoint, data, list(sample.changes), split,
        [row for place, row in enumerate(rows) if place not in predictions.unreadable],
        pipeline.aligned, pipeline.writes, pipeline.model.image_encoder is not None, "text" in pipeline.model.reads,
        pipeline.generation_config().max_length, pipeline.tokenization,
    )  # fmt: skip
    after = ask(asdict(exercise))
    return [
        Change(label, before[key], after[key], sample.max_change) for key, label in METRICS.items() if key in before
    ]


def model_metrics(model: Model, exercise: Exercise) -> dict[str, float]:
    """The metrics of `velm.evaluation` of what a model says of the records, as `Pipeline` would be measured."""
    records = exercise.records()
    images: list[torch.Tensor] = []
    written: list[GeneratedCaption] = []
    gallery = [(row, text) for row, record in enumerate(records) for text in record.texts]
    for start in range(0, len(records), BATCH):
        batch = [records[row] for row in range(start, min(start + BATCH, len(records)))]
        pixels = [_image(record) for record in batch] if exercise.sees else None
        if exercise.aligned and pixels is not None:
            images.append(torch.as_tensor(np.asarray(model.embed_images(pixels))))
        if exercise.writes:
            written += _captions(model, batch, pixels, exercise)
    retrieval = None
    if exercise.aligned:
        texts = [text for _, text in gallery]
        embeds = torch.cat([
            torch.as_tensor(np.asarray(model.embed_texts(texts[start : start + BATCH])))
            for start in range(0, len(texts), BATCH)
        ])  # fmt: skip
        retrieval = Retrieval(torch.cat(images), embeds, torch.tensor([row for row, _ in gallery]), texts)
    predictions = Predictions(retrieval, Captions(written) if exercise.writes else None)
    return prediction_metrics(predictions, tokenize=exercise.tokenize)


def _split(dataset: Dataset, name: str | None) -> tuple[str, Sequence[Record]]:
    if name is not None:
        return name, dataset.split(name)
    try:
        return SPLITS[0], dataset.split(SPLITS[0])
    except MissingSplitError:
        return SPLITS[1], dataset.split(SPLITS[1])


def _captions(
    model: Model, batch: list[Record], pixels: list[Any] | None, exercise: Exercise
) -> list[GeneratedCaption]:
    """A batch may ask more than one text of an image."""
    asked = [(row, *each) for row, record in enumerate(batch) for each in asked_of(record, exercise.reads_text, None)]
    images = None if pixels is None else [pixels[row] for row, *_ in asked]
    texts = [str(text) for _, text, *_ in asked] if exercise.reads_text else None
    said = model.caption(images, texts, max_length=exercise.max_length)
    rows = zip(asked, said, strict=True)
    return [GeneratedCaption(batch[row].image_id, text, words, right) for (row, text, _, right), words in rows]


def _image(record: Record) -> Any:
    """A path, a PIL image or an array; black where there is none, as in `velm.evaluation`."""
    image = record.image
    if isinstance(image, EncodedImage):
        return Image.open(BytesIO(image.load()))
    return np.zeros((32, 32, 3), np.uint8) if image is None else image


class _FirstTurns(Records):
    """Some rows of a split; of a conversation the first turn, which is what other libraries are asked."""

    def __init__(self, source: Sequence[Record], rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        record = self.source[self.rows[index]]
        if record.histories is None or record.targets is None:
            return record
        conversations = zip(record.histories, record.texts, record.targets, strict=True)
        first = [next(iter((*history, (text, target)))) for history, text, target in conversations]
        texts, targets = zip(*first, strict=True)
        return replace(record, texts=texts, targets=targets, histories=None)


def main(argv: Sequence[str]) -> None:
    """FORMAT FOLDER GIVEN FOUND PLUGINS: read the exercise GIVEN and write the metrics FOUND, both JSON."""
    import json

    from velm.exports.readers import MODELS

    name, folder, given, found, plugins = argv
    exercise = Exercise(**json.loads(Path(given).read_text(encoding="utf-8")))
    metrics = model_metrics(MODELS[name](Path(folder), json.loads(plugins)), exercise)
    Path(found).write_text(json.dumps({name: metrics[name] for name in METRICS if name in metrics}), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
