"""Collects the samples of tar shards into columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from velm.data.bad_samples import BadSample
from velm.data.base import EncodedImage
from velm.data.shards.tar import FileSlice
from velm.data.tables.records import TableRecords, factorize
from velm.data.tables.validate import ROW
from velm.errors import DataError

__all__ = ["Samples", "ShardImages"]


class ShardImages:
    """Images as byte ranges of shards, by index.

    Args:
        paths: of the shards.
        shard: int (images,), index of the shard.
        names: large_string (images,), for error messages.
        offsets: int64 (images,), bytes.
        sizes: int64 (images,), bytes.
    """

    def __init__(
        self, paths: Sequence[str], shard: np.ndarray, names: pa.Array, offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._paths, self._shard, self._names, self._offsets, self._sizes = paths, shard, names, offsets, sizes

    def __call__(self, index: int) -> EncodedImage:
        load = FileSlice(self._paths[self._shard[index]], int(self._offsets[index]), int(self._sizes[index]))
        return EncodedImage(self._names[index].as_py(), load)


class Samples:
    """Call `add` or `skip` per sample and `close` per shard, then `records`."""

    def __init__(self) -> None:
        self.endings: set[str] = set()
        self.bad_samples: list[BadSample] = []
        self._broken: list[tuple[str, str, int]] = []  # shard, cause, samples read
        self._paths: list[str] = []
        self._columns: dict[str, list[pa.Array]] = {"text": [], "target": [], "image": [], "image_id": []}
        self._locations: list[np.ndarray] = []  # (samples, 3): offset, size, number of texts
        self._start_shard()

    def _start_shard(self) -> None:
        self._rows: dict[str, list[str | None]] = {name: [] for name in self._columns}
        self._spans: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return sum(map(len, self._locations)) + len(self._spans)

    def add(
        self, name: str, image_id: str, location: tuple[int, int], texts: Sequence[str], targets: Sequence[str] | None
    ) -> None:
        """Add a sample: name of its image in messages, image id, (offset, size) in bytes, captions and targets."""
        self._rows["image"].append(name)
        self._rows["image_id"].append(image_id)
        self._rows["text"] += texts
        self._rows["target"] += [None] * len(texts) if targets is None else targets
        self._spans.append((*location, len(texts)))

    def skip(self, path: str, cause: str, endings: Iterable[str] = ()) -> None:
        """Record a sample that cannot be used; `endings` are the extensions of its members."""
        self.bad_samples.append(BadSample(path, cause))
        self.endings |= set(endings)

    def truncate_shard(self, shard: str, cause: str) -> None:
        """Record that the current shard could not be read to its end."""
        self._broken.append((shard, cause, len(self._spans)))

    def close(self, path: str) -> None:
        """End the shard at `path`: the samples since the last call are its."""
        for name, values in self._rows.items():
            self._columns[name].append(pa.array(values, pa.large_string()))
        self._locations.append(np.array(self._spans, np.int64).reshape(-1, 3))
        self._paths.append(path)
        self._start_shard()

    def all_bad_samples(self) -> list[BadSample]:
        """Skipped samples and truncated shards; these count as the samples they lack compared with a complete shard."""
        sizes = [len(locations) for locations in self._locations]
        usual = round(sum(sizes) / max(len(sizes) - len(self._broken), 1))
        broken = [BadSample(shard, cause, lost=max(1, usual - count)) for shard, cause, count in self._broken]
        return self.bad_samples + broken

    def records(self) -> TableRecords:
        """One record per sample, in order; samples with the same id show one image.

        Raises:
            DataError: some samples have targets, others have none.
        """
        columns = {name: pa.concat_arrays(chunks) for name, chunks in self._columns.items()}
        locations = np.concatenate(self._locations)
        shard = np.repeat(np.arange(len(self._locations), dtype=np.int32), [len(chunk) for chunk in self._locations])
        encoded = ShardImages(self._paths, shard, columns["image"], locations[:, 0].copy(), locations[:, 1].copy())
        sample = np.repeat(np.arange(len(locations)), locations[:, 2])
        without = columns["target"].null_count
        if without == len(sample):
            del columns["target"]
        elif without:
            first = int(np.flatnonzero(columns["target"].is_null().to_numpy(zero_copy_only=False))[0])
            name = columns["image_id"][int(sample[first])].as_py()
            raise DataError(f"Sample {name} has no targets but others do; either every text has one or none.")
        rows, images = pa.array(sample), factorize(columns["image_id"])
        columns |= {name: columns[name].take(rows) for name in ("image", "image_id")}
        records = TableRecords({**columns, ROW: pa.array(sample + 1)}, sample, encoded_image=encoded)
        records.image_indices, records.bad_samples = images, self.all_bad_samples()
        return records
