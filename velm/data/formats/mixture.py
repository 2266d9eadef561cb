"""Several data sets as one, each with its share of an epoch."""

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
    """Sources by name, each the spec of a dataset and a `weight`.

    An epoch of 'train' has `size` records; each source has its weight's share of them. A source with fewer records
    repeats some, as evenly as can be; one with more leaves some out, evenly spaced and the same in every epoch. The
    other splits hold every record of every source once. An image's id begins with the name of its source.

    Args:
        sources: `{a: {name: csv, path: a.csv, weight: 2.0}, b: {name: folder, path: b}}`; a weight that is left
            out is 1, so that sources without weights have equal shares, whatever their sizes.
        size: records in an epoch of 'train'; None takes as many as the sources have together.
        splits: names of the sources that a split is made of, where it is not all: `{test: [a]}`.
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
        for name, spec in sources.items():
            weight = spec.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ValueError(f"weight of the source {name!r} must be a number above 0, got {weight!r}.")
            self.weights[name] = weight
            self.sources[name] = _built(name, {key: value for key, value in spec.items() if key != "weight"})
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 record, got {size}.")
        self.size, self.splits = size, splits or {}
        for split, names in self.splits.items():
            unknown = [name for name in names if name not in sources]
            if unknown or not names:
                raise ValueError(
                    f"splits: {split} is made of {unknown[0] if unknown else 'nothing'!r}, which is no source. "
                    f"The sources: {', '.join(sources)}."
                )

    def split(self, name: str) -> MixtureRecords:
        parts: dict[str, Sequence[Record]] = {}
        lacking: dict[str, MissingSplitError] = {}
        for source in self.splits.get(name, list(self.sources)):
            self.sources[source].max_bad = self.max_bad
            try:
                parts[source] = self.sources[source].split(name)
            except BadDataError as error:
                raise BadDataError(f"Source {source!r} of the mixture: {error}", error.bad_samples) from error
            except MissingSplitError as error:
                lacking[source] = error
            except DataError as error:
                raise DataError(f"Source {source!r} of the mixture: {error}") from error
        if lacking:
            source, why = next(iter(lacking.items()))
            kind = DataError if parts else MissingSplitError
            raise kind(
                f"Source {source!r} of the mixture: {why} To make a split of some sources only, name them: "
                f"splits: {{{name}: [...]}}."
            ) from why
        self._require_same_kind(name, parts)
        lengths = np.array([len(part) for part in parts.values()])
        counts = lengths
        if name == "train":
            total = int(lengths.sum()) if self.size is None else self.size
            counts = shares(np.array([self.weights[source] for source in parts]), total)
        return MixtureRecords(parts, counts)

    def _require_same_kind(self, name: str, parts: dict[str, Sequence[Record]]) -> None:
        """A batch has targets for all of its samples, or for none."""
        having = {source: part[0].targets is not None for source, part in parts.items()}
        if len(set(having.values())) > 1:
            with_, without = (next(s for s, has in having.items() if has is wanted) for wanted in (True, False))
            raise DataError(
                f"In split {name!r} of the mixture the source {with_!r} has targets and {without!r} has none; name a "
                f"target_column for each, or for none."
            )


class MixtureRecords(Records):
    """The records of each source in turn, so many of each; `images` says which of them are the same."""

    def __init__(self, parts: dict[str, Sequence[Record]], counts: np.ndarray) -> None:
        """`counts`: int (parts,), how many records each part gives."""
        self._names, self._parts = list(parts), list(parts.values())
        self._ends = np.cumsum(counts)
        lengths = [len(part) for part in self._parts]
        self._places = [
            np.arange(count, dtype=np.int64) * length // count if count else np.zeros(0, np.int64)
            for count, length in zip(counts.tolist(), lengths, strict=True)
        ]
        own = [first_records(part) for part in self._parts]
        starts = np.cumsum([0, *lengths])
        self.image_indices = np.concatenate(
            [start + images[places] for start, images, places in zip(starts, own, self._places, strict=False)]
        )
        self._counts: np.ndarray | None = None
        self.bad_samples = [bad_sample for part in self._parts for bad_sample in getattr(part, "bad_samples", ())]

    @property
    def text_counts(self) -> np.ndarray:
        """int (records,), the number of texts of each."""
        if self._counts is None:
            parts = zip(self._parts, self._places, strict=True)
            self._counts = np.concatenate([text_counts(part)[places] for part, places in parts])
        return self._counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, place: int) -> Record:
        part, within = self._source(place)
        return self._named(part, self._parts[part][within])

    def text_only(self, place: int) -> Record:
        part, within = self._source(place)
        return self._named(part, text_only(self._parts[part], within))

    def _source(self, place: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return part, int(self._places[part][place - start])

    def _named(self, part: int, record: Record) -> Record:
        return replace(record, image_id=f"{self._names[part]}/{record.image_id}")


def _built(source: str, spec: dict[str, Any]) -> Dataset:
    """A source. A checkpoint from elsewhere may name any class here; only a dataset is built."""
    name, _ = split_config(spec, f"source {source!r}")
    cls = datasets.get(name)
    if not issubclass(cls, Dataset):
        raise DataError(f"Source {source!r} of the mixture names {name!r}, which is no Dataset; it was not built.")
    built: Dataset = datasets.build(spec)
    return built


def shares(weights: np.ndarray, total: int) -> np.ndarray:
    """int (parts,): `total` shared out by weight, what is left over going to the largest remainders."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    last = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[last] += 1
    return counts
