"""Tar files as something to look things up in: their headers scanned once, a member's bytes read where they lie."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from velm.errors import DataError

__all__ = ["Stretch", "TarIndex", "index_tar"]

BLOCK = 512  # bytes; headers are one block, contents are filled up to whole ones
END = bytes(BLOCK)
FILES = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, whatever size they state


@dataclass(frozen=True)
class TarIndex:
    """Where the files in a tar lie, in their order.

    Attributes:
        names: large_string (members,), without a leading './'.
        offsets: int64 (members,), bytes from the file's beginning.
        sizes: int64 (members,), bytes.
        broken: why the scan ended before the tar did (it is cut off or damaged), what is listed being complete
            nevertheless; None where it is whole.
        refused: names of members that are absolute or climb out by '..'; they are not listed.
    """

    names: pa.Array
    offsets: np.ndarray
    sizes: np.ndarray
    broken: str | None
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file, read when called; opened each time, so that threads and forked workers share nothing."""

    path: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            found = file.read(self.size)
        if len(found) < self.size:
            raise DataError(
                f"{self.path!r} ends before byte {self.offset + self.size}; it was longer when it was opened."
            )
        return found


@dataclass
class _Found:
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def index_tar(path: str) -> TarIndex:
    """Scan the headers of a tar (ustar, GNU, pax); contents are skipped.

    Raises:
        DataError: it is no tar.
    """
    found = _Found()
    with open(path, "rb", buffering=0) as file:
        try:
            broken = _scan(path, file, found)
        except ValueError as error:  # a header whose numbers are none, or a DataError: it is no tar at all
            if isinstance(error, DataError):
                raise
            broken = _damaged(int(found.offsets[-1] + found.sizes[-1]) if found.offsets else 0)
    return TarIndex(
        pa.array(found.names, pa.large_string()),
        np.array(found.offsets, np.int64),
        np.array(found.sizes, np.int64),
        broken,
        tuple(found.refused),
    )


def _scan(path: str, file: io.FileIO, found: _Found) -> str | None:
    """Fill `found`; why the end of the tar was not reached."""
    length, place = os.fstat(file.fileno()).st_size, 0
    said: dict[str, str] = {}  # by an extended header, of the member that comes next
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if header == END:
            return None
        if len(header) < BLOCK and (place or not header):
            return _cut_off(found)
        if not _is_header(header):
            if place:
                return _damaged(place)
            raise DataError(_no_tar(path, header))
        kind, size, start = header[156:157], _number(header[124:136]), place + BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            content = file.read(size)
            if len(content) < size:
                return _cut_off(found)
            said |= _extended(kind, content)
        else:
            size = 0 if kind in WITHOUT_CONTENT else int(said.get("size", size))
            if start + size > length:
                return _cut_off(found)
            name = said.get("path") or _name(header)
            if kind in FILES and (name.startswith("/") or ".." in name.split("/")):
                found.refused.append(name)
            elif kind in FILES:
                found.names.append(name.removeprefix("./"))
                found.offsets.append(start)
                found.sizes.append(size)
            said = {}
        place = start + -(-size // BLOCK) * BLOCK


def _is_header(header: bytes) -> bool:
    try:
        return len(header) == BLOCK and sum(header) - sum(header[148:156]) + 8 * ord(" ") == _number(header[148:156])
    except ValueError:
        return False


def _number(octal: bytes) -> int:
    """Octal digits, or where they do not suffice the bytes themselves, marked by the first bit (GNU)."""
    if octal[0] & 0x80:
        return int.from_bytes(bytes([octal[0] & 0x7F]) + octal[1:], "big")
    return int(octal.partition(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    folder = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{folder}/{name}" if folder else name


def _extended(kind: bytes, content: bytes) -> dict[str, str]:
    """What a header that speaks of the next member says: its name and size, where they are too long for it."""
    if kind == b"L":
        return {"path": _text(content)}
    said: dict[str, str] = {}
    while kind == b"x" and content.strip(b"\0"):
        digits, _, rest = content.partition(b" ")
        if int(digits) < 5:  # the least, '5 a=\n'
            raise ValueError(f"an extended header of {int(digits)} bytes")
        key, _, value = rest[: int(digits) - len(digits) - 2].partition(b"=")
        if key in (b"path", b"size"):
            said[key.decode()] = _text(value)
        content = content[int(digits) :]
    return said


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="replace")


def _cut_off(found: _Found) -> str:
    return f"the shard is cut off: it ends after {len(found.names)} complete members"


def _damaged(place: int) -> str:
    return f"the shard is damaged after byte {place}: there is no header of a member"


def _no_tar(path: str, header: bytes) -> str:
    if header[:2] == b"\x1f\x8b":
        return f"{path!r} is compressed, so that nothing in it can be looked up. Unpack it: gunzip {path}"
    return f"{path!r} is no tar file."
