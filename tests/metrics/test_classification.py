"""Zero-shot classification: ensembles, the first k, ties against."""

from __future__ import annotations

import math

import pytest
import torch

from velm.metrics.classification import ensemble_prompts, top_k_accuracy, top_k_hits


def test_prompts_are_normalised_before_and_after_their_mean() -> None:
    prompts = [[[9.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [5.0, 0.0]]]
    half = math.sqrt(0.5)
    assert torch.allclose(ensemble_prompts(prompts), torch.tensor([[half, half], [1.0, 0.0]]))


def test_one_prompt_is_itself_and_the_order_changes_nothing() -> None:
    prompts = torch.nn.functional.normalize(torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.allclose(ensemble_prompts(prompts[:, :1]), prompts[:, 0])
    assert torch.allclose(ensemble_prompts(prompts.flip(1)), ensemble_prompts(prompts))


def test_top_k_by_hand() -> None:
    scores = [[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.5, 0.5, 0.1]]
    assert top_k_hits(scores, [2, 0, 0], 1).tolist() == [False, True, False]  # the last one is a tie
    assert top_k_accuracy(scores, [2, 0, 0], 1) == 1 / 3
    assert top_k_accuracy(scores, [2, 0, 0], 2) == 1
    assert top_k_accuracy(scores, [0, 2, 2], 3) == 1


def test_a_collapsed_model_and_nan_find_nothing() -> None:
    assert top_k_accuracy(torch.ones(4, 7), [0, 1, 2, 3], 5) == 0
    assert top_k_accuracy(torch.full((4, 7), torch.nan), [0, 1, 2, 3], 5) == 0


def test_chance() -> None:
    scores = torch.rand(4000, 10, generator=torch.Generator().manual_seed(0))
    assert top_k_accuracy(scores, torch.arange(4000) % 10, 5) == pytest.approx(0.5, abs=0.03)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt_embeds \(2, 2\) is to be \(C, P, E\)"):
        ensemble_prompts(torch.eye(2))
    with pytest.raises(ValueError, match="k 0 is below 1"):
        top_k_accuracy(torch.eye(2), [0, 1], 0)
    with pytest.raises(ValueError, match=r"scores \(2, 2\) and labels torch.int64 \(1,\)"):
        top_k_accuracy(torch.eye(2), [0])
    with pytest.raises(ValueError, match="labels run from 0 to 2; there are classes 0 to 1"):
        top_k_accuracy(torch.eye(2), [0, 2])
    with pytest.raises(ValueError, match="Nothing to classify"):
        top_k_accuracy(torch.ones(0, 2), torch.arange(0))
