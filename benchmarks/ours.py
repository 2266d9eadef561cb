"""VELM's side of a training step: model, losses, batches and optimizer as a run builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness.workload import Settings
from benchmarks.inputs import CONTEXT, PAD, SIDE, VOCABULARY, Feed
from benchmarks.steps import Steps

__all__ = ["DEPTH", "PATCH", "WIDTH", "Trained", "batch_of", "clip_config", "coca_config", "trained"]

WIDTH, DEPTH, HEADS, PATCH = 384, 12, 6, 32


def clip_config(
    width: int = WIDTH, depth: int = DEPTH, vocabulary: int = VOCABULARY, text_width: int | None = None,
    quick_gelu: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """CLIP as in open_clip and transformers: class token, norm before the first block, pooling at eos."""
    narrow, blocks = text_width or width, {"depth": depth, "activation": "quick_gelu" if quick_gelu else "gelu"}
    vit = {"patch_size": PATCH, "positions": "learned", "position_grid": SIDE // PATCH, "pooling": "class"}
    vit |= {"input_norm": True, "patch_bias": False}
    return {
        "image_encoder": {"name": "vit", "dim": width, "heads": width // 64, **blocks, **vit},
        "text_encoder": {"name": "transformer", "dim": narrow, "heads": narrow // 64, **blocks, "max_length": CONTEXT,
                         "causal": True, "pooling": "last"},
        "embed_dim": narrow,
        "losses": {"contrastive": {}},
        "vocab_size": vocabulary,
        "pad_id": PAD,
    }  # fmt: skip


def coca_config(width: int = WIDTH, depth: int = DEPTH, decoder_depth: int = 6, vocabulary: int = VOCABULARY) -> Any:
    """The same images; one tower encodes the text for both losses, as in CoCa and `configs/coca.yaml`.

    It has as many weights in matrices as `depth` text layers and `decoder_depth` decoder layers of open_clip's CoCa. A
    layer of that decoder has an MLP after each of its two attentions, 24 width^2 weights. A block of VELM with
    cross-attention has 16 width^2, a unimodal one 12: six layers of open_clip equal six blocks and four unimodal ones.
    """
    words_only = depth + decoder_depth * 2 // 3
    decoder = {"name": "transformer", "dim": width, "heads": width // 64, "max_length": CONTEXT}
    depths = {"depth": words_only + decoder_depth, "unimodal_depth": words_only, "tie_embeddings": False}
    return {
        **clip_config(width, depth, vocabulary),
        "text_encoder": "decoder",
        "decoder": {**decoder, **depths},
        "losses": {"contrastive": {"weight": 1.0}, "captioning": {"weight": 2.0}},
    }


class Trained(Steps):
    """A model as a run builds it from its config."""

    def __init__(self, config: Mapping[str, Any], settings: Settings, recompute: bool = False) -> None:
        from velm.losses.weighted import build_losses
        from velm.model import build_model
        from velm.training.config import OptimizerConfig
        from velm.training.memory.compile import compile_tower
        from velm.training.memory.recompute import checkpoint_blocks
        from velm.training.optim import build_optimizer

        self.settings = settings
        self.model = build_model(dict(config)).train().to(settings.device)
        self.losses = build_losses(config["losses"]).to(settings.device)
        self.optimizer = build_optimizer(
            {"model": self.model, "losses": self.losses}, OptimizerConfig(lr=5e-4, weight_decay=0.2)
        )
        if recompute:
            checkpoint_blocks({"decoder": self.model.decoder})
        if settings.compile:
            for name in ("image_encoder", "text_encoder", "decoder"):
                if getattr(self.model, name) is not None:
                    compile_tower(getattr(self.model, name))

    def loss(self, feed: Feed) -> torch.Tensor:
        """The loss as the task computes it."""
        batch = batch_of(feed)
        output = self.model(batch, self.losses.requires)
        return self.losses(output, batch)[0]


def trained(config: Mapping[str, Any], settings: Settings, recompute: bool = False) -> Trained:
    """With random weights and the memory settings of `velm fit`."""
    from velm.allocation import keep_freed_memory

    keep_freed_memory(settings.device)
    torch.manual_seed(0)
    return Trained(config, settings, recompute)


def batch_of(feed: Feed) -> Any:
    """The batch as VELM's loader returns it."""
    from velm.outputs import Batch

    rows = torch.arange(len(feed.pixels), device=feed.lengths.device).repeat_interleave(feed.captions)
    batch = Batch(images=feed.pixels, tokens=feed.trimmed, mask=feed.mask, image_ids=rows)
    return batch if feed.captions == 1 else replace(batch, image_rows=rows, sharing=feed.captions)
