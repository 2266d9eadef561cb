"""Accuracy of a model that compares captions with hard negatives: objects, attributes, relations, word order.

For each kind, an image's first caption with a hard negative (`velm.data.text.hard_negatives`) is compared with it. The
model is right if the true caption scores higher; ties count against it, so chance is at most 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from velm.data.base import Record
from velm.data.text.hard_negatives import KINDS, make_hard_negative
from velm.evaluation.predictions import Retrieval
from velm.evaluation.reranking import image_likelihoods
from velm.metrics.ptb import ptb_tokenize
from velm.pipeline import Pipeline


class Pair(NamedTuple):
    """The rows of an image and of its true caption in the gallery, and the hard negative of that caption."""

    image: int
    text: int
    negative: str


def hard_negatives(texts: Sequence[str], image_ids: Sequence[int]) -> dict[str, list[Pair]]:
    """Pairs by kind, at most one per image; kinds without pairs are missing.

    Args:
        texts: captions of a split; replacements are taken from their words, so that no negative has unknown words.
        image_ids: the image of each caption. A negative that equals another caption of the image is rejected.
    """
    known = {word for text in texts for word in ptb_tokenize(text)}
    own: dict[int, list[int]] = {}
    for row, image in enumerate(image_ids):
        own.setdefault(int(image), []).append(row)
    true = {image: {tuple(ptb_tokenize(texts[row])) for row in rows} for image, rows in own.items()}
    pairs: dict[str, list[Pair]] = {}
    for kind in KINDS:
        for image, rows in own.items():
            candidates = (Pair(image, row, make_hard_negative(texts[row], kind, known) or "") for row in rows)
            valid = (p for p in candidates if p.negative and tuple(ptb_tokenize(p.negative)) not in true[image])
            pair = next(valid, None)
            if pair is not None:
                pairs.setdefault(kind, []).append(pair)
    return pairs


def compositional_metrics(
    pipeline: Pipeline, records: Sequence[Record], retrieval: Retrieval, *, batch_size: int = 64
) -> dict[str, float]:
    """Accuracy by kind, by the keys of metrics.json.

    `compositional/<kind>` compares embeddings, `.../captioner` log P(caption | image) if the model captions from the
    image alone; `.../blind` and `.../captioner_blind` use the next record's image instead, which measures how far the
    text alone gives the negative away; `.../pairs` is the number of pairs.

    Raises:
        PipelineError: the model does not align.
    """
    pipeline.require_alignment()
    image, text = retrieval.image_embeds.float(), retrieval.text_embeds.float()
    metrics: dict[str, float] = {}
    kinds = hard_negatives(retrieval.texts, retrieval.image_ids.tolist())
    for kind, pairs in kinds.items():
        rows, columns = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
        difference = text[columns] - pipeline.embed_texts([pair.negative for pair in pairs]).float()
        metrics |= {
            f"compositional/{kind}": _fraction_positive(image[rows], difference),
            f"compositional/{kind}/blind": _fraction_positive(image[(rows + 1) % len(image)], difference),
            f"compositional/{kind}/pairs": float(len(pairs)),
        }
    if pipeline.writes and pipeline.model.reads == ("image",):
        metrics |= _captioner_metrics(pipeline, records, retrieval.texts, kinds, batch_size)
    return metrics


def _fraction_positive(image: Tensor, difference: Tensor) -> float:
    return float(((image * difference).sum(1) > 0).double().mean())


def _captioner_metrics(
    pipeline: Pipeline,
    records: Sequence[Record],
    texts: Sequence[str],
    kinds: dict[str, list[Pair]],
    batch_size: int,
) -> dict[str, float]:
    """The metrics by the decoder's likelihoods; encodes each image once more."""
    asked: dict[int, list[tuple[str, Pair]]] = {}
    for kind, pairs in kinds.items():
        for pair in pairs:
            asked.setdefault(pair.image, []).append((f"{kind}/captioner", pair))
            asked.setdefault((pair.image + 1) % len(records), []).append((f"{kind}/captioner_blind", pair))

    def captions(row: int) -> list[str]:
        pairs = [pair for _, pair in asked.get(row, [])]
        return [texts[pair.text] for pair in pairs] + [pair.negative for pair in pairs]

    right = {f"{kind}/{way}": 0 for way in ("captioner", "captioner_blind") for kind in kinds}
    for row, values in image_likelihoods(pipeline, records, captions, batch_size):
        true, false = values.chunk(2)
        for (name, _), above in zip(asked[row], (true > false).tolist(), strict=True):
            right[name] += above
    return {f"compositional/{name}": count / len(kinds[name.split("/")[0]]) for name, count in right.items()}
