"""The predicted memory of a step against the allocator of a real one; the advice; the probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from allocator import allocated_peak
from torch.nn import functional as F

from velm.data.text.bpe import ByteTokenizer
from velm.losses.alignment import ContrastiveLoss
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput
from velm.planning.advice import advise
from velm.planning.measure import measure, probe
from velm.planning.step import Costs, Setup, memory
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")

BATCH = 48


def make_task(**options: Any) -> VisionLanguageTask:
    parts: dict[str, Any] = {
        "image_encoder": {"name": "vit", "dim": 64, "depth": 2, "heads": 2, "patch_size": 8},
        "text_encoder": {"name": "transformer", "dim": 64, "depth": 2, "heads": 2},
        "decoder": {"name": "transformer", "dim": 64, "depth": 2, "heads": 2},
        "losses": {"contrastive": {}, "captioning": {}},
    }
    return VisionLanguageTask(**parts, embed_dim=32, vocab_size=ByteTokenizer().vocab_size, pad_id=0, **options)


@cache
def costs_of_a_step() -> Costs:
    return measure(make_task, make_batch, "32-true", rows=BATCH)


def make_batch(count: int) -> Batch:
    return probe(count, tokenizer=ByteTokenizer(), length=16, image_size=32)


def test_the_prediction_is_the_peak_of_a_real_step() -> None:
    """Activations within 2% of the allocator's peak; weights, gradients, moments and batch exactly."""
    predicted = memory(costs_of_a_step(), Setup(gpus=1, batch=BATCH))
    task, batch = make_task().train(), make_batch(BATCH)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peak = allocated_peak(lambda: task.losses(task.model(batch, task.needs), batch)[0])
    assert predicted["activations"] == pytest.approx(peak, rel=0.02)
    size = sum(p.numel() * p.element_size() for p in task.parameters())
    assert predicted["weights"] == predicted["gradients"] == predicted["optimizer"] / 2 == size
    assert batch.images is not None
    assert batch.tokens is not None
    assert predicted["batch"] == batch.images.numel() + 8 * batch.tokens.numel()


def test_hard_negatives_of_the_loss_are_counted() -> None:
    """K more texts per text: the cost of a forward pass is linear in K."""

    def forward(count: int) -> float:
        losses = {"contrastive": {"hard_negatives": count}}
        task = partial(VisionLanguageTask, text_encoder={"name": "transformer", "dim": 64, "depth": 2, "heads": 2},
                       image_encoder={"name": "vit", "dim": 64, "depth": 2, "heads": 2, "patch_size": 8},
                       losses=losses, embed_dim=32, vocab_size=ByteTokenizer().vocab_size, pad_id=0)  # fmt: skip
        return measure(task, make_batch, "32-true", rows=8).forward_flops[0]

    none, one, three = forward(0), forward(1), forward(3)
    assert one > none
    assert three - none == pytest.approx(3 * (one - none), rel=1e-6)


LLAMA = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def make_llm(memory: tuple[str, ...] = ("image",), vocab_size: int = 6000, **decoder: Any) -> VisionLanguageTask:
    return VisionLanguageTask(
        image_encoder={"name": "vit", "dim": 64, "depth": 1, "heads": 2, "patch_size": 8},
        text_encoder={"name": "transformer", "dim": 64, "depth": 1, "heads": 2} if "text" in memory else None,
        decoder={"name": "llm/llama", "config": LLAMA, **decoder},
        losses={"captioning": {"chunk_size": 64}},
        memory=list(memory),
        vocab_size=vocab_size,
        pad_id=0,
    )


def make_pairs(count: int, has_prompt: bool = False) -> Batch:
    return probe(count, tokenizer=ByteTokenizer(), length=16, image_size=32, has_target=True, has_prompt=has_prompt)


@pytest.mark.parametrize(
    "options",
    [{"memory": ("image", "text")}, {"template": "what is {text} ?"}, {"trainable": "projector", "shuffle": 2},
     {"projector": "resampler", "prefix_norm": "match", "trainable": "projector", "vocab_size": 60_000}],
)  # fmt: skip
def test_the_prediction_is_the_peak_of_a_language_model_behind_an_image(options: dict[str, Any]) -> None:
    """The prefix lengthens the sequence, logits are held in chunks; a frozen model has no gradients and no moments."""
    make_batch = partial(make_pairs, has_prompt="template" in options)
    costs = measure(lambda: make_llm(**options), make_batch, "32-true", rows=BATCH)
    predicted = memory(costs, Setup(gpus=1, batch=BATCH))
    task, batch = make_llm(**options).train(), make_batch(BATCH)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    peak = allocated_peak(lambda: task.losses(task.model(batch, task.needs), batch)[0])
    assert predicted["activations"] == pytest.approx(peak, rel=0.04)
    trained = sum(p.numel() * p.element_size() for p in task.parameters() if p.requires_grad)
    assert predicted["gradients"] == predicted["optimizer"] / 2 == trained
    if options.get("trainable"):
        assert trained < 0.1 * predicted["weights"]


def test_a_vocabulary_of_262k_is_planned_without_its_memory_and_its_logits_are_held_in_chunks() -> None:
    """Short texts, too: until a chunk is full, the logits grow with the batch, and no further."""
    costs = measure(lambda: make_llm(vocab_size=262_144, trainable="projector"), make_pairs, "32-true")
    large, larger = (memory(costs, Setup(gpus=1, batch=batch)) for batch in (512, 1024))
    assert large["weights"] > 2 * 262_144 * 64 * 4
    assert larger["activations"] < 1.01 * 512 * costs.activations[0] + large["activations"]
    logits = 64 * 262_144 * 4
    assert logits < costs.activations[1] < 1.1 * logits
    assert 1024 * costs.activations[0] < 0.2 * 1024 * 15 * 262_144 * 4


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiles of the similarities are larger with several threads, and 1,200 rows then fill none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("measured", "rows"), [(300, 300), (1200, 1400), (1200, 2500)])
def test_the_prediction_is_the_peak_of_a_real_alignment_loss(measured: int, rows: int) -> None:
    """Similarities within 2% at the rows that are measured, between them and beyond.

    The prediction holds one more copy of the embeddings' gradients: autograd copies what a dispatch mode sees.
    """
    image_embeds, text_embeds = (F.normalize(torch.randn(rows, 32), dim=1).requires_grad_() for _ in range(2))
    output = VisionLanguageOutput(embeddings=JointEmbeddings(image_embeds, text_embeds))
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(rows))
    peak = allocated_peak(lambda: ContrastiveLoss()(output, batch))
    copies = 2 * image_embeds.numel() * image_embeds.element_size()
    costs = measure(make_task, make_batch, "32-true", rows=measured)
    similarities = memory(costs, Setup(gpus=1, batch=rows))["similarities"]
    assert similarities == pytest.approx(peak + copies, rel=0.02)


def test_frozen_parts_and_half_precision_take_less() -> None:
    setup = Setup(gpus=1, batch=BATCH)
    whole = memory(costs_of_a_step(), setup)
    half = memory(measure(make_task, make_batch, "bf16-true", rows=BATCH), setup)
    assert half["weights"] == whole["weights"] / 2
    assert half["activations"] < 0.6 * whole["activations"]
    frozen = memory(measure(lambda: make_task(freeze=["image_encoder"]), make_batch, "32-true", rows=BATCH), setup)
    assert frozen["activations"] < whole["activations"]
    assert frozen["optimizer"] < whole["optimizer"]


def test_advice_is_empty_if_it_fits_and_else_the_largest_micro_batch() -> None:
    costs = Costs(
        weights=1000, trainable=1000, in_blocks=600, largest_block=100, average=0, in_losses=4,
        activations=(50.0, 10.0), forward_flops=(10.0, 0.0), backward_flops=(20.0, 0.0), sample_bytes=3, embed_bytes=8,
        rows=1, captions=True, shared=False, loss_bytes=(0.0, 0.0, 0.0), loss_flops=(6.0, 0.0, 0.0),
    )  # fmt: skip
    setup = Setup(gpus=1, batch=8)
    total = memory(costs, setup)["total"]
    fits = advise(costs, setup, total, lambda: None)
    assert fits is not None
    assert fits.flags == ()
    split = advise(costs, setup, total - 1, lambda: None)
    assert split is not None
    assert split.flags == ("--model.micro_batch_size=4",)
    assert advise(costs, setup, 100, lambda: None) is None


def test_a_probe_has_the_shapes_of_a_batch() -> None:
    batch = probe(3, tokenizer=ByteTokenizer(), length=5, image_size=16, per_image=2, has_target=True)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.tokens is not None
    assert batch.tokens[0].tolist() == [1, 4, 4, 4, 2]
    assert batch.image_ids.tolist() == batch.image_rows.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    assert batch.target_tokens is not None
    assert probe(3, tokenizer=ByteTokenizer(), length=5, image_size=None).images is None
