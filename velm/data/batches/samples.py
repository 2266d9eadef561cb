"""Records to samples: which sentence, which crop, and what stands in for a sample that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from velm.data.bad_samples import BadSample, text_problem
from velm.data.base import Record, first_records, image_name, text_counts
from velm.data.text.base import Tokenizer
from velm.errors import DataError

if TYPE_CHECKING:
    from velm.data.feature_cache.store import FeatureReader

__all__ = ["DRAWN", "CaptionItems", "Captions", "Item", "cut"]

Captions = Literal["random", "weighted", "all", "first"]
DRAWN = ("random", "weighted")  # one sample an image, its sentences by turns
ATTEMPTS = 100  # samples drawn in place of a bad one; bad every time only where nearly all of them are


@dataclass
class Item:
    """One sample.

    Attributes:
        image: uint8 (3, H, W), None where the record has no image; where images come encoded, int64 (), its row
            in the `FeatureReader`.
        tokens: bos ... eos.
        target: bos ... eos of what to write, None where it is `tokens`.
        image_id: the place in its split of the first record that shows the image.
        text_index: which of the record's texts this is.
    """

    image: Tensor | None
    tokens: list[int]
    target: list[int] | None
    image_id: int
    text_index: int


class CaptionItems(TorchDataset):
    """The samples of a split, by number or by (epoch, number).

    Which caption of an image comes, and how the image is cropped, are functions of (seed, epoch, sample):
    the number of workers changes nothing, and workers need not be told of a new epoch.

    Args:
        records: one per image; where some are repeated, `records.image_indices`, int (records,), tells which are
            the same.
        tokenizer: makes ids of sentences.
        transform: `transform(image, rng) -> uint8 (3, H, W)`; None leaves images out.
        captions: 'random', one sample an image, another of its captions each epoch until all have come;
            'weighted', one sample an image, a caption drawn each epoch by the weights of its record (alike where it
            has none); 'all', one sample a caption; 'first', one sample an image, always its first caption.
        seed: of captions and crops.
        max_length: tokens, bos and eos included; longer sentences are cut before their eos. None cuts nothing.
        has_target: whether samples carry targets; None, where the record has them.
        per_image: how many captions of an image come with it in a step, which encodes the image once for all of
            them; with 'random' and 'weighted'. An image with fewer repeats some.
        replace: whether another sample stands in for one that cannot be read, so that batches keep their size; else
            it is left out.
        features: of the same records, where images come encoded; `transform` then does nothing.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        tokenizer: Tokenizer,
        transform: Callable[[Any, np.random.Generator], Tensor] | None,
        captions: Captions = "random",
        seed: int = 0,
        max_length: int | None = None,
        has_target: bool | None = None,
        per_image: int = 1,
        replace: bool = True,
        features: FeatureReader | None = None,
    ) -> None:
        if captions not in get_args(Captions):
            raise ValueError(f"captions must be one of {', '.join(get_args(Captions))}; got {captions!r}.")
        if per_image < 1 or (per_image > 1 and captions not in DRAWN):
            raise ValueError(
                f"captions_per_image is {per_image} with captions: {captions}; it is at least 1, and above 1 only with "
                f"captions: random or weighted (all: every caption is a sample of its own)."
            )
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length must be at least 3 tokens (bos, a word, eos), got {max_length}.")
        self.records, self.tokenizer, self.transform = records, tokenizer, transform
        self.captions, self.seed, self.max_length, self.has_target = captions, seed, max_length, has_target
        self.per_image, self.replace, self.features = per_image, replace, features
        self._place_of = np.arange(len(records))
        if captions == "all":
            counts = text_counts(records)
            self._place_of = np.repeat(self._place_of, counts)
            self._first_sample = np.cumsum(counts) - counts  # of each record
        self._image_index = first_records(records)

    def __len__(self) -> int:
        return len(self._place_of)

    @property
    def image_of(self) -> np.ndarray:
        """int (samples,), the first record that shows the same image."""
        return self._image_index[self._place_of]

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        return self._together(*_epoch_and_sample(key))[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item | BadSample]:
        """`per_image` items for each key, neighbours that share one image; a `DataLoader` asks for batches here.

        A sample that cannot be read gives a bad_sample, then with `replace` the items of another, drawn at random as a
        function of (seed, epoch, sample): no other sample, batch or rank is touched by it.
        """
        return [each for key in keys for each in self._readable(*_epoch_and_sample(key))]

    def _readable(self, epoch: int, sample: int) -> list[Item | BadSample]:
        bad_samples: list[Item | BadSample] = []
        for each in islice(chain([sample], self._others(epoch, sample)), ATTEMPTS):
            try:
                return bad_samples + self._together(epoch, each)
            except Exception as error:  # whatever a codec, a disk or somebody's dataset raises
                bad_sample = self._fault(each, error)
                bad_samples.append(bad_sample)
            if not self.replace:
                return bad_samples
        raise DataError(f"{ATTEMPTS} samples in a row cannot be read. The last, {bad_sample.path}: {bad_sample.cause}")

    def _others(self, epoch: int, sample: int) -> Iterator[int]:
        """Samples that stand in for one, each for the one before."""
        rng = np.random.default_rng((self.seed, 3, epoch, sample))
        while True:
            yield int(rng.integers(len(self)))

    def _fault(self, sample: int, error: Exception) -> BadSample:
        cause = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        place = int(self._place_of[sample])
        try:
            return BadSample(image_name(self.records[place]), cause, lost=0)
        except Exception:  # it is the record that cannot be read
            return BadSample(f"record {place}", cause, lost=0)

    def _together(self, epoch: int, sample: int) -> list[Item]:
        place = int(self._place_of[sample])
        record = self.records[place]
        image = self._image(record, epoch, sample, place)
        if self.captions == "weighted":
            indices = self._weighted(record, epoch, place)
        else:
            indices = [self._text_index(len(record.texts), epoch, n, sample, place) for n in range(self.per_image)]
        for index in indices:
            wrong = text_problem(record.texts[index])
            if wrong is not None:  # in data that is not checked when it is opened
                raise DataError(f"sentence {index + 1} {wrong}")
        return [
            Item(
                image=image,
                tokens=self._ids(record.texts[index]),
                target=self._target(record, index),
                image_id=int(self._image_index[place]),
                text_index=index,
            )
            for index in indices
        ]

    def _text_index(self, count: int, epoch: int, number: int, sample: int, place: int) -> int:
        """Which caption is the epoch's `number`-th of this sample."""
        if self.captions == "all":
            return sample - int(self._first_sample[place])
        if self.captions == "first" or count == 1:
            return 0
        lap, turn = divmod(epoch * self.per_image + number, count)  # within a lap each caption comes once
        return int(np.random.default_rng((self.seed, 1, lap, place)).permutation(count)[turn])

    def _weighted(self, record: Record, epoch: int, place: int) -> list[int]:
        """Captions drawn by their weights, none twice where there are enough."""
        count, rng = len(record.texts), np.random.default_rng((self.seed, 4, epoch, place))
        weights = np.ones(count) if record.weights is None else np.asarray(record.weights, dtype=np.float64)
        if not weights.sum() > 0:
            raise DataError("all of its sentences have the weight 0")
        repeat = bool(np.count_nonzero(weights) < self.per_image)
        drawn: list[int] = rng.choice(count, self.per_image, replace=repeat, p=weights / weights.sum()).tolist()
        return drawn

    def _image(self, record: Record, epoch: int, sample: int, place: int) -> Tensor | None:
        if self.transform is None or record.image is None:
            return None
        if self.features is not None:
            return self.features.row(int(self._image_index[place]))
        return self.transform(record.image, np.random.default_rng((self.seed, 2, epoch, sample)))

    def _target(self, record: Record, text_index: int) -> list[int] | None:
        if record.targets is not None and self.has_target is not False:
            return self._ids(record.targets[text_index])
        if self.has_target:
            raise DataError(f"Image {record.image_id!r} has no target to write; the data must name a target column.")
        return None

    def _ids(self, text: str) -> list[int]:
        return cut(self.tokenizer.encode(text), self.max_length)


def _epoch_and_sample(key: int | tuple[int, int]) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (0, key)


def cut(ids: list[int], max_length: int | None) -> list[int]:
    """A sentence of at most `max_length` tokens that still ends with its eos."""
    if max_length is None or len(ids) <= max_length:
        return ids
    return [*ids[: max_length - 1], ids[-1]]
