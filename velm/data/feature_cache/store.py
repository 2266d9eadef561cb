"""What a frozen image encoder makes of a split's images, kept in files and read from there, row by row.

    <key>/ features.npy   float16 (P + 1, N, D), only where positions are kept
           pooled.npy     float16 (P + 1, D)
           mask.npy       bool (P + 1, N), only where the encoder gives one
           about.json     what the key is a hash of, the grid, the dtypes, images that cannot be read

P is the number of distinct images; the last row is a black one, which stands for a record without an image. A
folder is written under a name of its own and renamed when it is whole, so what has the right name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
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

__all__ = ["FeatureReader", "Images", "write_features"]


class Images(Sequence[Any]):
    """A split's distinct images in the order they are first shown, then None: (row, image) each."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.places = np.unique(first_records(records))

    def __len__(self) -> int:
        return len(self.places) + 1

    def __getitem__(self, row: int) -> tuple[int, Any]:  # type: ignore[override]  # no slices are asked for
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return row, None if row == len(self.places) else self.records[int(self.places[row])].image


class Readable:
    """A transform of (row, image) that gives black for an image that cannot be read, and remembers why.

    Attributes:
        bad_samples: the message by row.
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
    """A split's features by the place of a record; it is opened when they are there.

    Args:
        records: of the split.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.images = Images(records)
        self._folder: Path | None = None
        self._positions = True

    def open(self, folder: Path, positions: bool) -> None:
        """Read from a folder that `write_features` wrote.

        Args:
            folder: whose rows are those of `self.images`.
            positions: whether `features` is asked for, or `pooled` alone.

        Raises:
            OSError, ValueError: the folder is not there, damaged, or of other images.
        """
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self._faults = {int(row): message for row, message in about["bad_samples"].items()}
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
        """Without the maps, which a process that this is sent to opens anew."""
        return {"images": self.images, "_folder": self._folder, "_positions": self._positions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._folder is not None:
            self.open(self._folder, self._positions)

    @property
    def bad_samples(self) -> dict[int, str]:
        """Why an image cannot be read, by row."""
        self._require_open()
        return self._faults

    def row(self, place: int) -> Tensor:
        """int64 (), where the image lies that the record at `place` is the first to show.

        Raises:
            DataError: it could not be read when it was to be encoded.
        """
        row = int(np.searchsorted(self.images.places, place))
        if row in self.bad_samples:
            raise DataError(self.bad_samples[row])
        return torch.tensor(row)

    def read(self, rows: Sequence[Tensor | None]) -> EncodedImages:
        """The features of images by their rows, int64 () each; None is a black image."""
        self._require_open()
        last = len(self.images) - 1
        places = np.array([last if row is None else int(row) for row in rows], dtype=np.int64)
        pooled = torch.from_numpy(self._pooled[places])
        features = pooled.new_empty(len(places), 0, pooled.shape[1])
        if self._features is not None:
            features = torch.from_numpy(self._features[places])
        mask = None if self._mask is None else torch.from_numpy(self._mask[places])
        return EncodedImages(features, pooled, mask, self._grid, self._dtypes)

    def _require_open(self) -> None:
        if self._folder is None:
            raise RuntimeError(
                "The features of data.cache_features are asked for before they are there: a VisionLanguageTask "
                "encodes the images when its fit starts; another LightningModule does without cache_features."
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
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every image once into `folder`, which is there afterwards, whole, whoever else writes it meanwhile.

    Args:
        encode: uint8 (B, 3, H, W) on the CPU to the encoder's output, wherever that is.
        transform: of every image.
        batch_size: images at a time.
        positions: keep `features`, not `pooled` alone.
        about: what the folder's name stands for; kept beside the features.
        progress: told (images done, images in all).

    Raises:
        DataError: a feature is beyond half precision, or there is no room for the files.
    """
    remove_left_behind(folder)
    part = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        readable, rows = Readable(transform), _Rows(part, len(images), positions)
        for pixels in read_batches(images, readable, batch_size):
            rows.add(encode(pixels))
            if progress is not None:
                progress(rows.done, len(images))
        rows.close()
        known = {**about, "grid": rows.grid, "dtypes": rows.dtypes, "bad_samples": readable.bad_samples}
        (part / "about.json").write_text(json.dumps(known, indent=1), encoding="utf-8")
        if not folder.is_dir():
            part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else somebody else was first: theirs is as good
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_left_behind(folder: Path) -> None:
    """Remove what processes of this host began to write for `folder` and were killed over."""
    for part in folder.parent.glob(f"{folder.name}.{socket.gethostname()}-*.part"):
        number = part.name.removesuffix(".part").rpartition("-")[2]
        if number.isdigit() and not _runs(int(number)):
            shutil.rmtree(part, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return process != os.getpid()  # ours alone could be of an earlier life, in a container


class _Rows:
    """The files of a folder, filled batch by batch."""

    def __init__(self, folder: Path, count: int, positions: bool) -> None:
        self.folder, self.count, self.positions = folder, count, positions
        self.done = 0
        self.grid: tuple[int, int] | None = None
        self.dtypes: list[str] = []
        self._files: dict[str, np.ndarray] = {}

    def add(self, output: EncoderOutput) -> None:
        """The next rows."""
        kept = {"pooled": _half(output.pooled)}
        if self.positions:
            kept["features"] = _half(output.features)
            kept |= {} if output.mask is None else {"mask": output.mask.cpu()}
        if not self._files:
            self.grid, self.dtypes = output.grid, [str(t.dtype)[6:] for t in (output.features, output.pooled)]
            self._require_room(sum(rows[0].nbytes for rows in kept.values()) * self.count)
            for name, rows in kept.items():
                shape = (self.count, *rows.shape[1:])
                dtype = rows.numpy().dtype
                self._files[name] = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)
        for name, rows in kept.items():
            self._files[name][self.done : self.done + len(rows)] = rows.numpy()
        self.done += len(output.pooled)

    def close(self) -> None:
        for file in self._files.values():
            file.flush()  # type: ignore[attr-defined]  # a memmap

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"The features of {self.count:,} images take {needed / 1e9:.2f} GB, and {self.folder.parent} has "
                f"{free / 1e9:.2f} GB free: name a folder elsewhere, data.cache_features: /some/folder."
            )


def _half(tensor: Tensor) -> Tensor:
    half = tensor.detach().to(torch.float16).cpu()
    if not half.isfinite().all():
        raise DataError(
            f"The image encoder's features reach {float(tensor.abs().max()):g}, and data.cache_features keeps them in "
            f"half precision, up to 65504: set data.cache_features: false."
        )
    return half
