"""Golden inputs through a folder of transformers, as its documentation says to use it; nothing of VELM's models."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from velm.exports.golden import TOKENS, Golden

__all__ = ["read_dual", "read_llava"]


@torch.inference_mode()
def read_dual(folder: Path, golden: Golden) -> Golden:
    """Embeddings and logits of a model with two towers."""
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    images = [Image.fromarray(image) for image in golden.images]
    length = processor.tokenizer.model_max_length
    fills = "max_length" if model.config.model_type == "siglip" else True
    inputs = processor(
        text=golden.texts, images=images, padding=fills, truncation=True, max_length=length, return_tensors="pt"
    )
    output = model(**inputs)
    tensors = {"image_embeds": output.image_embeds, "text_embeds": output.text_embeds}
    return Golden(golden.images, golden.texts, tensors | {"logits": output.logits_per_image})


@torch.inference_mode()
def read_llava(folder: Path, golden: Golden) -> Golden:
    """Greedy answers of a vision-language model, and their log probabilities."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    words, captions, sums = processor.tokenizer, [], []
    skipped = {words.pad_token_id, words.bos_token_id, words.unk_token_id, words.eos_token_id}
    for image, text in zip(golden.images, golden.texts, strict=True):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        asked = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(images=[Image.fromarray(image)], text=[asked], return_tensors="pt", add_special_tokens=False)
        found = model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = found.sequences[0, inputs["input_ids"].shape[1] :]
        scores = torch.stack(found.logits)[:, 0].log_softmax(-1)
        sums.append(scores.gather(1, tokens[:, None]).sum())
        content = [token for token in tokens.tolist() if token not in skipped]
        captions.append(words.decode(content, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip())
    return Golden(golden.images, golden.texts, {"log_probs": torch.stack(sums)[:, None]}, captions)
