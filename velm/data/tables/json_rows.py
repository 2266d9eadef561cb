"""The objects of a JSON file: one per line, or the items of one array (BLIP, LAVIS, LLaVA)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from velm.data.tables.encoding import utf8_stream
from velm.errors import DataError

__all__ = ["json_rows"]

BOM = b"\xef\xbb\xbf"
TEXTS: dict[str, Any] = {
    "parse_int": str,
    "parse_float": lambda text: text.removesuffix(".0"),
    "parse_constant": lambda name: None,
}


def json_rows(path: str, encoding: str = "utf-8", texts: bool = False) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number of each row, from 1, and its object, or what the row is instead; `.gz` is decompressed.

    With `texts`, numbers are texts as they are written, but 7.0 is '7', and NaN and Infinity are None.
    A file that begins with '[' is one array; an object over several lines is one row; else each line is a row.

    Raises:
        DataError: an array that is not JSON, most often because it is cut off; a text that is not of the encoding.
    """
    hooks = TEXTS if texts else {}
    with utf8_stream(path, encoding) as stream, io.BufferedReader(stream) as file:
        lines = filter(bytes.strip, file)
        first = next(lines, b"").removeprefix(BOM)
        if first.lstrip().startswith(b"[") or first.strip() == b"{":
            yield from _whole(path, first + b"".join(lines), first, hooks)
            return
        if first:
            yield 1, _object(first, hooks)
        for number, line in enumerate(lines, start=2):
            yield number, _object(line, hooks)


def _whole(
    path: str, content: bytes, first: bytes, hooks: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of an array or an object over several lines; those of single lines if the first one is whole."""
    try:
        value = json.loads(content, **hooks)
    except ValueError as error:
        if isinstance(_value(first, hooks), str):  # the first line is not JSON by itself
            raise DataError(f"{path!r} is one array or object of JSON, and cannot be read as such: {error}") from error
        for number, line in enumerate(content.splitlines(), start=1):
            yield number, _object(line, hooks)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield (
            number,
            row if isinstance(row, dict) else _no_object(json.dumps(row, ensure_ascii=False)),
        )


def _object(line: bytes, hooks: dict[str, Any]) -> dict[str, Any] | str:
    """The object in a line of JSON, or what is wrong with the line."""
    value = _value(line, hooks)
    if isinstance(value, str):
        return value
    row = value[0]
    return row if isinstance(row, dict) else _no_object(line.decode().strip())


def _value(line: bytes, hooks: dict[str, Any]) -> tuple[Any] | str:
    """The value in a line of JSON, in a tuple, or what is wrong with the line."""
    try:
        return (json.loads(line.decode("utf-8"), **hooks),)
    except UnicodeDecodeError as error:
        return f"the row is not UTF-8: {error}"
    except ValueError as error:
        return f"the row is not JSON: {error}"


def _no_object(text: str) -> str:
    return f"the row is not a JSON object: {text[:60]}"
