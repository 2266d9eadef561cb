"""Several datasets as one, each with its share of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from velm.data.base import Dataset, Record, Records, first_records, text_counts, text_only
from velm.errors import BadDataError, DataError, MissingSplitError
from velm.registry import datasets, split_config

__all__ = ["Mixture", "shares"]


class Mixture(Dataset):
    """Sources by name, each a dataset config with a `weight`.

    An epoch of 'train' has `size` records; each source contributes a share proportional to its weight. A source with
    fewer records repeats some, as evenly as possible; one with more leaves some out, evenly spaced and the same in
    every epoch. The other splits hold every record of every source once. Image ids start with the source's name.

    Args:
        sources: `{a: {name: csv, path: a.csv, weight: 2.0}, b: {name: folder, path: b}}`; the default
            weight is 1: sources without weights have equal shares, regardless of their sizes.
        size: records in an epoch of 'train'; None: as many as the sources have together.
        splits: names of the sources of a split, if not all: `{test: [a]}`.
    """

    def __init__(
        self,
        *,
        sources: dict[str, dict[str, Any]],
        size: int | None = None,
        splits: dict[str, list[str]] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs sources: {a: {name: csv, path: a.csv, weight: 2.0}, ...}.")
        self.weights: dict[str, float] = {}
        self.sources: dict[str, Dataset] = {}
        for name, config in sources.items():
            weight = config.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ValueError(f"weight of the source {name!r} must be a number above 0, got {weight!r}.")
            self.weights[name] = weight
            self.sources[name] = _build(name, {key: value for key, value in config.items() if key != "weight"})
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 record, got {size}.")
        self.size, self.splits = size, splits or {}
        for split, names in self.splits.items():
            unknown = [name for name in names if name not in sources]
            if unknown or not names:
                raise ValueError(
                    f"splits: {split} is made of {unknown[0] if unknown else 'nothing'!r}, which is not a source. "
                    f"The sources: {', '.join(sources)}."
                )

    def split(self, name: str) -> MixtureRecords:
        parts: dict[str, Sequence[Record]] = {}
        missing: dict[str, MissingSplitError] = {}
        for source in self.splits.get(name, list(self.sources)):
            self.sources[source].max_bad = self.max_bad
            try:
                parts[source] = self.sources[source].split(name)
            except BadDataError as error:
                raise BadDataError(f"Source {source!r} of the mixture: {error}", error.bad_samples) from error
            except MissingSplitError as error:
                missing[source] = error
            except DataError as error:
                raise DataError(f"Source {source!r} of the mixture: {error}") from error
        if missing:
            source, cause = next(iter(missing.items()))
            kind = DataError if parts else MissingSplitError
            raise kind(
                f"Source {source!r} of the mixture: {cause} To make a split of some sources only, name them: "
                f"splits: {{{name}: [...]}}."
            ) from cause
        self._require_same_kind(name, parts)
        lengths = np.array([len(part) for part in parts.values()])
        counts = lengths
        if name == "train":
            total = int(lengths.sum()) if self.size is None else self.size
            counts = shares(np.array([self.weights[source] for source in parts]), total)
        return MixtureRecords(parts, counts)

    def _require_same_kind(self, name: str, parts: dict[str, Sequence[Record]]) -> None:
        """All sources of a split have targets, or none: a batch has targets for all samples or for none."""
        has_targets = {source: part[0].targets is not None for source, part in parts.items()}
        if len(set(has_targets.values())) > 1:
            with_, without = (next(s for s, has in has_targets.items() if has is value) for value in (True, False))
            raise DataError(
                f"In split {name!r} of the mixture the source {with_!r} has targets and {without!r} has none; name a "
                f"target_column for each, or for none."
            )


class MixtureRecords(Records):
    """The records of each source in turn; `image_indices` is equal where two records show the same image."""

    def __init__(self, parts: dict[str, Sequence[Record]], counts: np.ndarray) -> None:
        """`counts`: int (parts,), number of records of each part."""
        self._names, self._parts = list(parts), list(parts.values())
        self._ends = np.cumsum(counts)
        lengths = [len(part) for part in self._parts]
        self._indices = [
            np.arange(count, dtype=np.int64) * length // count if count else np.zeros(0, np.int64)
            for count, length in zip(counts.tolist(), lengths, strict=True)
        ]
        images = [first_records(part) for part in self._parts]
        starts = np.cumsum([0, *lengths])
        self.image_indices = np.concatenate(
            [start + image[i] for start, image, i in zip(starts, images, self._indices, strict=False)]
        )
        self._counts: np.ndarray | None = None
        self.bad_samples = [bad_sample for part in self._parts for bad_sample in getattr(part, "bad_samples", ())]

    @property
    def text_counts(self) -> np.ndarray:
        """int (records,), the number of texts of each."""
        if self._counts is None:
            parts = zip(self._parts, self._indices, strict=True)
            self._counts = np.concatenate([text_counts(part)[indices] for part, indices in parts])
        return self._counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Record:
        part, source_index = self._locate(index)
        return self._with_source(part, self._parts[part][source_index])

    def text_only(self, index: int) -> Record:
        part, source_index = self._locate(index)
        return self._with_source(part, text_only(self._parts[part], source_index))

    def _locate(self, index: int) -> tuple[int, int]:
        """The part of a record and its index there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return part, int(self._indices[part][index - start])

    def _with_source(self, part: int, record: Record) -> Record:
        return replace(record, image_id=f"{self._names[part]}/{record.image_id}")


def _build(source: str, config: dict[str, Any]) -> Dataset:
    """Build a source. A checkpoint from elsewhere may name any class here; only a dataset is built."""
    name, _ = split_config(config, f"source {source!r}")
    cls = datasets.get(name)
    if not issubclass(cls, Dataset):
        raise DataError(f"Source {source!r} of the mixture names {name!r}, which is no Dataset; it was not built.")
    dataset: Dataset = datasets.build(config)
    return dataset


def shares(weights: np.ndarray, total: int) -> np.ndarray:
    """int (parts,): `total` divided in proportion to the weights, by the largest remainder method."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    last = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[last] += 1
    return counts
