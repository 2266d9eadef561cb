"""Golden inputs through a folder of open_clip, by that library alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from velm.errors import MissingPackageError
from velm.exports.golden import Golden

__all__ = ["read_open_clip"]


@torch.inference_mode()
def read_open_clip(folder: Path, golden: Golden) -> Golden:
    """Embeddings and logits.

    Raises:
        MissingPackageError: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError("The export is read by open_clip: pip install 'velm[open_clip]'.") from error
    name = f"local-dir:{folder}"
    created: Any = open_clip.create_model_and_transforms(name)
    model, preprocess = created[0].eval(), created[2]
    images = torch.stack([preprocess(Image.fromarray(image)) for image in golden.images])
    output = model(images, open_clip.get_tokenizer(name)(golden.texts))
    image, text, scale = output[:3] if isinstance(output, tuple) else output.values()
    bias = 0.0 if getattr(model, "logit_bias", None) is None else model.logit_bias
    tensors = {"image_embeds": image, "text_embeds": text, "logits": scale * image @ text.T + bias}
    return Golden(golden.images, golden.texts, tensors)
