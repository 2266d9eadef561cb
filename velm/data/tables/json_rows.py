"""The objects of a JSON file: one per line, or the items of one array (BLIP, LAVIS, LLaVA)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from velm.errors import DataError

__all__ = ["json_rows"]

BOM = b"\xef\xbb\xbf"


def json_rows(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number of each row, from 1, and its object, or what the row is instead; `.gz` is decompressed.

    A file that begins with '[' is one array; an object over several lines is one row; else each line is a row.

    Raises:
        DataError: an array that is not JSON, most often because it is cut off.
    """
    with pa.input_stream(path, compression="detect") as stream, io.BufferedReader(stream) as file:
        lines = filter(bytes.strip, file)
        first = next(lines, b"").removeprefix(BOM)
        if first.lstrip().startswith(b"[") or first.strip() == b"{":
            yield from _whole(path, first + b"".join(lines), first)
            return
        if first:
            yield 1, _object(first)
        for number, line in enumerate(lines, start=2):
            yield number, _object(line)


def _whole(path: str, content: bytes, first: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of an array or an object over several lines; those of single lines if the first one is whole."""
    try:
        value = json.loads(content)
    except ValueError as error:
        if isinstance(_value(first), str):  # the first line is not JSON by itself
            raise DataError(f"{path!r} is one array or object of JSON, and cannot be read as such: {error}") from error
        for number, line in enumerate(content.splitlines(), start=1):
            yield number, _object(line)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield number, row if isinstance(row, dict) else _no_object(json.dumps(row, ensure_ascii=False))


def _object(line: bytes) -> dict[str, Any] | str:
    """The object in a line of JSON, or what is wrong with the line."""
    value = _value(line)
    if isinstance(value, str):
        return value
    row = value[0]
    return row if isinstance(row, dict) else _no_object(line.decode().strip())


def _value(line: bytes) -> tuple[Any] | str:
    """The value in a line of JSON, in a tuple, or what is wrong with the line."""
    try:
        return (json.loads(line.decode("utf-8")),)
    except UnicodeDecodeError as error:
        return f"the row is not UTF-8: {error}"
    except ValueError as error:
        return f"the row is not JSON: {error}"


def _no_object(text: str) -> str:
    return f"the row is not a JSON object: {text[:60]}"
