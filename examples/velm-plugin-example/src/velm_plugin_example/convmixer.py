"""ConvMixer: patch embedding, then alternating depthwise (spatial) and pointwise (channel) convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from velm import EncoderOutput, ImageEncoder


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ConvMixer(ImageEncoder):
    """ConvMixer (Trockman & Kolter, arXiv 2201.09792): a patch embedding, then isotropic convolutions.

    It has no position embeddings and takes images of any size; the grid is (H / patch_size, W / patch_size).

    Args:
        dim: width D.
        depth: number of layers, each a depthwise and a pointwise convolution.
        kernel_size: side of the depthwise convolution, in patches; odd.
        patch_size: side of a patch, in pixels.
    """

    def __init__(self, *, dim: int = 128, depth: int = 4, kernel_size: int = 5, patch_size: int = 4) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; it must be odd, so that a patch is in the middle.")
        self.dim = dim
        self.patches = nn.Sequential(nn.Conv2d(3, dim, patch_size, patch_size), nn.GELU(), nn.BatchNorm2d(dim))
        self.layers = nn.Sequential(*(self._layer(dim, kernel_size) for _ in range(depth)))

    @staticmethod
    def _layer(dim: int, kernel_size: int) -> nn.Sequential:
        over_space = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same")
        over_channels = nn.Conv2d(dim, dim, 1)
        return nn.Sequential(
            Residual(nn.Sequential(over_space, nn.GELU(), nn.BatchNorm2d(dim))),
            nn.Sequential(over_channels, nn.GELU(), nn.BatchNorm2d(dim)),
        )

    def forward(self, images: Tensor) -> EncoderOutput:
        maps = self.layers(self.patches(images))  # (B, D, H', W')
        features = maps.flatten(2).transpose(1, 2)  # (B, H' * W', D), row by row
        return EncoderOutput(features, features.mean(1), grid=(maps.shape[2], maps.shape[3]))
