"""Models of transformers with towers of any kind, which become VELM's `hf/*` parts with a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from velm.data.text.hf import HFTokenizer
from velm.encoders.huggingface import HFTextEncoder
from velm.pretrained import hub
from velm.pretrained.weights import skip_pretrained
from velm.sources.state_dict import StateDict, embedding_rows, renamed

__all__ = [
    "class_prefix", "image_tower", "name_of", "open_tokenizer", "read_model", "require_class", "text_length",
    "text_tower", "text_tower_weights",
]  # fmt: skip


def open_tokenizer(name: str) -> HFTokenizer:
    """The tokenizer of a model.

    Raises:
        ValueError: there is none.
    """
    return HFTokenizer(model_name=name)


def require_class(config: Any, cls: str) -> Any:
    """The class `cls` of transformers, if the weights are those of it.

    Raises:
        ValueError: they are of another class of the same type.
    """
    import transformers

    saved = list(getattr(config, "architectures", None) or [cls])
    if cls not in saved:
        raise ValueError(f"its weights are those of {saved[0]}, and of this type VELM imports {cls}.")
    return getattr(transformers, cls)


def read_model(name: str, config: Any, cls: str, new_parts: tuple[str, ...] = ()) -> tuple[Any, StateDict]:
    """A model of the class `cls` of transformers, and its weights.

    Args:
        new_parts: weights whose name contains one of these may be missing; VELM does not read them.

    Raises:
        OSError: there are no weights.
        ValueError: they are not complete, or of another class.
    """
    model = hub.build(require_class(config, cls), config, name, pretrained=True, new_parts=new_parts)
    return model, StateDict(model.state_dict(), f"hf/{name}")


def class_prefix(state: StateDict) -> str:
    """What the names of CLIP's image tower begin with: 'vision_model.'."""
    ending = "embeddings.class_embedding"
    return next((name.removesuffix(ending) for name in state.tensors if name.endswith(ending)), "vision_model.")


def image_tower(config: Any, mean: list[float], std: list[float], **options: Any) -> dict[str, Any]:
    """The part config of an image tower of any type."""
    return {
        "name": f"hf/{config.model_type}", "config": hub.portable_config(config), "image_mean": mean, "image_std": std,
        **options,
    }  # fmt: skip


def text_tower(config: Any, pooling: str) -> dict[str, Any]:
    """The part config of a text tower of any type; the builder adds the size of the vocabulary."""
    values = hub.portable_config(config)
    values.pop("vocab_size", None)
    return {"name": f"hf/{config.model_type}", "config": values, "pooling": pooling}


def text_length(part: Mapping[str, Any], tokenizer: HFTokenizer) -> int:
    """Longest text in tokens that both a text tower and its tokenizer take.

    Raises:
        ValueError: VELM cannot build the tower.
    """
    options = {key: value for key, value in part.items() if key != "name"}
    with skip_pretrained(), torch.device("meta"):
        places = HFTextEncoder(
            model_name=part["name"].removeprefix("hf/"), vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
            **options,
        ).max_length  # fmt: skip
    return min(length for length in (places, tokenizer.longest, 512) if length is not None)


def text_tower_weights(state: StateDict, prefix: str, tower: nn.Module, vocab_size: int) -> dict[str, Tensor]:
    """Weights of a text tower, `prefix` being that of their names, for an `HFTextEncoder`."""
    weights = state.below(prefix)
    rows = name_of(tower, tower.get_input_embeddings())  # type: ignore[operator]
    weights[f"{rows}.weight"] = embedding_rows(weights[f"{rows}.weight"], vocab_size)
    return renamed(weights, "model.text_encoder.model.")


def name_of(model: nn.Module, part: nn.Module) -> str:
    """The dotted name of a part of a model."""
    return next(name for name, module in model.named_modules() if module is part)
