"""Records to samples: which caption, which crop, and which sample replaces one that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from velm.data.bad_samples import BadSample, text_problem
from velm.data.base import Record, first_records, image_name, index_dtype, text_counts, validation_text
from velm.data.batches.lengths import fit_answer, truncate
from velm.data.batches.negatives import NegativeDraws
from velm.data.text.base import Tokenizer
from velm.data.text.template import PromptIds, Template
from velm.errors import DataError
from velm.registry.plugins import loaded_files, new_after_plugins

if TYPE_CHECKING:
    from velm.data.feature_cache.store import FeatureReader
    from velm.data.feature_cache.teacher import TeacherReader

__all__ = ["RANDOM_CAPTIONS", "CaptionSamples", "Captions", "Sample"]

Captions = Literal["random", "weighted", "all", "first"]
SampleCaptions = Literal[Captions, "validation"]
RANDOM_CAPTIONS = ("random", "weighted")
"""Modes with one sample per image whose caption differs from epoch to epoch."""
ATTEMPTS = 100  # replacements tried for one bad sample; all fail only if nearly every sample is bad


@dataclass
class Sample:
    """One image with one caption.

    Attributes:
        image: uint8 (3, H, W), None if the record has no image; with cached features int64 (), its row in the
            `FeatureReader`.
        tokens: bos ... eos.
        target: bos ... eos of the text to generate, None if it is `tokens`.
        prompt: what is read around the image, of data with a template; else None.
        learnt: the target's tokens that the loss is on; None: all.
        image_id: index in the split of the first record that shows the image.
        text_index: index of the caption among the record's texts.
        teacher: rows of its image and its text in the `TeacherReader`; None without a teacher.
        stand_in: in place of a rank's empty share of a batch.
        hard_negatives: K captions that are false of the image, bos ... eos; None where the caption has fewer.
    """

    image: Tensor | None
    tokens: list[int]
    target: list[int] | None
    image_id: int
    text_index: int
    teacher: tuple[int, int] | None = None
    prompt: PromptIds | None = None
    learnt: list[bool] | None = None
    stand_in: bool = False
    hard_negatives: list[list[int] | None] | None = None


class CaptionSamples(TorchDataset):
    """The samples of a split, indexed by sample number or by (epoch, sample number); ~number is a stand-in.

    The caption of an image and its crop are functions of (seed, epoch, sample): the number of workers has no effect,
    and workers need not know the epoch.

    Args:
        records: one per image. Repeated images are given by `records.image_indices`, int (records,), equal for
            records with the same image.
        tokenizer: encodes captions.
        transform: `transform(image, rng) -> uint8 (3, H, W)`; None: samples have no images.
        captions: 'random': one sample per image with a new caption each epoch until all have been used; 'weighted':
            one sample per image, its caption drawn each epoch by the record's weights (uniform without weights);
            'all': one sample per caption; 'first': one sample per image with its first caption; 'validation': with the
            one that `velm.data.base.validation_text` names.
        seed: of captions and crops.
        max_length: tokens, bos and eos included; longer captions are truncated before eos. None: no limit.
        has_target: whether samples have targets; None: if the record has them.
        captions_per_image: captions per image and step, for 'random' and 'weighted'; the image is encoded once for
            all of them. Images with fewer captions repeat some.
        replace: draw another sample for one that cannot be read, which preserves the batch size; otherwise leave
            it out.
        features: cached features of the same records; `transform` is not called then.
        teacher: cached embeddings of a teacher of the same records. An image that only the teacher cannot read is bad.
        template: makes a prompt of the text, and a target of what is to be written; prompt and target together have
            `max_length` tokens. A sample whose prompt leaves no room for an answer is bad.
        all_turns: a conversation is one sample, all of whose answers are learnt; else the last answer alone is.
        negatives: draws hard negatives of the captions, a function of (seed, epoch, record, caption); None: there are
            none.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        tokenizer: Tokenizer,
        transform: Callable[[Any, np.random.Generator], Tensor] | None,
        captions: SampleCaptions = "random",
        seed: int = 0,
        max_length: int | None = None,
        has_target: bool | None = None,
        captions_per_image: int = 1,
        replace: bool = True,
        features: FeatureReader | None = None,
        teacher: TeacherReader | None = None,
        template: Template | None = None,
        all_turns: bool = False,
        negatives: NegativeDraws | None = None,
    ) -> None:
        if captions not in get_args(SampleCaptions):
            raise ValueError(f"captions must be one of {', '.join(get_args(Captions))}; got {captions!r}.")
        if captions_per_image < 1 or (captions_per_image > 1 and captions not in RANDOM_CAPTIONS):
            raise ValueError(
                f"captions_per_image is {captions_per_image} with captions: {captions}; it is at least 1, and above 1 "
                f"only with captions: random or weighted (all: every caption is a sample of its own)."
            )
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length must be at least 3 tokens (bos, a word, eos), got {max_length}.")
        self.records, self.tokenizer, self.transform = records, tokenizer, transform
        self.captions, self.seed, self.max_length, self.has_target = captions, seed, max_length, has_target
        self.captions_per_image, self.replace = captions_per_image, replace
        self.features, self.teacher = features, teacher
        self.template, self.all_turns, self.negatives = template, all_turns, negatives
        self._record_index = np.arange(len(records), dtype=index_dtype(len(records)))  # by sample
        if captions == "all":
            counts = text_counts(records)
            self._record_index = np.repeat(self._record_index, counts)
            self._first_sample = np.cumsum(counts) - counts  # by record
        self._image_index = first_records(records)

    def __reduce__(self) -> tuple[Any, ...]:
        return new_after_plugins, (type(self), loaded_files()), self.__dict__

    def __len__(self) -> int:
        return len(self._record_index)

    @property
    def image_of(self) -> np.ndarray:
        """int (samples,), index of the first record with the sample's image."""
        return self._image_index[self._record_index]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        return self._read(*_epoch_and_sample(key))[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Sample | BadSample]:
        """`captions_per_image` adjacent samples per key, which share one image; `DataLoader` calls this per batch.

        A sample that cannot be read gives a `BadSample`, followed with `replace` by the samples of a random other one,
        a function of (seed, epoch, sample): the other samples, batches and ranks are unaffected.

        Raises:
            DataError: `ATTEMPTS` samples in a row cannot be read.
        """
        return [sample for key in keys for sample in self._read_or_replace(*_epoch_and_sample(key))]

    def _read_or_replace(self, epoch: int, sample: int) -> list[Sample | BadSample]:
        if sample < 0:
            samples = self._read_or_replace(epoch, ~sample)
            return [replace(s, stand_in=True) if isinstance(s, Sample) else s for s in samples]
        bad_samples: list[Sample | BadSample] = []
        for candidate in islice(chain([sample], self._replacements(epoch, sample)), ATTEMPTS):
            try:
                return bad_samples + self._read(epoch, candidate)
            except Exception as error:  # codecs, disks and users' datasets raise anything
                bad_sample = self._bad_sample(candidate, error)
                bad_samples.append(bad_sample)
            if not self.replace:
                return bad_samples
        raise DataError(f"{ATTEMPTS} samples in a row cannot be read. The last, {bad_sample.path}: {bad_sample.cause}")

    def _replacements(self, epoch: int, sample: int) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, 3, epoch, sample))
        while True:
            yield int(rng.integers(len(self)))

    def _bad_sample(self, sample: int, error: Exception) -> BadSample:
        cause = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        index = int(self._record_index[sample])
        try:
            return BadSample(image_name(self.records[index]), cause, lost=0)
        except Exception:  # the record itself cannot be read
            return BadSample(f"record {index}", cause, lost=0)

    def _read(self, epoch: int, sample: int) -> list[Sample]:
        """`captions_per_image` samples that share one image."""
        index = int(self._record_index[sample])
        record = self.records[index]
        image = self._image(record, epoch, sample, index)
        if self.captions == "weighted":
            text_indices = self._draw_by_weight(record, epoch, index)
        else:
            text_indices = [self._text_index(record, epoch, n, sample, index) for n in range(self.captions_per_image)]
        for text_index in text_indices:
            problem = text_problem(record.texts[text_index])
            if problem is not None:  # only in datasets that do not check their captions
                raise DataError(f"text {text_index + 1} {problem}")
        image_id = int(self._image_index[index])
        return [
            Sample(
                image=image,
                tokens=self._encode(record.texts[text_index]),
                image_id=image_id,
                text_index=text_index,
                teacher=None if self.teacher is None else self.teacher.rows(image_id, index, text_index),
                hard_negatives=self._hard_negatives(record.texts, text_index, epoch, index),
                **self._target(record, text_index),
            )
            for text_index in text_indices
        ]

    def _text_index(self, record: Record, epoch: int, number: int, sample: int, index: int) -> int:
        """Index of the sample's `number`-th caption of the epoch."""
        count = len(record.texts)
        if self.captions == "all":
            return sample - int(self._first_sample[index])
        if self.captions == "validation":
            return validation_text(record, int(self._image_index[index]))
        if self.captions == "first" or count == 1:
            return 0
        lap, turn = divmod(epoch * self.captions_per_image + number, count)  # each caption occurs once per lap
        return int(np.random.default_rng((self.seed, 1, lap, index)).permutation(count)[turn])

    def _draw_by_weight(self, record: Record, epoch: int, index: int) -> list[int]:
        """Caption indices drawn by weight, without replacement if enough have a weight above 0."""
        count, rng = len(record.texts), np.random.default_rng((self.seed, 4, epoch, index))
        weights = np.ones(count) if record.weights is None else np.asarray(record.weights, dtype=np.float64)
        if not weights.sum() > 0:
            raise DataError("all of its captions have the weight 0")
        repeat = bool(np.count_nonzero(weights) < self.captions_per_image)
        drawn: list[int] = rng.choice(
            count, self.captions_per_image, replace=repeat, p=weights / weights.sum()
        ).tolist()
        return drawn

    def _hard_negatives(
        self, texts: Sequence[str], text_index: int, epoch: int, index: int
    ) -> list[list[int] | None] | None:
        if self.negatives is None:
            return None
        rng = np.random.default_rng((self.seed, 5, epoch, index, text_index))
        own = self._encode(texts[text_index])
        encoded = [self._encode(text) for text in self.negatives(texts, text_index, rng)]
        drawn = [ids for ids in encoded if ids != own]  # equal where `max_length` truncates the changed words
        return [*drawn, *[None] * (self.negatives.count - len(drawn))]

    def _image(self, record: Record, epoch: int, sample: int, index: int) -> Tensor | None:
        if self.transform is None or record.image is None:
            return None
        if self.features is not None:
            return self.features.row(int(self._image_index[index]))
        return self.transform(record.image, np.random.default_rng((self.seed, 2, epoch, sample)))

    def _target(self, record: Record, text_index: int) -> dict[str, Any]:
        """What is to be written, and the prompt before it: fields of the sample."""
        target = record.targets[text_index] if record.targets is not None and self.has_target is not False else None
        if target is None and self.has_target:
            raise DataError(f"Image {record.image_id!r} has no target; the data must name a target column.")
        if self.template is None:
            return {"target": None if target is None else self._encode(target)}
        text, history = record.texts[text_index], record.history(text_index)
        answer = text if target is None else target
        prompt, ids, learnt = self.template.sample(text, answer, history, all_turns=self.all_turns)
        return fit_answer(prompt, ids, learnt, self.max_length)

    def _encode(self, text: str) -> list[int]:
        return truncate(self.tokenizer.encode(text), self.max_length)


def _epoch_and_sample(key: int | tuple[int, int]) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (0, key)
