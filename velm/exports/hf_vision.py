"""Image towers of transformers that a decoder reads the positions of, from a `vit` or an `hf/*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.hf_clip import vision_config
from velm.exports.hf_files import library_config
from velm.exports.layouts import clip_image, siglip_image
from velm.exports.requirements import grid_limits, options_of, part_limits

__all__ = ["VisionTower", "vision_limits", "vision_tower"]

Reads = Literal["block", "output"]
"""What a class reads: the output of a block, or the model's, `last_hidden_state`."""

_UNREAD = ("pooler.", "head.", "post_layernorm.", "vision_model.post_layernorm.", "vision_model.head.")
_CLIP = {"positions": "learned", "input_norm": True, "output_norm": False}
_SIGLIP = {"positions": "learned", "input_norm": False}
_RAW = ("clip_vision_model", "metaclip_2_vision_model")
"""Types whose output is that of the last block, which is not normalised."""
_NO_CLASS = ("siglip_vision_model",)


@dataclass(frozen=True)
class VisionTower:
    """A tower.

    Attributes:
        config: of transformers.
        weights: by their names in the tower.
        layer: number of the block that is read; -1: the last.
        class_token: whether there is one before the positions.
        class_in_features: whether it is read.
        positions: of an image, without the class token.
        unread: beginnings of the names of weights that are not read, and may be absent in `weights`.
    """

    config: Any
    weights: dict[str, Tensor]
    layer: int
    class_token: bool
    class_in_features: bool
    positions: int
    unread: tuple[str, ...] = _UNREAD


def vision_limits(checkpoint: Checkpoint, cls: str, reads: Reads, kinds: Sequence[str] = ()) -> list[str]:
    """What the class `cls` cannot express of the image encoder, in words.

    Args:
        kinds: of models of transformers that it has; empty: any.
    """
    if checkpoint.config.get("image_encoder") is None:
        return ["there is no image_encoder"]
    name, options = options_of(checkpoint, "image_encoder")
    if name == "vit":
        class_token = options["pooling"] == "class"
        required: dict[str, Any] = dict(_CLIP) if class_token else {**_SIGLIP, "output_norm": reads == "output"}
        if class_token and reads == "output":
            required["class_in_features"] = True
        return part_limits(checkpoint, "image_encoder", "vit", required, cls) + grid_limits(checkpoint)
    if not name.startswith("hf/"):
        return [f"the image_encoder is {name!r}, and that of {cls} is a vit or hf/*"]
    kind, size = _type_of(name, options), options["config"].get("image_size")
    limits = part_limits(checkpoint, "image_encoder", name, {"dim": None}, cls)
    if kinds and kind not in kinds:
        limits.append(f"the image_encoder is {kind!r}, and {cls} reads {', '.join(kinds)}")
    if size is not None and size != checkpoint.transform["image_size"]:
        limits.append(f"its tower has positions for images of {size} pixels, and data.image_size is another")
    if reads == "output" and options["feature_layer"] is not None:
        limits.append(f"image_encoder.feature_layer is {options['feature_layer']}, and {cls} reads the model's output")
    if reads == "output" and not options["class_in_features"] and kind not in _NO_CLASS:
        limits.append(f"image_encoder.class_in_features is False, and {cls} reads the class token, too")
    if reads == "block" and options["feature_layer"] is None and kind not in _RAW:
        limits.append(f"image_encoder.feature_layer is None, the normalised output of {kind}; {cls} reads a block's")
    return limits


def vision_tower(checkpoint: Checkpoint, reads: Reads) -> VisionTower:
    """The tower of an image encoder that has no limits."""
    from transformers import AutoConfig

    name, options = options_of(checkpoint, "image_encoder")
    images = weights_of("image_encoder", checkpoint.weights)
    if name != "vit":
        kind, config = _type_of(name, options), library_config(name, options)
        weights = {key.removeprefix("model."): tensor for key, tensor in images.items()}
        layer, class_token = options["feature_layer"], kind not in _NO_CLASS
        grid = int(checkpoint.transform["image_size"]) // int(getattr(config, "patch_size", 1))
        in_features = class_token and bool(options["class_in_features"])
        return VisionTower(config, weights, -1 if layer is None else layer, class_token, in_features, grid**2)
    class_token = options["pooling"] == "class"
    values = vision_config(options, checkpoint) | ({} if class_token else {"vision_use_head": False})
    config = AutoConfig.for_model("clip_vision_model" if class_token else "siglip_vision_model", **values)
    weights = (clip_image if class_token else siglip_image)(images, "", options["depth"])
    if reads == "block" or class_token:  # the norm that is not read is that of a new tower
        width = torch.ones(options["dim"])
        weights |= {"post_layernorm.weight": width, "post_layernorm.bias": torch.zeros_like(width)}
    return VisionTower(
        config, weights, -1, class_token, options["class_in_features"], int(options["position_grid"]) ** 2
    )


def _type_of(name: str, options: dict[str, Any]) -> str:
    return str(options["config"].get("model_type", name.removeprefix("hf/")))
