"""Golden inputs through a folder of transformers, as its documentation says to use it; nothing of VELM's models."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from velm.exports.golden import Golden

__all__ = ["read_dual"]


@torch.inference_mode()
def read_dual(folder: Path, golden: Golden) -> Golden:
    """Embeddings and logits of a model with two towers."""
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    images = [Image.fromarray(image) for image in golden.images]
    length = model.config.text_config.max_position_embeddings
    fills = "max_length" if model.config.model_type == "siglip" else True
    inputs = processor(
        text=golden.texts, images=images, padding=fills, truncation=True, max_length=length, return_tensors="pt"
    )
    output = model(**inputs)
    tensors = {"image_embeds": output.image_embeds, "text_embeds": output.text_embeds}
    return Golden(golden.images, golden.texts, tensors | {"logits": output.logits_per_image})
