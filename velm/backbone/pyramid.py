"""Maps of one width and several sizes, as detectors read them."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(nn.Module):
    """Four maps from the only one of a ViT, by deconvolution and pooling (Li et al. 2022, arXiv 2203.16527, section 3).

        map (B, C, H, W) ─┬─ 2 deconvolutions ─ (B, out, 4 H, 4 W)  "0"
                          ├─ deconvolution ──── (B, out, 2 H, 2 W)  "1"
                          ├──────────────────── (B, out, H, W)      "2"
                          └─ max pooling ────── (B, out, H/2, W/2)  "3", rounded up

    Each ends in a 1 x 1 and a 3 x 3 convolution with layer norms over the channels. The weights are random: they are
    trained with the detector.

    Args:
        dim: channels C of the map, at least 4.
        out_channels: of every map that comes out.
        levels: which of the four.
    """

    scales = (4.0, 2.0, 1.0, 0.5)
    """Sizes of the maps, relative to the one that comes in."""

    def __init__(self, dim: int, out_channels: int, levels: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        resizes: list[tuple[int, list[nn.Module]]] = [
            (quarter, [_up(dim, half), LayerNorm2d(half), nn.GELU(), _up(half, quarter)]),
            (half, [_up(dim, half)]),
            (dim, []),
            (dim, [nn.MaxPool2d(2, ceil_mode=True)]),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resize,
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for width, resize in (resizes[level] for level in levels)
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """One map, by any name, to a map of each level, the finest first: '0', '1', ..."""
        (x,) = maps.values()
        return {str(number): level(x) for number, level in enumerate(self.levels)}


def _up(channels: int, width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, width, 2, stride=2)
