"""Finds the same image twice: byte for byte, or nearly the same.

Two images are nearly the same when their 64-bit difference hashes differ in at most `DISTANCE` bits and no colour
of a cell of their 16 x 16 thumbnails by more than `CONTRAST`. Measured on the 7,800 photographs of Flickr8k: one pair
differs in 0 to 4 bits (a true duplicate), 2 in 5, 8 in 6, 13 in 7, none of these the same; of 600 images saved again
at JPEG quality 30, at half or double size, or 15% brighter, at least 96% are recognised. Thumbnails separate drawings
on a plain ground, which a grey hash does not: no two images of `shapes` are closer than 59.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from velm.doctor.images import ScannedImage
from velm.findings import Finding, examples

DISTANCE = 4  # bits of 64
CONTRAST = 40  # of 255
ROWS = 256  # hashes compared with all others at a time
_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


def check_duplicates(scanned: Sequence[ScannedImage]) -> list[Finding]:
    """Images that are in two splits (a warning), and twice in one split (info)."""
    seen = [image for image in scanned if image.digest is not None]
    if not seen:
        return []
    exact, near = exact_pairs(seen), near_pairs(seen)
    findings = []
    for check, across in (("duplicates_across_splits", True), ("duplicates_within_a_split", False)):
        kinds = {
            kind: [(a, b) for a, b in pairs if (a.split != b.split) == across]
            for kind, pairs in (("exact", exact), ("near", near))
        }
        value = {kind: len(pairs) for kind, pairs in kinds.items()}
        listed = [f"{a.split} {a.name} = {b.split} {b.name}" for a, b in kinds["exact"]]
        listed += [f"{a.split} {a.name} ~ {b.split} {b.name}" for a, b in kinds["near"]]
        where = "in two splits" if across else "twice in one split"
        if not listed:
            message = f"No image is {where}, among {len(seen):,} decoded."
            findings.append(Finding(check, "ok", message, value=value))
            continue
        message = (
            f"Pairs of images {where}: {value['exact']} byte for byte (=), {value['near']} nearly the same (~): "
            f"{examples(listed, separator='; ')}."
        )
        shown = {**value, "pairs": listed[:100]}
        advice = "In a batch they are negatives of each other: give them one image_id, or remove one."
        if across:
            advice = "Remove them from the training split: metrics on training images are too good."
        findings.append(Finding(check, "warning" if across else "info", message, advice, shown))
    return findings


def exact_pairs(seen: Sequence[ScannedImage]) -> list[tuple[ScannedImage, ScannedImage]]:
    """Pairs of the same bytes: each image with the first of its split, and the first images of two splits."""
    groups: dict[bytes | None, list[ScannedImage]] = defaultdict(list)
    for image in seen:
        groups[image.digest].append(image)
    pairs = []
    for group in groups.values():
        first: dict[str, ScannedImage] = {}
        for image in group:
            if image.split in first:
                pairs.append((first[image.split], image))
            else:
                pairs += [(other, image) for other in first.values()]
                first[image.split] = image
    return pairs


def near_pairs(seen: Sequence[ScannedImage]) -> list[tuple[ScannedImage, ScannedImage]]:
    """Pairs of different bytes that look the same; of images with the same bytes only the first of a split counts."""
    unique = list({(image.digest, image.split): image for image in reversed(seen)}.values())[::-1]
    hashes = np.array([image.hash for image in unique], dtype=np.uint64)
    thumbnails = np.stack([_thumbnail(image) for image in unique]).reshape(len(unique), -1)
    pairs = []
    for start in range(0, len(hashes), ROWS):
        differing = hashes[start : start + ROWS, None] ^ hashes[None, start:]
        distance = _BITS[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(-1, dtype=np.uint8)
        rows, columns = np.nonzero(np.triu(distance <= DISTANCE, k=1))
        for part in range(0, len(rows), 4096):  # bounds the memory of thumbnails
            a, b = rows[part : part + 4096] + start, columns[part : part + 4096] + start
            contrast = np.abs(thumbnails[a].astype(np.int16) - thumbnails[b]).max(1)
            close = np.flatnonzero(contrast <= CONTRAST)
            pairs += [(unique[a[k]], unique[b[k]]) for k in close.tolist()]
    return [(a, b) for a, b in pairs if a.digest != b.digest]


def _thumbnail(image: ScannedImage) -> np.ndarray:
    assert image.thumbnail is not None  # it has a digest
    return image.thumbnail
