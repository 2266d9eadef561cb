"""How an image becomes a square, whatever holds its pixels. Nothing here imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

__all__ = ["CropRounding", "Decode", "Geometry", "Interpolation", "Resize"]

Resize = Literal["crop", "squash", "shortest", "longest", "enlarge"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Decode = Literal["scaled", "full"]
CropRounding = Literal["down", "even"]


class Geometry(ABC):
    """How an image becomes a square; the options that a checkpoint stores. Of tensors or of numpy's arrays.

    Args:
        image_size: side of the square, pixels.
        resize: 'crop': the largest central square, resized; 'squash': the whole image, aspect ratio ignored;
            'shortest': the shorter side is resized to `image_size`, then the centre is cropped (CLIP); 'longest': the
            longer side is, and black fills the square; 'enlarge': the longer side is resized to four times
            `image_size`, then the whole is squashed (Idefics3 and SmolVLM without tiles).
        interpolation: bilinear, bicubic or lanczos, all antialiased.
        decode: 'scaled': a large JPEG is decoded at the smallest scale that is large enough, which is faster; 'full':
            at full size, as most other libraries do.
        crop_rounding: of half a pixel where 'shortest' crops: 'down' (transformers) or to an 'even' number
            (torchvision, open_clip).
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: Resize = "crop",
        interpolation: Interpolation = "bilinear",
        decode: Decode = "scaled",
        crop_rounding: CropRounding = "down",
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
        choices: dict[str, tuple[str, Any]] = {
            "resize": (resize, Resize), "interpolation": (interpolation, Interpolation), "decode": (decode, Decode),
            "crop_rounding": (crop_rounding, CropRounding),
        }  # fmt: skip
        for name, (value, allowed) in choices.items():
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}; got {value!r}.")
        self.image_size: int = image_size
        self.resize: Resize = resize
        self.interpolation: Interpolation = interpolation
        self.decode: Decode = decode
        self.crop_rounding: CropRounding = crop_rounding

    def config(self) -> dict[str, Any]:
        """Options for `transform_from_config`; stored in the checkpoint. Defaults of the later ones are left out."""
        later = {"interpolation": "bilinear", "decode": "scaled", "crop_rounding": "down"}
        changed = {name: getattr(self, name) for name, default in later.items() if getattr(self, name) != default}
        return {"image_size": self.image_size, "resize": self.resize, **changed}

    def square(self, pixels: Any) -> Any:
        """uint8 (3, H, W) as uint8 (3, image_size, image_size)."""
        height, width = pixels.shape[1:]
        size = self.image_size
        if self.resize == "squash":
            return self.scale(pixels, (0, 0, width, height), (size, size))
        if self.resize == "enlarge":
            rows, columns = _even_sides(height, width, 4 * size)
            larger = self.scale(pixels, (0, 0, width, height), (rows, columns))
            return self.scale(larger, (0, 0, columns, rows), (size, size))
        if self.resize == "crop":
            side = min(width, height)
            return self.scale(pixels, ((width - side) // 2, (height - side) // 2, side, side), (size, size))
        short, long = sorted((width, height))
        whole = (0, 0, width, height)
        if self.resize == "shortest":
            longer = int(size * long / short)
            rows, columns = (longer, size) if height > width else (size, longer)
            resized = self.scale(pixels, whole, (rows, columns))
            half = round if self.crop_rounding == "even" else int
            top, left = half((rows - size) / 2), half((columns - size) / 2)
            return resized[:, top : top + size, left : left + size]
        shorter = max(1, round(size * short / long))
        rows, columns = (size, shorter) if height > width else (shorter, size)
        square = self.blank(pixels)
        top, left = (size - rows) // 2, (size - columns) // 2
        square[:, top : top + rows, left : left + columns] = self.scale(pixels, whole, (rows, columns))
        return square

    @abstractmethod
    def scale(self, pixels: Any, box: tuple[int, int, int, int], size: tuple[int, int]) -> Any:
        """The box (left, top, width, height) of uint8 (3, H, W) as uint8 (3, *size), antialiased."""

    @abstractmethod
    def blank(self, pixels: Any) -> Any:
        """A black square, uint8 (3, image_size, image_size), of the kind of `pixels`."""


def _even_sides(height: int, width: int, longer: int) -> tuple[int, int]:
    """The longer side resized to `longer`, the other in proportion and even, as Idefics3's processor rounds it."""
    ratio = width / height
    shorter = int(longer / ratio) if width >= height else int(longer * ratio)
    shorter += shorter % 2
    return (max(shorter, 1), longer) if width >= height else (longer, max(shorter, 1))
