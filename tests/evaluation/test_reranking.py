"""Candidates by embedding, their order by the captioner: against a loop over every pair, and its laws."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from velm.errors import PipelineError
from velm.evaluation.evaluate import evaluate
from velm.evaluation.predictions import predict
from velm.evaluation.reranking import rerank_candidates
from velm.generation import log_likelihood
from velm.metrics import figures_of_ranks, retrieval_ranks
from velm.pipeline import load


@pytest.fixture
def found(pipeline, records):
    return predict(pipeline, records, texts_per_image=3, max_length=2).retrieval


def likelihoods(pipeline, records, texts):
    """log P(text | image) of every pair, float (n, m)."""
    [image] = pipeline.encode_images([record.image for record in records], batch_size=99)
    memory, _ = pipeline.model.memory(image, None)
    tokens, mask = pipeline.tokenize(texts)
    rows = [log_likelihood(pipeline.model.decoder, tokens, mask, memory[i : i + 1]) for i in range(len(memory))]
    return torch.stack(rows)


def by_loop(pipeline, records, found, k):
    """`rerank_candidates`, query by query and with sorted lists."""
    log_p = likelihoods(pipeline, records, found.texts).double()
    cosine = (found.image_embeds @ found.text_embeds.T).double()
    near_images = [column.argsort(descending=True)[:k].tolist() for column in cosine.T]
    usual = [torch.logsumexp(log_p[near, j], 0) - math.log(k) for j, near in enumerate(near_images)]

    def place(query_cosine, query_score, near, right, plain):
        score = math.e**2 * query_cosine[near] + query_score[near]  # write_checkpoint's log_scale is 2
        order = [near[i] for i in score.argsort(descending=True).tolist()]
        return next((rank for rank, candidate in enumerate(order, 1) if candidate in right), plain)

    plain = retrieval_ranks(found.image_embeds, found.text_embeds, found.image_ids)
    to_text = [
        place(
            cosine[i], log_p[i] - torch.stack(usual), cosine[i].argsort(descending=True)[:k].tolist(),
            {j for j, owner in enumerate(found.image_ids.tolist()) if owner == i}, int(plain.image_to_text[i]),
        )
        for i in range(len(records))
    ]  # fmt: skip
    to_image = [
        place(cosine[:, j], log_p[:, j], near, {int(found.image_ids[j])}, int(plain.text_to_image[j]))
        for j, near in enumerate(near_images)
    ]
    return to_text, to_image


@pytest.mark.parametrize("k", [2, 4, 7])
def test_it_is_the_loop_over_every_pair(pipeline, records, found, k):
    ranks = rerank_candidates(pipeline, records, found, k=k, batch_size=3)
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == by_loop(pipeline, records, found, k)


def test_what_lies_behind_the_candidates_keeps_its_place(pipeline, records, found):
    plain = retrieval_ranks(found.image_embeds, found.text_embeds, found.image_ids)
    for before, after in zip(plain, rerank_candidates(pipeline, records, found, k=3), strict=True):
        assert torch.equal(before[before > 3], after[before > 3])
        assert (after[before <= 3] <= 3).all()
        assert (before > 3).any()


def test_a_captioner_that_knows_finds_everything(pipeline, records, found, monkeypatch):
    """Embeddings that know nothing, and a decoder that holds an image's own texts for the likeliest."""
    owners = dict(zip(found.texts, found.image_ids.tolist(), strict=True))
    assert len(owners) == len(found.texts)  # no sentence belongs to two images
    blind = replace(found, image_embeds=torch.rand(7, 8), text_embeds=torch.rand(21, 8))
    seen = iter(range(7))

    def knows(pipeline, image, texts):
        row = next(seen)
        return torch.tensor([0.0 if owners[text] == row else -1000.0 for text in texts])

    monkeypatch.setattr("velm.evaluation.reranking.likelihoods", knows)
    scores = figures_of_ranks(rerank_candidates(pipeline, records, blind, k=21))
    assert scores["image_to_text/recall@1"] == scores["text_to_image/recall@1"] == 1.0


def test_the_scale_is_the_one_that_was_trained(pipeline, records, found, write_checkpoint):
    """Where a loss has none, as triplet, the cosines are multiplied by 20."""
    assert pipeline.logit_scale == pytest.approx(math.e**2)
    plain = load(write_checkpoint("plain.ckpt", logit_scale=None))
    assert plain.logit_scale is None
    pipeline.logit_scale = 20.0
    for ours, theirs in zip(
        rerank_candidates(plain, records, found, k=5), rerank_candidates(pipeline, records, found, k=5), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_reranked_metrics_are_added_to_those_of_the_embeddings(pipeline, records):
    plain = evaluate(pipeline, records, max_length=2)
    both = evaluate(pipeline, records, max_length=2, rerank=4)
    assert plain.items() <= both.items()
    names = {name for name in plain if not name.startswith("caption/")}
    assert set(both) - set(plain) == {f"reranked/{name}" for name in names}


def test_what_cannot_be_reranked(write_checkpoint, pipeline, records):
    with pytest.raises(PipelineError, match="rerank 1 is too small"):
        evaluate(pipeline, records, rerank=1)
    aligner = load(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    with pytest.raises(PipelineError, match="no decoder"):
        evaluate(aligner, records, rerank=4)
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="no embeddings to compare"):
        evaluate(writer, records, rerank=4)
    translator = load(write_checkpoint(memory=["image", "text"]))
    with pytest.raises(PipelineError, match=r"this decoder attends over \[image, text\]"):
        evaluate(translator, records, rerank=4)
