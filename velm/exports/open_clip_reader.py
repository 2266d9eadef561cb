"""A folder of open_clip, by that library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.data.images.decode import read_image
from velm.errors import MissingPackageError
from velm.exports.golden import TOKENS, Golden

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
        """Embeddings and logits; of a CoCa also greedy captions and their log probabilities."""
        image, text = self.embed_images(golden.images), self.embed_texts(golden.texts)
        bias = 0.0 if getattr(self.model, "logit_bias", None) is None else self.model.logit_bias
        tensors = {"image_embeds": image, "text_embeds": text}
        tensors["logits"] = self.model.logit_scale.exp() * image @ text.T + bias
        if not hasattr(self.model, "text_decoder"):
            return Golden(golden.images, golden.texts, tensors)
        written = self._write(golden.images, TOKENS)
        tensors["log_probs"] = torch.tensor([[log_prob] for _, log_prob in written])
        return Golden(golden.images, golden.texts, tensors, [caption for caption, _ in written])

    def caption(self, images: Sequence[Any], texts: None = None, *, max_length: int) -> list[str]:
        return [caption for caption, _ in self._write(images, max_length)]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Any]) -> Tensor:
        found: Tensor = self.model.encode_image(self._pixels(images), normalize=True)
        return found

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.model.encode_text(self.tokenizer(list(texts)), normalize=True)
        return found

    @torch.inference_mode()
    def _write(self, images: Sequence[Any], length: int) -> list[tuple[str, float]]:
        """Greedy captions of a CoCa by its forward: its `generate` needs transformers 4."""
        latent, features = self.model._encode_image(self._pixels(images))
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        tokens = torch.full((len(features), 1), start)
        sums, done = torch.zeros(len(features)), torch.zeros(len(features), dtype=torch.bool)
        for _ in range(length):
            output = self.model(None, tokens, latent, features, output_labels=False)
            scores = output["logits"][:, -1].log_softmax(-1)
            allowed = scores.clone()
            allowed[:, start] = -torch.inf
            best = allowed.argmax(-1).masked_fill(done, end)
            sums += scores.gather(1, best[:, None])[:, 0].masked_fill(done, 0.0)
            tokens, done = torch.cat([tokens, best[:, None]], dim=1), done | (best == end)
            if bool(done.all()):
                break
        texts = [
            self.tokenizer.decode([token for token in row if token not in (start, end)]) for row in tokens.tolist()
        ]
        return [(text.strip(), total) for text, total in zip(texts, sums.tolist(), strict=True)]

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        return torch.stack([self.preprocess(read_image(image)) for image in images])
