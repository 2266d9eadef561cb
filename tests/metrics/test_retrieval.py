"""Retrieval: ranks against a plain sort, ties against the model, any of an image's texts is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from velm.metrics.retrieval import (
    RetrievalRanks,
    effective_rank,
    fold_metrics,
    rank_metrics,
    recall_at_k,
    retrieval_metrics,
    retrieval_ranks,
    unique_images,
)


def gallery(images: int = 23, dim: int = 6, noise: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """1 to 4 texts an image, in no order."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(images).repeat_interleave(1 + torch.arange(images) % 4)
    ids = ids[torch.randperm(len(ids), generator=generator)]
    image = normalize(torch.randn(images, dim, generator=generator, dtype=torch.float64), dim=1)
    text = image[ids] + noise * torch.randn(len(ids), dim, generator=generator, dtype=torch.float64)
    return image, normalize(text, dim=1), ids


def by_sorting(image: Tensor, text: Tensor, ids: Tensor) -> tuple[list[int], list[int]]:
    scores = image @ text.T
    to_text = [
        min(row.argsort(descending=True).tolist().index(j) + 1 for j in (ids == i).nonzero().flatten().tolist())
        for i, row in enumerate(scores)
    ]
    to_image = [column.argsort(descending=True).tolist().index(int(ids[j])) + 1 for j, column in enumerate(scores.T)]
    return to_text, to_image


@pytest.mark.parametrize("block_size", [1, 7, 23, 1024])
def test_ranks_equal_a_full_sort(block_size: int) -> None:
    to_text, to_image = by_sorting(*gallery())
    ranks = retrieval_ranks(*gallery(), block_size=block_size)
    assert ranks.image_to_text.tolist() == to_text
    assert ranks.text_to_image.tolist() == to_image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [3, 64])
def test_exact_ties_are_counted(dtype: torch.dtype, block_size: int) -> None:
    """Products of small integers are exact, and most of them tie."""
    image, ids = torch.randint(-1, 2, (30, 5), dtype=dtype), torch.arange(60) // 2
    text = image[ids] + torch.randint(-1, 2, (60, 5), dtype=dtype)
    scores = image @ text.T
    own = scores[ids, torch.arange(60)]
    best = own.view(30, 2).amax(dim=1)
    wrong = ids[None] != torch.arange(30)[:, None]
    ranks = retrieval_ranks(image, text, ids, block_size=block_size)
    assert torch.equal(ranks.image_to_text, 1 + ((scores >= best[:, None]) & wrong).sum(dim=1))
    assert torch.equal(ranks.text_to_image, 1 + ((scores >= own) & wrong).sum(dim=0))


def test_texts_are_ranked_by_their_own_product_where_the_shared_one_is_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in TF32, which rounds more than the margin allows for."""
    product = torch.mm

    def coarse(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        return out.copy_(product(a.bfloat16(), b.bfloat16()))

    _, to_image = by_sorting(*gallery())
    monkeypatch.setattr(torch, "mm", coarse)
    assert retrieval_ranks(*gallery()).text_to_image.tolist() == to_image


def test_recall_by_hand() -> None:
    # image 0 finds its second text first; image 1 finds a text of 0 before its own
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.0]])
    ids = [0, 0, 1]
    # scores: image 0: 0 1 .5    image 1: .8 .6 .3
    assert recall_at_k(image, text, ids, 1) == (0.5, 1 / 3)
    assert recall_at_k(image, text, ids, 2) == (0.5, 1.0)
    assert recall_at_k(image, text, ids, 3) == (1.0, 1.0)
    assert retrieval_ranks(image, text, ids).image_to_text.tolist() == [1, 3]


def test_a_collapsed_model_finds_nothing() -> None:
    _, _, ids = gallery()
    image, text = torch.ones(23, 4), torch.ones(len(ids), 4)
    assert recall_at_k(image, text, ids, 10) == (0.0, 0.0)
    ranks = retrieval_ranks(image, text, ids)
    assert ranks.text_to_image.unique().tolist() == [23]
    assert (ranks.image_to_text == 1 + len(ids) - ids.bincount()).all()


def test_nan_finds_nothing() -> None:
    image, text, ids = gallery()
    assert recall_at_k(image * torch.nan, text, ids, 10) == (0.0, 0.0)


def test_a_tie_between_texts_of_one_image_is_no_tie() -> None:
    image = torch.eye(2)
    assert recall_at_k(image, image[[0, 0, 1]], [0, 0, 1], 1) == (1.0, 1.0)


def test_order_of_texts_and_images_changes_nothing() -> None:
    image, text, ids = gallery()
    expected = retrieval_metrics(image, text, ids)
    order, places = torch.arange(len(ids)).flip(0), torch.arange(len(image)).flip(0)
    assert retrieval_metrics(image[places], text[order], places[ids[order]]) == expected


def test_lists_and_arrays_are_welcome() -> None:
    image, text, ids = gallery()
    expected = recall_at_k(image, text, ids, 2)
    assert recall_at_k(image.numpy(), text.numpy(), np.asarray(ids, dtype=np.int32), 2) == expected
    assert recall_at_k(image.tolist(), text.tolist(), ids.tolist(), 2) == pytest.approx(expected)


def test_names_are_those_of_metrics_json() -> None:
    scores = retrieval_metrics(*gallery())
    assert list(scores) == [
        f"{direction}/{name}"
        for direction in ("image_to_text", "text_to_image")
        for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mean_rank", "mrr")
    ]
    ranks = retrieval_ranks(*gallery())
    assert scores["text_to_image/recall@5"] == (ranks.text_to_image <= 5).double().mean()
    assert scores["image_to_text/median_rank"] == ranks.image_to_text.median()


def test_rank_metrics_by_hand() -> None:
    ranks = RetrievalRanks(torch.tensor([1, 2, 4, 13]), torch.tensor([1, 1]))
    scores = rank_metrics(ranks)
    assert scores["image_to_text/median_rank"] == 2
    assert scores["image_to_text/mean_rank"] == 5
    assert scores["image_to_text/mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 13) / 4)
    assert [scores[f"image_to_text/recall@{k}"] for k in (1, 5, 10)] == [0.25, 0.75, 0.75]
    assert scores["text_to_image/mean_rank"] == scores["text_to_image/mrr"] == 1


def test_more_noise_never_betters_a_rank() -> None:
    quiet, loud = (retrieval_metrics(*gallery(noise=noise)) for noise in (0.1, 3.0))
    for way in ("image_to_text", "text_to_image"):
        assert quiet[f"{way}/mrr"] > loud[f"{way}/mrr"]
        assert quiet[f"{way}/mean_rank"] < loud[f"{way}/mean_rank"]


def test_pairs_become_images() -> None:
    image, text, ids = gallery()
    paired, numbers = image[ids], 1000 - 7 * ids
    images, rows = unique_images(paired, numbers)
    assert torch.equal(images[rows], paired)
    assert len(images) == len(image)
    assert retrieval_metrics(images, text, rows) == retrieval_metrics(image, text, ids)


def test_memory_is_that_of_a_block() -> None:
    class Largest(TorchDispatchMode):
        largest: int = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    image, text, ids = gallery(images=200)
    with Largest() as mode:
        retrieval_ranks(image, text, ids, block_size=10)
    assert mode.largest <= 10 * len(text) < len(image) * len(text) / 10


@pytest.mark.parametrize(
    ("image", "text", "ids", "message"),
    [
        (torch.eye(2), torch.eye(3), [0, 1, 1], r"image_embeds \(2, 2\) and text_embeds \(3, 3\)"),
        (torch.eye(2), torch.eye(2), [0], r"image_ids is torch.int64 \(1,\).*each of the 2 texts"),
        (torch.eye(2), torch.eye(2), [0.0, 1.0], r"image_ids is torch.float32"),
        (
            torch.eye(2),
            torch.eye(2),
            [1, 2],
            r"runs from 1 to 2, but image_embeds has rows 0 to 1.*unique_images",
        ),
        (torch.eye(2), torch.eye(2), [0, 0], r"1 of 2 images have no text.*unique_images"),
        (torch.eye(2)[:0], torch.eye(2)[:0], torch.arange(0), r"0 images, 0 texts"),
    ],
)
def test_bad_input_is_refused(image: Tensor, text: Tensor, ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(image, text, ids, 1)


def test_bad_k_and_bad_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="k 0 is below 1"):
        recall_at_k(torch.eye(2), torch.eye(2), [0, 1], 0)
    with pytest.raises(ValueError, match="image_embeds has 2 rows and image_ids 3"):
        unique_images(torch.eye(2), [0, 1, 2])


def ordered_gallery(images: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(images).repeat_interleave(3)[torch.randperm(3 * images, generator=generator)]
    image = torch.randn(images, 6, generator=generator)
    return image, image[ids] + torch.randn(len(ids), 6, generator=generator), ids


def test_the_mean_of_the_folds() -> None:
    image, text, ids = ordered_gallery()
    parts = []
    for start in range(0, 20, 4):  # 23 images in five folds: four each, three left over
        own = [j for j, owner in enumerate(ids.tolist()) if start <= owner < start + 4]
        parts.append(retrieval_metrics(image[start : start + 4], text[own], [int(ids[j]) - start for j in own]))
    assert fold_metrics(image, text, ids) == pytest.approx(
        {name: sum(part[name] for part in parts) / 5 for name in parts[0]}
    )


def test_one_fold_is_everything_and_smaller_galleries_are_easier() -> None:
    whole = retrieval_metrics(*ordered_gallery())
    assert fold_metrics(*ordered_gallery(), folds=1) == pytest.approx(whole)
    assert fold_metrics(*ordered_gallery(), folds=5)["text_to_image/mrr"] > whole["text_to_image/mrr"]
    assert fold_metrics(*(each.tolist() for each in ordered_gallery())) == pytest.approx(
        fold_metrics(*ordered_gallery())
    )


@pytest.mark.parametrize("folds", [0, 24])
def test_too_few_or_many_folds_are_refused(folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds {folds} of 23 images"):
        fold_metrics(*ordered_gallery(), folds=folds)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3)])
def test_orthogonal_rows_use_every_direction(shape: tuple[int, int]) -> None:
    assert effective_rank(torch.eye(*shape)) == pytest.approx(min(shape))


def test_equal_rows_use_one() -> None:
    assert effective_rank(torch.randn(7, generator=torch.Generator().manual_seed(0)).expand(9, 7)) == pytest.approx(1)


def test_two_singular_values_by_hand() -> None:
    """Of diag(3, 1) the shares are 3/4 and 1/4, whose entropy is ln 4 - (3/4) ln 3."""
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(math.log(4) - 0.75 * math.log(3))
    )


def test_scale_rotation_and_order_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    expected = effective_rank(rows)
    assert effective_rank(-7 * rows.flip(0) @ turn) == pytest.approx(expected, rel=1e-6)
    assert 1 < expected < 5
