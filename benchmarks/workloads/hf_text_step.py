"""A step of a text tower of transformers, MiniLM's size: in VELM, and as transformers computes it by default."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload, require

SIZES: dict[str, Any] = {
    "vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip
BATCH, LENGTH = 256, 20


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of 12 and of 20 tokens."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[::2, 12:] = False
    return torch.randint(1000, 30_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0)), mask


def run(call: Any, settings: Settings) -> Run:
    ids, mask = tokens()

    def step() -> int:
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = call(ids.to(settings.device), mask.to(settings.device)).float().square().mean()
        loss.backward()
        return BATCH

    return Run(step, steps=5)


def encoder(settings: Settings) -> Any:
    require("transformers")
    from velm.encoders.huggingface import HFTextEncoder

    torch.manual_seed(0)
    return HFTextEncoder(
        model_name="bert", vocab_size=SIZES["vocab_size"], config=SIZES, pooling="mean"
    ).to(settings.device)  # fmt: skip


def ours(settings: Settings) -> Run:
    made = encoder(settings).train()
    return run(lambda ids, mask: made(ids, mask).pooled, settings)


def transformers(settings: Settings) -> Run:
    model = encoder(settings).model.train()
    return run(lambda ids, mask: pooled(model, ids, mask), settings)


def pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def prove(settings: Settings) -> list[Agreement]:
    made = encoder(settings).eval()
    with torch.no_grad():
        theirs = pooled(made.model, *tokens())
        pairs = made(*tokens()).pooled, theirs
    assert torch.allclose(*pairs, atol=1e-5)
    return [Agreement("norm of the pooled vectors", *(each.norm().item() for each in pairs), "float32, equal weights")]


WORKLOADS = [
    Workload(
        name="hf_text_step",
        title="BERT 384 x 6 over 256 captions: forward, backward",
        unit="samples",
        systems={OURS: ours, "transformers": transformers},
        against={"transformers": OURS},
        prove=prove,
        notes=("transformers computes with torch's fused attention, its default, VELM with matrix products on a CPU.",),
    )
]
