"""The folder of an index: rows as Parquet and vectors as .npy, row for row, in parts; index.json names the valid ones.

index.json                          model, checkpoint, source, and the files of each part
img_emb/img_emb_00000.npy           float16 (n, E), L2-normalised; a row of zeros for a bad image
metadata/metadata_00000.parquet     image_path, size, mtime_ns, hash, status, reason, width, height
ann/                                an approximate index, see `velm.search.approximate`

Files are written under new names; replacing index.json makes them valid, all at once. What it does not name is the
rest of an interrupted update and is removed by the next one. The folders are those of clip-retrieval: its parts pair in
sorted order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from velm.errors import SearchError
from velm.util import durable
from velm.version import __version__

__all__ = ["BAD", "DELETED", "FORMAT", "OK", "Part", "Row", "create", "read_about", "read_parts", "read_rows"]

FORMAT = 1
ABOUT, VECTORS, ROWS = "index.json", "img_emb", "metadata"
OK, BAD, DELETED = "ok", "bad", "deleted"
_NEW = "Write a new one: velm index CHECKPOINT FOLDER --output INDEX."


class Row(NamedTuple):
    """An image of the index.

    Attributes:
        image_path: from the index's root.
        size: of the file, in bytes.
        mtime_ns: of the file; -1 if it was too young for its size and time to identify its content.
        hash: 32 hexadecimal digits, blake2b of the file; '' if it could not be read.
        status: OK, BAD or DELETED.
        reason: why it is bad.
        width, height: of the image, in pixels; 0 if unknown.
    """

    image_path: str
    size: int
    mtime_ns: int
    hash: str
    status: str = OK
    reason: str = ""
    width: int = 0
    height: int = 0


class Part(NamedTuple):
    """A part of the rows.

    Attributes:
        vectors, rows: files of the part, from the index's folder.
        length: its rows.
    """

    vectors: str
    rows: str
    length: int


def create(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder of a new index without rows."""
    if folder.is_dir() and any(name.name != "update.lock" for name in folder.iterdir()):
        raise SearchError(f"{folder} is not empty and is no index (it has no {ABOUT}): name another --output.")
    for name in (VECTORS, ROWS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_about(folder, {"format": FORMAT, "version": __version__, **about, "serial": 0, "parts": []})


def read_about(folder: Path) -> dict[str, Any]:
    """The content of index.json.

    Raises:
        SearchError: there is no index in the folder, or it is damaged or from a newer VELM.
    """
    path = folder / ABOUT
    if not folder.is_dir():
        raise SearchError(f"There is no index {str(folder)!r}. {_NEW}")
    if not path.is_file():
        raise SearchError(f"{folder} is no index: it has no {ABOUT}. {_NEW}")
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        newest = about["format"]
        about["parts"] = [Part(**part) for part in about["parts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SearchError(f"{path} is no {ABOUT} of VELM ({type(error).__name__}: {error}). {_NEW}") from error
    if newest > FORMAT:
        raise SearchError(
            f"{folder} was written by VELM {about.get('version')} in index format {newest}; this is VELM "
            f"{__version__}, which reads formats up to {FORMAT}. Upgrade: pip install --upgrade velm"
        )
    return about


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Replace index.json, which makes the parts that it names valid."""
    content = {**about, "parts": [part._asdict() for part in about["parts"]]}
    with durable(folder / ABOUT) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_parts(folder: Path, about: dict[str, Any]) -> list[np.ndarray]:
    """The vectors of each part, memory-mapped float16 (n, E).

    Raises:
        SearchError: a file is missing or damaged.
    """
    parts = []
    for part in about["parts"]:
        path = folder / part.vectors
        try:
            vectors = np.load(path, mmap_mode="c")  # a private view: torch refuses memory that is read-only
        except (OSError, ValueError) as error:
            raise SearchError(_damaged(folder, path, error)) from error
        if vectors.shape != (part.length, about["dim"]) or vectors.dtype != np.float16:
            found = f"it holds {vectors.dtype} {vectors.shape}, not float16 {(part.length, about['dim'])}"
            raise SearchError(_damaged(folder, path, found))
        parts.append(vectors)
    return parts


def read_rows(folder: Path, part: Part, columns: list[str] | None = None) -> Any:
    """The rows of a part as a pyarrow Table.

    Raises:
        SearchError: the file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / part.rows
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise SearchError(_damaged(folder, path, error)) from error
    if len(table) != part.length:
        raise SearchError(_damaged(folder, path, f"it has {len(table)} rows, not {part.length}"))
    return table


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a part's rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"size": pa.int64(), "mtime_ns": pa.int64(), "width": pa.int32(), "height": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in Row._fields])
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    with durable(path) as file:
        pq.write_table(table, file)


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write a part's vectors, float16 (n, E)."""
    with durable(path) as file:
        np.save(file, vectors)


def strays(folder: Path, about: dict[str, Any]) -> Iterator[Path]:
    """The files of interrupted updates and of rows that were replaced."""
    known = {name for part in about["parts"] for name in (part.vectors, part.rows)}
    for place in (VECTORS, ROWS):
        for path in (folder / place).glob("*"):
            if f"{place}/{path.name}" not in known:
                yield path


def _damaged(folder: Path, path: Path, why: object) -> str:
    return f"The index {folder} is damaged: {path.name}: {why}. Delete the index and write it again with velm index."
