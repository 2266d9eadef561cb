"""Several captions in one row: in several columns, or as a list that is written into a cell."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.tables.validate import has_text, true_indices

__all__ = ["combine_columns", "open_lists", "parse_list"]

NO_COMMA = re.compile(r"""['"]\s+['"]""")


def combine_columns(table: pa.Table, columns: Sequence[str], name: str) -> pa.Table:
    """Replace columns of texts by one of lists, of the texts of a row that are not blank."""
    texts = pa.concat_arrays([chunk.cast(pa.large_string()) for each in columns for chunk in table[each].chunks])
    by_row = np.arange(len(texts)).reshape(len(columns), -1).T.reshape(-1)
    texts = texts.take(pa.array(by_row))
    filled = has_text(texts)
    counts = np.asarray(filled).reshape(-1, len(columns)).sum(1)
    lists = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]), texts.filter(filled))
    return table.drop_columns(list(columns)).append_column(name, lists)


def open_lists(table: pa.Table) -> tuple[pa.Table, bool]:
    """Turn the texts that are lists of texts, as Python or JSON writes them, into lists; whether there are any."""
    opened = False
    for name in ("text", "target"):
        column = table[name] if name in table.column_names else None
        if column is None or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        lists: dict[int, list[str]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of odd escapes in a literal
            for row in true_indices(pc.match_substring_regex(column, r"^\s*\[")):
                if (texts := parse_list(column[row].as_py())) is not None:
                    lists[row] = texts
        if lists and (name == "text" or opened):
            values = [lists.get(row, [text]) for row, text in enumerate(column.to_pylist())]
            column = pa.array(values, pa.large_list(pa.large_string()))
            table, opened = table.set_column(table.column_names.index(name), name, column), True
    return table, opened


def parse_list(cell: str) -> list[str] | None:
    """The texts of `["a", "b"]` (JSON), `['a', 'b']` (Python) or `['a' 'b']` (numpy); None if it is no such list."""
    try:
        found = json.loads(cell)
    except ValueError:
        try:
            found = ast.literal_eval(cell.strip())
            if NO_COMMA.search(cell):  # Python joins texts without a comma between them
                tokens = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
                found = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            return None
    is_list = isinstance(found, list) and all(isinstance(each, str) for each in found)
    return found if is_list else None
