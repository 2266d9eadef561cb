"""Classification: prompt ensembles, top-k with ties, nearest neighbours by hand, the optimum of the linear probe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from velm.metrics.classification import (
    ensemble_prompts,
    linear_probe,
    mean_per_class,
    nearest_neighbours,
    top_k_accuracy,
    top_k_hits,
)


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
    with pytest.raises(ValueError, match=r"prompt_embeds \(2, 2\) must be \(C, P, E\)"):
        ensemble_prompts(torch.eye(2))
    with pytest.raises(ValueError, match="k 0 is below 1"):
        top_k_accuracy(torch.eye(2), [0, 1], 0)
    with pytest.raises(ValueError, match=r"scores \(2, 2\) and labels torch.int64 \(1,\)"):
        top_k_accuracy(torch.eye(2), [0])
    with pytest.raises(ValueError, match="labels run from 0 to 2; there are classes 0 to 1"):
        top_k_accuracy(torch.eye(2), [0, 2])
    with pytest.raises(ValueError, match="Nothing to classify"):
        top_k_accuracy(torch.ones(0, 2), torch.arange(0))


def blobs(classes: int = 3, each: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    return 3 * torch.eye(classes, 6)[labels] + torch.randn(len(labels), 6, generator=generator), labels


def test_neighbours_vote_by_hand() -> None:
    train, labels = [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [0, 1, 2]
    votes = nearest_neighbours(train, labels, [[5.0, 0.0]], k=2, temperature=0.5)
    heavy = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    assert votes[0].tolist() == pytest.approx([heavy, 1 - heavy, 0])
    assert nearest_neighbours(train, labels, [[5.0, 1.0]], k=1)[0].tolist() == [1, 0, 0]


def test_a_image_is_its_own_nearest_neighbour() -> None:
    features, labels = blobs()
    assert top_k_accuracy(nearest_neighbours(features, labels, features, k=1), labels) == 1


@pytest.mark.parametrize("block_size", [1, 7, 1024])
def test_blocks_and_scales_change_nothing(block_size: int) -> None:
    features, labels = blobs()
    expected = nearest_neighbours(features, labels, features)
    assert torch.allclose(nearest_neighbours(5 * features, labels, 2 * features, block_size=block_size), expected)
    assert torch.allclose(expected.sum(1), torch.ones(len(features)).double())


def test_more_neighbours_than_there_are() -> None:
    features, labels = blobs(each=2)
    assert torch.equal(
        nearest_neighbours(features, labels, features, k=99), nearest_neighbours(features, labels, features, k=6)
    )


def test_the_probe_separates_what_can_be_separated() -> None:
    asked, right = blobs(seed=1)
    assert top_k_accuracy(linear_probe(*blobs(), asked), right) > 0.8


def test_the_probe_is_optimal() -> None:
    """Where the training set is asked about, the gradient by the bias is 0: mean probabilities are the shares."""
    features, labels = blobs()
    probabilities = linear_probe(features, labels, features).softmax(1)
    assert torch.allclose(probabilities.mean(0), torch.full((3,), 1 / 3).double(), atol=1e-5)


def test_scale_shift_and_order_change_nothing() -> None:
    features, labels = blobs()
    asked, _ = blobs(seed=1)
    expected = linear_probe(features, labels, asked)
    assert torch.allclose(linear_probe(7 * features + 3, labels, 7 * asked + 3), expected, atol=1e-4)
    assert torch.allclose(linear_probe(features.flip(0), labels.flip(0), asked), expected, atol=1e-4)


def test_decay_shrinks_and_a_constant_feature_does_no_harm() -> None:
    features, labels = blobs()
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    tight, loose = (linear_probe(features, labels, features, weight_decay=w) for w in (10.0, 0.01))
    assert tight.std() < loose.std()
    assert bool(loose.isfinite().all())


def test_a_class_without_a_image_is_never_the_answer() -> None:
    features, labels = blobs()
    for found in (linear_probe, nearest_neighbours):
        scores = found(features, labels, features, classes=5)  # type: ignore[operator]
        assert scores.shape == (60, 5)
        assert int(scores.argmax(1).max()) < 3


def test_it_works_where_gradients_are_off() -> None:
    features, labels = blobs()
    expected = linear_probe(features, labels, features)
    with torch.no_grad():
        assert torch.equal(linear_probe(features, labels, features), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.eye(2), [0, 1], torch.eye(3)), {}, r"train_features \(2, 2\) and features \(3, 3\)"),
        ((torch.eye(2), [0], torch.eye(2)), {}, r"train_labels is torch.int64 \(1,\).*each of the 2 rows"),
        ((torch.eye(2), [0, 3], torch.eye(2)), {"classes": 2}, "run from 0 to 3, but classes is 2"),
    ],
)
def test_bad_probe_input_is_refused(arguments, options, message) -> None:  # type: ignore[no-untyped-def]
    for found in (linear_probe, nearest_neighbours):
        with pytest.raises(ValueError, match=message):
            found(*arguments, **options)


def test_recall_per_class_weighs_classes_not_images() -> None:
    assert mean_per_class([True, True, False, False], [0, 0, 0, 2]) == pytest.approx((2 / 3 + 0) / 2)
    for hits, labels in (([True], [0, 1]), ([], [])):
        with pytest.raises(ValueError, match=r"must both be \(n,\), n >= 1"):
            mean_per_class(hits, labels)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="k 0 is below 1"):
        nearest_neighbours(*blobs(), torch.eye(6), k=0)
    with pytest.raises(ValueError, match="temperature 0 is not above 0"):
        nearest_neighbours(*blobs(), torch.eye(6), temperature=0)
    with pytest.raises(ValueError, match=r"weight_decay -1 is negative"):
        linear_probe(*blobs(), torch.eye(6), weight_decay=-1)
