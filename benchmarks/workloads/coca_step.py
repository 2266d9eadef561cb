"""A training step of CoCa: that of CLIP, and a captioning decoder."""

from __future__ import annotations

import torch

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.inputs import CONTEXT, feed
from benchmarks.steps import run_of
from benchmarks.workloads.clip_step import make


def ours(settings: Settings) -> Run:
    from benchmarks.ours import coca_config, trained

    return run_of(trained(coca_config(), settings), make(settings))


def open_clip(settings: Settings) -> Run:
    from benchmarks.peers.contrastive import OpenClipCoCa, open_clip_coca

    return run_of(OpenClipCoCa(open_clip_coca(), settings), make(settings), count=3)


def prove(settings: Settings) -> list[Agreement]:
    """Sizes, and the operations of both when VELM also processes 77 tokens per caption."""
    from benchmarks.ours import Trained, coca_config
    from benchmarks.peers.contrastive import OpenClipCoCa, open_clip_coca
    from benchmarks.proofs import same_size

    exact = Settings(precision="32", threads=settings.threads)
    mine, peer = Trained(coca_config(), exact), OpenClipCoCa(open_clip_coca(), exact)
    batch = feed(0, 4)
    batch.lengths = torch.full_like(batch.lengths, CONTEXT)
    return same_size(
        "open_clip",
        mine.model,
        peer.model,
        (lambda: mine.loss(batch).backward(), lambda: peer.loss(batch).backward()),
    )


WORKLOADS = [
    Workload(
        name="coca_step",
        title="CoCa: the CLIP of clip_step and 6 layers of decoder over the image, 49,408 words, 32 pairs",
        unit="samples",
        systems={OURS: ours, "open_clip": open_clip},
        against={"open_clip": OURS},
        prove=prove,
        repeats=3,
        notes=(
            "The architectures differ in where MLPs and norms stand, so sizes and operations are held equal.",
            "Seeing 50 patches: open_clip's pooling of them to 255 positions is left out on its side.",
        ),
    )
]
