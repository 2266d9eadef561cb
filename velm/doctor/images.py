"""Opens every image once: whether it exists and can be decoded, its digest, difference hash and thumbnail."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from velm.data.bad_samples import BadSample, count_records
from velm.data.base import EncodedImage, Record, image_name
from velm.data.images.decode import read_image, read_range
from velm.data.images.grey import GreyRange
from velm.data.text.vocabulary import sampled_indices
from velm.errors import cause_of
from velm.findings import Finding, Severity, examples, share
from velm.util import Progress

DECODED = 128  # pixels of the shorter side that decoding keeps; fast on large JPEGs
THUMBNAIL = 16  # pixels
DARK = 16  # of 255: an image without a brighter value looks black
CHUNK = 512  # images between two reports of progress


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """An image of a split.

    Attributes:
        split: name of its split.
        name: its path, or its name in messages.
        digest: of its bytes; None if it was not decoded.
        hash: difference hash, 64 bits.
        thumbnail: uint8 (16, 16, 3); None if it was not decoded.
        brightest: largest value of a channel, 0 to 255; None if it was not decoded.
        grey: the range of a grey image of more than 8 bits; None for every other.
        missing: whether its file does not exist.
        error: why it cannot be used; None if it can.
    """

    split: str
    name: str
    digest: bytes | None = None
    hash: int = 0
    thumbnail: np.ndarray | None = None
    brightest: int | None = None
    grey: GreyRange | None = None
    missing: bool = False
    error: str | None = None


def scan_images(
    splits: Mapping[str, Sequence[Record]],
    *,
    limit: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[ScannedImage]:
    """Scan the images of every split in threads; records without an image are skipped.

    Args:
        limit: number of images to decode, evenly spaced over every split; others are only checked to exist.
        workers: threads; None: one per core, at most 8.
    """
    total = sum(map(len, splits.values()))
    counts = {name: max(1, min(1, limit / total) * len(records)) for name, records in splits.items()}
    jobs = [job for name, records in splits.items() for job in _jobs(name, records, int(counts[name]))]
    scanned = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(jobs), CHUNK):
            done = pool.map(lambda job: _scan(*job), jobs[start : start + CHUNK])
            scanned += [image for image in done if image is not None]
            if progress is not None:
                progress(min(start + CHUNK, len(jobs)), len(jobs))
    return scanned


def _jobs(split: str, records: Sequence[Record], count: int) -> Iterator[tuple[str, Sequence[Record], int, bool]]:
    """(split, records, index, whether to decode); images that are not files are skipped unless decoded."""
    decoded = set(sampled_indices(len(records), count))
    files = count < len(records) and isinstance(records[0].image, str | os.PathLike)
    for index in range(len(records)):
        if index in decoded or files:
            yield split, records, index, index in decoded


def _scan(split: str, records: Sequence[Record], index: int, decode: bool) -> ScannedImage | None:
    name = f"{split}[{index}]"
    try:
        record = records[index]
        if record.image is None:
            return None
        name = image_name(record)
        if isinstance(record.image, str | os.PathLike) and not os.path.isfile(record.image):
            return ScannedImage(split, name, missing=True, error=f"There is no image {name!r}.")
        if not decode:
            return ScannedImage(split, name)
        content, image = _content(record.image, name)
        small, grey = read_image(image, minimum=DECODED), read_range(image)
    except Exception as error:  # of any kind: it would end the run
        return ScannedImage(split, name, error=cause_of(error))
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    brightest = int(np.asarray(small).max())
    return ScannedImage(
        split, name, digest=digest, hash=difference_hash(small), thumbnail=thumbnail, brightest=brightest, grey=grey
    )


def _content(image: Any, name: str) -> tuple[bytes, Any]:
    """The bytes of an image, and an image that decodes these bytes: the file is read once."""
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
    """64 bits: whether a cell of a 9 x 8 grey thumbnail is brighter than its left neighbour; resizing flips few."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def check_records(split: str, records: Sequence[Record], max_bad: float) -> list[Finding]:
    """Records that cannot be used: an error if they are more than `max_bad` of the split, else a warning."""
    bad_samples: Sequence[BadSample] = getattr(records, "bad_samples", ())
    if not bad_samples:
        return []
    count, total = count_records(bad_samples, len(records))
    causes = examples([f"{bad.path}: {bad.cause}" for bad in bad_samples], separator="; ")
    advice = dict.fromkeys([*(bad.advice for bad in bad_samples if bad.advice), "Repair or remove them."])
    listed = [{"path": bad.path, "cause": bad.cause} for bad in bad_samples]
    value = {"split": split, "bad": count, "total": total, "bad_samples": listed}
    message = f"{share(count, total)} records of {split} cannot be used. {causes}"
    return [Finding("data", _severity(count, total, max_bad), message, " ".join(advice), value)]


def _severity(bad: int, total: int, max_bad: float) -> Severity:
    return "error" if bad > max_bad * total else "warning"


def check_images(scanned: Sequence[ScannedImage], max_bad: float = 0.0) -> list[Finding]:
    """Missing and unreadable images: errors if they are more than `max_bad` of a split, else warnings."""
    if not scanned:
        return [Finding("images", "ok", "The data has no images.", value={"images": 0})]
    missing = [p for p in scanned if p.missing]
    broken = [p for p in scanned if p.error is not None and not p.missing]
    decoded = sum(p.thumbnail is not None for p in scanned) + len(broken)
    bad_samples = [{"path": p.name, "cause": p.error} for p in (*missing, *broken)]
    counts = {"images": len(scanned), "decoded": decoded, "missing": len(missing), "unreadable": len(broken)}
    value: dict[str, Any] = {**counts, **({"bad_samples": bad_samples} if bad_samples else {})}
    images, bad = (Counter(p.split for p in ps) for ps in (scanned, (*missing, *broken)))
    severities = {_severity(count, images[split], max_bad) for split, count in bad.items()}
    severity: Severity = "error" if "error" in severities else "warning"
    findings = []
    if missing:
        message = f"{share(len(missing), len(scanned))} images are missing: {examples([p.name for p in missing])}."
        advice = "Add them, set data.dataset.root to the folder of their relative paths, or remove their rows."
        findings.append(Finding("images", severity, message, advice, value))
    if broken:
        causes = examples([f"{p.split}: {p.error}" for p in broken], separator="; ")
        message = f"{share(len(broken), decoded)} decoded images cannot be read. {causes}"
        findings.append(Finding("images", severity, message, "Fetch them again, or remove their rows.", value))
    if not findings:
        others = len(scanned) - decoded
        rest = f"; the other {others:,} were only checked to exist (--pictures)" if others else ""
        findings.append(Finding("images", "ok", f"{decoded:,} images decoded, none missing{rest}.", value=value))
    return findings


def check_range(scanned: Sequence[ScannedImage]) -> list[Finding]:
    """The range of grey images of more than 8 bits, and images that are nearly black: a warning above 1%."""
    decoded = [image for image in scanned if image.brightest is not None]
    deep = [image for image in decoded if image.grey is not None]
    dark = [image.name for image in decoded if (image.brightest or 0) < DARK]
    findings = []
    if deep:
        listed = examples([f"{image.name} holds {image.grey}" for image in deep])
        message = f"{share(len(deep), len(decoded))} decoded images are grey of more than 8 bits, scaled by the range "
        advice = "Convert them to 8 bits by one scale if their brightness must be comparable."
        value = {"deep": len(deep), "ranges": {i.name: [i.grey.low, i.grey.high] for i in deep if i.grey is not None}}
        findings.append(Finding("value_range", "info", f"{message}that each holds: {listed}.", advice, value))
    if dark:
        message = f"{share(len(dark), len(decoded))} images are nearly black (no value of 255 above {DARK - 1}): "
        advice = "If they are not meant to be, scale their values: 12 bits in 16 bits per channel look like this."
        severity: Severity = "warning" if len(dark) > 0.01 * len(decoded) else "info"
        findings.append(Finding("value_range", severity, f"{message}{examples(dark)}.", advice, {"dark": len(dark)}))
    return findings or [Finding("value_range", "ok" if decoded else "skipped", "No image is nearly black.")]
