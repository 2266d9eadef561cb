"""Whether a model tells a caption from the same one with two words exchanged: objects, attributes, relations.

An image's first sentence that offers a swap of a kind is compared with the swapped one (`hard_negatives.py`).
The model is right where the true one scores above it; a tie counts against the model, so chance is 0.5 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from velm.data.base import Record
from velm.evaluation.compositional.hard_negatives import KINDS, swapped
from velm.evaluation.predictions import Predictions
from velm.evaluation.reading import encoded
from velm.evaluation.reranking import likelihoods
from velm.metrics.ptb import ptb_tokenize
from velm.pipeline import Pipeline

__all__ = ["Pair", "compositional_figures", "hard_negatives"]


class Pair(NamedTuple):
    """A true sentence and the same made false: the image's row, the text's row in the gallery, what became of it."""

    image: int
    text: int
    negative: str


def hard_negatives(texts: Sequence[str], image_ids: Sequence[int]) -> dict[str, list[Pair]]:
    """Pairs by kind, at most one an image; kinds that no sentence offers are left out.

    Args:
        texts: sentences of a split; replacements are words of theirs, so that none gives itself away by being unknown.
        image_ids: the image of each. A swapped sentence that is one of its image's is no negative.
    """
    known = {word for text in texts for word in ptb_tokenize(text)}
    own: dict[int, list[int]] = {}
    for row, image in enumerate(image_ids):
        own.setdefault(int(image), []).append(row)
    true = {image: {tuple(ptb_tokenize(texts[row])) for row in rows} for image, rows in own.items()}
    found: dict[str, list[Pair]] = {}
    for kind in KINDS:
        for image, rows in own.items():
            pairs = (Pair(image, row, swapped(texts[row], kind, known) or "") for row in rows)
            pair = next((p for p in pairs if p.negative and tuple(ptb_tokenize(p.negative)) not in true[image]), None)
            if pair is not None:
                found.setdefault(kind, []).append(pair)
    return found


def compositional_figures(
    pipeline: Pipeline, records: Sequence[Record], found: Predictions, *, batch_size: int = 64
) -> dict[str, float]:
    """Figures by kind, under the names of metrics.json.

    `compositional/<kind>` is by the embeddings, `.../captioner` by log P(sentence | image) where the model writes
    from the image alone; `.../blind` and `.../captioner_blind` are the same with the next record's image in place
    of the right one, which tells how far the wording alone gives the swap away; `.../pairs` is the number of pairs.

    Args:
        pipeline: a model that aligns.
        records: those that were predicted, without any that were left out.
        found: their predictions.
        batch_size: images at a time.
    """
    pipeline.require_alignment()
    assert found.image_embeds is not None
    assert found.text_embeds is not None
    assert found.image_ids is not None
    image, text = found.image_embeds.float(), found.text_embeds.float()
    figures: dict[str, float] = {}
    kinds = hard_negatives(found.texts, found.image_ids.tolist())
    for kind, pairs in kinds.items():
        rows, columns = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
        further = text[columns] - pipeline.embed_texts([pair.negative for pair in pairs]).float()
        figures |= {
            f"compositional/{kind}": _share_above(image[rows], further),
            f"compositional/{kind}/blind": _share_above(image[(rows + 1) % len(image)], further),
            f"compositional/{kind}/pairs": float(len(pairs)),
        }
    if pipeline.writes and pipeline.model.memory_sources == ("image",):
        figures |= _by_captioner(pipeline, records, found.texts, kinds, batch_size)
    return figures


def _share_above(image: Tensor, further: Tensor) -> float:
    return float(((image * further).sum(1) > 0).double().mean())


def _by_captioner(
    pipeline: Pipeline,
    records: Sequence[Record],
    texts: Sequence[str],
    kinds: dict[str, list[Pair]],
    batch_size: int,
) -> dict[str, float]:
    """The figures by how likely the decoder holds either sentence; each image is encoded once more."""
    asked: dict[int, list[tuple[str, Pair]]] = {}
    for kind, pairs in kinds.items():
        for pair in pairs:
            asked.setdefault(pair.image, []).append((f"{kind}/captioner", pair))
            asked.setdefault((pair.image + 1) % len(records), []).append((f"{kind}/captioner_blind", pair))
    right = {f"{kind}/{way}": 0 for way in ("captioner", "captioner_blind") for kind in kinds}
    for _, rows, _, image in encoded(pipeline, records, batch_size):
        assert image is not None
        for place, row in enumerate(rows):
            mine = asked.get(row, [])
            if mine:
                one = image.select(torch.tensor([place], device=image.features.device))
                sentences = [texts[pair.text] for _, pair in mine] + [pair.negative for _, pair in mine]
                true, false = likelihoods(pipeline, one, sentences).chunk(2)
                for (name, _), above in zip(mine, (true > false).tolist(), strict=True):
                    right[name] += above
    return {f"compositional/{name}": count / len(kinds[name.split("/")[0]]) for name, count in right.items()}
