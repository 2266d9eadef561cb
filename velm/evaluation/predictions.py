"""What a model says about every image of a split: each one is read and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.base import Record
from velm.errors import DataError
from velm.evaluation.reading import MAX_BAD, encoded
from velm.explain.attention import WordMaps, word_maps
from velm.generation import GenerationConfig
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

__all__ = ["Predictions", "Written", "predict"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """A sentence that the model wrote.

    Attributes:
        image_id: of the record.
        text: the sentence that was attended to; None where there was only the image.
        caption: what was written.
        references: what would have been right.
    """

    image_id: str
    text: str | None
    caption: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Predictions:
    """Everything that figures are made of.

    Attributes:
        image_embeds: float (n, E), a row a record that is not left out; None where the model does not align.
        text_embeds: float (m, E), the gallery.
        image_ids: int64 (m,), the row of the record that each text belongs to.
        texts: the gallery's m sentences.
        written: None where the model does not write.
        looked: beside `written`, where each word of the caption looked, where the decoder says; () unless asked for.
        left_out: what cannot be read, by its place among the records; the others are numbered without it.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    image_ids: Tensor | None = None
    texts: Sequence[str] = ()
    written: list[Written] | None = None
    looked: Sequence[WordMaps | None] = ()
    left_out: Mapping[int, BadSample] = field(default_factory=dict)


def predict(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    texts_per_image: int | None = None,
    attention: bool = False,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
    **options: Any,
) -> Predictions:
    """Embed and caption a split; an image that cannot be read is left out.

    Args:
        pipeline: what to measure.
        records: one an image.
        batch_size: images at a time.
        texts_per_image: how many sentences of an image, the first ones, enter the gallery (and are attended to,
            where the decoder reads the text); None takes all.
        attention: note where each word looked.
        max_bad: share of the records, in [0, 1], that may be left out.
        progress: called with (records done, records in all) after every batch.
        **options: fields of `velm.generation.GenerationConfig`.

    Raises:
        DataError: there are no records, or they lack the images, texts or targets that the model needs.
        BadDataError: more than `max_bad` of them cannot be read.
    """
    _check(records, batch_size, texts_per_image, max_bad)
    config = pipeline.generation_config(**options)
    embeds: list[Tensor] = []
    gallery: list[tuple[int, str]] = []
    written: list[Written] = []
    looked: list[WordMaps | None] = []
    left_out: dict[int, BadSample] = {}
    count = 0
    for done, _, chunk, image in encoded(pipeline, records, batch_size, left_out, max_bad=max_bad):
        if pipeline.aligned and image is not None and chunk:
            embeds.append(pipeline.embed_image(image))
            gallery += [(count + row, text) for row, r in enumerate(chunk) for text in r.texts[:texts_per_image]]
        if pipeline.writes:
            reads_text = "text" in pipeline.model.memory_sources
            wanted = [(row, *each) for row, r in enumerate(chunk) for each in _wanted(r, reads_text, texts_per_image)]
            for part in range(0, len(wanted), batch_size):
                rows, maps = _written(pipeline, chunk, image, wanted[part : part + batch_size], config, attention)
                written += rows
                looked += maps
        count += len(chunk)
        if progress is not None:
            progress(done, len(records))
    if not count:
        raise DataError(f"None of the {len(records)} records can be read. The first: {left_out[0].cause}")
    found = Predictions(written=written if pipeline.writes else None, looked=looked, left_out=left_out)
    if not pipeline.aligned:
        return found
    return replace(
        found,
        image_embeds=torch.cat(embeds),
        text_embeds=pipeline.embed_texts([text for _, text in gallery]),
        image_ids=torch.tensor([i for i, _ in gallery]),
        texts=[text for _, text in gallery],
    )


def _check(records: Sequence[Record], batch_size: int, texts_per_image: int | None, max_bad: float) -> None:
    if not len(records):
        raise DataError("There are no records to evaluate on.")
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size} is too small; it is at least 1.")
    if texts_per_image is not None and texts_per_image < 1:
        raise DataError(f"texts_per_image {texts_per_image} is too small; it is at least 1, or left out for all.")
    if not 0 <= max_bad <= 1:
        raise DataError(f"max_bad is a share of the records, between 0 and 1; got {max_bad}.")


def _wanted(record: Record, reads_text: bool, limit: int | None) -> list[tuple[str | None, tuple[str, ...]]]:
    """What to write for a record: pairs of a text to attend to, if any, and the sentences that would be right."""
    if not reads_text:
        return [(None, record.targets or record.texts)]
    if record.targets is None:
        raise DataError(
            f"Record {record.image_id!r} has no target, and the decoder attends over the text: name the column of "
            f"what it is to write, e.g. --data.dataset.target_column=de"
        )
    right: dict[str | None, tuple[str, ...]] = {}
    for text, target in zip(record.texts, record.targets, strict=True):
        right[text] = (*right.get(text, ()), target)
    return list(right.items())[:limit]


def _written(
    pipeline: Pipeline,
    chunk: list[Record],
    image: EncoderOutput | None,
    wanted: list[tuple[int, str | None, tuple[str, ...]]],
    config: GenerationConfig,
    attention: bool,
) -> tuple[list[Written], list[WordMaps | None]]:
    """What is written for the pairs of `wanted`, and where its words looked, if asked for."""
    rows, texts, references = zip(*wanted, strict=True)
    seen = None if image is None else image.select(torch.tensor(rows, device=image.features.device))
    read = None if texts[0] is None else pipeline.encode_texts(texts)
    captions = [candidates[0].text for candidates in pipeline.write(seen, read, config)]
    ids = [chunk[row].image_id for row in rows]
    found = [Written(*row) for row in zip(ids, texts, captions, references, strict=True)]
    return found, word_maps(pipeline, seen, captions, read) if attention else []
