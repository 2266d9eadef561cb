"""Stepping against one forward pass, the captioning loss against its formula, and greedy search against argmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from velm.decoders.base import Decoder
from velm.doctor.laws.compare import ROUNDING, failed, farthest, passed
from velm.doctor.laws.small_run import SmallRun
from velm.findings import Finding
from velm.generation.config import GenerationConfig
from velm.generation.engine import generate
from velm.losses.captioning import CaptioningLoss
from velm.testing.decoders import step_logits
from velm.util import evaluating

LENGTH = 12  # tokens of a generated text


@torch.no_grad()
def check_decoding(run: SmallRun) -> Finding:
    """First the cache, then the loss, then the search: each check relies on the one before."""
    task, batch = run.task().double().eval(), run.batch
    decoder = task.model.decoder
    if decoder is None:
        return Finding("decoding", "skipped", "The model has no decoder.")
    output = task.model(batch, {"decoder"})
    memory, memory_mask = task.model.memory(output.image, output.text, batch.prompt)
    tokens, mask = batch.target_tokens, batch.target_mask
    if tokens is None or mask is None:
        tokens, mask = batch.tokens, batch.mask
    assert tokens is not None
    assert mask is not None
    predicted = (mask if batch.target_learnt is None else mask & batch.target_learnt)[:, 1:]
    stepped = step_logits(decoder, tokens[:, :-1], memory, memory_mask)
    whole = decoder.output_projection(decoder.decode(tokens[:, :-1], memory, memory_mask).hidden)
    worst, _ = farthest({"logits": whole[predicted]}, {"logits": stepped[predicted]})
    if worst > ROUNDING:
        differences = (stepped - whole).abs().amax(2).masked_fill(~predicted, 0)
        first = int((differences.amax(0) > ROUNDING * float(whole[predicted].abs().max())).nonzero()[0])
        return failed(
            "decoding",
            worst,
            f"The logits of stepping differ from those of one forward pass by {worst:.1e} of the largest, first at "
            f"token {first} (bos is 0).",
        )
    for name, loss in task.losses.named().items():
        if isinstance(loss, CaptioningLoss):
            penalty = 0.0 if output.decoder.penalty is None else float(output.decoder.penalty)
            labels = tokens[:, 1:][predicted]
            formula = penalty + float(F.cross_entropy(stepped[predicted], labels, label_smoothing=loss.label_smoothing))
            computed = float(loss(output, batch))
            difference = abs(computed - formula) / abs(formula)
            if difference > ROUNDING:
                message = (
                    f"The loss {name!r} is {computed:.6g}; the mean of -log p(next token) by stepping is {formula:.6g}."
                )
                return failed("decoding", difference, message)
            worst = max(worst, difference)
    different = _check_search(decoder, memory, memory_mask, run)
    return passed("decoding", worst) if different is None else failed("decoding", worst, different)


def _check_search(decoder: Decoder, memory: Tensor, memory_mask: Tensor | None, run: SmallRun) -> str | None:
    """Greedy search against the argmax of a forward pass over the whole prefix; what differs, or None."""
    tokenizer = run.data.tokenizer
    ids: dict[str, Any] = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    length = min(LENGTH, run.data.max_length, decoder.max_length or LENGTH)
    config = GenerationConfig(max_length=length)
    searched = generate(decoder, memory, memory_mask, config=config, **ids).tokens[:, 0]
    with evaluating(decoder):
        prefix = torch.full((len(memory), 1), tokenizer.bos_id)
        ended = torch.zeros(len(memory), dtype=torch.bool)
        for _ in range(searched.shape[1]):
            hidden = decoder(prefix, memory, memory_mask)[:, -1]
            token = decoder.output_projection(hidden).argmax(1).masked_fill(ended, tokenizer.pad_id)
            prefix, ended = torch.cat([prefix, token[:, None]], dim=1), ended | (token == tokenizer.eos_id)
    different = (prefix[:, 1:] != searched).any(1)
    if not different.any() and (ended.all() or searched.shape[1] == length):
        return None
    row = int(different.nonzero()[0]) if different.any() else int((~ended).nonzero()[0])
    return (
        f"Greedy search differs from the most probable tokens for {int(different.sum())} of {len(memory)} samples. "
        f"Sample {row}: {tokenizer.decode(searched[row].tolist())!r} by search, "
        f"{tokenizer.decode(prefix[row].tolist())!r} by forward passes."
    )
