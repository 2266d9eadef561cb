"""transformers' LLaVA, VELM's model of the same parts, and the weights of one under the names of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.workload import Settings
from benchmarks.inputs import MEAN, PAD, SIDE, STD, Feed
from benchmarks.peers.base import Peer

__all__ = ["PATCHES", "Llava", "from_llava", "llava", "our_config", "prompts"]

VISION = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
VISION |= {"image_size": SIDE, "patch_size": 16}
PATCHES = (SIDE // 16) ** 2
IMAGE = 2  # id of the placeholders

NAMES = {
    "model.vision_tower.": "image_encoder.model.",
    "model.multi_modal_projector.linear_1.": "decoder.projector.map.0.",
    "model.multi_modal_projector.linear_2.": "decoder.projector.map.2.",
    "model.language_model.": "decoder.model.",
    "lm_head.": "decoder.output_projection.",
}


def llava(language: Mapping[str, Any]) -> Any:
    """`LlavaForConditionalGeneration` of a small CLIP tower, LLaVA's projector and a Llama of these sizes."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(**language, pad_token_id=PAD)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1,
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def our_config(language: Mapping[str, Any], trainable: str = "all") -> dict[str, Any]:
    """VELM's config of the same model, its image tower frozen."""
    sizes = {name: value for name, value in language.items() if name != "vocab_size"}
    tower = {"name": "hf/clip_vision_model", "config": VISION, "trainable": False}
    return {
        "image_encoder": {**tower, "image_mean": list(MEAN), "image_std": list(STD)},
        "decoder": {"name": "llm/llama", "config": sizes, "projector": "mlp", "trainable": trainable},
        "losses": {"captioning": {}},
        "memory": ["image"],
        "vocab_size": language["vocab_size"],
        "pad_id": PAD,
    }


def from_llava(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under VELM's names."""
    found = {}
    for name, tensor in theirs.items():
        begin = next(begin for begin in NAMES if name.startswith(begin))
        found[NAMES[begin] + name.removeprefix(begin)] = tensor
    return found


def prompts(tokens: Tensor) -> Tensor:
    """Texts int64 (B, T) behind the placeholders of an image, int64 (B, PATCHES + T)."""
    return torch.cat([tokens.new_full((len(tokens), PATCHES), IMAGE), tokens], dim=1)


class Llava(Peer):
    """LLaVA as transformers' Trainer trains it: labels -100 on image and padding, fused AdamW, frozen image tower."""

    def __init__(self, model: Any, settings: Settings, trainable: str = "all") -> None:
        model.model.vision_tower.requires_grad_(False)
        if trainable == "projector":
            model.model.language_model.requires_grad_(False)
            model.lm_head.requires_grad_(False)
        super().__init__(model, settings, fused=True)

    def build_optimizer(self, fused: bool | None) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.2, fused=fused)

    def loss(self, feed: Feed) -> Tensor:
        ids, mask = prompts(feed.trimmed), torch.nn.functional.pad(feed.mask, (PATCHES, 0), value=True)
        labels = ids.masked_fill(~mask | (torch.arange(ids.shape[1], device=ids.device) < PATCHES), -100)
        labels[:, PATCHES] = -100  # bos is given
        floats = feed.floats.repeat_interleave(feed.captions, dim=0)  # a row of a dataset is an image and a text
        given = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": floats}
        loss: Tensor = self.call(**given, labels=labels, use_cache=False).loss
        return loss
