"""Batches in which an image occurs at most once: a caption of the same image is no negative."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

__all__ = ["ImageBatchSampler"]

TOGETHER = 2**20  # samples that are looked at together for conflicts


class ImageBatchSampler(Sampler[list]):
    """Lists of (epoch, sample) pairs for a `DataLoader`'s `batch_sampler`.

    The order is a function of (seed, epoch) alone, so workers need no state and any rank can tell every
    other's. All ranks cut the same global batches, `batch_size * world_size` samples with no image twice,
    and take their own part of each:

        epoch    [ global batch 0 | global batch 1 | ... ]        the same on every rank
        batch 0  [ rank 0 | rank 1 ]

    The number of batches is the same in every epoch and on every rank. Where images are too few for
    batches of the size asked for, batches are smaller (with a warning when shuffled), never absent.

    Args:
        image_of: int (samples,), the image that each sample shows.
        batch_size: samples in a batch of one rank.
        seed: of the order.
        shuffle: another order each epoch; else images come as they are listed, each one's second caption
            after every image's first.
        drop_last: every batch has exactly `batch_size` samples, and a random rest sits the epoch out; else
            every sample comes once an epoch and the sizes of batches differ by at most one.
        rank: which of the `world_size` processes this is.
        world_size: number of processes that share a global batch.
    """

    def __init__(
        self,
        *,
        image_of: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 ... world_size - 1 = {world_size - 1}, got {rank}.")
        if not len(image_of):
            raise ValueError("There are no samples to make batches of: image_of is empty.")
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._skipped = 0
        self._samples, self._image = len(image_of), _numbered(np.asarray(image_of))
        self._plan()

    def _plan(self) -> None:
        """Fix the sizes of the global batches, once for all epochs."""
        samples, wanted = self._samples, self.batch_size * self.world_size
        counts = np.ones(1, int) if self._image is None else np.bincount(self._image)
        images, most = samples if self._image is None else len(counts), int(counts.max())
        count = samples // wanted if self.drop_last else math.ceil(samples / wanted)
        enough = count >= most and samples >= wanted
        if count >= most:
            used = count * wanted if self.drop_last else samples
        else:  # an image with k samples needs k batches
            count, used = most, samples
        self._sizes = np.full(count, used // count) + (np.arange(count) < used % count)
        if self._sizes.min() < self.world_size:
            raise ValueError(
                f"{self.world_size} processes cannot share a batch of {self._sizes.min()}: the split has {images} "
                f"images and {samples} samples, and no image may be twice in a batch. Use fewer processes."
            )
        if self.shuffle and not enough:
            per = f" on each of {self.world_size} processes" if self.world_size > 1 else ""
            warnings.warn(
                f"batch_size {self.batch_size}{per} is more than this split can fill: it has {images} images and "
                f"{samples} samples, up to {most} of one image, and no image may be twice in a batch. "
                f"Batches hold {self._sizes.max()} samples instead of {wanted}.",
                stacklevel=4,
            )

    @property
    def plan(self) -> int:
        """A hash of how an epoch is cut: the same where the same samples come in the same global batches."""
        return zlib.crc32(np.asarray([self._samples, *self._sizes], dtype=np.int64).tobytes())

    def set_epoch(self, epoch: int) -> None:
        """The order that the next iteration takes."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next iteration, and only of that."""
        self._skipped = batches

    @property
    def sampler(self) -> ImageBatchSampler:
        """Itself: Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skipped, self._skipped = self.epoch, self._skipped, 0
        for batch in islice(self._batches(epoch), skipped, None):
            yield [(epoch, sample) for sample in np.array_split(batch, self.world_size)[self.rank].tolist()]

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The samples of every global batch of an epoch; each row is shared out among the ranks."""
        return list(self._batches(epoch))

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        order, start = self._order(epoch), 0
        for size in self._sizes.tolist():
            yield order[start : start + size]
            start += size

    def _order(self, epoch: int) -> np.ndarray:
        """int (used,), the samples of an epoch, batch after batch."""
        rng = np.random.default_rng((self.seed, epoch)) if self.shuffle else None
        used = int(self._sizes.sum())
        if used == self._samples:
            return self._spread_out(self._image, used, rng)
        kept = np.arange(self._samples)
        kept = kept[:used] if rng is None else np.sort(rng.permutation(kept)[:used])
        return kept[self._spread_out(None if self._image is None else self._image[kept], used, rng)]

    def _spread_out(self, image: np.ndarray | None, total: int, rng: np.random.Generator | None) -> np.ndarray:
        """int (total,), the order of samples that show these images; None, each its own."""
        if image is None:
            return _spread_single(total, rng)
        order = _repaired(_spread(image, rng), image, self._sizes)
        return _dealt(image, self._sizes, rng) if order is None else order


def _numbered(image_of: np.ndarray) -> np.ndarray | None:
    """int (samples,), images numbered from 0 by their size, no gaps; None where each sample shows a larger one."""
    steps = image_of[1:] > image_of[:-1]
    if steps.all():
        return None
    if (steps | (image_of[1:] == image_of[:-1])).all():
        return np.concatenate([[0], np.cumsum(steps)])
    return np.unique(image_of, return_inverse=True)[1].reshape(-1)


def _spread(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """An order in which the n samples of an image fall one into each n-th of the epoch."""
    total = len(image)
    shuffled = np.arange(total)
    if rng is not None:
        rng.shuffle(shuffled)
    by_image = shuffled[np.argsort(image[shuffled], kind="stable")]
    counts = np.bincount(image)
    starts = np.cumsum(counts) - counts
    owner = image[by_image]
    when = np.full(total, 0.5) if rng is None else rng.random(total)
    when += np.arange(total) - starts[owner]  # the sample is its image's n-th
    when /= counts[owner]
    return by_image[np.argsort(when, kind="stable")]


def _spread_single(total: int, rng: np.random.Generator | None) -> np.ndarray:
    """`_spread` of as many images as samples, in the same order without looking at them."""
    if rng is None:
        return np.arange(total)
    rng.shuffle(np.empty(total, np.uint8))  # as many random numbers as `_spread` draws before
    return np.argsort(rng.random(total), kind="stable")


def _conflicts(order: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places in `order` whose image is already in their batch."""
    images, found = int(image.max()) + 1, [np.zeros(0, np.int64)]
    together = max(1, TOGETHER // int(sizes.max()))  # batches
    ends = np.concatenate([[0], np.cumsum(sizes)])
    for first in range(0, len(sizes), together):
        some = sizes[first : first + together]
        start, end = ends[first], ends[first + len(some)]
        key = np.repeat(np.arange(len(some)), some) * images + image[order[start:end]]
        by_key = np.argsort(key, kind="stable")
        found.append(start + by_key[1:][key[by_key][1:] == key[by_key][:-1]])
    return np.concatenate(found)


def _repaired(order: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """`order` with each conflict swapped for the nearest place that suits both; None if one finds no place."""
    places = _conflicts(order, image, sizes)
    if not len(places):
        return order
    order, total, ends = order.copy(), len(order), np.cumsum(sizes)
    members: dict[int, set[int]] = {}  # images of the batches that were looked at

    def images_of(batch: int) -> set[int]:
        if batch not in members:
            members[batch] = set(image[order[ends[batch] - sizes[batch] : ends[batch]]].tolist())
        return members[batch]

    for place in places.tolist():
        here, mine = int(np.searchsorted(ends, place, side="right")), int(image[order[place]])
        for step in range(1, total):
            other = (place + step) % total
            there, theirs = int(np.searchsorted(ends, other, side="right")), int(image[order[other]])
            if there != here and mine not in images_of(there) and theirs not in images_of(here):
                break
        else:
            return None
        order[place], order[other] = order[other], order[place]
        images_of(here).add(theirs)  # `mine` stays: its first sample is still here
        images_of(there).remove(theirs)
        images_of(there).add(mine)
    return order if not len(_conflicts(order, image, sizes)) else None


def _dealt(image: np.ndarray, sizes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Deal the samples, image by image, round the batches like cards: always possible, less random.

    No image has more samples than there are batches, and sizes differ by at most one, larger ones first.
    """
    names = np.arange(image.max() + 1)
    shuffled = names if rng is None else rng.permutation(names)
    by_image = np.argsort(shuffled[image], kind="stable")
    batch_of = np.arange(len(image)) % len(sizes)
    return by_image[np.argsort(batch_of, kind="stable")]
