"""Image towers of vision-language models: features of one block, without an embedding of the image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from velm.sources.hf_clip import (
    clip_image_encoder,
    clip_image_weights,
    siglip_image_encoder,
    siglip_image_weights,
)
from velm.sources.hf_towers import image_tower
from velm.sources.state_dict import StateDict, renamed

__all__ = ["Tower", "clip_features", "library_features", "llava_features", "siglip_features"]

Tower = tuple[dict[str, Any], Callable[[StateDict], dict[str, Tensor]]]
"""The part config, and what takes the weights out of a state dict."""


def llava_features(vision: Any, mean: list[float], std: list[float], layer: int, select: str, prefix: str) -> Tower:
    """The tower of a LLaVA: the hidden states `layer`, 0 being the input of the first block.

    Args:
        layer: `vision_feature_layer`; negative: from the end.
        select: `vision_feature_select_strategy`: 'default' leaves the first position out, 'full' does not.
        prefix: of its names in the state dict.

    Raises:
        ValueError: VELM cannot build it.
    """
    depth = layer if layer >= 0 else int(vision.num_hidden_layers) + 1 + layer
    if not 0 < depth <= int(vision.num_hidden_layers):
        raise ValueError(f"its vision_feature_layer {layer} is no block of the {vision.num_hidden_layers} that it has.")
    kind = vision.model_type
    if kind in ("clip_vision_model", "metaclip_2_vision_model"):
        return clip_features(vision, mean, std, depth, select == "full", prefix)
    if kind == "siglip_vision_model" and select == "full":
        return siglip_features(vision, mean, std, depth, False, prefix)
    if kind in ("vit", "dinov2"):
        return library_features(vision, mean, std, depth, select == "full", prefix)
    raise ValueError(
        f"its image tower is {kind} with vision_feature_select_strategy {select}; VELM takes clip_vision_model, "
        f"metaclip_2_vision_model, vit and dinov2, and siglip_vision_model with the strategy full."
    )


def clip_features(
    vision: Any, mean: list[float], std: list[float], depth: int, class_token: bool, prefix: str
) -> Tower:
    """Output of block `depth` of CLIP's tower, without the norm, which CLIP applies to its class token alone."""
    part = clip_image_encoder(vision, mean, std) | {
        "depth": depth, "output_norm": False, "class_in_features": class_token,
    }  # fmt: skip
    return part, partial(_read, clip_image_weights, prefix, depth, False)


def siglip_features(
    vision: Any, mean: list[float], std: list[float], depth: int, output_norm: bool, prefix: str
) -> Tower:
    """Output of block `depth` of SigLIP's or Idefics3's tower; `output_norm`: normalised, as `last_hidden_state`."""
    part = siglip_image_encoder(vision, mean, std) | {"depth": depth, "output_norm": output_norm, "pooling": "mean"}
    return part, partial(_read, siglip_image_weights, prefix, depth, output_norm)


def library_features(
    vision: Any, mean: list[float], std: list[float], depth: int, class_token: bool, prefix: str
) -> Tower:
    """Output of block `depth` of any other tower, which stays a model of transformers."""
    part = image_tower(vision, mean, std, feature_layer=depth, class_in_features=class_token)

    def read(state: StateDict) -> dict[str, Tensor]:
        state.below(f"{prefix}pooler.")
        return renamed(state.below(prefix), "model.image_encoder.model.")

    return part, read


def bucketed(positions: Tensor) -> Tensor:
    """Idefics3's positions (N, D) in the order in which its tower reads them for a full square image.

    The tower finds the position of a patch by the fraction of the image that precedes it, in single precision. For most
    sides of the grid that is the patch's own, for some (19, 25, 29, ...) a few patches share that of a neighbour.
    """
    side = round(len(positions) ** 0.5)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor([side]))
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    buckets = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)
    return positions[(buckets[:, None] * side + buckets).flatten()]


def _read(
    weights_of: Callable[..., dict[str, Tensor]], prefix: str, depth: int, output_norm: bool, state: StateDict
) -> dict[str, Tensor]:
    """Take the weights of a tower, and remove those of later blocks and of its pooling."""
    if any(name.startswith(f"{prefix}vision_model.") for name in state.tensors):
        prefix = f"{prefix}vision_model."
    weights = renamed(weights_of(state, prefix, depth, output_norm), "model.image_encoder.")
    for name in list(state.tensors):
        if name.startswith((f"{prefix}encoder.layers.", f"{prefix}post_layernorm.", f"{prefix}head.")):
            state.take(name)
    return weights
