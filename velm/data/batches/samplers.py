"""Batches in which each image occurs at most once: another caption of the same image is not a negative."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler, SequentialSampler

from velm.data.base import index_dtype

__all__ = ["ImageBatchSampler", "ShareSampler"]

CHUNK = 2**20  # samples checked for conflicts at a time, which bounds memory


class ImageBatchSampler(Sampler[list]):
    """Lists of (epoch, sample) pairs for a `DataLoader`'s `batch_sampler`.

    The order is a function of (seed, epoch) alone, so workers and ranks share no state. All ranks cut the same global
    batches, `batch_size * world_size` samples without a repeated image, and take their part of each:

        epoch    [ global batch 0 | global batch 1 | ... ]        the same on every rank
        batch 0  [ rank 0 | rank 1 ]

    Every epoch and rank has the same number of batches. With too few images for `batch_size`, batches are smaller
    (with a warning when shuffled), the ranks' parts differ by at most one sample, and a rank without one gets a
    stand-in, (epoch, ~sample), which no loss sees.

    Args:
        image_of: int (samples,), the image of each sample.
        batch_size: samples per batch and rank.
        seed: of the order.
        shuffle: another order each epoch; otherwise images come as listed, all first captions before the second ones.
        drop_last: every batch has exactly `batch_size` samples and a random rest is left out of the epoch; otherwise
            every sample occurs once per epoch and batch sizes differ by at most one.
        rank: of this process.
        world_size: number of processes that share a global batch.

    Attributes:
        epoch: of the next iteration.
        repeats: every epoch is epoch 0 again.

    Raises:
        ValueError: an option is out of range, or there are no samples.
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
        self.epoch, self.repeats = 0, False
        self._skipped = 0
        self._samples, self._image = len(image_of), _number_images(np.asarray(image_of))
        self._plan()

    def _plan(self) -> None:
        """Set the sizes of the global batches, the same in all epochs."""
        samples, size = self._samples, self.batch_size * self.world_size
        counts = np.ones(1, int) if self._image is None else np.bincount(self._image)
        images, most = samples if self._image is None else len(counts), int(counts.max())
        count = samples // size if self.drop_last else math.ceil(samples / size)
        enough = count >= most and samples >= size
        if count >= most:
            used = count * size if self.drop_last else samples
        else:  # an image with k samples needs k batches
            count, used = most, samples
        self._sizes = np.full(count, used // count) + (np.arange(count) < used % count)
        if self.shuffle and not enough:
            per = f" on each of {self.world_size} processes" if self.world_size > 1 else ""
            idle = self.world_size - int(self._sizes.max())
            fewer = f" {idle} of {self.world_size} processes have nothing to do: use fewer." if idle > 0 else ""
            warnings.warn(
                f"batch_size {self.batch_size}{per} is more than this split can fill: it has {images} images and "
                f"{samples} samples, up to {most} of one image, and no image may occur twice in a batch. "
                f"Batches hold {self._sizes.max()} samples instead of {size}.{fewer}",
                stacklevel=4,
            )

    @property
    def plan(self) -> int:
        """Hash of the sizes of the global batches: equal if epochs consist of the same global batches."""
        return zlib.crc32(np.asarray([self._samples, *self._sizes], dtype=np.int64).tobytes())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = 0 if self.repeats else epoch

    def skip(self, batches: int) -> None:
        """Skip the first batches of the next iteration only."""
        self._skipped = batches

    @property
    def sampler(self) -> ImageBatchSampler:
        """This object: Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skipped, self._skipped = self.epoch, self._skipped, 0
        for batch in islice(self._batches(epoch), skipped, None):
            own = np.array_split(batch, self.world_size)[self.rank].tolist()
            yield [(epoch, sample) for sample in own or [~int(batch[0])]]

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The samples of every global batch of an epoch, int (samples,) each, before they are split over the ranks."""
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
            return self._arrange(self._image, used, rng)
        samples = np.arange(self._samples)
        samples = samples[:used] if rng is None else np.sort(rng.permutation(samples)[:used])
        return samples[self._arrange(None if self._image is None else self._image[samples], used, rng)]

    def _arrange(self, image: np.ndarray | None, total: int, rng: np.random.Generator | None) -> np.ndarray:
        """int (total,), the order of samples of these images; None: each sample has its own."""
        if image is None:
            return _spread_distinct(total, rng)
        order = _resolve_conflicts(_spread(image, rng), image, self._sizes)
        return _deal(image, self._sizes, rng) if order is None else order


class ShareSampler(SequentialSampler):
    """A rank's samples of a split of which each occurs once on one rank; of a rank without any, one stand-in.

    A `SequentialSampler`, which Lightning's `overfit_batches` leaves as it is.

    Args:
        samples: of the split.
        rank: of this process.
        world_size: number of processes that share the split.
    """

    def __init__(self, samples: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(samples))
        self.own: Sequence[int] = range(rank, samples, world_size) or (~0,)

    def __iter__(self) -> Iterator[int]:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)


def _number_images(image_of: np.ndarray) -> np.ndarray | None:
    """int (samples,), images renumbered 0, 1, ... without gaps; None if all samples have distinct, ascending images."""
    steps = image_of[1:] > image_of[:-1]
    if steps.all():
        return None
    if (steps | (image_of[1:] == image_of[:-1])).all():
        return np.concatenate([[0], np.cumsum(steps)])
    return np.unique(image_of, return_inverse=True)[1].reshape(-1)


def _spread(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """An order with one of an image's n samples in each n-th of the epoch."""
    total = len(image)
    shuffled = np.arange(total)
    if rng is not None:
        rng.shuffle(shuffled)
    by_image = shuffled[np.argsort(image[shuffled], kind="stable")]
    counts = np.bincount(image)
    starts = np.cumsum(counts) - counts
    owner = image[by_image]
    when = np.full(total, 0.5) if rng is None else rng.random(total)
    when += np.arange(total) - starts[owner]  # number of the sample among its image's
    when /= counts[owner]
    return by_image[np.argsort(when, kind="stable")]


def _spread_distinct(total: int, rng: np.random.Generator | None) -> np.ndarray:
    """The order of `_spread` for distinct images, without an array of them."""
    if rng is None:
        return np.arange(total)
    rng.shuffle(np.empty(total, np.uint8))  # draws the numbers that `_spread` draws: same seed, same order
    return np.argsort(rng.random(total), kind="stable").astype(index_dtype(total))  # kept for an epoch


def _conflicts(order: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Positions in `order` whose image occurs before in the same batch."""
    images, conflicts = int(image.max()) + 1, [np.zeros(0, np.int64)]
    step = max(1, CHUNK // int(sizes.max()))  # batches
    ends = np.concatenate([[0], np.cumsum(sizes)])
    for first in range(0, len(sizes), step):
        chunk = sizes[first : first + step]
        start, end = ends[first], ends[first + len(chunk)]
        key = np.repeat(np.arange(len(chunk)), chunk) * images + image[order[start:end]]
        by_key = np.argsort(key, kind="stable")
        conflicts.append(start + by_key[1:][key[by_key][1:] == key[by_key][:-1]])
    return np.concatenate(conflicts)


def _resolve_conflicts(order: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """Swap each conflicting sample with the nearest later one that fits both batches; None if there is none."""
    conflicts = _conflicts(order, image, sizes)
    if not len(conflicts):
        return order
    order, total, ends = order.copy(), len(order), np.cumsum(sizes)
    members: dict[int, set[int]] = {}  # images by batch, filled on demand

    def images_of(batch: int) -> set[int]:
        if batch not in members:
            members[batch] = set(image[order[ends[batch] - sizes[batch] : ends[batch]]].tolist())
        return members[batch]

    for position in conflicts.tolist():
        batch, own_image = int(np.searchsorted(ends, position, side="right")), int(image[order[position]])
        for step in range(1, total):
            other = (position + step) % total
            other_batch, other_image = int(np.searchsorted(ends, other, side="right")), int(image[order[other]])
            fits = own_image not in images_of(other_batch) and other_image not in images_of(batch)
            if other_batch != batch and fits:
                break
        else:
            return None
        order[position], order[other] = order[other], order[position]
        images_of(batch).add(other_image)  # `own_image` remains: its first sample is still in the batch
        images_of(other_batch).remove(other_image)
        images_of(other_batch).add(own_image)
    return order if not len(_conflicts(order, image, sizes)) else None


def _deal(image: np.ndarray, sizes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Deal the samples, image by image, round the batches like cards: always possible, less random.

    Requires at most as many samples of an image as there are batches, and sizes that differ by at most one, larger
    ones first.
    """
    images = np.arange(image.max() + 1)
    shuffled = images if rng is None else rng.permutation(images)
    by_image = np.argsort(shuffled[image], kind="stable")
    batch_of = np.arange(len(image)) % len(sizes)
    return by_image[np.argsort(batch_of, kind="stable")]
