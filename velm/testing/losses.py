"""The contract check of losses."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from velm.errors import MissingOutputError
from velm.losses.base import Loss
from velm.outputs import (
    IGNORE,
    Batch,
    DecoderOutput,
    JointEmbeddings,
    NextTokenPrediction,
    TeacherEmbeddings,
    VisionLanguageOutput,
    aligns,
)
from velm.testing.laws import ALL, Outputs, PartUnderTest, different, dtype_kept, state_restored
from velm.testing.report import Report

BATCH, LENGTH, WIDTH, WORDS = 4, 5, 8, 16
IMAGE_IDS = (0, 1, 1, 2)  # two captions of one image


def check_loss(loss: Any) -> Report:
    """Check every law of `velm.Loss` on exactly the outputs that the loss `requires`.

    Args:
        loss: a callable without arguments that builds a fresh instance, or an instance.
    """
    tested = PartUnderTest.of(loss, "loss")
    report, module = tested.report, tested.instance
    if not tested.judge_type(Loss):
        return report

    def probe(module: Any, rows: Any = ALL, dtype: torch.dtype = torch.float32) -> Outputs:
        return {"the loss": module(*_case(module, rows, dtype)[:2])}

    def alone(rows: slice) -> str | None:
        return _scalar(probe(module, rows)["the loss"])

    def shuffled() -> str | None:
        gap = different(probe(module), probe(module, torch.tensor([2, 0, 3, 1])))
        return (
            gap and f"the same pairs in another order: {gap}; expected no difference. Match pairs by batch.image_ids."
        )

    def runs() -> str | None:
        probe(module.eval())
        return None

    report.judge("raised", runs)
    report.judge("not a scalar", lambda: alone(ALL), ("raised",))
    sound = ("raised", "not a scalar")
    report.judge("no gradient", lambda: _gradient(module), sound)
    report.judge("order matters", shuffled, sound)
    report.judge("batch of one", lambda: alone(slice(0, 1)), sound)
    if module.additive:
        report.judge("not additive", lambda: _additive(module), sound)
    if tested.has_factory:
        report.judge("state not restored", lambda: state_restored(tested.build, probe), sound)
    report.judge("dtype changed", lambda: dtype_kept(tested.build, probe), sound)
    return report


class _RequiredOutput(VisionLanguageOutput):
    """Raises if a loss reads an embedding that it does not require."""

    def __init__(self, required: Collection[str]) -> None:
        super().__init__()
        self.required = required

    def _embeddings(self, name: str) -> JointEmbeddings:
        if name not in self.required:
            raise MissingOutputError(f"The loss reads {name}, which is not in its `requires`.")
        return super()._embeddings(name)


def _case(module: Any, rows: Any, dtype: torch.dtype) -> tuple[VisionLanguageOutput, Batch, dict[str, Tensor]]:
    """The required outputs, the batch, and the leaf tensors that should receive a gradient."""
    generator = torch.Generator().manual_seed(0)
    leaves = {
        name: torch.randn(*shape, generator=generator).to(dtype)[rows].requires_grad_()
        for name, shape in {
            "image_embeds": (BATCH, WIDTH),
            "text_embeds": (BATCH, WIDTH),
            "decoder": (BATCH, LENGTH - 1, WIDTH),
        }.items()
    }
    tokens = torch.randint(3, WORDS, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, -1] = False
    tokens, mask = tokens[rows], mask[rows]
    labels = tokens[:, 1:].masked_fill(~mask[:, 1:], IGNORE)
    projection = nn.Linear(WIDTH, WORDS, dtype=dtype)
    with torch.no_grad():
        projection.weight.copy_(torch.randn(WORDS, WIDTH, generator=generator))
        projection.bias.zero_()
    required = sorted(module.requires)
    if unknown := [name for name in required if name not in leaves]:
        raise ValueError(f"requires names {unknown}; expected some of {sorted(leaves)}")
    output = _RequiredOutput(required)
    if aligns(required):
        image_embeds, text_embeds = (normalize(leaves[name], dim=-1) for name in ("image_embeds", "text_embeds"))
        output.embeddings = JointEmbeddings(image_embeds, text_embeds)
    if "decoder" in required:
        output.prediction = NextTokenPrediction(DecoderOutput(leaves["decoder"]), labels, projection)
    image, text = torch.randn(2, BATCH, WIDTH, generator=generator)
    teacher = TeacherEmbeddings(image, text, scale=10.0)
    batch = Batch(None, tokens, mask, torch.tensor(IMAGE_IDS)[rows], teacher=teacher.map(lambda each: each[rows]))
    return output, batch, {name: leaves[name] for name in required}


def _scalar(value: Any) -> str | None:
    if isinstance(value, Tensor) and value.dim() == 0 and torch.isfinite(value):
        return None
    came = f"{tuple(value.shape)} {value.flatten()[:3].tolist()}" if isinstance(value, Tensor) else repr(value)
    return f"forward returned {came}; expected one finite number, float (). Take the mean over the batch."


def _additive(module: Loss) -> str | None:
    """With the batch's target_count, the losses of its micro-batches sum to the loss of the batch."""
    module = copy.deepcopy(module).double()

    def loss_of(rows: slice) -> Tensor:
        output, batch, _ = _case(module, rows, torch.float64)
        return module(output, replace(batch, target_count=torch.tensor(float(count))))

    prediction = _case(module, ALL, torch.float64)[0].prediction
    count = 1 if prediction is None else int((prediction.labels != IGNORE).sum())
    gap = different({"the loss": loss_of(slice(0, 1)) + loss_of(slice(1, None))}, {"the loss": loss_of(ALL)})
    return gap and (
        f"the losses of two micro-batches do not add up to the loss of the batch: {gap}. Divide a sum by "
        "batch.target_count, or leave `additive` False."
    )


def _gradient(module: Any) -> str | None:
    output, batch, leaves = _case(module, ALL, torch.float32)
    value = module.train()(output, batch)
    if not value.requires_grad:
        return "the loss carries no gradient; expected one. Remove detach(), no_grad() or .item()."
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inputs = {**leaves, **parameters}
    gradients = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
    missed = [name for name, g in zip(inputs, gradients, strict=True) if g is None or not torch.isfinite(g).all()]
    return (
        f"no finite gradient reaches {', '.join(missed)}; expected one for every required output and every "
        "parameter. Use them, or remove them from `requires`."
        if missed
        else None
    )
