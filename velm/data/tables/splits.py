"""A file's rows by split, kept as they are read, block by block, in Arrow memory that is just as large as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from velm.data.tables.columns import compact
from velm.errors import DataError

__all__ = ["by_split"]

PIECE = 4 * 2**20  # bytes that are joined to one chunk: chunks enough to have little twice, few to look a row up in
MANY = 10_000  # splits; a column with more of them says something else


def by_split(blocks: Iterable[pa.Table], where: str) -> dict[str | None, pa.Table]:
    """The rows of each split, without the column 'split'; all of them under None where there is no such column.

    Args:
        blocks: tables of the same columns; each may be dropped when the next one is asked for.
        where: "column 'split' of 'captions.csv'", for the message.

    Raises:
        DataError: there are more splits than any data has.
    """
    waiting: dict[str | None, list[pa.Table]] = {}
    pieces: dict[str | None, list[pa.Table]] = {}
    for block in blocks:
        for name, part in _parts(block):
            waiting.setdefault(name, []).append(part)
            if sum(each.nbytes for each in waiting[name]) >= PIECE:
                pieces.setdefault(name, []).append(_joined(waiting[name]))
                waiting[name] = []
        if len(waiting) > MANY:
            raise DataError(f"{where} holds more than {MANY:,} different values; name the one that says the split.")
    tables = {}
    for name in list(waiting):
        rest = waiting.pop(name)
        tables[name] = _together([*pieces.get(name, ()), *([_joined(rest)] if rest else [])])
    pa.default_memory_pool().release_unused()
    return tables


def _parts(block: pa.Table) -> Iterator[tuple[str | None, pa.Table]]:
    if "split" not in block.column_names:
        yield None, block
        return
    column, rest = block["split"], block.drop_columns(["split"])
    names = pc.unique(column).to_pylist()
    for name in names:
        own = column.is_null() if name is None else pc.fill_null(pc.equal(column, name), False)
        yield name, rest if len(names) == 1 else rest.filter(own)


def _joined(parts: list[pa.Table]) -> pa.Table:
    together = _together(parts)
    return pa.table({name: compact(together[name]) for name in together.column_names})


def _together(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="permissive")  # numbers of rows grow beyond int32
