"""Captioning loss: cross-entropy of the next token, computed in chunks so that the full logits are never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from velm.losses.base import Loss, full_precision
from velm.outputs import IGNORE, Batch, VisionLanguageOutput

__all__ = ["CaptioningLoss", "linear_cross_entropy"]

CHUNK_BYTES = 2**27
"""Of the float32 logits that exist at the same time, whatever the vocabulary: 220 tokens of 151,936."""


class CaptioningLoss(Loss):
    """Cross-entropy of the next token, in nats, averaged over the predicted tokens (eos included).

    Padding is removed before the output projection, which is applied to `chunk_size` tokens at a time. If the batch has
    a `target_count`, the sum is divided by that instead of by its own number of tokens, so that the mean over several
    ranks is exact. The decoder's penalty is added.

    Args:
        label_smoothing: fraction of the target distribution spread over the vocabulary, in [0, 1)
            (arXiv 1512.00567).
        chunk_size: tokens whose logits exist at the same time, at most; fewer where these would take more than 128 MiB.
            Affects memory and speed only.
    """

    requires = frozenset({"decoder"})
    additive = True

    def __init__(self, *, label_smoothing: float = 0.0, chunk_size: int = 512) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing {label_smoothing} is not in [0, 1).")
        if chunk_size < 1:
            raise ValueError(f"chunk_size {chunk_size} is below 1: it is a number of tokens.")
        self.label_smoothing, self.chunk_size = label_smoothing, chunk_size

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        self.check(output)
        decoder, labels, projection = output.decoder, output.labels, output.output_projection
        if decoder.hidden.shape[:2] != labels.shape:
            raise ValueError(
                f"The decoder's hidden states are {tuple(decoder.hidden.shape[:2])} (batch, tokens) and the "
                f"labels {tuple(labels.shape)}: hidden state t must predict label t."
            )
        predicted = labels != IGNORE
        labels = labels[predicted]
        total = linear_cross_entropy(
            decoder.hidden[predicted], projection.weight, projection.bias, labels,
            self.label_smoothing, self.chunk_size,
        )  # fmt: skip
        count = batch.target_count if batch.target_count is not None else max(len(labels), 1)
        loss = total / count
        return loss if decoder.penalty is None else loss + decoder.penalty


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float = 0.0,
    chunk_size: int = 512,
    factors: Tensor | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T + bias, labels, reduction="sum")`, with the logits in chunks.

    Args:
        hidden: float (n, D').
        weight: float (V, D').
        bias: float (V,), or None.
        labels: int64 (n,), each in [0, V).
        label_smoothing: as in `CaptioningLoss`.
        chunk_size: rows of `hidden` multiplied at a time.
        factors: float (n,), by which the cross-entropy of each row is multiplied, without gradient; None: 1.
    """
    if not torch.is_grad_enabled():  # the forward pass computes gradients: skip that
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, label_smoothing, chunk_size, factors)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradient of each chunk with its logits in the forward pass; the backward pass scales it.

    Recomputing the logits in the backward pass (a checkpoint) costs a fourth matrix product beside three; torch's
    `linear_cross_entropy` needs a newer torch than VELM supports and is slower on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        smooth: float,
        size: int,
        factors: Tensor | None,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        needs_grad = dict(zip(("hidden", "weight", "bias"), ctx.needs_input_grad, strict=False))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_grad["hidden"] else None
        d_weight = torch.zeros_like(weight) if needs_grad["weight"] else None
        d_bias = torch.zeros_like(bias) if bias is not None and needs_grad["bias"] else None
        size = max(1, min(size, CHUNK_BYTES // (4 * len(weight))))
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                rows, factor = hidden[part].to(dtype), None if factors is None else factors[part]
                loss, gradient = _chunk(rows, matrix, bias, labels[part], smooth, factor)
                total += loss
                gradient = gradient.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = gradient @ matrix
                if d_weight is not None:
                    d_weight += gradient.T @ rows
                if d_bias is not None:
                    d_bias += gradient.sum(0)
                del gradient  # before the logits of the next chunk
        ctx.save_for_backward(d_hidden, d_weight, d_bias)  # a checkpoint around it can free them
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (g if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _chunk(
    rows: Tensor, matrix: Tensor, bias: Tensor | None, labels: Tensor, smooth: float, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The summed loss of a few rows, and its gradient by their logits: softmax minus smoothed target."""
    logits = full_precision(rows @ matrix.T)
    if bias is not None:
        logits += bias
    largest = logits.amax(1)
    logits -= largest[:, None]
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    target = (1 - smooth) * of_label + (smooth * logits.mean(1) if smooth else 0)
    exponentials = logits.exp_()  # in place: torch's logsumexp would hold a second (rows, V)
    norm = exponentials.sum(1)
    losses = norm.log() - target
    gradient = exponentials.div_(norm[:, None])
    if smooth:
        gradient -= smooth / logits.shape[1]
    gradient[torch.arange(len(labels), device=labels.device), labels] -= 1 - smooth
    if factors is None:
        return losses.sum(), gradient
    factors = factors.to(losses.dtype)
    return (losses * factors).sum(), gradient.mul_(factors[:, None])
