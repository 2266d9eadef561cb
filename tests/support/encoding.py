"""Small batches of tokens and images, and an exact comparison, for tests of encoders."""

from __future__ import annotations

import torch
from torch import Tensor


def token_batch() -> tuple[Tensor, Tensor]:
    """Tokens int64 (3, 6) below 11 and their mask; texts of 4, 6 and 2 tokens, padded with 0."""
    mask = torch.arange(6) < torch.tensor([4, 6, 2])[:, None]
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 11, (3, 6), generator=generator) * mask, mask


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
