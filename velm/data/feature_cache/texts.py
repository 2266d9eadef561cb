"""Embeddings of a split's texts, each distinct text once: the files and the reader.

<key>/ pooled.npy     float16 (U, D)
       rows.npy       int32 (texts,), the row of each text of the split in order
       about.json     description behind the key
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm.data.base import Record, text_counts, text_only
from velm.data.feature_cache.store import Rows, new_folder
from velm.outputs import EncoderOutput

__all__ = ["DistinctTexts", "TextReader", "write_texts"]

CHUNK = 4096  # texts that are encoded by one call
DIGEST = 16  # bytes


@dataclass(frozen=True)
class DistinctTexts:
    """The distinct texts of a split, in order of first occurrence.

    Attributes:
        records: of the split.
        first: int64 (U,), position of the first occurrence of each among all texts of the split; ascending.
        rows: int32 (texts,), index into `first` of every text of the split.
        digest: hash of all texts in order.
    """

    records: Sequence[Record]
    first: np.ndarray
    rows: np.ndarray
    digest: str

    @classmethod
    def of(cls, records: Sequence[Record]) -> DistinctTexts:
        """Read every text once; keeps 16 bytes of each."""
        hashes = bytearray()
        for text in _texts(records):
            hashes += hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST).digest()
        codes = np.frombuffer(bytes(hashes), f"S{DIGEST}")
        _, first, rows = np.unique(codes, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty(len(first), np.int32)
        number[order] = np.arange(len(first), dtype=np.int32)
        return cls(records, first[order], number[rows.reshape(-1)], hashlib.sha256(hashes).hexdigest())

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[str]:
        wanted = iter(self.first.tolist())
        position = next(wanted, None)
        for number, text in enumerate(_texts(self.records)):
            if number == position:
                yield text
                position = next(wanted, None)


def _texts(records: Sequence[Record]) -> Iterator[str]:
    for index in range(len(records)):
        yield from text_only(records, index).texts


class TextReader:
    """Reads the cached embeddings of a split's texts; `open` it once the cache exists.

    Args:
        records: of the split.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.ends = np.cumsum(text_counts(records))  # of each record's texts
        self._folder: Path | None = None

    def open(self, folder: Path) -> None:
        """Map the files that `write_texts` wrote.

        Raises:
            OSError, ValueError: the folder is missing, damaged, or of other texts.
        """
        json.loads((folder / "about.json").read_text(encoding="utf-8"))  # written last
        self._embeds = np.load(folder / "pooled.npy", mmap_mode="r")
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        count = int(self.ends[-1]) if len(self.ends) else 0
        if len(self._rows) != count:
            raise ValueError(f"{folder} has {len(self._rows)} texts, the split {count}.")
        self._folder = folder

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, which the receiving process opens itself."""
        return {"records": self.records, "ends": self.ends, "_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._folder is not None:
            self.open(self._folder)

    def row(self, record: int, text_index: int) -> int:
        """The row of a record's text."""
        start = int(self.ends[record - 1]) if record else 0
        return int(self._rows[start + text_index])

    def read(self, rows: Sequence[int]) -> Tensor:
        """float16 (len(rows), D)."""
        return torch.from_numpy(self._embeds[np.array(rows, dtype=np.int64)])


def write_texts(
    folder: Path,
    texts: DistinctTexts,
    *,
    encode: Callable[[list[str]], Tensor],
    about: dict[str, Any],
    option: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode every distinct text once into `folder`. Atomic: safe if several processes write it.

    Args:
        encode: texts to float (n, D).
        about: the description behind the folder's name; stored in about.json.
        option: names the folder's parent in a config, for messages.
        progress: called with (texts done, all texts).

    Raises:
        DataError: the disk has too little space.
    """
    with new_folder(folder) as part:
        rows, left = Rows(part, len(texts), False, option, "texts"), iter(texts)
        np.save(part / "rows.npy", texts.rows)
        while chunk := list(islice(left, CHUNK)):
            embeds = encode(chunk)
            rows.add(EncoderOutput(embeds[:, None], embeds))
            if progress is not None:
                progress(rows.done, len(texts))
        rows.close(about)
