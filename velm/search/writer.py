"""The parts of an index while it is updated: rows in memory, commits, compaction."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from velm.search.store import (
    BAD,
    DELETED,
    OK,
    ROWS,
    VECTORS,
    Part,
    Row,
    read_about,
    read_parts,
    read_rows,
    strays,
    write_about,
    write_rows,
    write_vectors,
)  # fmt: skip

__all__ = ["Place", "Writer"]

Place = tuple[int, int]
"""Number of a part and of a row in it; the part after the last one holds the rows that are not committed."""
COMPACT = 65_536
"""Rows of a part after compaction."""


class Writer:
    """The content of an index; changes are in memory until `commit`.

    Args:
        folder: of an index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, read_about(folder)
        self.dim: int = self.about["dim"]
        self.vectors = read_parts(folder, self.about)
        tables = [read_rows(folder, part, list(Row._fields)).to_pydict() for part in self.about["parts"]]
        self.rows = [[Row(*values) for values in zip(*table.values(), strict=True)] for table in tables]
        self.rows.append([])
        self.pending: list[np.ndarray] = []
        self._dirty: set[int] = set()
        self._remove_strays()

    def places(self) -> list[tuple[Place, Row]]:
        """All rows."""
        return [((part, i), row) for part, rows in enumerate(self.rows) for i, row in enumerate(rows)]

    def row(self, place: Place) -> Row:
        return self.rows[place[0]][place[1]]

    def vector(self, place: Place) -> np.ndarray:
        """float16 (E,)."""
        part, i = place
        return self.pending[i] if part == len(self.vectors) else np.array(self.vectors[part][i])

    def replace(self, place: Place, row: Row) -> None:
        """Change a row; its vector stays."""
        if self.row(place) != row:
            self.rows[place[0]][place[1]] = row
            self._dirty.add(place[0])

    def delete(self, place: Place) -> None:
        self.replace(place, self.row(place)._replace(status=DELETED))

    def append(self, row: Row, vector: np.ndarray | None = None) -> Place:
        """Add a row; without a vector it has zeros."""
        self.rows[-1].append(row)
        self.pending.append(np.zeros(self.dim, np.float16) if vector is None else vector)
        return len(self.vectors), len(self.pending) - 1

    def commit(self) -> None:
        """Write what has changed; the index on the disk is the one before or the one after, never between."""
        parts: list[Part] = list(self.about["parts"])
        for number in sorted(self._dirty - {len(parts)}):
            parts[number] = self._write(self.rows[number], None, parts[number])
        if self.pending:
            parts.append(self._write(self.rows[-1], np.stack(self.pending)))
            self.rows.append([])
            self.pending = []
        self._dirty.clear()
        self._make_valid(parts)

    def compact(self) -> None:
        """Write all rows again without the deleted ones, in few parts; rows get new numbers."""
        parts: list[Part] = []
        rows: list[Row] = []
        vectors: list[np.ndarray] = []
        for place, row in self.places():
            if row.status in (OK, BAD):
                rows.append(row)
                vectors.append(self.vector(place))
            if len(rows) == COMPACT:
                parts.append(self._write(rows, np.stack(vectors)))
                rows, vectors = [], []
        if rows:
            parts.append(self._write(rows, np.stack(vectors)))
        self.about["generation"] += 1
        self._make_valid(parts)
        self.__init__(self.folder)  # type: ignore[misc]

    def _write(self, rows: list[Row], vectors: np.ndarray | None, part: Part | None = None) -> Part:
        """A new part; or the part with other rows, whose vectors stay."""
        serial = self.about["serial"]
        self.about["serial"] += 1
        if part is None:
            assert vectors is not None
            part = Part(f"{VECTORS}/img_emb_{serial:07}.npy", f"{ROWS}/metadata_{serial:07}.parquet", len(rows))
            write_vectors(self.folder / part.vectors, vectors)
        else:
            stem = Path(part.vectors).stem.replace("img_emb", "metadata")
            part = part._replace(rows=f"{ROWS}/{stem}.{serial:07}.parquet")
        write_rows(self.folder / part.rows, rows)
        return part

    def _make_valid(self, parts: list[Part]) -> None:
        added = any(part not in self.about["parts"] for part in parts)
        self.about["parts"] = parts
        write_about(self.folder, self.about)
        if added:
            self.vectors = read_parts(self.folder, self.about)
        self._remove_strays()

    def _remove_strays(self) -> None:
        for path in strays(self.folder, self.about):
            with suppress(OSError):  # on Windows a reader may have it open
                path.unlink()
