"""The files of a feature cache: written once by a frozen image encoder, read row by row.

    <key>/ features.npy   float16 (P + 1, N, D), only with positions
           pooled.npy     float16 (P + 1, D)
           mask.npy       bool (P + 1, N), only if the encoder returns one
           about.json     description behind the key, grid, dtypes, unreadable images

P is the number of distinct images; the last row is a black image, for records without one. A folder is written under
a temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm.data.base import Record, first_records
from velm.data.images.prefetch import read_batches
from velm.data.images.transforms import EvalTransform
from velm.errors import DataError
from velm.outputs import EncodedImages, EncoderOutput

__all__ = ["FeatureReader", "Images", "Rows", "new_folder", "write_features"]


class Images(Sequence[Any]):
    """(row, image) of a split's distinct images in order of first occurrence, then (row, None)."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.indices = np.unique(first_records(records))

    def __len__(self) -> int:
        return len(self.indices) + 1

    def __getitem__(self, row: int) -> tuple[int, Any]:  # type: ignore[override]  # no slices are asked for
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return row, None if row == len(self.indices) else self.records[int(self.indices[row])].image


class Readable:
    """A transform of (row, image) that returns black for an unreadable image and records the cause.

    Attributes:
        bad_samples: error message by row.
    """

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform
        self.bad_samples: dict[int, str] = {}

    def __call__(self, numbered: tuple[int, Any]) -> Tensor:
        row, image = numbered
        if image is not None:
            try:
                return self.transform(image)
            except DataError as error:
                self.bad_samples[row] = str(error)
        return torch.zeros(3, self.transform.image_size, self.transform.image_size, dtype=torch.uint8)


class FeatureReader:
    """Reads a split's cached features by record index; `open` it once the cache exists.

    Args:
        records: of the split.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.images = Images(records)
        self._folder: Path | None = None
        self._positions = True

    def open(self, folder: Path, positions: bool) -> None:
        """Map the files that `write_features` wrote.

        Args:
            folder: with the rows of `self.images`.
            positions: whether to read `features`, or `pooled` only.

        Raises:
            OSError, ValueError: the folder is missing, damaged, or of other images.
        """
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self._bad_samples = {int(row): message for row, message in about["bad_samples"].items()}
        self._grid = None if about["grid"] is None else tuple(about["grid"])
        self._dtypes = tuple(getattr(torch, name) for name in about["dtypes"])
        self._pooled = np.load(folder / "pooled.npy", mmap_mode="r")
        self._features = np.load(folder / "features.npy", mmap_mode="r") if positions else None
        masked = positions and (folder / "mask.npy").is_file()
        self._mask = np.load(folder / "mask.npy", mmap_mode="r") if masked else None
        if len(self._pooled) != len(self.images):
            raise ValueError(f"{folder} has {len(self._pooled)} rows, the split {len(self.images)}.")
        self._folder, self._positions = folder, positions

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which the receiving process opens itself."""
        return {"images": self.images, "_folder": self._folder, "_positions": self._positions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._folder is not None:
            self.open(self._folder, self._positions)

    @property
    def bad_samples(self) -> dict[int, str]:
        """Error message of unreadable images by row."""
        self._require_open()
        return self._bad_samples

    def row(self, index: int) -> Tensor:
        """int64 (), the row of the image whose first record is `index`.

        Raises:
            DataError: the image could not be read when the cache was written.
        """
        row = int(np.searchsorted(self.images.indices, index))
        if row in self.bad_samples:
            raise DataError(self.bad_samples[row])
        return torch.tensor(row)

    def read(self, rows: Sequence[Tensor | int | None]) -> EncodedImages:
        """Features of the images in `rows`; None: a black image."""
        self._require_open()
        last = len(self.images) - 1
        indices = np.array([last if row is None else int(row) for row in rows], dtype=np.int64)
        pooled = torch.from_numpy(self._pooled[indices])
        features = pooled.new_empty(len(indices), 0, pooled.shape[1])
        if self._features is not None:
            features = torch.from_numpy(self._features[indices])
        mask = None if self._mask is None else torch.from_numpy(self._mask[indices])
        return EncodedImages(features, pooled, mask, self._grid, self._dtypes)

    def _require_open(self) -> None:
        if self._folder is None:
            raise RuntimeError(
                "The features of data.cache_features were requested before they were computed: a VisionLanguageTask "
                "encodes the images when fit starts; other LightningModules need cache_features: false."
            )


def write_features(
    folder: Path,
    images: Images,
    *,
    encode: Callable[[Tensor], EncoderOutput],
    transform: EvalTransform,
    batch_size: int,
    positions: bool,
    about: dict[str, Any],
    option: str = "data.cache_features",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every image once into `folder`. Atomic: safe if several processes write it.

    Args:
        encode: uint8 (B, 3, H, W) on the CPU to the encoder's output, on any device.
        transform: image to uint8 (3, H, W).
        batch_size: images per forward pass.
        positions: store `features` as well as `pooled`.
        about: the description behind the folder's name; stored in about.json.
        option: names the folder's parent in a config, for messages.
        progress: called with (images done, all images).

    Raises:
        DataError: a feature exceeds half precision, or the disk has too little space.
    """
    with new_folder(folder) as part:
        readable, rows = Readable(transform), Rows(part, len(images), positions, option)
        for pixels in read_batches(images, readable, batch_size):
            rows.add(encode(pixels))
            if progress is not None:
                progress(rows.done, len(images))
        rows.close({**about, "bad_samples": readable.bad_samples})


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `folder` when the block ends; atomic, whichever process is first."""
    remove_stale(folder)
    part = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if not folder.is_dir():
            part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same features
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Remove temporary folders of `folder` whose process on this host has died."""
    for part in folder.parent.glob(f"{folder.name}.{socket.gethostname()}-*.part"):
        number = part.name.removesuffix(".part").rpartition("-")[2]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(part, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return process != os.getpid()  # a restarted container reuses process ids


class Rows:
    """The files of a folder, filled batch by batch.

    Args:
        folder: exists.
        count: rows of all batches.
        positions: store `features` as well as `pooled`.
        option: names the folder's parent in a config, for messages.
        what: the rows are of, for messages.
    """

    def __init__(self, folder: Path, count: int, positions: bool, option: str, what: str = "images") -> None:
        self.folder, self.count, self.positions, self.option, self.what = folder, count, positions, option, what
        self.done = 0
        self.grid: tuple[int, int] | None = None
        self.dtypes: list[str] = []
        self._files: dict[str, np.ndarray] = {}

    def add(self, output: EncoderOutput) -> None:
        """Append the rows of a batch."""
        arrays = {"pooled": self._half(output.pooled)}
        if self.positions:
            arrays["features"] = self._half(output.features)
            arrays |= {} if output.mask is None else {"mask": output.mask.cpu()}
        if not self._files:
            self.grid, self.dtypes = output.grid, [str(t.dtype)[6:] for t in (output.features, output.pooled)]
            self._require_room(sum(rows[0].nbytes for rows in arrays.values()) * self.count)
            for name, rows in arrays.items():
                shape = (self.count, *rows.shape[1:])
                dtype = rows.numpy().dtype
                self._files[name] = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)
        for name, rows in arrays.items():
            self._files[name][self.done : self.done + len(rows)] = rows.numpy()
        self.done += len(output.pooled)

    def close(self, about: dict[str, Any]) -> None:
        """Write all to disk, with a description in about.json."""
        for file in self._files.values():
            file.flush()  # type: ignore[attr-defined]  # a memmap
        known = {**about, "grid": self.grid, "dtypes": self.dtypes}
        (self.folder / "about.json").write_text(json.dumps(known, indent=1), encoding="utf-8")

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"The features of {self.count:,} {self.what} take {needed / 1e9:.2f} GB, and {self.folder.parent} has "
                f"{free / 1e9:.2f} GB free: name a folder elsewhere, {self.option}: /some/folder."
            )

    def _half(self, tensor: Tensor) -> Tensor:
        half = tensor.detach().to(torch.float16).cpu()
        if not half.isfinite().all():
            raise DataError(
                f"The encoder's features reach {float(tensor.abs().max()):g}, and {self.option} keeps them in half "
                f"precision, up to 65504: set {self.option}: false."
            )
        return half
