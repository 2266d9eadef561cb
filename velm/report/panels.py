"""What the report shows one by one: captions with their maps, queries with what they found, confusions. Plain data."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from velm.evaluation.confusions import hardest
from velm.evaluation.evaluate import Measured
from velm.evaluation.scores import CaptionScores
from velm.explain.attention import WordMaps
from velm.report.thumbnails import Album

__all__ = ["Side", "captions", "confusions", "retrieval"]

CAPTIONS = 1000
QUERIES = 48  # hits, and as many misses, each way
FOUND = 5
CONFUSIONS = 24
FINEST = 16  # side of a map at most; more is not to be seen in a thumbnail


@dataclass(frozen=True)
class Side:
    """A checkpoint in a report, which has one or two.

    Attributes:
        name: what it is called.
        measured: what it did.
        scores: of its captions; None where it writes none.
        draws: its figures over the resamples, see `velm.evaluation.bootstrap`.
    """

    name: str
    measured: Measured
    scores: CaptionScores | None
    draws: dict[str, np.ndarray]


def captions(sides: Sequence[Side], album: Album) -> list[dict[str, Any]]:
    """Captions beside their references, evenly spaced where there are more than CAPTIONS; [] without any."""
    writing = [side for side in sides if side.measured.predictions.written]
    if not writing or len(writing) < len(sides):
        return []
    rows = _rows_of(album, writing[0])
    shown = []
    for place in _spaced(range(len(rows)), CAPTIONS):
        written = [(side.measured.predictions.written or [])[place] for side in writing]
        shown.append(
            {
                "image": album.number(rows[place]),
                "source": written[0].text,
                "references": list(written[0].references),
                "captions": [_caption(side, place) for side in writing],
            }
        )
    return shown


def retrieval(sides: Sequence[Side], album: Album) -> dict[str, list[dict[str, Any]]]:
    """Queries with what came first, hits and misses; {} where a side does not align."""
    if not sides or any("" not in side.measured.ranks for side in sides):
        return {}
    found = sides[0].measured.predictions
    assert found.image_embeds is not None
    assert found.text_embeds is not None
    assert found.image_ids is not None
    image, text, owner = found.image_embeds.float(), found.text_embeds.float(), found.image_ids
    places = [side.measured.ranks[""] for side in sides]
    names, searches = [], []
    for row in _hits_and_misses(places[0].image_to_text):
        cosines = text @ image[row]
        near = cosines.topk(min(FOUND, len(text))).indices.tolist()
        right = (owner == row).tolist()
        best = int(cosines.masked_fill(owner != row, -torch.inf).argmax())
        own = None if any(right[j] for j in near) else found.texts[best]
        ranks = [int(place.image_to_text[row]) for place in places]
        hits = [[found.texts[j], right[j]] for j in near]
        names.append({"image": album.number(row), "ranks": ranks, "found": hits, "own": own})
    for row in _hits_and_misses(places[0].text_to_image):
        near = (image @ text[row]).topk(min(FOUND, len(image))).indices.tolist()
        hits = [[album.number(i), i == int(owner[row])] for i in near]
        ranks = [int(place.text_to_image[row]) for place in places]
        searches.append({"text": found.texts[row], "ranks": ranks, "found": hits})
    return {"image_to_text": names, "text_to_image": searches}


def confusions(side: Side, album: Album) -> list[dict[str, Any]]:
    """The hardest images of a model that aligns, hardest first; [] of another."""
    found = side.measured.predictions
    if found.image_ids is None:
        return []
    return [
        {
            "image": album.number(each.image),
            "other": album.number(int(found.image_ids[each.wrong])),
            "wrong": found.texts[each.wrong],
            "right": found.texts[each.right],
            "margin": _finite(each.margin),
        }
        for each in hardest(found, CONFUSIONS)
    ]


def _caption(side: Side, place: int) -> dict[str, Any]:
    found, scores = side.measured.predictions, side.scores
    assert found.written is not None
    assert scores is not None
    caption = found.written[place].caption
    looked = found.looked[place] if found.looked else None
    return {
        "text": caption,
        "cider": _finite(float(scores.cider[place])),
        "exact": bool(scores.exact[place]),
        "maps": None if looked is None or not looked.words else _packed(looked),
    }


def _packed(looked: WordMaps) -> dict[str, Any]:
    """Maps as bytes, 255 where a word looked most: a few hundred a word."""
    height, width = looked.maps.shape[1:]
    maps = looked.maps
    if max(height, width) > FINEST:
        maps = functional.adaptive_avg_pool2d(maps, (min(height, FINEST), min(width, FINEST)))
    most = maps.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    levels = (255 * maps / most).nan_to_num().round().clamp(0, 255).to(torch.uint8)
    content = base64.b64encode(levels.numpy().tobytes()).decode()
    return {"words": list(looked.words), "height": levels.shape[1], "width": levels.shape[2], "bytes": content}


def _rows_of(album: Album, side: Side) -> list[int]:
    """The record of each caption: captions are in the order of the records, some of which have several."""
    rows: list[int] = []
    row = 0
    for written in side.measured.predictions.written or []:
        while album.records[row].image_id != written.image_id:
            row += 1
        rows.append(row)
    return rows


def _hits_and_misses(ranks: Tensor) -> list[int]:
    """Queries to show, misses and hits by turns."""
    misses = _spaced((ranks > 1).nonzero().flatten().tolist(), QUERIES)
    hits = _spaced((ranks == 1).nonzero().flatten().tolist(), QUERIES)
    both = [query for pair in zip(misses, hits, strict=False) for query in pair]
    shorter = min(len(misses), len(hits))
    return both + misses[shorter:] + hits[shorter:]


def _spaced(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _finite(value: float) -> float:
    """JSON has no nan."""
    return round(value, 4) if math.isfinite(value) else 0.0
