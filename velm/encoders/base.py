"""`ImageEncoder` and `TextEncoder`, the contracts of encoders: one vector per position and one pooled vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from velm.errors import ConfigError
from velm.outputs import EncoderOutput

__all__ = ["EncoderOutput", "ImageEncoder", "TextEncoder", "last_of_each_size", "three_channels"]


class ImageEncoder(nn.Module, ABC):
    """Pixels to `EncoderOutput`.

    A subclass takes keyword arguments with type hints, sets `self.dim` in its constructor, and implements
    `forward`. Pixels arrive normalised with `image_mean` and `image_std` (RGB in [0, 1]); an encoder with
    pretrained weights sets both to what it was trained with. N may be fixed or depend on the image size; an encoder of
    one image size raises a ValueError that names it for any other. With `has_grid = False`, positions are no places of
    the image and `grid` may be None; there are no attention maps then.
    """

    dim: int
    has_grid: bool = True
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @abstractmethod
    def forward(self, images: Tensor) -> EncoderOutput:
        """Encode images.

        Args:
            images: float (B, 3, H, W), normalised.

        Returns:
            features (B, N, dim), pooled (B, dim), grid (H', W') with H' * W' == N; see `has_grid`.
        """

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps for detection and segmentation, float (B, C, H', W') each, the finest first.

        Here the features on their grid, one map. An encoder with stages has a map of each.

        Args:
            images: as of `forward`.

        Raises:
            ConfigError: the features lie on no grid.
        """
        output: EncoderOutput = self(images)
        if output.grid is None:
            raise ConfigError(
                f"{type(self).__name__} has no maps: its features lie on no grid (`has_grid`, `class_in_features`). "
                f"Take another image encoder for a backbone, or implement `maps` in your own."
            )
        return [output.features.transpose(1, 2).unflatten(2, output.grid)]


class TextEncoder(nn.Module, ABC):
    """Tokens to `EncoderOutput`; padding never changes a result.

    A constructor with an argument `vocab_size` or `pad_id` receives the tokenizer's from the builder; one with an
    argument `decoder` receives the model's decoder, which is built first. One with `pads = True` computes every
    position of a padded batch, each row by itself: on a CPU it is given texts of like length together.
    """

    dim: int
    pads: bool = False

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode texts.

        Args:
            tokens: int64 (B, T), bos ... eos, padded.
            mask: bool (B, T), True on content.

        Returns:
            features (B, T, dim), pooled (B, dim), mask (B, T).
        """


def last_of_each_size(maps: Iterable[Tensor]) -> list[Tensor]:
    """The last of neighbouring maps (B, C, H', W') of the same size, but for borders: the outputs of stages."""
    kept: list[Tensor] = []
    for each in maps:
        if kept and 4 * each.shape[2] > 3 * kept[-1].shape[2]:  # convolutions without padding lose a border
            kept[-1] = each
        else:
            kept.append(each)
    return kept


def three_channels(option: Sequence[float] | None, default: Sequence[float]) -> tuple[float, float, float]:
    """The option `image_mean` or `image_std` of an encoder, or its default.

    Raises:
        ValueError: there are not three numbers.
    """
    values = default if option is None else option
    if len(values) != 3:
        raise ValueError(f"image_mean and image_std have three numbers, red, green, blue; got {list(values)}.")
    return (float(values[0]), float(values[1]), float(values[2]))
