"""Batches in which a picture occurs at most once: a caption of the same picture is no negative."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

__all__ = ["PictureBatchSampler"]


class PictureBatchSampler(Sampler[list]):
    """Lists of (epoch, sample) pairs for a `DataLoader`'s `batch_sampler`.

    The order is a function of (seed, epoch) alone, so workers need no state and any rank can tell every
    other's. All ranks cut the same global batches, `batch_size * world_size` samples with no picture twice,
    and take their own part of each:

        epoch    [ global batch 0 | global batch 1 | ... ]        the same on every rank
        batch 0  [ rank 0 | rank 1 ]

    The number of batches is the same in every epoch and on every rank. Where pictures are too few for
    batches of the size asked for, batches are smaller (with a warning when shuffled), never absent.

    Args:
        picture_of: int (samples,), the picture that each sample shows.
        batch_size: samples in a batch of one rank.
        seed: of the order.
        shuffle: another order each epoch; else pictures come as they are listed, each one's second caption
            after every picture's first.
        drop_last: every batch has exactly `batch_size` samples, and a random rest sits the epoch out; else
            every sample comes once an epoch and the sizes of batches differ by at most one.
        rank: which of the `world_size` processes this is.
        world_size: number of processes that share a global batch.
    """

    def __init__(
        self,
        *,
        picture_of: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.picture_of = np.asarray(picture_of, dtype=np.int64)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 ... world_size - 1 = {world_size - 1}, got {rank}.")
        if not len(self.picture_of):
            raise ValueError("There are no samples to make batches of: picture_of is empty.")
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._skipped = 0
        self._plan()

    def _plan(self) -> None:
        """Fix the sizes of the global batches, once for all epochs."""
        samples, wanted = len(self.picture_of), self.batch_size * self.world_size
        _, dense, counts = np.unique(self.picture_of, return_inverse=True, return_counts=True)
        self._picture, pictures, most = dense.reshape(-1), len(counts), int(counts.max())
        count = samples // wanted if self.drop_last else math.ceil(samples / wanted)
        enough = count >= most and samples >= wanted
        if count >= most:
            used = count * wanted if self.drop_last else samples
        else:  # a picture with k samples needs k batches
            count, used = most, samples
        self._sizes = np.full(count, used // count) + (np.arange(count) < used % count)
        if self._sizes.min() < self.world_size:
            raise ValueError(
                f"{self.world_size} processes cannot share a batch of {self._sizes.min()}: the split has {pictures} "
                f"pictures and {samples} samples, and no picture may be twice in a batch. Use fewer processes."
            )
        if self.shuffle and not enough:
            per = f" on each of {self.world_size} processes" if self.world_size > 1 else ""
            warnings.warn(
                f"batch_size {self.batch_size}{per} is more than this split can fill: it has {pictures} pictures and "
                f"{samples} samples, up to {most} of one picture, and no picture may be twice in a batch. "
                f"Batches hold {self._sizes.max()} samples instead of {wanted}.",
                stacklevel=4,
            )

    def set_epoch(self, epoch: int) -> None:
        """The order that the next iteration takes."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next iteration, and only of that."""
        self._skipped = batches

    @property
    def sampler(self) -> PictureBatchSampler:
        """Itself: Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skipped, self._skipped = self.epoch, self._skipped, 0
        for batch in self.global_batches(epoch)[skipped:]:
            yield [(epoch, sample) for sample in np.array_split(batch, self.world_size)[self.rank].tolist()]

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The samples of every global batch of an epoch; each row is shared out among the ranks."""
        rng = np.random.default_rng((self.seed, epoch)) if self.shuffle else None
        kept = np.arange(len(self._picture))
        used = int(self._sizes.sum())
        if used < len(kept):
            kept = kept[:used] if rng is None else np.sort(rng.permutation(kept)[:used])
        picture = self._picture[kept]
        order = _repaired(_spread(picture, rng), picture, self._sizes)
        if order is None:
            order = _dealt(picture, self._sizes, rng)
        return np.split(kept[order], np.cumsum(self._sizes)[:-1])


def _spread(picture: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """An order in which the n samples of a picture fall one into each n-th of the epoch."""
    total = len(picture)
    shuffled = np.arange(total) if rng is None else rng.permutation(total)
    by_picture = shuffled[np.argsort(picture[shuffled], kind="stable")]
    counts = np.bincount(picture)
    starts = np.cumsum(counts) - counts
    owner = picture[by_picture]
    turn = np.arange(total) - starts[owner]  # the sample is its picture's turn-th
    offset = 0.5 if rng is None else rng.random(total)
    return by_picture[np.argsort((turn + offset) / counts[owner], kind="stable")]


def _conflicts(order: np.ndarray, picture: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Places in `order` whose picture is already in their batch."""
    key = batch * (picture.max() + 1) + picture[order]
    by_key = np.argsort(key, kind="stable")
    return by_key[1:][key[by_key][1:] == key[by_key][:-1]]


def _repaired(order: np.ndarray, picture: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """`order` with each conflict swapped for the nearest place that suits both; None if one finds no place."""
    batch = np.repeat(np.arange(len(sizes)), sizes)
    places = _conflicts(order, picture, batch)
    if not len(places):
        return order
    order, total = order.copy(), len(order)
    members = [set(part.tolist()) for part in np.split(picture[order], np.cumsum(sizes)[:-1])]
    for place in places.tolist():
        here, mine = int(batch[place]), int(picture[order[place]])
        for step in range(1, total):
            other = (place + step) % total
            there, theirs = int(batch[other]), int(picture[order[other]])
            if there != here and mine not in members[there] and theirs not in members[here]:
                break
        else:
            return None
        order[place], order[other] = order[other], order[place]
        members[here].add(theirs)  # `mine` stays: its first sample is still here
        members[there].remove(theirs)
        members[there].add(mine)
    return order if not len(_conflicts(order, picture, batch)) else None


def _dealt(picture: np.ndarray, sizes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Deal the samples, picture by picture, round the batches like cards: always possible, less random.

    No picture has more samples than there are batches, and sizes differ by at most one, larger ones first.
    """
    names = np.arange(picture.max() + 1)
    shuffled = names if rng is None else rng.permutation(names)
    by_picture = np.argsort(shuffled[picture], kind="stable")
    batch_of = np.arange(len(picture)) % len(sizes)
    return by_picture[np.argsort(batch_of, kind="stable")]
