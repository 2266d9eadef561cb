"""Batches of captions of similar length: little padding, and optionally a token budget instead of a batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from velm.data.base import text_only
from velm.data.batches.lengths import template_lengths
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples

__all__ = ["LengthBatchSampler", "sample_lengths"]


class LengthBatchSampler(ImageBatchSampler):
    """Batches of samples of similar length; their composition and order differ from epoch to epoch.

    Samples are sorted by length, ties at random, and cut into global batches, which are shuffled:

        lengths          4 4 4 5 5 6 | 6 7 7 9 | 12 14        budget 24, padded: 6 x 4, 4 x 6, 2 x 12
        order of epoch   [6 7 7 9] [12 14] [4 4 4 5 5 6]

    A sample's length is that of the longest text it may have, so the sizes and number of batches are the same in every
    epoch. Every sample occurs once per epoch, except a random remainder of the division by the number of ranks or,
    without a budget, by the global batch size.

    Args:
        lengths: int (samples,), tokens.
        image_of: int (samples,), the image of each sample, all distinct.
        batch_size: samples per batch and rank without a budget.
        max_tokens: budget per batch and rank: samples times the longest length, padding included. None: `batch_size`.
        seed: of the order.
        rank: of this process.
        world_size: number of processes that share a global batch.

    Raises:
        ValueError: an image has several samples, which could share a batch; or a single sample exceeds the budget.
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
                "bucket_by_length and max_tokens need each image once per epoch, and this split repeats some: their "
                "captions of similar length would share a batch. Set captions to random, weighted or first."
            )
        if self.max_tokens is None:
            super()._plan()
            return
        ranks = min(self.world_size, len(self.lengths))
        rest = len(self.lengths) % ranks
        ceilings = np.sort(self.lengths)[rest:]  # upper bound of the i-th shortest, whichever samples are left out
        longest = int(ceilings[-1])
        if longest > self.max_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, but a single sample has {longest} tokens: raise it, or lower "
                f"max_length."
            )
        self._sizes = np.array(_within_budget(ceilings, self.max_tokens, ranks))

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        chosen = rng.permutation(len(self.lengths))[: int(self._sizes.sum())]
        by_length = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        batches = np.split(by_length, np.cumsum(self._sizes)[:-1])
        for number in rng.permutation(len(batches)).tolist():
            yield rng.permutation(batches[number])


def _within_budget(lengths: np.ndarray, budget: int, world_size: int) -> list[int]:
    """Sizes of global batches over sorted `lengths`: multiples of `world_size`, the largest within the budget."""
    sizes, start = [], 0
    while start < len(lengths):
        low, high = 1, (len(lengths) - start) // world_size  # samples per rank, by bisection
        while low < high:
            middle = (low + high + 1) // 2
            fits = middle * lengths[start + middle * world_size - 1] <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        sizes.append(low * world_size)
        start += low * world_size
    return sizes


def sample_lengths(samples: CaptionSamples) -> np.ndarray:
    """int (samples,): tokens of the longest text that a sample may have, bos and eos included.

    Targets count as texts; `captions_per_image` captions count one after another. Tokenizes every text once.
    """

    def tokens(text: str) -> int:
        length = samples.tokenizer.length(text)
        return length if samples.max_length is None else min(length, samples.max_length)

    lengths: list[int] = []
    for record in (text_only(samples.records, index) for index in range(len(samples.records))):
        pairs = zip(record.texts, record.targets or record.texts, strict=True)
        if samples.template is not None:
            each = [min(length, samples.max_length or length) for length in template_lengths(record, samples.template)]
        else:
            each = [max(tokens(text), tokens(target)) if record.targets else tokens(text) for text, target in pairs]
        match samples.captions:
            case "all":
                lengths += each
            case "first":
                lengths += each[:1]
            case _:
                lengths.append(max(each))
    return np.array(lengths, dtype=np.int64) * samples.captions_per_image
