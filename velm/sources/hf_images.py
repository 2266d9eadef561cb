"""Image processors of transformers as options of VELM's transform."""

from __future__ import annotations

from typing import Any

from velm.pretrained import hub

__all__ = ["image_options"]

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def image_options(name: str, image_size: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """Options of `data:`, and the mean and standard deviation of the pixels, of a model's image processor.

    Args:
        name: a hub id or a folder.
        image_size: of the model; the processor's must be the same.

    Raises:
        OSError: there is no processor.
        ValueError: it does what VELM's transform cannot do.
    """
    try:
        processor = hub.image_processor(name)
    except OSError as error:
        raise OSError(
            f"it has no image processor (preprocessor_config.json), so how its images are resized and normalised is "
            f"not known. Put that file of the original model beside its weights. Cause: {error}"
        ) from error
    size, crop = _sides(processor.size), _sides(getattr(processor, "crop_size", None))
    crops = bool(getattr(processor, "do_center_crop", False))
    if not processor.do_resize:
        raise ValueError("its image processor does not resize (do_resize: false), and VELM's images are squares.")
    interpolation = _INTERPOLATIONS.get(int(processor.resample))
    if interpolation is None:
        raise ValueError(f"its image processor resizes by PIL's method {processor.resample}; VELM's are 2 and 3.")
    if abs(float(processor.rescale_factor) * 255 - 1) > 1e-6 or not processor.do_rescale:
        raise ValueError("its image processor does not divide pixels by 255, as VELM does.")
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
    mean, std = ([float(v) for v in processor.image_mean], [float(v) for v in processor.image_std])
    if not processor.do_normalize:
        mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    options = {"image_size": side, "resize": resize, "interpolation": interpolation, "decode": "full"}
    return {**options, "crop_rounding": "down"}, mean, std


def _sides(size: Any) -> dict[str, int]:
    """{'shortest_edge': 224} or {'height': 224, 'width': 224} of what a processor calls a size."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size).items() if value is not None}
