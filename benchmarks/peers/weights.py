"""A peer's weights under VELM's names, as `velm.sources` imports them, to show that both compute the same function.

Also for gradients, except that of the class token, which is the sum of two of a peer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from velm.sources.hf_clip import clip_weights
from velm.sources.open_clip_towers import read_towers
from velm.sources.state_dict import StateDict

__all__ = ["from_open_clip", "from_transformers"]


def from_open_clip(theirs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of `open_clip.model.CLIP` of a `model_cfg`."""
    vocab_size = len(theirs["token_embedding.weight"])
    return _of_model(read_towers(config, None).weights(StateDict(theirs, "open_clip"), vocab_size))


def from_transformers(theirs: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Weights of `transformers.CLIPModel` of its config."""
    return _of_model(clip_weights(StateDict(theirs, "transformers"), config, config.text_config.vocab_size))


def translators(open_clip_config: Mapping[str, Any], transformers_config: Any) -> tuple[Any, Any]:
    """Both functions for one pair of configs."""
    return partial(from_open_clip, config=open_clip_config), partial(from_transformers, config=transformers_config)


def _of_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
