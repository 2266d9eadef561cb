"""Inputs of the training steps: images of noise, captions of realistic lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BOS", "CONTEXT", "EOS", "MEAN", "PAD", "SIDE", "STD", "VOCABULARY", "Feed", "feed"]

VOCABULARY, CONTEXT, SIDE = 49408, 77, 224
BOS, EOS, PAD = VOCABULARY - 2, VOCABULARY - 1, 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What VELM's ViT normalises by, over pixels in [0, 1]; the peers are fed the same."""

LENGTHS = {
    4: 10, 5: 36, 6: 172, 7: 472, 8: 1088, 9: 2325, 10: 3080, 11: 3494, 12: 4016, 13: 4107, 14: 3961, 15: 3598,
    16: 3094, 17: 2524, 18: 1940, 19: 1451, 20: 1037, 21: 797, 22: 555, 23: 386, 24: 250, 25: 187, 26: 126, 27: 95,
    28: 69, 29: 43, 30: 32, 31: 14, 32: 8, 33: 10, 34: 8, 35: 6, 36: 4, 37: 2, 38: 1, 39: 1, 42: 1,
}  # fmt: skip
"""How many of Flickr8k's captions have so many of CLIP's tokens, bos and eos included."""


@dataclass
class Feed:
    """One batch in the format of each side.

    Attributes:
        pixels: uint8 (I, 3, S, S), as from VELM's loader; each image has B / I captions, one after the other.
        floats: float32 (I, 3, S, S), normalised, as from the loaders of open_clip and transformers.
        tokens: int64 (B, 77), bos ... eos, then 0, as from the tokenizers of the peers.
        lengths: int64 (B,), bos and eos included.
    """

    pixels: Tensor
    floats: Tensor
    tokens: Tensor
    lengths: Tensor

    @property
    def trimmed(self) -> Tensor:
        """`tokens` without the columns that are padding only, as from VELM's loader."""
        return self.tokens[:, : int(self.lengths.max())]

    @property
    def captions(self) -> int:
        """B / I, the captions of an image."""
        return len(self.lengths) // len(self.pixels)

    @property
    def mask(self) -> Tensor:
        """bool, the mask of `trimmed`."""
        return torch.arange(int(self.lengths.max()), device=self.lengths.device) < self.lengths[:, None]


def feed(
    number: int, batch_size: int = 32, *, side: int = SIDE, device: str = "cpu", longest: int = CONTEXT,
    captions: int = 1,
) -> Feed:  # fmt: skip
    """The batch with this number, the same for all systems and on all machines.

    Args:
        number: of the step.
        batch_size: B.
        side: S, in pixels.
        device: of the tensors.
        longest: maximum length of a caption, in tokens.
        captions: of an image.
    """
    random = torch.Generator().manual_seed(number)
    weights = torch.tensor([float(count) for count in LENGTHS.values()])
    drawn = torch.multinomial(weights, batch_size, replacement=True, generator=random)
    lengths = torch.tensor(list(LENGTHS))[drawn].clamp(max=longest)
    tokens = torch.randint(256, BOS, (batch_size, CONTEXT), generator=random)
    places = torch.arange(CONTEXT)
    tokens[:, 0] = BOS
    tokens[places == (lengths - 1)[:, None]] = EOS
    tokens[places >= lengths[:, None]] = PAD
    pixels = torch.randint(0, 256, (batch_size // captions, 3, side, side), dtype=torch.uint8, generator=random)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    floats = (pixels / 255 - mean) / std
    return Feed(pixels.to(device), floats.to(device), tokens.to(device), lengths.to(device))
