"""Two-stage retrieval: embeddings select k candidates, the captioner's likelihood reorders them.

With the cosine c and the learned inverse temperature s, the score of a candidate is, in nats,

    t -> i   s c + log P(t | i)
    i -> t   s c + log P(t | i) - log P(t)    P(t): mean of P(t | i') over the candidate images i' of the text

Both terms estimate the same log-odds: the optimum of InfoNCE is s c = log P(t | i) / P(t) + a constant (van den Oord
et al. 2018, arXiv 1807.03748, section 2.3). Ranking by a captioner is due to Vinyals et al. 2015 (arXiv 1411.4555,
section 4.3.5), preselection by embeddings to Li et al. 2021 (arXiv 2107.07651, section 3.2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import PipelineError
from velm.evaluation.encoding import encode_images
from velm.evaluation.predictions import Retrieval
from velm.generation import log_likelihood
from velm.metrics.retrieval import RetrievalRanks, retrieval_ranks
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

DEFAULT_SCALE = 20.0
"""s for models whose losses have no temperature (triplet)."""


def rerank_candidates(
    pipeline: Pipeline, records: Sequence[Record], retrieval: Retrieval, *, k: int = 20, batch_size: int = 64
) -> RetrievalRanks:
    """Ranks of the best match after the k best candidates of each query are reordered.

    Args:
        pipeline: a model that aligns, and captions from the image alone.
        k: candidates per query, >= 2; the rank of a best match behind them does not change.

    Raises:
        PipelineError: the model cannot do both, or k is too small.
    """
    check_rerank(pipeline, k)
    image, text, ids = retrieval.image_embeds.float(), retrieval.text_embeds.float(), retrieval.image_ids
    near_texts = _nearest(image, text, k)
    near_images = _nearest(text, image, k)
    pairs = _Pairs(near_texts, near_images, texts=len(text))
    pairs.score(pipeline, records, retrieval.texts, batch_size)
    of_images = pairs.look_up(torch.arange(len(text))[:, None].expand_as(near_images), near_images)  # (m, k)
    of_texts = pairs.look_up(near_texts, torch.arange(len(image))[:, None].expand_as(near_texts))  # (n, k)
    prior = of_images.logsumexp(1) - math.log(of_images.shape[1])
    plain = retrieval_ranks(image, text, ids)
    scale = DEFAULT_SCALE if pipeline.logit_scale is None else pipeline.logit_scale
    to_text = scale * _cosines(image, text, near_texts) + of_texts - prior[near_texts]
    to_image = scale * _cosines(text, image, near_images) + of_images
    return RetrievalRanks(
        _ranks(to_text, ids[near_texts] == torch.arange(len(image))[:, None], plain.image_to_text),
        _ranks(to_image, near_images == ids[:, None], plain.text_to_image),
    )


def check_rerank(pipeline: Pipeline, k: int) -> None:
    """Raise PipelineError unless the model can rerank k candidates."""
    if k < 2:
        raise PipelineError(f"rerank {k} is too small; it is a number of candidates, at least 2.")
    pipeline.require_alignment()
    require_image_captioner(pipeline, "Reranking")


def require_image_captioner(pipeline: Pipeline, purpose: str) -> None:
    """Raise PipelineError unless the model has a decoder that attends over the image only."""
    pipeline.require_decoder()
    if pipeline.model.reads != ("image",):
        sources = ", ".join(pipeline.model.reads)
        raise PipelineError(
            f"{purpose} needs a decoder that attends over the image only; this decoder attends over [{sources}]."
        )


class _Pairs:
    """The image-text pairs that are candidates in either direction, with log P(text | image) of each."""

    def __init__(self, near_texts: Tensor, near_images: Tensor, texts: int) -> None:
        self.texts = texts
        images_of = torch.arange(len(near_texts))[:, None] * texts + near_texts
        texts_of = near_images * texts + torch.arange(len(near_images))[:, None]
        self.keys = torch.cat([images_of.flatten(), texts_of.flatten()]).unique()  # sorted by image
        self.values = torch.empty(len(self.keys))

    def score(self, pipeline: Pipeline, records: Sequence[Record], texts: Sequence[str], batch_size: int) -> None:
        """Fill in the log-likelihoods, image by image."""
        owner, column = self.keys // self.texts, self.keys % self.texts
        bounds = torch.searchsorted(owner, torch.arange(len(records) + 1)).tolist()

        def candidates(row: int) -> list[str]:
            return [texts[j] for j in column[bounds[row] : bounds[row + 1]].tolist()]

        for row, values in image_likelihoods(pipeline, records, candidates, batch_size):
            self.values[bounds[row] : bounds[row + 1]] = values

    def look_up(self, text: Tensor, image: Tensor) -> Tensor:
        return self.values[torch.searchsorted(self.keys, image * self.texts + text)]


def image_likelihoods(
    pipeline: Pipeline, records: Sequence[Record], texts: Callable[[int], Sequence[str]], batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Encode each image once; yield its row and log P(text | image) of `texts(row)`, if there are any."""
    for rows, images in encode_images(pipeline, records, batch_size):
        for i, row in enumerate(rows):
            asked = texts(row)
            if asked:
                image = images.select(torch.tensor([i], device=images.features.device))
                yield row, likelihoods(pipeline, image, asked)


@torch.inference_mode()
def likelihoods(pipeline: Pipeline, image: EncoderOutput, texts: Sequence[str]) -> Tensor:
    """log P(text | image) of many texts for one image, float (texts,), on the CPU."""
    assert pipeline.model.decoder is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # embedding the texts already warned of truncation
        tokens, mask = pipeline.tokenize([pipeline.prompter.lead + text for text in texts])
    return log_likelihood(pipeline.model.decoder, tokens, mask, *pipeline.memory(image)).cpu()


def _nearest(queries: Tensor, candidates: Tensor, k: int, block: int = 1024) -> Tensor:
    """int64 (queries, k): the candidates with the highest cosine, best first."""
    k = min(k, len(candidates))
    return torch.cat([(part @ candidates.T).topk(k, dim=1).indices for part in queries.split(block)])


def _cosines(queries: Tensor, candidates: Tensor, near: Tensor) -> Tensor:
    blocks = zip(queries.split(256), near.split(256), strict=True)
    return torch.cat([torch.einsum("qe,qke->qk", query, candidates[rows]) for query, rows in blocks])


def _ranks(scores: Tensor, matches: Tensor, plain: Tensor) -> Tensor:
    """Rank of the best match from 1, ties against it; `plain` for queries without a match among the candidates."""
    best = scores.masked_fill(~matches, -torch.inf).amax(1, keepdim=True)
    ahead = (~(scores < best) & ~matches).sum(1)
    return torch.where(matches.any(1), 1 + ahead, plain)
