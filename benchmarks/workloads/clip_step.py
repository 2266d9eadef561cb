"""A training step of CLIP: forward, backward, AdamW."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.inputs import Feed, feed
from benchmarks.steps import run_of

BATCH = 32


def make(settings: Settings) -> Callable[[int], Feed]:
    return lambda number: feed(number, BATCH, device=settings.device)


def ours(settings: Settings) -> Run:
    from benchmarks.ours import clip_config, trained

    return run_of(trained(clip_config(), settings), make(settings))


def open_clip(settings: Settings, fused: bool = False) -> Run:
    from benchmarks.peers.contrastive import OpenClipCLIP, open_clip_clip

    return run_of(OpenClipCLIP(open_clip_clip(), settings, fused=fused), make(settings))


def transformers(settings: Settings) -> Run:
    from benchmarks.peers.contrastive import TransformersCLIP, transformers_clip

    return run_of(TransformersCLIP(transformers_clip(), settings), make(settings))


def prove(settings: Settings) -> list[Agreement]:
    return prove_sizes(settings)


def prove_sizes(settings: Settings, **sizes: Any) -> list[Agreement]:
    """The whole model in float64, on captions of different lengths: the peers process the padding, VELM does not.

    Args:
        settings: threads.
        **sizes: of `clip_config`.
    """
    from benchmarks import proofs
    from benchmarks.ours import Trained, clip_config
    from benchmarks.peers import contrastive, weights

    exact = Settings(precision="32", threads=settings.threads)
    hf = contrastive.transformers_clip(**sizes)
    from_open_clip, from_transformers = weights.translators(contrastive.open_clip_config(**sizes), hf.config)
    lines = []
    for peer, system, translate in (
        ("open_clip", contrastive.OpenClipCLIP(contrastive.open_clip_clip(**sizes), exact), from_open_clip),
        ("transformers", contrastive.TransformersCLIP(hf, exact), from_transformers),
    ):
        mine = Trained(clip_config(**sizes), exact)
        counts = proofs.parameters(mine.model), proofs.parameters(system.model)
        lines.append(Agreement(f"parameters, against {peer}", *counts, "theirs: position of the class token, scale"))
        lines += proofs.same_function(peer, mine, system, translate)
    return lines


WORKLOADS = [
    Workload(
        name="clip_step",
        title="CLIP, 384 x 12 at 224 px in patches of 32, text 384 x 12, 32 pairs: forward, backward, AdamW",
        unit="samples",
        systems={
            OURS: ours,
            "open_clip": open_clip,
            "open_clip_fused": partial(open_clip, fused=True),
            "transformers": transformers,
        },
        against={"open_clip": OURS, "open_clip_fused": OURS, "transformers": OURS},
        prove=prove,
        notes=("Captions have the lengths of Flickr8k's; the peers pad them to 77 tokens, as they do by default.",),
    )
]
