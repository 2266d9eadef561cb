"""Patch dropout: a training step encodes a random part of an image's patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PatchDropout"]


class PatchDropout(nn.Module):
    """Keeps a random subset of the patches of each image in training (FLIP, Li et al. 2023, arXiv 2212.00794).

    Of N patches max(1, round(N * (1 - probability))) are kept, the same number for every image, in their order. The
    Transformer behind it computes that much less.

    Args:
        probability: fraction of the patches that is dropped, 0 <= probability < 1.

    Attributes:
        active: False keeps all patches in training too.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"patch_dropout is a fraction of the patches, 0 <= patch_dropout < 1; got {probability}.")
        self.drop_prob = probability
        self.active = True

    def forward(self, patches: Tensor) -> Tensor:
        """float (B, N, D) -> (B, K, D), those that are kept."""
        if not self.training or not self.active or self.drop_prob == 0:
            return patches
        batch, count, _ = patches.shape
        kept = max(1, round(count * (1 - self.drop_prob)))
        order = torch.rand(batch, count, device=patches.device).topk(kept, dim=1).indices.sort(dim=1).values
        return patches.gather(1, order[..., None].expand(-1, -1, patches.shape[2]))
