"""What frozen features are worth to somebody who trains on them: nearest neighbours and a linear probe.

features  float (n, D), of frozen encoders; train_labels  int (n,), classes 0 ... C - 1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

__all__ = ["linear_probe", "nearest_neighbours"]


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
    """Votes for each class of the k nearest by cosine, each weighing exp(cosine / temperature) (Wu et al. 2018).

    arXiv 1805.01978, section 3.4; k 20 and temperature 0.07 are DINO's (Caron et al. 2021, arXiv 2104.14294).

    Args:
        train_features, train_labels: what is voted with.
        features: float (m, D), what is asked about.
        k: neighbours; all, where there are fewer.
        temperature: smaller, and the nearest alone decide.
        classes: C; None takes one more than the largest label.
        block_size: rows at a time; memory is block_size times n.

    Returns:
        float (m, C), the share of the votes, in [0, 1].
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of neighbours.")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not above 0.")
    known, labels, asked, classes = _check(train_features, train_labels, features, classes)
    known = normalize(known, dim=1)
    votes = one_hot(labels, classes).to(known)
    shares = []
    for block in normalize(asked, dim=1).split(block_size):
        cosines, near = (block @ known.T).topk(min(k, len(known)), dim=1)
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
    deviation. The objective is convex: no seed, no learning rate, the same answer every time.

    Args:
        train_features, train_labels: what is learnt from.
        features: float (m, D), what is asked about.
        weight_decay: l of  mean cross-entropy + l / 2 |W|^2 ; to be chosen on a validation split.
        steps: at most, of L-BFGS.
        classes: C; None takes one more than the largest label.

    Returns:
        float (m, C), logits.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay {weight_decay} is negative.")
    known, labels, asked, classes = _check(train_features, train_labels, features, classes)
    mean, deviation = known.mean(0), known.std(0, correction=0).clamp(min=1e-6)
    known, asked = ((each - mean) / deviation for each in (known, asked))
    weight = torch.zeros(known.shape[1], classes, dtype=known.dtype, device=known.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=known.dtype, device=known.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(known @ weight + bias, labels) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(objective)
    return (asked @ weight + bias).detach()


def _check(
    train_features: Any, train_labels: Any, features: Any, classes: int | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Both sets in double precision, labels as int64, and C."""
    known, asked = (torch.as_tensor(each).detach().double() for each in (train_features, features))
    labels = torch.as_tensor(train_labels).to(known.device)
    if known.dim() != 2 or asked.dim() != 2 or known.shape[1] != asked.shape[1]:
        raise ValueError(
            f"train_features {tuple(known.shape)} and features {tuple(asked.shape)} are to be (n, D) and (m, D)."
        )
    if not len(known) or labels.shape != (len(known),) or labels.is_floating_point():
        raise ValueError(
            f"train_labels is {labels.dtype} {tuple(labels.shape)}; it takes an integer for each of the {len(known)} "
            f"rows of train_features, at least one."
        )
    count = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"train_labels run from {int(labels.min())} to {int(labels.max())}, but classes is {count}.")
    return known, labels.long(), asked, count
