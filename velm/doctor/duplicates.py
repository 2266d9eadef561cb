"""The same image twice: byte for byte, or to the eye.

Two images are nearly the same when their 64-bit difference hashes differ in at most `DISTANCE` bits and no colour
of a cell of their 16 x 16 thumbnails by more than `CONTRAST`. Measured on the 7,800 photographs of Flickr8k: one pair
differs in 0 to 4 bits (a true duplicate), 2 in 5, 8 in 6, 13 in 7, none of these the same; of 600 images saved again
at JPEG quality 30, at half or double size, or 15% brighter, 96% or more are recognised. The thumbnails tell apart what
a grey hash cannot, drawings on a plain ground: no two of `shapes` come nearer than 59.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from velm.doctor.images import ScannedImage
from velm.findings import Finding

__all__ = ["duplicates", "exact_pairs", "near_pairs"]

DISTANCE = 4  # bits of 64
CONTRAST = 40  # of 255
ROWS = 256  # hashes that are held against all others at a time
_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


def duplicates(found: Sequence[ScannedImage]) -> list[Finding]:
    """Images that are in two splits (a warning), and twice in one (information)."""
    seen = [image for image in found if image.digest is not None]
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
            message = f"No image is {where}, among {len(seen):,} looked at."
            findings.append(Finding(check, "ok", message, value=value))
            continue
        message = (
            f"Pairs of images that are {where}: {value['exact']} byte for byte (=), {value['near']} to the eye (~): "
            f"{'; '.join(listed[:3])}{'; ...' if len(listed) > 3 else ''}."
        )
        shown = {**value, "pairs": listed[:100]}
        if across:
            advice = "Take them out of the training split: figures on images that were trained on are too good."
            findings.append(Finding(check, "warning", message, advice, shown))
        else:
            advice = "In a batch they are negatives of each other; give them one image_id, or keep one."
            findings.append(Finding(check, "info", message, advice, shown))
    return findings


def exact_pairs(seen: Sequence[ScannedImage]) -> list[tuple[ScannedImage, ScannedImage]]:
    """Images of the same bytes: each further one with the first of its split, each split with the one before."""
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
    """Images of different bytes that look the same; of those with the same bytes, the first of a split speaks."""
    speakers = list({(image.digest, image.split): image for image in reversed(seen)}.values())[::-1]
    hashes = np.array([image.look for image in speakers], dtype=np.uint64)
    thumbnails = np.stack([_thumbnail(image) for image in speakers]).reshape(len(speakers), -1)
    pairs = []
    for start in range(0, len(hashes), ROWS):
        differing = hashes[start : start + ROWS, None] ^ hashes[None, start:]
        distance = _BITS[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(-1, dtype=np.uint8)
        rows, columns = np.nonzero(np.triu(distance <= DISTANCE, k=1))
        for part in range(0, len(rows), 4096):  # thumbnails are large: a few at a time
            a, b = rows[part : part + 4096] + start, columns[part : part + 4096] + start
            contrast = np.abs(thumbnails[a].astype(np.int16) - thumbnails[b]).max(1)
            close = np.flatnonzero(contrast <= CONTRAST)
            pairs += [(speakers[a[k]], speakers[b[k]]) for k in close.tolist()]
    return [(a, b) for a, b in pairs if a.digest != b.digest]


def _thumbnail(image: ScannedImage) -> np.ndarray:
    assert image.thumbnail is not None  # what has a digest was decoded
    return image.thumbnail
