"""Text files of any encoding, compressed or not, as streams of UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from velm.errors import DataError

__all__ = ["OTHER_ENCODING", "detect_encoding", "utf8_stream"]

BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
HEAD = 4096  # bytes that are searched for NUL
OTHER_ENCODING = (
    "If the file is not UTF-8, set encoding to its own: cp1252 is usual for Windows in Western Europe, gb18030 for "
    "Chinese, shift_jis for Japanese."
)


def detect_encoding(path: str) -> str:
    """The encoding by the byte-order mark, or by the NUL bytes that UTF-16 has in every second place; else 'utf-8'."""
    with pa.input_stream(path, compression="detect") as stream:
        head = stream.read(HEAD)
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding
    nul = [head[start::2].count(0) for start in (0, 1)]
    if 4 * abs(nul[0] - nul[1]) > len(head) > 1:
        return "utf-16-be" if nul[0] > nul[1] else "utf-16-le"
    return "utf-8"


@contextmanager
def utf8_stream(path: str, encoding: str) -> Iterator[pa.NativeFile]:
    """A stream of the file's text as UTF-8, perhaps with a byte-order mark; a UTF-8 file is passed on unchecked.

    Raises:
        DataError: an unknown encoding; bytes, read within the block, that are not of it.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise DataError(f"Unknown encoding {encoding!r} of {path!r}. {OTHER_ENCODING}") from None
    try:
        with pa.input_stream(path, compression="detect") as stream:
            if name in ("utf-8", "utf-8-sig"):
                yield stream
            else:
                yield pa.transcoding_input_stream(stream, name, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path!r} is not {encoding}: {error}. {OTHER_ENCODING}") from error
