"""Classification: prompt ensembles, top-k accuracy, and probes of frozen features (nearest neighbours, linear)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

__all__ = ["ensemble_prompts", "linear_probe", "mean_per_class", "nearest_neighbours", "top_k_accuracy", "top_k_hits"]


def ensemble_prompts(prompt_embeds: Any) -> Tensor:
    """One embedding per class: the normalised mean of its normalised prompt embeddings.

    As in CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): ensembling embeddings costs no more at
    inference than a single prompt.

    Args:
        prompt_embeds: float (C, P, E), P prompts for each of C classes, of any norm.

    Returns:
        float (C, E), L2-normalised.
    """
    embeds = torch.as_tensor(prompt_embeds).detach()
    if embeds.dim() != 3 or not embeds.numel():
        raise ValueError(f"prompt_embeds {tuple(embeds.shape)} must be (C, P, E): P >= 1 prompts of C >= 1 classes.")
    return normalize(normalize(embeds, dim=-1).mean(1), dim=-1)


def top_k_hits(scores: Any, labels: Any, k: int) -> Tensor:
    """Whether the true class is among the k best scores; ties and nan count against it.

    Args:
        scores: float (n, C).
        labels: int (n,), columns of `scores`.
        k: >= 1.

    Returns:
        bool (n,).
    """
    scores = torch.as_tensor(scores).detach()
    labels = torch.as_tensor(labels).to(scores.device)
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of classes.")
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {labels.dtype} {tuple(labels.shape)} must be float (n, C) "
            f"and int (n,)."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; there are classes 0 to {scores.shape[1] - 1}."
        )
    true = scores.gather(1, labels.long()[:, None])
    return (~(scores < true)).sum(1) <= k  # the true class itself is not below its score


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Mean of `top_k_hits`, in [0, 1]; the same arguments, n >= 1."""
    hits = top_k_hits(scores, labels, k)
    if not len(hits):
        raise ValueError("Nothing to classify: scores has no rows.")
    return int(hits.sum()) / len(hits)


def mean_per_class(hits: Any, labels: Any) -> float:
    """The mean over the classes among `labels` of the mean of their hits (balanced accuracy), in [0, 1].

    Args:
        hits: bool (n,), n >= 1, as of `top_k_hits`.
        labels: int (n,).
    """
    hits, labels = torch.as_tensor(hits), torch.as_tensor(labels)
    if hits.shape != labels.shape or hits.dim() != 1 or not len(hits):
        raise ValueError(f"hits {tuple(hits.shape)} and labels {tuple(labels.shape)} must both be (n,), n >= 1.")
    _, row = labels.unique(return_inverse=True)
    counts = torch.bincount(row).double()
    return float((torch.bincount(row, weights=hits.double()) / counts).mean())


def nearest_neighbours(
    train_features: Any,
    train_labels: Any,
    features: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
    block_size: int = 1024,
) -> Tensor:
    """Class votes of the k nearest training rows by cosine, each weighted by exp(cosine / temperature).

    Wu et al. 2018 (arXiv 1805.01978, section 3.4); k 20 and temperature 0.07 are those of
    DINO (Caron et al. 2021, arXiv 2104.14294).

    Args:
        train_features: float (n, D), of a frozen encoder.
        train_labels: int (n,), classes 0 ... C - 1.
        features: float (m, D), to classify.
        k: number of neighbours; all of them if there are fewer.
        temperature: the smaller, the more the nearest neighbours dominate.
        classes: C; None: the largest label plus one.
        block_size: rows at a time; memory is block_size times n.

    Returns:
        float (m, C), the fraction of the votes, in [0, 1].
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of neighbours.")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not above 0.")
    train, labels, test, classes = _check_features(train_features, train_labels, features, classes)
    train = normalize(train, dim=1)
    votes = one_hot(labels, classes).to(train)
    shares = []
    for block in normalize(test, dim=1).split(block_size):
        cosines, near = (block @ train.T).topk(min(k, len(train)), dim=1)
        weights = (cosines / temperature).softmax(1)
        shares.append(torch.einsum("mk,mkc->mc", weights, votes[near]))
    return torch.cat(shares)


def linear_probe(
    train_features: Any,
    train_labels: Any,
    features: Any,
    *,
    weight_decay: float = 1e-3,
    steps: int = 500,
    classes: int | None = None,
) -> Tensor:
    """Logits of a logistic regression on frozen features, fitted by L-BFGS to convergence.

    As in CLIP's evaluation (arXiv 2103.00020, appendix A.3), on features standardised by the training set's mean and
    deviation. The objective is convex and starts at zero, so the result is deterministic.

    Args:
        train_features, train_labels, features, classes: as of `nearest_neighbours`.
        weight_decay: l in  mean cross-entropy + l / 2 |W|^2 ; choose it on a validation split.
        steps: maximal number of L-BFGS iterations.

    Returns:
        float (m, C), logits.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay {weight_decay} is negative.")
    train, labels, test, classes = _check_features(train_features, train_labels, features, classes)
    mean, deviation = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    train, test = ((each - mean) / deviation for each in (train, test))
    weight = torch.zeros(train.shape[1], classes, dtype=train.dtype, device=train.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=train.dtype, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(train @ weight + bias, labels) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(objective)
    return (test @ weight + bias).detach()


def _check_features(
    train_features: Any, train_labels: Any, features: Any, classes: int | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Train features and features float64, labels int64, and C."""
    train, test = (torch.as_tensor(each).detach().double() for each in (train_features, features))
    labels = torch.as_tensor(train_labels).to(train.device)
    if train.dim() != 2 or test.dim() != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train_features {tuple(train.shape)} and features {tuple(test.shape)} must be (n, D) and (m, D)."
        )
    if not len(train) or labels.shape != (len(train),) or labels.is_floating_point():
        raise ValueError(
            f"train_labels is {labels.dtype} {tuple(labels.shape)}; it takes an integer for each of the {len(train)} "
            f"rows of train_features, at least one."
        )
    count = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"train_labels run from {int(labels.min())} to {int(labels.max())}, but classes is {count}.")
    return train, labels.long(), test, count
