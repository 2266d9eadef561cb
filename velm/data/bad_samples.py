"""Unusable samples: named, counted, and an error if their share of a split exceeds `max_bad`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from velm.errors import BadDataError

__all__ = [
    "MAX_CHARACTERS", "BadSample", "check_bad_share", "count_bad_records", "count_records", "raise_if_too_many",
    "text_problem", "too_long", "usable_texts",
]  # fmt: skip

MAX_CHARACTERS = 10_000  # of a text; a longer one is most likely several lines of a broken file


@dataclass(frozen=True)
class BadSample:
    """An image, a text or a file that cannot be used.

    Attributes:
        path: of the image; of the file and the row in it if there is no image.
        cause: what is wrong, and where.
        lost: number of records that the split lacks because of it; 0 if the record is still there (it has other
            texts, or its image turns out to be unreadable when it is decoded).
        advice: what to do if many samples are like it.
    """

    path: str
    cause: str
    lost: int = 1
    advice: str = ""


def count_bad_records(bad_samples: Iterable[BadSample]) -> int:
    """Number of lost or bad records; an image counts once, even if it or its texts are bad in several ways."""
    lost: dict[str, int] = {}
    for bad_sample in bad_samples:
        lost[bad_sample.path] = lost.get(bad_sample.path, 0) + bad_sample.lost
    return sum(max(1, count) for count in lost.values())


def count_records(bad_samples: Sequence[BadSample], records: int) -> tuple[int, int]:
    """Number of bad records and of all records, given the number of `records` that are left."""
    return count_bad_records(bad_samples), records + sum(bad_sample.lost for bad_sample in bad_samples)


def check_bad_share(bad_samples: Sequence[BadSample], records: int, max_bad: float, where: str) -> None:
    """Warn about bad samples, or raise if there are too many.

    Args:
        bad_samples: all that are known.
        records: number of records that are left.
        max_bad: largest share of bad records, in [0, 1].
        where: for messages, such as "split 'train' of 'captions.csv'".

    Raises:
        BadDataError: see `raise_if_too_many`.
    """
    raise_if_too_many(bad_samples, records, max_bad, where)
    if bad_samples:
        bad, total = count_records(bad_samples, records)
        shown = ", ".join(f"{bad_sample.path} ({bad_sample.cause})" for bad_sample in bad_samples[:3])
        more = ", ..." if bad > 3 else ""
        warnings.warn(f"{bad:,} of {total:,} records of {where} cannot be used: {shown}{more}", stacklevel=3)


def raise_if_too_many(bad_samples: Sequence[BadSample], records: int, max_bad: float, where: str) -> None:
    """Raise if more than `max_bad` of the records are bad; arguments as of `check_bad_share`.

    Raises:
        BadDataError: there are too many, or no records are left; the message has the numbers, the first few bad
            samples and what to do.
    """
    if not bad_samples and not records:
        raise BadDataError(f"There are no records in {where}.")
    bad, total = count_records(bad_samples, records)
    if bad <= max_bad * total and records:
        return
    listed = "".join(f"\n  {bad_sample.path}: {bad_sample.cause}" for bad_sample in bad_samples[:5])
    others = f"\n  ... and {len(bad_samples) - 5:,} more" if len(bad_samples) > 5 else ""
    advice = " ".join(dict.fromkeys(bad_sample.advice for bad_sample in bad_samples if bad_sample.advice))
    raise BadDataError(
        f"{bad:,} of {total:,} records of {where} ({100 * bad / max(total, 1):.1f}%) cannot be used, max_bad is "
        f"{100 * max_bad:.1f}%:{listed}{others}\n"
        f"Fix or remove them{', or raise data.max_bad to leave them out' if records else ''}."
        f"{' ' + advice if advice else ''}",
        bad_samples,
    )


def text_problem(text: str) -> str | None:
    """Why a text cannot be used: it is empty, holds NUL or exceeds `MAX_CHARACTERS`; None if it can."""
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "holds NUL characters"
    return too_long(len(text)) if len(text) > MAX_CHARACTERS else None


def too_long(length: int) -> str:
    """The problem of a text of `length` characters."""
    return f"has {length:,} characters, more than {MAX_CHARACTERS:,}"


def usable_texts(texts: Sequence[str], path: str) -> tuple[list[str], list[BadSample]]:
    """The texts of an image that can be used, and a bad sample for each other; without any, the image is lost."""
    if not texts:
        return [], [BadSample(path, "it has no text")]
    problems = [(number, problem) for number, text in enumerate(texts, start=1) if (problem := text_problem(text))]
    usable = [text for text in texts if text_problem(text) is None]
    return usable, [
        BadSample(path, f"text {number} {problem}", lost=int(not usable and place == 0))
        for place, (number, problem) in enumerate(problems)
    ]
