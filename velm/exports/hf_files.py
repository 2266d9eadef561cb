"""Models and processors of transformers, written with exactly the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["library_config", "save_library_model", "save_processor"]


def library_config(kind: str, options: dict[str, Any], **changes: Any) -> Any:
    """The config of transformers of a part `hf/*` or `llm/*`, its options being those of VELM."""
    from transformers import AutoConfig

    values = {**options["config"], **changes}
    return AutoConfig.for_model(values.pop("model_type", kind.partition("/")[2]), **values)


def save_library_model(
    cls: Any, config: Any, weights: dict[str, Tensor], folder: Path, unread: tuple[str, ...] = ()
) -> None:
    """Save a model of transformers with exactly these weights, in float32.

    Args:
        unread: beginnings of the names of weights that nothing reads, such as a pooling layer's; they are zeros where
            `weights` lacks them.
    """
    with torch.device("meta"):
        model = cls(config)
    lacking = [name for name in model.state_dict() if name not in weights and name.startswith(unread)] if unread else []
    weights = weights | {name: torch.zeros(model.state_dict()[name].shape) for name in lacking}
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()}, strict=True, assign=True)
    model.save_pretrained(folder)


def save_processor(cls: str, images: Any, words: Any, folder: Path, **options: Any) -> None:
    """Save an image processor and a tokenizer, alone and as a processor of the class `cls`."""
    import transformers

    getattr(transformers, cls)(image_processor=images, tokenizer=words, **options).save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
