"""`encode_in_groups`: texts of like length are encoded together, so that short ones are not padded to the longest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velm.outputs import EncoderOutput

__all__ = ["encode_in_groups"]

GROUPS = 4
MIN_ROWS = 16
"""Texts of a group at least: matrix products of fewer rows are slower."""
MOST_POSITIONS = 0.85
"""Fraction of the padded batch's positions from which grouping does not pay."""


def encode_in_groups(encoder: nn.Module, tokens: Tensor, mask: Tensor) -> EncoderOutput:
    """`encoder(tokens, mask)`, on a CPU in groups of texts of like length, each padded to its own longest.

    Only of encoders with `pads`. The result is the same up to rounding, its rows in the same order; features at
    padding are zero. Captions of photographs have 14 tokens in the mean and 38 at most in a batch of 256; a GPU
    prefers one large batch.

    Args:
        encoder: a `TextEncoder`.
        tokens: int64 (B, T).
        mask: bool (B, T), True on content.
    """
    groups = _groups(mask) if getattr(encoder, "pads", False) and _may_group(encoder, tokens) else None
    if groups is None:
        whole: EncoderOutput = encoder(tokens, mask)
        return whole
    length, features, pooled, masks = tokens.shape[1], [], [], []
    for rows, longest in groups:
        output = encoder(tokens[rows, :longest], mask[rows, :longest])
        features.append(F.pad(output.features, (0, 0, 0, length - longest)))
        pooled.append(output.pooled)
        masks.append(None if output.mask is None else F.pad(output.mask, (0, length - longest)))
    places = torch.cat([rows for rows, _ in groups]).argsort()
    content = [each for each in masks if each is not None]
    return EncoderOutput(torch.cat(features), torch.cat(pooled), torch.cat(content) if content else None).select(places)


def _may_group(encoder: nn.Module, tokens: Tensor) -> bool:
    """Whether values can be read, and graphs of one shape are not asked for."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or encoder._compiled_call_impl is not None
    return type(tokens) is Tensor and tokens.device.type == "cpu" and not traced


def _groups(mask: Tensor) -> list[tuple[Tensor, int]] | None:
    """(rows, positions up to the last content) of each group, the shortest first; None: one group is as good."""
    count, length = mask.shape
    if count < GROUPS * MIN_ROWS:
        return None
    lengths = (mask * torch.arange(1, length + 1)).amax(dim=1)
    order = lengths.argsort()
    groups = [(rows, max(1, int(lengths[rows[-1]]))) for rows in order.chunk(GROUPS)]
    positions = sum(len(rows) * longest for rows, longest in groups)
    return groups if positions < MOST_POSITIONS * count * length else None
