"""Every image opened once: is it there, can it be decoded, and what does it look like."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from velm.data.bad_samples import BadSample, count_records
from velm.data.base import EncodedImage, Record, image_name
from velm.data.images.transforms import read_image
from velm.errors import DataError
from velm.findings import Finding, Severity, examples, share

__all__ = ["ScannedImage", "difference_hash", "image_findings", "left_out", "look"]

DECODED = 128  # pixels of the shorter side that decoding keeps: enough for every figure below, and fast on large JPEGs
THUMBNAIL = 16  # pixels
AT_ONCE = 512  # images handed to the threads at a time


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """What is known of an image after a look at it.

    Attributes:
        split: it is in.
        name: its path, or whatever else it can be found by.
        digest: of its bytes; None where it could not be read.
        look: difference hash, 64 bits.
        thumbnail: uint8 (16, 16, 3); None where it could not be decoded or nobody tried.
        missing: there is no such file.
        error: why it cannot be used; None where it can.
    """

    split: str
    name: str
    digest: bytes | None = None
    look: int = 0
    thumbnail: np.ndarray | None = None
    missing: bool = False
    error: str | None = None


def look(
    splits: Mapping[str, Sequence[Record]],
    *,
    limit: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScannedImage]:
    """Look at the images of every split, with threads; records without an image are left out.

    Args:
        splits: records by split.
        limit: images to decode, evenly spaced over every split; of the others only the file is looked for.
        workers: threads; None: one a core, at most 8.
        progress: told (images done, images in all).
    """
    total = sum(map(len, splits.values()))
    wanted = {name: max(1, min(1, limit / total) * len(records)) for name, records in splits.items()}
    jobs = [job for name, records in splits.items() for job in _jobs(name, records, int(wanted[name]))]
    found = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(jobs), AT_ONCE):
            done = pool.map(lambda job: _look(*job), jobs[start : start + AT_ONCE])
            found += [image for image in done if image is not None]
            if progress is not None:
                progress(min(start + AT_ONCE, len(jobs)), len(jobs))
    return found


def _jobs(split: str, records: Sequence[Record], wanted: int) -> Iterator[tuple[str, Sequence[Record], int, bool]]:
    """(split, records, place, whether to decode); images that are no files are only looked at to be decoded."""
    decoded = set(np.linspace(0, len(records) - 1, wanted).round().astype(int).tolist())
    files = wanted < len(records) and isinstance(records[0].image, str | os.PathLike)
    for place in range(len(records)):
        if place in decoded or files:
            yield split, records, place, place in decoded


def _look(split: str, records: Sequence[Record], place: int, decode: bool) -> ScannedImage | None:
    name = f"{split}[{place}]"
    try:
        record = records[place]
        if record.image is None:
            return None
        name = image_name(record)
        if isinstance(record.image, str | os.PathLike) and not os.path.isfile(record.image):
            return ScannedImage(split, name, missing=True, error=f"There is no image {name!r}.")
        if not decode:
            return ScannedImage(split, name)
        content, image = _content(record.image, name)
        small = read_image(image, minimum=DECODED)
    except Exception as error:  # whatever it is, it would end the run
        cause = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return ScannedImage(split, name, error=cause)
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return ScannedImage(split, name, digest=digest, look=difference_hash(small), thumbnail=thumbnail)


def _content(image: Any, name: str) -> tuple[bytes, Any]:
    """The bytes of an image, and what to decode, so that its file is read once."""
    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file:
            content = file.read()
    elif isinstance(image, EncodedImage):
        content = image.load()
    else:
        array = np.asarray(image)
        return f"{array.shape}{array.dtype}".encode() + array.tobytes(), image
    return content, EncodedImage(name, lambda: content)


def difference_hash(image: Image.Image) -> int:
    """64 bits: is a cell of a 9 x 8 grey thumbnail brighter than the one to its left; sizes and codecs change few."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def left_out(split: str, records: Sequence[Record], max_bad: float) -> list[Finding]:
    """What opening a split found to be unusable: an error if it is more than `max_bad` of it, else a warning."""
    bad_samples: Sequence[BadSample] = getattr(records, "bad_samples", ())
    if not bad_samples:
        return []
    bad, total = count_records(bad_samples, len(records))
    told = "; ".join(f"{bad_sample.path}: {bad_sample.cause}" for bad_sample in bad_samples[:3]) + (
        "; ..." if len(bad_samples) > 3 else ""
    )
    advice = " ".join(
        dict.fromkeys(
            [*(bad_sample.advice for bad_sample in bad_samples if bad_sample.advice), "Mend them or take them out."]
        )
    )
    value = {
        "split": split,
        "bad": bad,
        "total": total,
        "bad_samples": [{"path": f.path, "cause": f.cause} for f in bad_samples],
    }
    message = f"{share(bad, total)} records of {split} cannot be used. {told}"
    return [Finding("data", _severity(bad, total, max_bad), message, advice, value)]


def _severity(bad: int, total: int, max_bad: float) -> Severity:
    return "error" if bad > max_bad * total else "warning"


def image_findings(found: Sequence[ScannedImage], max_bad: float = 0.0) -> list[Finding]:
    """Missing and unreadable images, with the first few names: errors if they are more than `max_bad` of a split."""
    if not found:
        return [Finding("images", "ok", "The data has no images.", value={"images": 0})]
    missing = [p for p in found if p.missing]
    broken = [p for p in found if p.error is not None and not p.missing]
    decoded = sum(p.thumbnail is not None for p in found) + len(broken)
    bad_samples = [{"path": p.name, "cause": p.error} for p in (*missing, *broken)]
    value: dict[str, Any] = {
        "images": len(found),
        "decoded": decoded,
        "missing": len(missing),
        "unreadable": len(broken),
    }
    value |= {"bad_samples": bad_samples} if bad_samples else {}
    splits = {p.split for p in (*missing, *broken)}
    shares = [
        (sum(p.split == s and p.error is not None for p in found), sum(p.split == s for p in found)) for s in splits
    ]
    severity: Severity = "error" if any(_severity(*each, max_bad) == "error" for each in shares) else "warning"
    findings = []
    if missing:
        message = f"{share(len(missing), len(found))} images are missing: {examples([p.name for p in missing])}."
        advice = "Put them there, set data.dataset.root to the folder their paths start from, or take their rows out."
        findings.append(Finding("images", severity, message, advice, value))
    if broken:
        causes = "; ".join(f"{p.split}: {p.error}" for p in broken[:3]) + ("; ..." if len(broken) > 3 else "")
        message = f"{share(len(broken), decoded)} decoded images cannot be read. {causes}"
        findings.append(Finding("images", severity, message, "Fetch them again, or take their rows out.", value))
    if not findings:
        others = len(found) - decoded
        rest = f"; the other {others:,} were only looked for (--pictures)" if others else ""
        findings.append(Finding("images", "ok", f"{decoded:,} images decoded, none missing{rest}.", value=value))
    return findings
