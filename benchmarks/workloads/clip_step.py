"""A training step of CLIP: forward, backward, AdamW."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.inputs import feed

BATCH = 32


def ours(settings: Settings) -> Run:
    from benchmarks.ours import allocate, clip_config, steps, trained

    torch.manual_seed(0)
    system = trained(clip_config(), settings)
    step = steps(system.step, lambda number: feed(number, BATCH, device=settings.device))
    return Run(step, allocate(system.model.parameters(), system.optimizer))


def theirs(build: str, fused: bool = False) -> Callable[[Settings], Run]:
    """Of a peer built by `benchmarks.peers.contrastive`."""

    def system(settings: Settings) -> Run:
        from benchmarks.ours import allocate, steps
        from benchmarks.peers import contrastive

        torch.manual_seed(0)
        models = {"open_clip": contrastive.open_clip_clip, "transformers": contrastive.transformers_clip}
        kinds = {"open_clip": contrastive.OpenClipCLIP, "transformers": contrastive.TransformersCLIP}
        peer = kinds[build](models[build](), settings, fused=fused)
        step = steps(peer.step, lambda number: feed(number, BATCH, device=settings.device))
        return Run(step, allocate(peer.model.parameters(), peer.optimizer))

    return system


def prove(settings: Settings) -> list[Agreement]:
    """The whole model, float64, on sentences of unequal lengths: the peers read the padding, ours does not."""
    from benchmarks import proofs
    from benchmarks.ours import Trained, clip_config
    from benchmarks.peers import contrastive, weights

    exact = Settings(precision="32", threads=settings.threads)
    lines = []
    for peer, system, translate in (
        ("open_clip", contrastive.OpenClipCLIP(contrastive.open_clip_clip(), exact), weights.from_open_clip),
        ("transformers", contrastive.TransformersCLIP(contrastive.transformers_clip(), exact),
         weights.from_transformers),
    ):  # fmt: skip
        mine = Trained(clip_config(), exact)
        counts = proofs.parameters(mine.model), proofs.parameters(system.model)
        lines.append(Agreement(f"parameters, against {peer}", *counts, "patch bias ours; first position, scale theirs"))
        lines += proofs.same_function(peer, mine, system, translate)
    return lines


WORKLOADS = [
    Workload(
        name="clip_step",
        title="CLIP, 384 x 12 at 224 px in patches of 32, text 384 x 12, 32 pairs: forward, backward, AdamW",
        unit="samples",
        systems={
            OURS: ours,
            "open_clip": theirs("open_clip"),
            "open_clip_fused": theirs("open_clip", fused=True),
            "transformers": theirs("transformers"),
        },
        against={"open_clip": OURS, "open_clip_fused": OURS, "transformers": OURS},
        prove=prove,
        notes=("Sentences have the lengths of Flickr8k's; the peers pad them to 77 tokens, as they do by default.",),
    )
]
