"""What of a dataset cannot be used: named, counted, and an error only where there is too much of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.tables.columns import has_text, slices
from velm.errors import BadDataError

__all__ = [
    "BadSample", "LONGEST", "as_weights", "check_bad_share", "count_bad_records", "counted", "odd_texts",
    "places", "raise_if_too_many", "sound_texts", "text_problem", "undecodable",
]  # fmt: skip

LONGEST = 10_000  # characters; a longer text is no sentence but a file that ran together


@dataclass(frozen=True)
class BadSample:
    """An image, a sentence or a file that cannot be used.

    Attributes:
        path: of the image; of the file and the row in it where there is none.
        cause: what is wrong, and where.
        lost: records that the split lacks because of it; 0 where the record is still there (it has other sentences,
            or its image turns out to be unreadable only when it is looked at).
        advice: what to do where many are like that.
    """

    path: str
    cause: str
    lost: int = 1
    advice: str = ""


def count_bad_records(bad_samples: Iterable[BadSample]) -> int:
    """Records that are lost or faulty; an image counts once, however much is wrong with it and its sentences."""
    lost: dict[str, int] = {}
    for bad_sample in bad_samples:
        lost[bad_sample.path] = lost.get(bad_sample.path, 0) + bad_sample.lost
    return sum(max(1, count) for count in lost.values())


def check_bad_share(bad_samples: Sequence[BadSample], records: int, max_bad: float, where: str) -> None:
    """Warn of what is bad, or refuse to go on where it is too much.

    Args:
        faults: everything wrong with them.
        records: that are left.
        max_bad: share that may be bad, in [0, 1].
        where: 'split 'train' of 'captions.csv''.

    Raises:
        BadDataError: it is more, or nothing is left; the message has the numbers, the first few and what to do.
    """
    raise_if_too_many(bad_samples, records, max_bad, where)
    if bad_samples:
        bad, total = counted(bad_samples, records)
        shown = ", ".join(f"{bad_sample.path} ({bad_sample.cause})" for bad_sample in bad_samples[:3]) + (
            ", ..." if bad > 3 else ""
        )
        warnings.warn(f"{bad:,} of {total:,} records of {where} cannot be used: {shown}", stacklevel=3)


def raise_if_too_many(bad_samples: Sequence[BadSample], records: int, max_bad: float, where: str) -> None:
    """Raise the BadDataError of `check_share`, or do nothing."""
    if not bad_samples and not records:
        raise BadDataError(f"There are no records in {where}.")
    bad, total = counted(bad_samples, records)
    if bad <= max_bad * total and records:
        return
    listed = "".join(f"\n  {bad_sample.path}: {bad_sample.cause}" for bad_sample in bad_samples[:5])
    others = f"\n  ... and {len(bad_samples) - 5:,} more" if len(bad_samples) > 5 else ""
    advice = " ".join(dict.fromkeys(bad_sample.advice for bad_sample in bad_samples if bad_sample.advice))
    raise BadDataError(
        f"{bad:,} of {total:,} records of {where} ({100 * bad / max(total, 1):.1f}%) cannot be used, max_bad is "
        f"{100 * max_bad:.1f}%:{listed}{others}\n"
        f"Mend them or take them out{', or raise data.max_bad to leave them out' if records else ''}."
        f"{' ' + advice if advice else ''}",
        bad_samples,
    )


def counted(bad_samples: Sequence[BadSample], records: int) -> tuple[int, int]:
    """Bad records and all records, of which so many are left."""
    return count_bad_records(bad_samples), records + sum(bad_sample.lost for bad_sample in bad_samples)


def text_problem(text: str) -> str | None:
    """What is wrong with a sentence: it is empty, holds NUL characters or is longer than `LONGEST`; None if nothing."""
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "holds NUL characters"
    if len(text) > LONGEST:
        return _too_long(len(text))
    return None


def _too_long(length: int) -> str:
    return f"has {length:,} characters, more than {LONGEST:,}"


def sound_texts(texts: Sequence[str], path: str) -> tuple[list[str], list[BadSample]]:
    """The sentences of an image that can be used, and what is wrong with the others; without any it is lost."""
    if not texts:
        return [], [BadSample(path, "it has no sentence")]
    sound = [text for text in texts if text_problem(text) is None]
    bad_samples: list[BadSample] = []
    for number, text in enumerate(texts, start=1):
        cause = text_problem(text)
        if cause is not None:
            bad_samples.append(BadSample(path, f"sentence {number} {cause}", lost=int(not sound and not bad_samples)))
    return sound, bad_samples


def odd_texts(column: pa.ChunkedArray | pa.Array) -> dict[int, str]:
    """`text_fault` of a whole column, by place; null is empty too."""
    odd: dict[int, str] = {}
    for start, part in slices(column):
        lengths = pc.fill_null(pc.utf8_length(part), 0)
        odd |= {start + place: _too_long(lengths[place].as_py()) for place in places(pc.greater(lengths, LONGEST))}
        odd |= {start + place: "holds NUL characters" for place in places(pc.match_substring(part, "\0"))}
        odd |= {start + place: "is empty" for place in places(pc.invert(has_text(part)))}
    return odd


def as_weights(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """Numbers float64 of a column, null where there is none, and the places whose weight is no number from 0 up."""
    try:
        numbers = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:  # some text is no number
        numbers = pa.chunked_array([pa.array([_number(value) for value in column.to_pylist()], pa.float64())])
    wrong = places(pc.invert(pc.fill_null(pc.and_(pc.greater_equal(numbers, 0), pc.is_finite(numbers)), False)))
    return numbers, {place: f"{column[place].as_py()!r}, which is no weight from 0 up" for place in wrong}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def undecodable(column: pa.ChunkedArray) -> list[int]:
    """Places of a column of text whose bytes are not UTF-8; nothing else may be asked of such a column."""
    places, start = [], 0
    for chunk in column.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid:
            raw: Any = chunk.view(pa.large_binary() if pa.types.is_large_string(chunk.type) else pa.binary())
            places += [start + i for i, value in enumerate(raw.to_pylist()) if not _is_utf8(value)]
        start += len(chunk)
    return places


def _is_utf8(value: bytes | None) -> bool:
    try:
        _ = value is None or value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def places(mask: pa.ChunkedArray | pa.Array) -> list[int]:
    """Where a column of bool is True; null is not."""
    column = pa.chunked_array([mask]) if isinstance(mask, pa.Array) else mask
    found: list[int] = np.flatnonzero(pc.fill_null(column, False).to_numpy()).tolist()
    return found
