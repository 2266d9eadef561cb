"""Retrieval in two stages: embeddings find k candidates, the captioner's likelihood puts them in order.

With c the cosine and s the inverse temperature that alignment has learnt, a candidate scores, in nats,

    t -> i   s c + log P(t | i)               for one text a comparison of images as it stands
    i -> t   s c + log P(t | i) - log P(t)    what the image makes likelier than it is anyway; P(t) is the mean of
                                              P(t | i') over the text's own candidates i'

which adds up two opinions on the same log-odds: InfoNCE's optimum is s c = log P(t | i) / P(t) + a constant (van den
Oord et al. 2018, arXiv 1807.03748, section 2.3). A captioner as the judge is due to Vinyals et al. 2015 (arXiv
1411.4555, section 4.3.5), candidates by embedding first to Li et al. 2021 (arXiv 2107.07651, section 3.2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import PipelineError
from velm.evaluation.predictions import Predictions
from velm.evaluation.reading import encoded
from velm.generation import log_likelihood
from velm.metrics.retrieval import RetrievalRanks, retrieval_ranks
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

__all__ = ["SCALE", "check_rerank", "likelihoods", "rerank"]

SCALE = 20.0
"""s of a model whose losses have none (triplet)."""


def rerank(
    pipeline: Pipeline, records: Sequence[Record], found: Predictions, *, k: int = 20, batch_size: int = 64
) -> RetrievalRanks:
    """Ranks of the best right answers after the k best of every query were put in a new order.

    Args:
        pipeline: a model that aligns, and captions from the image alone.
        records: those that were predicted, without any that were left out.
        found: their predictions.
        k: candidates a query, at least 2; what lies behind them keeps its place.
        batch_size: images at a time.

    Raises:
        PipelineError: the model cannot do both, or k is too small.
    """
    check_rerank(pipeline, k)
    assert found.image_embeds is not None
    assert found.text_embeds is not None
    assert found.image_ids is not None
    image, text, ids = found.image_embeds.float(), found.text_embeds.float(), found.image_ids
    near_texts = _nearest(image, text, k)
    near_images = _nearest(text, image, k)
    pairs = _Pairs(near_texts, near_images, texts=len(text))
    pairs.score(pipeline, records, found.texts, batch_size)
    likely = pairs.of(torch.arange(len(text))[:, None].expand_as(near_images), near_images)  # (m, k)
    likelier = pairs.of(near_texts, torch.arange(len(image))[:, None].expand_as(near_texts))  # (n, k)
    usual = likely.logsumexp(1) - math.log(likely.shape[1])
    plain = retrieval_ranks(image, text, ids)
    scale = SCALE if pipeline.logit_scale is None else pipeline.logit_scale
    to_text = scale * _cosines(image, text, near_texts) + likelier - usual[near_texts]
    to_image = scale * _cosines(text, image, near_images) + likely
    return RetrievalRanks(
        _ranks(to_text, ids[near_texts] == torch.arange(len(image))[:, None], plain.image_to_text),
        _ranks(to_image, near_images == ids[:, None], plain.text_to_image),
    )


def check_rerank(pipeline: Pipeline, k: int) -> None:
    """Raise PipelineError where a model cannot rerank k candidates."""
    if k < 2:
        raise PipelineError(f"rerank {k} leaves nothing to put in order; it is a number of candidates, at least 2.")
    pipeline.require_alignment()
    pipeline.require_decoder()
    if pipeline.model.memory_sources != ("image",):
        sources = ", ".join(pipeline.model.memory_sources)
        raise PipelineError(f"Reranking asks how likely an image's text is; this decoder attends over [{sources}].")


class _Pairs:
    """The pairs of image and text that either direction asks about, and how likely each text is."""

    def __init__(self, near_texts: Tensor, near_images: Tensor, texts: int) -> None:
        self.texts = texts
        images_of = torch.arange(len(near_texts))[:, None] * texts + near_texts
        texts_of = near_images * texts + torch.arange(len(near_images))[:, None]
        self.keys = torch.cat([images_of.flatten(), texts_of.flatten()]).unique()  # sorted: image by image
        self.values = torch.empty(len(self.keys))

    def score(self, pipeline: Pipeline, records: Sequence[Record], texts: Sequence[str], batch_size: int) -> None:
        """Fill in the log-likelihoods; every image is encoded once more and attended to by all its texts."""
        owner, column = self.keys // self.texts, self.keys % self.texts
        bounds = torch.searchsorted(owner, torch.arange(len(records) + 1)).tolist()
        for _, rows, _, image in encoded(pipeline, records, batch_size):
            assert image is not None
            for place, row in enumerate(rows):
                low, high = bounds[row], bounds[row + 1]
                asked = [texts[j] for j in column[low:high].tolist()]
                if asked:
                    one = image.select(torch.tensor([place], device=image.features.device))
                    self.values[low:high] = likelihoods(pipeline, one, asked)

    def of(self, text: Tensor, image: Tensor) -> Tensor:
        return self.values[torch.searchsorted(self.keys, image * self.texts + text)]


@torch.inference_mode()
def likelihoods(pipeline: Pipeline, image: EncoderOutput, texts: Sequence[str]) -> Tensor:
    """log P(text | image) of many texts of one image, float (texts,), on the CPU."""
    assert pipeline.model.decoder is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that long sentences are cut was said when they were embedded
        tokens, mask = pipeline.tokenize(texts)
    return log_likelihood(pipeline.model.decoder, tokens, mask, *pipeline.model.memory(image, None)).cpu()


def _nearest(queries: Tensor, candidates: Tensor, k: int, block: int = 1024) -> Tensor:
    """int64 (queries, k), the candidates of the highest cosine, best first."""
    k = min(k, len(candidates))
    return torch.cat([(part @ candidates.T).topk(k, dim=1).indices for part in queries.split(block)])


def _cosines(queries: Tensor, candidates: Tensor, near: Tensor) -> Tensor:
    blocks = zip(queries.split(256), near.split(256), strict=True)
    return torch.cat([torch.einsum("qe,qke->qk", query, candidates[rows]) for query, rows in blocks])


def _ranks(scores: Tensor, right: Tensor, plain: Tensor) -> Tensor:
    """Place of the best right candidate from 1, ties against it; `plain` where none of the candidates is right."""
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ahead = (~(scores < best) & ~right).sum(1)
    return torch.where(right.any(1), 1 + ahead, plain)
