"""Batches of sentences of like length: little padding, and a budget of tokens in place of a number of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from velm.data.base import text_only
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionItems

__all__ = ["LengthBatchSampler", "sentence_lengths"]


class LengthBatchSampler(ImageBatchSampler):
    """Batches of neighbours by length; which neighbours, and which batch comes when, differs from epoch to epoch.

    Samples are sorted by length, those of equal length at random, and cut into global batches:

        lengths          4 4 4 5 5 6 | 6 7 7 9 | 12 14        budget 24, padded: 6 x 4, 4 x 6, 2 x 12
        order of epoch   [6 7 7 9] [12 14] [4 4 4 5 5 6]

    A sample's length is that of the longest sentence it may come with, so that the sizes are the same in every epoch,
    and so is the number of batches. Every sample comes once an epoch, but for a random rest that a whole number of
    processes or, without a budget, of batches leaves over.

    Args:
        lengths: int (samples,), tokens.
        image_of: int (samples,), the image that each sample shows, each only once.
        batch_size: samples in a batch of one rank, where there is no budget.
        max_tokens: budget of one rank's batch: samples times the longest of them, padding included; None for none.
        seed: of the order.
        rank: which of the `world_size` processes this is.
        world_size: number of processes that share a global batch.

    Raises:
        ValueError: an image has several samples, which could meet in a batch; or one sample alone is above the budget.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int] | np.ndarray,
        image_of: Sequence[int] | np.ndarray,
        batch_size: int,
        max_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths, self.max_tokens = np.asarray(lengths, dtype=np.int64), max_tokens
        super().__init__(
            image_of=image_of, batch_size=batch_size, seed=seed, drop_last=True, rank=rank, world_size=world_size
        )

    def _plan(self) -> None:
        if self._image is not None and int(self._image.max()) + 1 < self._samples:
            raise ValueError(
                "bucket_by_length and max_tokens need each image once an epoch, and this split shows some more "
                "often: its sentences of like length would meet in a batch. Set captions to random, weighted or first."
            )
        if self.max_tokens is None:
            super()._plan()
            return
        if len(self.lengths) < self.world_size:
            raise ValueError(f"{self.world_size} processes cannot share {len(self.lengths)} samples. Use fewer.")
        rest = len(self.lengths) % self.world_size
        ceilings = np.sort(self.lengths)[rest:]  # however the rest falls, what is i-th of the others is at most this
        longest = int(ceilings[-1])
        if longest > self.max_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, and one sample alone has {longest} tokens: raise it, or lower "
                f"max_length."
            )
        self._sizes = np.array(_within_budget(ceilings, self.max_tokens, self.world_size))

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        chosen = rng.permutation(len(self.lengths))[: int(self._sizes.sum())]
        by_length = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        batches = np.split(by_length, np.cumsum(self._sizes)[:-1])
        for number in rng.permutation(len(batches)).tolist():
            yield rng.permutation(batches[number])


def _within_budget(lengths: np.ndarray, budget: int, world_size: int) -> list[int]:
    """Sizes of global batches, multiples of `world_size`, of sorted `lengths`, each as large as the budget allows."""
    sizes, start = [], 0
    while start < len(lengths):
        low, high = 1, (len(lengths) - start) // world_size  # samples of one rank; the product grows with them
        while low < high:
            middle = (low + high + 1) // 2
            fits = middle * lengths[start + middle * world_size - 1] <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        sizes.append(low * world_size)
        start += low * world_size
    return sizes


def sentence_lengths(items: CaptionItems) -> np.ndarray:
    """int (samples,): tokens of a sample, bos and eos included, with the longest of the sentences it may come with.

    Targets count too, and `captions_per_image` sentences count one after another. Every sentence is tokenized once.
    """

    def tokens(text: str) -> int:
        length = items.tokenizer.length(text)
        return length if items.max_length is None else min(length, items.max_length)

    found = []
    for record in (text_only(items.records, place) for place in range(len(items.records))):
        pairs = zip(record.texts, record.targets or record.texts, strict=True)
        each = [max(tokens(text), tokens(target)) if record.targets else tokens(text) for text, target in pairs]
        found += each if items.captions == "all" else each[:1] if items.captions == "first" else [max(each)]
    return np.array(found, dtype=np.int64) * items.per_image
