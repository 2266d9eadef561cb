"""Predictions of a model for a split: embeddings and captions; each image is read and encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.base import Record, Turn, questions
from velm.errors import DataError
from velm.evaluation.encoding import MAX_BAD, EncodedBatch, encode_records
from velm.explain.attention import WordMaps, word_maps
from velm.generation import GenerationConfig
from velm.pipeline import Pipeline
from velm.util import Progress


@dataclass(frozen=True)
class Retrieval:
    """Embeddings of a split's n images and of its gallery of m texts.

    Attributes:
        image_embeds: float32 (n, E), a row per readable record.
        text_embeds: float32 (m, E).
        image_ids: int64 (m,), the row of the image that each text belongs to.
        texts: the m texts.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    image_ids: Tensor
    texts: Sequence[str]


@dataclass(frozen=True)
class GeneratedCaption:
    """A caption by the model.

    Attributes:
        image_id: of the record.
        text: the text that the decoder attended to; None if it attended to the image only.
        caption: the generated caption.
        references: the correct captions.
        history: the earlier turns of the conversation.
    """

    image_id: str
    text: str | None
    caption: str
    references: tuple[str, ...]
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Captions:
    """Generated captions of a split, in the order of the records; a record has several if the decoder reads its texts.

    Attributes:
        rows: the captions.
        maps: attention maps of each caption's words (None: the decoder gives none); () unless asked for.
    """

    rows: Sequence[GeneratedCaption]
    maps: Sequence[WordMaps | None] = ()

    @classmethod
    def joined(cls, parts: Sequence[Captions]) -> Captions:
        return cls([row for part in parts for row in part.rows], [maps for part in parts for maps in part.maps])

    @property
    def texts(self) -> list[str]:
        return [row.caption for row in self.rows]

    @property
    def references(self) -> list[tuple[str, ...]]:
        return [row.references for row in self.rows]


@dataclass(frozen=True)
class Predictions:
    """What the metrics of a split are computed from.

    Attributes:
        retrieval: None if the model does not align images with texts.
        captions: None if the model has no decoder.
        unreadable: the records that were skipped, by index in the split; rows of the others are counted without them.
    """

    retrieval: Retrieval | None = None
    captions: Captions | None = None
    unreadable: Mapping[int, BadSample] = field(default_factory=dict)


def predict(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    texts_per_image: int | None = None,
    captions: bool = True,
    attention: bool = False,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
    **options: Any,
) -> Predictions:
    """Embed and caption a split; unreadable images are skipped.

    Args:
        texts_per_image: number of texts of an image, the first ones, that enter the gallery (and are attended to, if
            the decoder reads texts); None: all.
        captions: generate captions, if the model has a decoder.
        attention: also return attention maps of the captions' words.
        max_bad: fraction of the records, in [0, 1], that may be unreadable.
        progress: called with (records done, all records) after every batch.
        **options: fields of `velm.generation.GenerationConfig`.

    Raises:
        DataError: there are no records, or they lack the images, texts or targets that the model needs.
        BadDataError: more than `max_bad` of them are unreadable.
    """
    _check(records, batch_size, texts_per_image, max_bad)
    config = pipeline.generation_config(**options)
    unreadable: dict[int, BadSample] = {}
    embeds: list[Tensor] = []
    gallery: list[tuple[int, str]] = []
    written: list[Captions] = []
    count = 0
    for batch in encode_records(pipeline, records, batch_size, unreadable, max_bad=max_bad):
        if pipeline.aligned and batch.image is not None and batch.records:
            embeds.append(pipeline.embed_image(batch.image))
            for row, record in enumerate(batch.records, start=count):
                gallery += [(row, text) for text in record.texts[:texts_per_image]]
        if pipeline.writes and captions:
            inputs = _inputs(pipeline, batch, texts_per_image, batch_size)
            written += [_caption(pipeline, batch, part, config, attention) for part in inputs]
        count += len(batch.records)
        if progress is not None:
            progress(batch.done, len(records))
    if not count:
        raise DataError(f"None of the {len(records)} records can be read. The first: {unreadable[0].cause}")
    return Predictions(
        _embed_gallery(pipeline, embeds, gallery) if pipeline.aligned else None,
        Captions.joined(written) if pipeline.writes and captions else None,
        unreadable,
    )


def _check(records: Sequence[Record], batch_size: int, texts_per_image: int | None, max_bad: float) -> None:
    if not len(records):
        raise DataError("There are no records to evaluate on.")
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size} is too small; it is at least 1.")
    if texts_per_image is not None and texts_per_image < 1:
        raise DataError(f"texts_per_image {texts_per_image} is too small; it is at least 1, or left out for all.")
    if not 0 <= max_bad <= 1:
        raise DataError(f"max_bad is a fraction of the records, between 0 and 1; got {max_bad}.")


def _embed_gallery(pipeline: Pipeline, embeds: list[Tensor], gallery: list[tuple[int, str]]) -> Retrieval:
    texts = [text for _, text in gallery]
    image_ids = torch.tensor([row for row, _ in gallery])
    return Retrieval(torch.cat(embeds), pipeline.embed_texts(texts), image_ids, texts)


_Input = tuple[int, str | None, tuple[Turn, ...], tuple[str, ...]]
"""Row in the batch, the text to read (None: image only), its history, references."""


def _inputs(pipeline: Pipeline, batch: EncodedBatch, limit: int | None, batch_size: int) -> Iterator[list[_Input]]:
    """What to caption of a batch, at most `batch_size` captions at a time."""
    reads_text = "text" in pipeline.model.reads
    inputs = [(i, *each) for i, record in enumerate(batch.records) for each in asked_of(record, reads_text, limit)]
    for start in range(0, len(inputs), batch_size):
        yield inputs[start : start + batch_size]


def asked_of(
    record: Record, reads_text: bool, limit: int | None
) -> list[tuple[str | None, tuple[Turn, ...], tuple[str, ...]]]:
    """The texts that the decoder reads of a record, if any, with histories and references; equal ones are joined."""
    if not reads_text:
        return [(None, (), record.targets or record.texts)]
    if record.targets is None:
        raise DataError(
            f"Record {record.image_id!r} has no target, and the decoder attends over the text: name the column of "
            f"the target texts, e.g. --data.dataset.target_column=de"
        )
    asked: list[tuple[str | None, tuple[Turn, ...], tuple[str, ...]]] = []
    asked += [(text, history, references) for (text, history), references in questions(record).items()]
    return asked[:limit]


def _caption(
    pipeline: Pipeline, batch: EncodedBatch, inputs: list[_Input], config: GenerationConfig, attention: bool
) -> Captions:
    """Captions of the inputs and, with `attention`, the attention maps of their words."""
    rows, texts, histories, references = zip(*inputs, strict=True)
    image = batch.image
    if image is not None:
        image = image.select(torch.tensor(rows, device=image.features.device))
    text, prompt = pipeline.read_texts(None if texts[0] is None else texts, histories)
    captions = [candidates[0].text for candidates in pipeline.write(image, text, config, prompt)]
    ids = [batch.records[row].image_id for row in rows]
    generated = [GeneratedCaption(*row) for row in zip(ids, texts, captions, references, histories, strict=True)]
    return Captions(generated, word_maps(pipeline, image, captions, text, prompt) if attention else ())
