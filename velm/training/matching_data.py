"""Checks that the data of a run is what its model reads and writes, before training starts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from velm.encoders.image_size import require_image_size
from velm.errors import ConfigError
from velm.model import VisionLanguageModel
from velm.training.memory.feature_cache import require_frozen
from velm.training.prefix_data import require_prefix_data

__all__ = ["require_matching_data"]


def require_matching_data(model: VisionLanguageModel, needs: Collection[str], data: Any) -> None:
    """Check that a model reads images of the data module's size and writes its texts.

    Args:
        model: of the run.
        needs: the outputs that its losses require.
        data: a `VisionLanguageData`.

    Raises:
        ConfigError: the text is in the memory and there is no target column, the decoder is too short, the image
            encoder cannot read images of `image_size`, `cache_features` is set and it is not frozen, or a language
            model cannot read the data behind the image (see `velm.training.prefix_data`).
    """
    if getattr(data, "cache_features", False):
        require_frozen(model.image_encoder)
    size = getattr(data, "image_size", None)
    if model.image_encoder is not None and size is not None:
        require_image_size(model.image_encoder, size, "data.image_size")
    if "decoder" in needs and "text" in model.memory_sources and not data.has_target:
        raise ConfigError(
            "The decoder attends over the text (memory: [..., text]), so it cannot be trained to write that same "
            "text: name the column of the caption to write, e.g. `data.dataset.target_column: de`, "
            "or leave text out of `memory:`."
        )
    limit = getattr(model.decoder, "max_length", None)
    if limit is not None and data.max_length > limit:
        raise ConfigError(
            f"data.max_length is {data.max_length} tokens, but the decoder holds {limit}: "
            f"lower data.max_length or raise model.decoder.max_length."
        )
    if "decoder" in needs:
        require_prefix_data(model, data)
