"""The samples of tar shards, gathered shard by shard into columns."""

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
    """Images by where their bytes lie.

    Args:
        paths: of the shards.
        shard: int (images,), which of them.
        names: large_string (images,), what messages call an image.
        offsets: int64 (images,), bytes.
        sizes: int64 (images,), bytes.
    """

    def __init__(
        self, paths: Sequence[str], shard: np.ndarray, names: pa.Array, offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._paths, self._shard, self._names, self._offsets, self._sizes = paths, shard, names, offsets, sizes

    def __call__(self, index: int) -> EncodedImage:
        stretch = FileSlice(self._paths[self._shard[index]], int(self._offsets[index]), int(self._sizes[index]))
        return EncodedImage(self._names[index].as_py(), stretch)


class Samples:
    """What is gathered: `add` and `skip` sample by sample, `close` each shard, then `records`."""

    def __init__(self) -> None:
        self.endings: set[str] = set()
        self.bad_samples: list[BadSample] = []
        self._broken: list[tuple[str, str, int]] = []  # shard, cause, samples found
        self._paths: list[str] = []
        self._columns: dict[str, list[pa.Array]] = {"text": [], "target": [], "image": [], "image_id": []}
        self._places: list[np.ndarray] = []  # (samples, 3): offset, size, number of texts
        self._begin()

    def _begin(self) -> None:
        self._rows: dict[str, list[str | None]] = {name: [] for name in self._columns}
        self._found: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return sum(map(len, self._places)) + len(self._found)

    def add(
        self, name: str, image_id: str, place: tuple[int, int], texts: Sequence[str], targets: Sequence[str] | None
    ) -> None:
        """A sample: what messages call its image, the image's id, (offset, size) in bytes, what is said of it."""
        self._rows["image"].append(name)
        self._rows["image_id"].append(image_id)
        self._rows["text"] += texts
        self._rows["target"] += [None] * len(texts) if targets is None else targets
        self._found.append((*place, len(texts)))

    def skip(self, path: str, cause: str, endings: Iterable[str] = ()) -> None:
        """A sample that cannot be used; `endings` of its members."""
        self.bad_samples.append(BadSample(path, cause))
        self.endings |= set(endings)

    def break_off(self, shard: str, cause: str) -> None:
        """The shard under way could not be read to its end."""
        self._broken.append((shard, cause, len(self._found)))

    def close(self, path: str) -> None:
        """The samples since the last call are those of the shard at `path`."""
        for name, values in self._rows.items():
            self._columns[name].append(pa.array(values, pa.large_string()))
        self._places.append(np.array(self._found, np.int64).reshape(-1, 3))
        self._paths.append(path)
        self._begin()

    def all_faults(self) -> list[BadSample]:
        """Samples left out and shards broken off, which count for as many as whole shards have more than they."""
        sizes = [len(places) for places in self._places]
        usual = round(sum(sizes) / max(len(sizes) - len(self._broken), 1))
        broken = [BadSample(shard, cause, lost=max(1, usual - found)) for shard, cause, found in self._broken]
        return self.bad_samples + broken

    def records(self) -> TableRecords:
        """One record a sample, in their order; samples with the same id show one image.

        Raises:
            DataError: some samples have targets, others have none.
        """
        columns = {name: pa.concat_arrays(chunks) for name, chunks in self._columns.items()}
        places = np.concatenate(self._places)
        shard = np.repeat(np.arange(len(self._places), dtype=np.int32), [len(chunk) for chunk in self._places])
        encoded = ShardImages(self._paths, shard, columns["image"], places[:, 0].copy(), places[:, 1].copy())
        sample = np.repeat(np.arange(len(places)), places[:, 2])
        without = columns["target"].null_count
        if without == len(sample):
            del columns["target"]
        elif without:
            first = int(np.flatnonzero(columns["target"].is_null().to_numpy(zero_copy_only=False))[0])
            name = columns["image_id"][int(sample[first])].as_py()
            raise DataError(f"Sample {name} has no targets, others have; each needs one for every text, or none has.")
        rows, images = pa.array(sample), factorize(columns["image_id"])
        columns |= {name: columns[name].take(rows) for name in ("image", "image_id")}
        records = TableRecords({**columns, ROW: pa.array(sample + 1)}, sample, encoded_image=encoded)
        records.image_indices, records.bad_samples = images, self.all_faults()
        return records
