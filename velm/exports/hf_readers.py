"""A folder of transformers, read as its documentation says to use it; nothing of VELM's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from velm.data.images.decode import read_image
from velm.exports.golden import TOKENS, Golden

__all__ = ["open_transformers"]


def open_transformers(folder: Path) -> Any:
    """The model of a folder with its processor."""
    from transformers import AutoConfig

    kinds = {"llava": LlavaModel, "vision-encoder-decoder": CaptionerModel}
    return kinds.get(AutoConfig.from_pretrained(folder).model_type, DualModel)(folder)


class DualModel:
    """Two towers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor

        self.model, self.processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
        self.words = {
            "padding": "max_length" if self.model.config.model_type == "siglip" else True,
            "truncation": True,
            "max_length": self.processor.tokenizer.model_max_length,
            "return_tensors": "pt",
        }

    @torch.inference_mode()
    def golden(self, golden: Golden) -> Golden:
        """Embeddings and logits."""
        images = [read_image(image) for image in golden.images]
        output = self.model(**self.processor(text=golden.texts, images=images, **self.words))
        tensors = {"image_embeds": output.image_embeds, "text_embeds": output.text_embeds}
        return Golden(golden.images, golden.texts, tensors | {"logits": output.logits_per_image})

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Any]) -> Tensor:
        inputs = self.processor(images=[read_image(image) for image in images], return_tensors="pt")
        return normalize(_pooled(self.model.get_image_features(**inputs)), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return normalize(
            _pooled(self.model.get_text_features(**self.processor(text=list(texts), **self.words))), dim=-1
        )


def _pooled(output: Any) -> Tensor:
    """transformers 4 returns the projected vector itself."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


class _Writer:
    """A model that writes, with its processor."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def write(self, inputs: Any, length: int) -> list[tuple[str, Tensor]]:
        """Greedy texts of at most `length` tokens, and their log probabilities."""
        found = self.model.generate(
            **inputs, max_new_tokens=length, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = found.sequences[:, -len(found.logits) :]
        scores = torch.stack(found.logits, dim=1).log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
        eos = self.processor.tokenizer.eos_token_id
        after = (tokens == eos).cumsum(dim=1) - (tokens == eos).int() > 0  # padding
        sums = scores.masked_fill(after, 0.0).sum(dim=1)
        texts = [self._text(row.tolist()) for row in tokens.masked_fill(after, eos)]
        return list(zip(texts, sums, strict=True))

    def _text(self, tokens: Sequence[int]) -> str:
        words = self.processor.tokenizer
        skipped = {words.pad_token_id, words.bos_token_id, words.unk_token_id, words.eos_token_id}
        content = [token for token in tokens if token not in skipped]
        text: str = words.decode(content, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.strip()


class CaptionerModel(_Writer):
    """An image tower and a decoder with cross-attention."""

    @torch.inference_mode()
    def golden(self, golden: Golden) -> Golden:
        """Greedy captions, and their log probabilities."""
        written = self.write(self._pixels(golden.images), TOKENS)
        sums = torch.stack([log_prob for _, log_prob in written])[:, None]
        return Golden(golden.images, golden.texts, {"log_probs": sums}, [text for text, _ in written])

    @torch.inference_mode()
    def caption(self, images: Sequence[Any], texts: None = None, *, max_length: int) -> list[str]:
        return [text for text, _ in self.write(self._pixels(images), max_length)]

    def _pixels(self, images: Sequence[Any]) -> Any:
        return self.processor.image_processor([read_image(image) for image in images], return_tensors="pt")


class LlavaModel(_Writer):
    """A vision-language model, asked one turn."""

    def golden(self, golden: Golden) -> Golden:
        """Greedy answers, and their log probabilities."""
        answers = [self._answer(*each, TOKENS) for each in zip(golden.images, golden.texts, strict=True)]
        sums = torch.stack([log_prob for _, log_prob in answers])[:, None]
        return Golden(golden.images, golden.texts, {"log_probs": sums}, [text for text, _ in answers])

    def caption(self, images: Sequence[Any], texts: Sequence[str] | None = None, *, max_length: int) -> list[str]:
        asked = [""] * len(images) if texts is None else texts
        return [self._answer(*each, max_length)[0] for each in zip(images, asked, strict=True)]

    @torch.inference_mode()
    def _answer(self, image: Any, text: str, length: int) -> tuple[str, Tensor]:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        asked = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = self.processor(images=[read_image(image)], text=[asked], return_tensors="pt", add_special_tokens=False)
        return self.write(inputs, length)[0]
