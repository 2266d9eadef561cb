"""A folder of open_clip, by that library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.data.images.decode import read_image
from velm.errors import MissingPackageError
from velm.exports.golden import Golden

__all__ = ["OpenClipModel"]


class OpenClipModel:
    """The model with its preprocessing and tokenizer.

    Raises:
        MissingPackageError: open_clip is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise MissingPackageError("The export is read by open_clip: pip install 'velm[open_clip]'.") from error
        name = f"local-dir:{folder}"
        created: Any = open_clip.create_model_and_transforms(name)
        self.model, self.preprocess = created[0].eval(), created[2]
        self.tokenizer: Any = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def golden(self, golden: Golden) -> Golden:
        """Embeddings and logits."""
        output = self.model(self._pixels(golden.images), self.tokenizer(golden.texts))
        image, text, scale = output[:3] if isinstance(output, tuple) else output.values()
        bias = 0.0 if getattr(self.model, "logit_bias", None) is None else self.model.logit_bias
        tensors = {"image_embeds": image, "text_embeds": text, "logits": scale * image @ text.T + bias}
        return Golden(golden.images, golden.texts, tensors)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Any]) -> Tensor:
        found: Tensor = self.model.encode_image(self._pixels(images), normalize=True)
        return found

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.model.encode_text(self.tokenizer(list(texts)), normalize=True)
        return found

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        return torch.stack([self.preprocess(read_image(image)) for image in images])
