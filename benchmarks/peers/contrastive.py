"""CLIP and CoCa of open_clip and CLIPModel of transformers in the sizes of `benchmarks.ours`, trained as usual."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.workload import require
from benchmarks.inputs import BOS, CONTEXT, EOS, PAD, SIDE, VOCABULARY, Feed
from benchmarks.ours import DEPTH, PATCH, WIDTH
from benchmarks.peers.base import Peer

__all__ = [
    "OpenClipCLIP", "OpenClipCoCa", "TransformersCLIP", "open_clip_clip", "open_clip_coca", "open_clip_config",
    "towers", "transformers_clip",
]  # fmt: skip


class OpenClipCLIP(Peer):
    def loss(self, feed: Feed) -> Tensor:
        from open_clip.loss import ClipLoss

        images, texts, scale = self.call(feed.floats, feed.tokens)[:3]
        loss: Tensor = ClipLoss()(images, texts, scale)
        return loss


class OpenClipCoCa(Peer):
    def loss(self, feed: Feed) -> Tensor:
        from open_clip.loss import CoCaLoss

        found = self.call(feed.floats, feed.tokens)
        parts = [found[name] for name in ("image_features", "text_features", "logits", "labels", "logit_scale")]
        contrastive, captioning = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(*parts)
        loss: Tensor = contrastive + captioning
        return loss


class TransformersCLIP(Peer):
    def build_optimizer(self, fused: bool | None) -> torch.optim.Optimizer:
        """torch's AdamW, fused, as transformers' Trainer chooses by default."""
        return torch.optim.AdamW(self.model.parameters(), lr=5e-4, fused=True)

    def loss(self, feed: Feed) -> Tensor:
        mask = (torch.arange(CONTEXT, device=feed.lengths.device) < feed.lengths[:, None]).long()
        found = self.call(
            input_ids=feed.tokens, attention_mask=mask, pixel_values=feed.floats, return_loss=True, return_dict=True
        )
        loss: Tensor = found.loss
        return loss


def open_clip_config(
    width: int = WIDTH, depth: int = DEPTH, vocabulary: int = VOCABULARY, text_width: int | None = None,
    quick_gelu: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A `model_cfg` of open_clip; the joint space has the width of the text tower."""
    vision, text = towers(width, depth, vocabulary)
    narrow = text_width or width
    text |= {"width": narrow, "heads": narrow // 64}
    return {"embed_dim": narrow, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}


def towers(width: int, depth: int, vocabulary: int, side: int = SIDE) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and text towers, with sizes named as in open_clip's configs."""
    vision = {"image_size": side, "layers": depth, "width": width, "head_width": 64, "patch_size": PATCH}
    text = {
        "context_length": CONTEXT, "vocab_size": vocabulary, "width": width, "heads": width // 64, "layers": depth,
    }  # fmt: skip
    return vision, text


def open_clip_clip(**sizes: Any) -> nn.Module:
    """`open_clip.model.CLIP`; the sizes are those of `open_clip_config`."""
    require("open_clip")
    from open_clip.model import CLIP

    return CLIP(**open_clip_config(**sizes))


def open_clip_coca(
    width: int = WIDTH, depth: int = DEPTH, decoder_depth: int = 6, vocabulary: int = VOCABULARY, side: int = SIDE
) -> nn.Module:
    """`open_clip.coca_model.CoCa`, with a decoder that attends over all patches without a pooler, like VELM's."""
    require("open_clip")
    from open_clip.coca_model import CoCa

    vision, text = towers(width, depth, vocabulary, side)
    several = {"context_length": CONTEXT, "width": width, "heads": width // 64, "layers": decoder_depth}
    model = CoCa(
        embed_dim=width,
        multimodal_cfg={**several, "attn_pooler_heads": width // 64},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg={**vision, "output_tokens": True},
    )
    nn.init.normal_(model.text_decoder.text_projection, std=width**-0.5)  # otherwise uninitialised memory
    return model


def transformers_clip(
    width: int = WIDTH, depth: int = DEPTH, vocabulary: int = VOCABULARY, text_width: int | None = None,
    quick_gelu: bool = False,
) -> nn.Module:  # fmt: skip
    """`transformers.CLIPModel` with the sizes and the GELU of the other systems."""
    require("transformers")
    from transformers import CLIPConfig, CLIPModel

    def tower(dim: int) -> dict[str, Any]:
        return {
            "hidden_size": dim, "intermediate_size": 4 * dim, "num_hidden_layers": depth,
            "num_attention_heads": dim // 64, "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        }  # fmt: skip

    narrow = text_width or width
    text = {**tower(narrow), "vocab_size": vocabulary, "max_position_embeddings": CONTEXT}
    special = {"bos_token_id": vocabulary - (VOCABULARY - BOS), "eos_token_id": vocabulary - (VOCABULARY - EOS)}
    vision = {**tower(width), "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(
        CLIPConfig(
            text_config={**text, **special, "pad_token_id": PAD}, vision_config=vision, projection_dim=narrow,
            logit_scale_init_value=math.log(1 / 0.07),
        )
    )  # fmt: skip
