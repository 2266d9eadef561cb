"""A fine-tuning step of OpenAI's CLIP ViT-B/32 at its own size: full, and with LoRA in both towers."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.steps import run_of
from benchmarks.workloads.clip_step import make, prove_sizes

SIZES: dict[str, Any] = {"width": 768, "text_width": 512, "quick_gelu": True}
LORA = {"name": "lora", "r": 8, "lora_alpha": 16}


def ours(settings: Settings, adapt: bool = False) -> Run:
    from benchmarks.ours import clip_config, trained

    config = clip_config(**SIZES)
    if adapt:
        config["adapt"] = {"image_encoder": LORA, "text_encoder": LORA}
    return run_of(trained(config, settings), make(settings))


def open_clip(settings: Settings, fused: bool = False) -> Run:
    from benchmarks.peers.contrastive import OpenClipCLIP, open_clip_clip

    return run_of(OpenClipCLIP(open_clip_clip(**SIZES), settings, fused=fused), make(settings))


def transformers(settings: Settings) -> Run:
    from benchmarks.peers.contrastive import TransformersCLIP, transformers_clip

    return run_of(TransformersCLIP(transformers_clip(**SIZES), settings), make(settings))


def prove(settings: Settings) -> list[Agreement]:
    return prove_sizes(settings, **{**SIZES, "depth": 2})


WORKLOADS = [
    Workload(
        name="finetune_step",
        title="CLIP ViT-B/32 (151 M parameters), 32 pairs: forward, backward, AdamW",
        unit="samples",
        systems={
            OURS: ours,
            "velm_lora": partial(ours, adapt=True),
            "open_clip": open_clip,
            "open_clip_fused": partial(open_clip, fused=True),
            "transformers": transformers,
        },
        against={"velm_lora": OURS, "open_clip": OURS, "open_clip_fused": OURS, "transformers": OURS},
        prove=prove,
        notes=(
            "velm_lora: LoRA of rank 8 on queries, keys and values of both towers, no peer.",
            "Captions have the lengths of Flickr8k's; the peers pad them to 77 tokens, as they do by default.",
        ),
    )
]
