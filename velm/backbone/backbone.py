"""`Backbone`: an image encoder as a plain module that other libraries take, images to a dict of maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from velm.backbone.pyramid import SimpleFeaturePyramid
from velm.encoders.base import ImageEncoder
from velm.errors import ConfigError
from velm.util import evaluating

__all__ = ["Backbone", "FeatureInfo"]


@dataclass(frozen=True)
class FeatureInfo:
    """The maps of a backbone, the finest first, asked for as in timm's `features_only`.

    Attributes:
        maps: (channels, reduction) of each; a cell of the map spans `reduction` pixels a side.
    """

    maps: tuple[tuple[int, int], ...]

    def channels(self) -> list[int]:
        """The channels of each map."""
        return [channels for channels, _ in self.maps]

    def reduction(self) -> list[int]:
        """Pixels a side that a cell of each map spans."""
        return [reduction for _, reduction in self.maps]

    def __len__(self) -> int:
        return len(self.maps)


class Backbone(nn.Module):
    """Images to a dict of maps '0', '1', ..., the finest first, as torchvision's detectors take them.

    Without `out_channels` they are the encoder's own: a map of every stage of a CNN, the only map of a ViT. With it
    they are a pyramid of one width, whose weights are random: a feature pyramid network (Lin et al. 2017, arXiv
    1612.03144) over stages, a `SimpleFeaturePyramid` of a single map. Then `out_channels` is an attribute, which
    torchvision's detectors read.

    Args:
        encoder: moved into this module.
        image_size: side of images that the encoder takes, in pixels, if it does not take 224.
        out_channels: of every map of a pyramid; None: no pyramid.
        out_indices: which maps; negative ones count from the last; None: all.
        trainable: False freezes the encoder in eval mode; a pyramid is trained.

    Attributes:
        feature_info: channels and reduction of each map.

    Raises:
        ConfigError: the encoder has no maps, or an option cannot be used.
    """

    image_scale: Tensor
    image_shift: Tensor
    out_channels: int

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        image_size: int = 224,
        out_channels: int | None = None,
        out_indices: Sequence[int] | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if out_channels is not None and out_channels < 1:
            raise ConfigError(f"out_channels is the width of every map of a pyramid, at least 1; got {out_channels}.")
        self.encoder, self.trainable = encoder, trainable
        mean, std = torch.tensor(encoder.image_mean), torch.tensor(encoder.image_std)
        self.register_buffer("image_scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("image_shift", (-mean / std).view(3, 1, 1), persistent=False)
        self.stages = _stages(encoder, image_size)
        info = self.stages
        if out_channels is not None and len(info) == 1:
            reduction = info[0][1]
            info = tuple((out_channels, max(1, int(reduction / scale))) for scale in SimpleFeaturePyramid.scales)
        indices = _checked_indices(out_indices, len(info))
        self.feature_info = FeatureInfo(tuple((out_channels or info[i][0], info[i][1]) for i in indices))
        self.chosen = indices if len(self.stages) > 1 else (0,)
        self.pyramid: nn.Module | None = None
        if out_channels is not None:
            self.out_channels = out_channels
            self.pyramid = self._pyramid(out_channels, indices)
        if not trainable:
            encoder.requires_grad_(False)
        weight = next(encoder.parameters(), torch.empty(0))
        self.to(weight.device, weight.dtype)
        self.train(self.training)

    def _pyramid(self, out_channels: int, indices: tuple[int, ...]) -> nn.Module:
        if len(self.stages) == 1:
            return SimpleFeaturePyramid(self.stages[0][0], out_channels, indices)
        from torchvision.ops import FeaturePyramidNetwork

        return FeaturePyramidNetwork([self.stages[i][0] for i in indices], out_channels)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if not self.trainable:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of images.

        Args:
            images: RGB (B, 3, H, W), uint8, or float in [0, 1]; the backbone normalises them.

        Returns:
            float (B, C, H', W') each, the finest first.

        Raises:
            ValueError: the encoder takes no images of this size; it says which.
            ConfigError: the images are smaller than a cell of the coarsest map.
        """
        scale = self.image_scale
        if images.dtype == torch.uint8:
            images = images.to(scale.dtype)
        else:
            scale = scale * 255
        with nullcontext() if self.trainable else torch.no_grad():
            maps = self.encoder.maps(torch.addcmul(self.image_shift, images, scale))
        if len(maps) != len(self.stages):
            raise ConfigError(
                f"Images of {images.shape[2]} x {images.shape[3]} pixels are too small for {len(self.stages)} maps: a "
                f"cell of the coarsest one spans {self.stages[-1][1]} pixels. Enlarge them."
            )
        chosen = {str(number): maps[index] for number, index in enumerate(self.chosen)}
        if self.pyramid is None:
            return chosen
        pyramid: dict[str, Tensor] = self.pyramid(chosen)
        return pyramid


def _stages(encoder: ImageEncoder, image_size: int) -> tuple[tuple[int, int], ...]:
    """(channels, reduction) of the maps of an encoder, from those of a black image."""
    weight = next(encoder.parameters(), torch.empty(0))

    def maps(size: int) -> list[Tensor]:
        image = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
        with evaluating(encoder), torch.no_grad():
            return encoder.maps(image)

    size = 224  # a multiple of 7, 14, 16 and 32: reductions are exact
    try:
        found = maps(size)
    except (ValueError, AssertionError, RuntimeError) as error:
        if isinstance(error, ConfigError) and "has no maps" in str(error):
            raise
        size = image_size
        found = maps(size)
    return tuple((each.shape[1], round(size / each.shape[2])) for each in found)


def _checked_indices(indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(count))
    if not indices or any(not -count <= index < count for index in indices):
        raise ConfigError(f"out_indices {list(indices)}: there are {count} maps, 0 (the finest) to {count - 1}.")
    return tuple(sorted({index % count for index in indices}))
