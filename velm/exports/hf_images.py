"""VELM's image transform as an image processor of transformers; the inverse of `velm.sources.hf_images`."""

from __future__ import annotations

from typing import Any

from velm.data.images.transforms import EvalTransform
from velm.pipeline import Pipeline

__all__ = ["image_processor", "transform_limits"]

_METHODS = {"bilinear": 2, "bicubic": 3, "lanczos": 1}


def transform_limits(transform: EvalTransform) -> list[str]:
    """What no image processor of transformers does, in words."""
    limits = []
    if transform.resize not in ("shortest", "squash"):
        limits.append(
            f"data.resize is {transform.resize!r}, and the image processors of transformers have 'shortest' and "
            f"'squash'"
        )
    if transform.resize == "shortest" and transform.crop_rounding == "even":
        limits.append("data.crop_rounding is 'even', as open_clip's; transformers rounds down")
    return limits


def image_processor(pipeline: Pipeline, cls: str) -> Any:
    """An image processor of the class `cls`, such as 'CLIPImageProcessor'."""
    import transformers

    transform, encoder = pipeline.transform, pipeline.model.image_encoder
    assert encoder is not None
    side = transform.image_size
    square = {"height": side, "width": side}
    crops = transform.resize == "shortest"
    return getattr(transformers, cls)(
        do_resize=True,
        size={"shortest_edge": side} if crops else square,
        resample=_METHODS[transform.interpolation],
        do_center_crop=crops,
        crop_size=square,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(encoder.image_mean),
        image_std=list(encoder.image_std),
        do_convert_rgb=True,
    )
