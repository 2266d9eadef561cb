"""Image processors of transformers as options of VELM's transform."""

from __future__ import annotations

import warnings
from typing import Any

from velm._compat import has_lanczos
from velm.pretrained import hub

__all__ = ["image_options", "tile_options"]

_INTERPOLATIONS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def image_options(name: str, image_size: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """Options of `data:`, and the mean and standard deviation of the pixels, of a model's image processor.

    Args:
        name: a hub id or a folder.
        image_size: of the model; the processor's must be the same.

    Raises:
        OSError: there is no processor.
        ValueError: it does what VELM's transform cannot do.
    """
    processor = _processor(name)
    size, crop = _sides(processor.size), _sides(getattr(processor, "crop_size", None))
    crops = bool(getattr(processor, "do_center_crop", False))
    if getattr(processor, "do_pad", None):
        raise ValueError("its image processor fills images up to a square (do_pad), which VELM does with black only.")
    if not processor.do_resize:
        raise ValueError("its image processor does not resize (do_resize: false), and VELM's images are squares.")
    interpolation = _interpolation(processor)
    if "shortest_edge" in size and crops and crop == {"height": size["shortest_edge"], "width": size["shortest_edge"]}:
        resize, side = "shortest", size["shortest_edge"]
    elif size.keys() == {"height", "width"} and size["height"] == size["width"] and (not crops or crop == size):
        resize, side = "squash", size["height"]
    else:
        raise ValueError(
            f"its image processor resizes to {size} and crops {crop if crops else 'nothing'}: VELM squashes an image "
            f"to a square, or resizes its shorter side and crops a square of that side."
        )
    if side != image_size:
        raise ValueError(f"its image processor makes images of {side} pixels, and its image tower reads {image_size}.")
    options = {"image_size": side, "resize": resize, "interpolation": interpolation, "decode": "full"}
    return {**options, "crop_rounding": "down"}, *_normalisation(processor)


def tile_options(name: str, image_size: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """As `image_options`, of the processor of Idefics3 and SmolVLM, of whose images the one of the whole is read.

    Raises:
        OSError: there is no processor.
        ValueError: it does what VELM's transform cannot do.
    """
    processor = _processor(name)
    longer, side = _sides(processor.size).get("longest_edge"), _sides(processor.max_image_size).get("longest_edge")
    if side != image_size:
        raise ValueError(f"its image processor makes images of {side} pixels, and its image tower reads {image_size}.")
    if processor.do_resize and longer != 4 * image_size:
        raise ValueError(
            f"its image processor resizes the longer side to {longer} pixels before it makes a square of {side}; "
            f"VELM's `resize: enlarge` does so at four times the side, {4 * image_size}, as the published models."
        )
    if processor.do_image_splitting:
        warnings.warn(
            f"hf/{name} reads tiles of an image and the image as a whole (do_image_splitting). VELM reads the whole "
            f"alone, at {side} pixels, as the original with do_image_splitting=False: small print may be lost.",
            stacklevel=2,
        )
    resize = "enlarge" if processor.do_resize else "squash"
    options = {"image_size": side, "resize": resize, "interpolation": _interpolation(processor), "decode": "full"}
    return options, *_normalisation(processor)


def _processor(name: str) -> Any:
    try:
        return hub.image_processor(name)
    except OSError as error:
        raise OSError(
            f"it has no image processor (preprocessor_config.json), so how its images are resized and normalised is "
            f"not known. Put that file of the original model beside its weights. Cause: {error}"
        ) from error


def _interpolation(processor: Any) -> str:
    """What VELM's transform calls the processor's interpolation; checks that pixels are divided by 255."""
    name = _INTERPOLATIONS.get(int(processor.resample))
    if name is None:
        raise ValueError(f"its image processor resizes by PIL's method {processor.resample}; VELM's are 1, 2 and 3.")
    if abs(float(processor.rescale_factor) * 255 - 1) > 1e-6 or not processor.do_rescale:
        raise ValueError("its image processor does not divide pixels by 255, as VELM does.")
    return "bicubic" if name == "lanczos" and not has_lanczos() else name  # as transformers


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    if not processor.do_normalize:
        return [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    return [float(v) for v in processor.image_mean], [float(v) for v in processor.image_std]


def _sides(size: Any) -> dict[str, int]:
    """{'shortest_edge': 224} or {'height': 224, 'width': 224} of what a processor calls a size."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size).items() if value is not None}
