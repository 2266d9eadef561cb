"""Checks that an image encoder reads images of a size, before it is given any."""

from __future__ import annotations

import re

import torch

from velm.encoders.base import ImageEncoder
from velm.errors import ConfigError
from velm.util import evaluating

__all__ = ["require_image_size"]

ABOUT_SIZE = re.compile(r"size|height|width|divisible|too small", re.IGNORECASE)


def require_image_size(encoder: ImageEncoder, size: int, option: str) -> None:
    """Encode one black image in eval mode.

    torchvision, timm and transformers refuse a size by assertions and RuntimeErrors from inside a model; other encoders
    by a ValueError, as their contract says.

    Args:
        encoder: its training mode is restored.
        size: side of the image, in pixels.
        option: the option that sets the size, for the message.

    Raises:
        ConfigError: the encoder cannot read such images.
    """
    weight = next(encoder.parameters(), torch.empty(0))
    image = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    try:
        with evaluating(encoder), torch.no_grad():
            encoder.forward(image)  # not compiled, without hooks
    except (ValueError, AssertionError, RuntimeError) as error:
        own = type(encoder).__module__.startswith("velm.")
        if not isinstance(error, ValueError) and not (own and ABOUT_SIZE.search(str(error))):
            raise
        why = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{type(encoder).__name__} cannot read images of {size} x {size} pixels, the size that {option} "
            f"sets: {why}."
        ) from error
