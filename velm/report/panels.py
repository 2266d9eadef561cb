"""The examples of a report as plain data: captions with attention maps, retrieval queries, confusions."""

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

from velm.evaluation.confusions import hardest_confusions
from velm.evaluation.evaluate import Evaluation
from velm.evaluation.predictions import Captions
from velm.explain.attention import WordMaps
from velm.metrics.captioning import CaptionScores
from velm.report.thumbnails import Thumbnails

CAPTIONS = 1000
QUERIES = 48  # hits, and as many misses, per direction
CANDIDATES = 5
CONFUSIONS = 24
MAP_SIDE = 16  # maximal side of a map; more is not visible in a thumbnail


@dataclass(frozen=True)
class EvaluatedModel:
    """A checkpoint of a report, which has one or two.

    Attributes:
        name: the path of the checkpoint.
        evaluation: its predictions and metrics.
        scores: of its captions; None if it has no decoder.
        draws: its metrics over the resamples, see `velm.evaluation.bootstrap`.
    """

    name: str
    evaluation: Evaluation
    scores: CaptionScores | None
    draws: dict[str, np.ndarray]


def caption_panels(models: Sequence[EvaluatedModel], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Captions with their references, evenly spaced if there are more than CAPTIONS; [] unless all models caption."""
    captions = [model.evaluation.predictions.captions for model in models]
    pairs = [(c, model.scores) for c, model in zip(captions, models, strict=True) if c and c.rows and model.scores]
    if not pairs or len(pairs) < len(models):
        return []
    generated = pairs[0][0].rows
    rows = _record_rows(thumbnails, pairs[0][0])
    return [
        {
            "image": thumbnails.number(rows[i]),
            "source": generated[i].text,
            "references": list(generated[i].references),
            "captions": [_caption(captions, scores, i) for captions, scores in pairs],
        }
        for i in _evenly_spaced(range(len(rows)), CAPTIONS)
    ]


def retrieval_panels(models: Sequence[EvaluatedModel], thumbnails: Thumbnails) -> dict[str, list[dict[str, Any]]]:
    """Queries with their best candidates, hits and misses of the first model; {} unless all models align."""
    retrieval = models[0].evaluation.predictions.retrieval if models else None
    if retrieval is None or any("" not in model.evaluation.ranks for model in models):
        return {}
    image, text, owner = retrieval.image_embeds.float(), retrieval.text_embeds.float(), retrieval.image_ids
    ranks = [model.evaluation.ranks[""] for model in models]
    by_image, by_text = [], []
    for row in _hits_and_misses(ranks[0].image_to_text):
        cosines = text @ image[row]
        near = cosines.topk(min(CANDIDATES, len(text))).indices.tolist()
        matches = (owner == row).tolist()
        best = int(cosines.masked_fill(owner != row, -torch.inf).argmax())
        by_image.append(
            {
                "image": thumbnails.number(row),
                "ranks": [int(each.image_to_text[row]) for each in ranks],
                "candidates": [[retrieval.texts[j], matches[j]] for j in near],
                "own": None if any(matches[j] for j in near) else retrieval.texts[best],
            }
        )
    for row in _hits_and_misses(ranks[0].text_to_image):
        near = (image @ text[row]).topk(min(CANDIDATES, len(image))).indices.tolist()
        by_text.append(
            {
                "text": retrieval.texts[row],
                "ranks": [int(each.text_to_image[row]) for each in ranks],
                "candidates": [[thumbnails.number(i), i == int(owner[row])] for i in near],
            }
        )
    return {"image_to_text": by_image, "text_to_image": by_text}


def confusion_panels(model: EvaluatedModel, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """The images with the largest margins of a wrong text, largest first; [] if the model does not align."""
    retrieval = model.evaluation.predictions.retrieval
    if retrieval is None:
        return []
    return [
        {
            "image": thumbnails.number(each.image),
            "other": thumbnails.number(int(retrieval.image_ids[each.wrong])),
            "wrong": retrieval.texts[each.wrong],
            "right": retrieval.texts[each.right],
            "margin": _finite(each.margin),
        }
        for each in hardest_confusions(retrieval, CONFUSIONS)
    ]


def _caption(captions: Captions, scores: CaptionScores, index: int) -> dict[str, Any]:
    maps = captions.maps[index] if captions.maps else None
    return {
        "text": captions.rows[index].caption,
        "cider": _finite(scores.cider_d[index]),
        "exact": scores.exact[index],
        "maps": None if maps is None or not maps.words else _pack(maps),
    }


def _pack(maps: WordMaps) -> dict[str, Any]:
    """Maps as bytes, 255 at each word's maximum: a few hundred bytes per word."""
    values = maps.maps
    height, width = values.shape[1:]
    if max(height, width) > MAP_SIDE:
        values = functional.adaptive_avg_pool2d(values, (min(height, MAP_SIDE), min(width, MAP_SIDE)))
    maximum = values.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    levels = (255 * values / maximum).nan_to_num().round().clamp(0, 255).to(torch.uint8)
    content = base64.b64encode(levels.numpy().tobytes()).decode()
    return {"words": list(maps.words), "height": levels.shape[1], "width": levels.shape[2], "bytes": content}


def _record_rows(thumbnails: Thumbnails, captions: Captions) -> list[int]:
    """The record of each caption: captions are in the order of the records, which may have several."""
    rows: list[int] = []
    row = 0
    for caption in captions.rows:
        while thumbnails.records[row].image_id != caption.image_id:
            row += 1
        rows.append(row)
    return rows


def _hits_and_misses(ranks: Tensor) -> list[int]:
    """Queries to show, misses and hits alternating."""
    misses = _evenly_spaced((ranks > 1).nonzero().flatten().tolist(), QUERIES)
    hits = _evenly_spaced((ranks == 1).nonzero().flatten().tolist(), QUERIES)
    both = [query for pair in zip(misses, hits, strict=False) for query in pair]
    shorter = min(len(misses), len(hits))
    return both + misses[shorter:] + hits[shorter:]


def _evenly_spaced(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _finite(value: float) -> float:
    """0 for nan and infinities, which JSON lacks."""
    return round(value, 4) if math.isfinite(value) else 0.0
