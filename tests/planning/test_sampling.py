"""The predicted memory of captions that the loss `scst` samples against the allocator of a real step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from allocator import allocated, allocated_peak

from velm import _compat
from velm.data.text.bpe import ByteTokenizer
from velm.generation import GenerationConfig, generate
from velm.outputs import Batch, EncodedImages
from velm.planning.advice import advise
from velm.planning.measure import measure, probe
from velm.planning.sampling import with_samples
from velm.planning.step import Costs, Setup, flops, memory
from velm.training.self_critical import split_losses
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, LENGTH = 24, 16
EIGHT = {"samples": 8}
VIT = {"name": "vit", "dim": 64, "depth": 2, "heads": 2, "patch_size": 8}
DECODERS: dict[str, dict[str, Any]] = {
    "transformer": {"name": "transformer", "dim": 64, "depth": 2, "heads": 2},
    "rnn": {"name": "rnn", "cell": "lstm", "dim": 64, "embed_dim": 32},
}


def make_task(decoder: str = "transformer", freeze: bool = False, **loss: Any) -> VisionLanguageTask:
    return VisionLanguageTask(
        image_encoder=VIT, decoder=DECODERS[decoder], losses={"scst": {"chunk_size": 64, **loss}},
        vocab_size=ByteTokenizer().vocab_size, freeze=["image_encoder"] if freeze else None,
    )  # fmt: skip


def make_batch(count: int) -> Batch:
    return probe(count, tokenizer=ByteTokenizer(), length=LENGTH, image_size=32)


@cache
def costs_of(**options: Any) -> Costs:
    return measure(lambda: make_task(**options), make_batch, "32-true", rows=BATCH)


def sampled_peak(task: VisionLanguageTask, batch: Batch, samples: int) -> int:
    """Of the captions of a batch, as long as allowed."""
    config = GenerationConfig(
        max_length=LENGTH - 1, min_length=LENGTH - 1, temperature=1.0, num_return=samples
    )  # fmt: skip
    decoder = task.model.decoder
    assert decoder is not None

    def write() -> None:
        with torch.no_grad():
            memory = task.model.memory(task.model.encode_images_of(batch), None)
            generate(decoder, *memory, bos_id=1, eos_id=2, pad_id=0, suppress=(0, 1, 3), config=config)

    return allocated(write)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_prediction_is_the_peak_of_a_real_step(decoder: str, freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling within 5% of the allocator's peak, forward and backward within 3%; the features of a frozen encoder are
    part of the batch."""
    monkeypatch.setattr(_compat, "packs_linear_weights", lambda: False)  # as on the GPUs that a plan is of
    predicted = memory(costs_of(decoder=decoder, freeze=freeze, samples=6), Setup(gpus=1, batch=BATCH))
    task = make_task(decoder, freeze, samples=6).train()
    batch = with_samples(task, make_batch(BATCH))
    images, tokens = batch.images, batch.tokens
    assert images is not None
    assert tokens is not None
    assert len(tokens) == 6 * BATCH
    features = 0
    if freeze:
        output = task.model.encode_image(images)
        features = sum(t.numel() * t.element_size() for t in (output.features, output.pooled))
    assert predicted["sampling"] == pytest.approx(sampled_peak(task.eval(), batch, 6) - features, rel=0.05)
    assert predicted["batch"] == images.numel() + 8 * tokens.numel() + features
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if freeze:
        batch = replace(batch, images=None, encoded=EncodedImages.of(output))
    task.train()
    peak = allocated_peak(lambda: task.losses(task.model(batch, task.needs), batch)[0])
    assert predicted["activations"] == pytest.approx(peak, rel=0.03)
    parts = sum(size for part, size in predicted.items() if part not in ("total", "sampling", "activations"))
    assert predicted["total"] == parts + max(predicted["sampling"], predicted["activations"])


@pytest.mark.parametrize("freeze", [False, True])
def test_beside_other_losses_both_forward_passes_are_counted(freeze: bool) -> None:
    def build() -> VisionLanguageTask:
        losses = {"scst": {"chunk_size": 64, "samples": 3}, "captioning": {"chunk_size": 64}, "contrastive": {}}
        return VisionLanguageTask(
            image_encoder=VIT, text_encoder={"name": "transformer", "dim": 64, "depth": 2, "heads": 2},
            decoder=DECODERS["transformer"], losses=losses, vocab_size=ByteTokenizer().vocab_size,
            freeze=["image_encoder"] if freeze else None,
        )  # fmt: skip

    costs = measure(build, make_batch, "32-true", rows=BATCH)
    assert costs.rows == 1  # of the alignment loss
    task, own = build().train(), make_batch(BATCH)
    sampled = with_samples(task, own)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    encoded = EncodedImages.of(task.model.encode_image(own.images)) if freeze else None
    images = None if freeze else own.images
    passes = [(replace(batch, images=images, encoded=encoded), some)
              for batch, some in zip((sampled, own), split_losses(task.losses), strict=True)]  # fmt: skip

    def step() -> torch.Tensor:
        (of_samples, samples), (of_data, data) = passes
        output = task.model(of_samples, samples.requires)
        loss = samples(output, of_samples)[0]
        output = task.model(of_data, data.requires)
        return loss + data["captioning"](output, of_data) + output.image_embeds.sum() + output.text_embeds.sum()

    assert memory(costs, Setup(gpus=1, batch=BATCH))["activations"] == pytest.approx(allocated_peak(step), rel=0.05)


def test_more_samples_take_more_and_a_greedy_baseline_more_operations() -> None:
    few, many, greedy = (costs_of(**options) for options in ({"samples": 2}, EIGHT, {**EIGHT, "baseline": "greedy"}))
    setup = Setup(gpus=1, batch=BATCH)
    assert memory(many, setup)["sampling"] > 2 * memory(few, setup)["sampling"]
    assert memory(many, setup)["activations"] > 2 * memory(few, setup)["activations"]
    assert memory(greedy, setup)["sampling"] == pytest.approx(memory(many, setup)["sampling"], rel=0.01)
    assert flops(greedy, setup)["forward"] > flops(many, setup)["forward"] > flops(few, setup)["forward"]
    assert few.rows == 2


def test_a_micro_batch_counts_samples_and_does_not_split_sampling() -> None:
    costs, setup = costs_of(**EIGHT), Setup(gpus=1, batch=BATCH)
    whole = memory(costs, setup)
    assert whole["activations"] > whole["sampling"]
    advice = advise(costs, setup, whole["total"] - 1, lambda: None)
    assert advice is not None
    assert advice.flags == (f"--model.micro_batch_size={8 * 16}",)
    assert memory(costs, advice.setup)["sampling"] == whole["sampling"]
