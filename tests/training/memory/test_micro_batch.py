"""`micro_batch_size` gives the gradient of the whole batch, whatever the losses, shared images and dropout."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velm.losses.base import Loss
from velm.outputs import Batch, SampledCaptions, TeacherEmbeddings
from velm.training.memory import micro_batch as micro
from velm.training.task import VisionLanguageTask

LOSSES: dict[str, dict[str, Any]] = {
    "contrastive": {"contrastive": {}},
    "sigmoid": {"sigmoid": {"weight": 0.5}},
    "triplet": {"triplet": {}},
    "captioning": {"captioning": {"label_smoothing": 0.1}},
    "scst": {"scst": {}},
    "joint": {"contrastive": {}, "captioning": {"weight": 2.0, "label_smoothing": 0.1}},
    "distillation": {"distillation": {"teacher": "a.ckpt", "feature": 20.0}, "captioning": {}},
    "three": {"sigmoid": {}, "triplet": {"weight": 0.3}, "captioning": {}},
}


def whole_batch(shared: bool = False, size: int = 7) -> Batch:
    """Sentences of unequal lengths; three show image 0, and two image 1."""
    generator = torch.Generator().manual_seed(1)
    image_ids = torch.tensor([0, 0, 1, 2, 1, 0, 3])[:size]
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    lengths = torch.tensor([9, 7, 5, 3, 6, 4, 4])[:size]
    tokens = torch.randint(4, 20, (size, 9), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    tokens[:, 0] = 1
    tokens[torch.arange(size), lengths - 1] = 2
    shown = {"images": images, "image_rows": image_ids} if shared else {"images": images[image_ids]}
    teacher = TeacherEmbeddings(*torch.randn(2, size, 8, generator=generator), scale=10.0)
    sampled = SampledCaptions(torch.randn(size, generator=generator), suppressed=(0, 1, 3))
    return Batch(
        tokens=tokens.where(mask, 0), mask=mask, image_ids=image_ids, teacher=teacher, sampled=sampled, **shown
    )


def make_task(losses: dict[str, Any], micro_batch_size: int | None = None, **changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8},
        "text_encoder": {"name": "rnn", "dim": 12},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        "embed_dim": 8,
        "vocab_size": 20,
    }
    return VisionLanguageTask(losses=losses, micro_batch_size=micro_batch_size, **{**options, **changes})


class Alone:
    """A trainer of one device, as far as a step asks for it."""

    world_size = 1


def step(task: VisionLanguageTask, batch: Batch, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The losses and gradients of one step in training mode."""
    task.to(dtype).train()._trainer = Alone()  # type: ignore[assignment]
    torch.manual_seed(3)
    total, parts = task.compute_losses(batch)
    total.backward()
    gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    return {"total": total.detach(), **{name: part.detach() for name, part in parts.items()}, **gradients}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    largest = max(1.0, *(float(value.abs().max()) for value in expected.values()))
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shared", [False, True], ids=["an image each", "shared images"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_pieces_give_the_losses_and_gradients_of_the_whole(name: str, shared: bool) -> None:
    expected = step(make_task(LOSSES[name]), whole_batch(shared))
    assert sum(float(value.abs().sum()) for key, value in expected.items() if "image_encoder" in key) > 1e-3
    for size in (1, 2, 3, 6):
        assert_same(step(make_task(LOSSES[name], size), whole_batch(shared)), expected)


def test_single_precision_agrees_to_its_own_rounding() -> None:
    expected = step(make_task(LOSSES["joint"]), whole_batch(), torch.float32)
    assert_same(step(make_task(LOSSES["joint"], 2), whole_batch(), torch.float32), expected, 1e-6)


def test_a_batch_that_fits_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.task.micro_batch_losses", None)
    step(make_task(LOSSES["joint"], 7), whole_batch())


def test_the_penalty_of_a_decoder_is_the_mean_over_all_samples() -> None:
    decoder = {"name": "rnn", "dim": 16, "doubly_stochastic": 1.0, "dropout": 0.0}
    expected = step(make_task(LOSSES["joint"], decoder=decoder), whole_batch())
    for size in (2, 3):
        assert_same(step(make_task(LOSSES["joint"], size, decoder=decoder), whole_batch()), expected)


def test_targets_and_a_memory_of_both() -> None:
    batch = whole_batch()
    batch = replace(batch, target_tokens=batch.tokens.flip(0), target_mask=batch.mask.flip(0))
    expected = step(make_task(LOSSES["joint"], memory=["image", "text"]), batch)
    assert_same(step(make_task(LOSSES["joint"], 3, memory=["image", "text"]), batch), expected)


class Focal(Loss):
    """A plugin's captioning loss that is a mean of its own, so it has to see the whole."""

    requires = frozenset({"decoder"})

    def forward(self, output: Any, batch: Batch) -> Tensor:
        logits = output.output_projection(output.decoder.hidden).flatten(0, 1)
        return nn.functional.cross_entropy(logits, output.labels.flatten()) ** 2


def test_a_loss_that_is_not_additive_sees_the_whole_batch() -> None:
    expected = step(make_task({f"{__name__}:Focal": {}, "contrastive": {}}), whole_batch())
    assert_same(step(make_task({f"{__name__}:Focal": {}, "contrastive": {}}, 3), whole_batch()), expected)


def dropping(size: int) -> VisionLanguageTask:
    parts = {
        "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8, "dropout": 0.3},
        "text_encoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "dropout": 0.3},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "dropout": 0.3},
    }
    return make_task(LOSSES["joint"], size, embed_dropout=0.2, **parts)


def test_dropout_is_the_same_when_a_piece_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(dropping(3), whole_batch())
    without = step(make_task(LOSSES["joint"], 3), whole_batch())
    assert abs(float(found["total"] - without["total"])) > 1e-3
    monkeypatch.setattr(micro, "checkpoint", lambda run, piece, **options: run(piece))  # everything kept
    assert_same(found, step(dropping(3), whole_batch()))


def test_batch_norm_counts_a_piece_once(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = {"name": "cnn", "dim": 16, "widths": [8], "norm": "batch"}
    task = make_task(LOSSES["joint"], 3, image_encoder=norm)
    step(task, whole_batch())
    found = dict(task.model.named_buffers())
    monkeypatch.setattr(micro, "checkpoint", lambda run, piece, **options: run(piece))
    task = make_task(LOSSES["joint"], 3, image_encoder=norm)
    step(task, whole_batch())
    counted = [name for name in found if name.endswith(("running_mean", "num_batches_tracked"))]
    assert counted
    for name in counted:
        torch.testing.assert_close(found[name], dict(task.model.named_buffers())[name])


def test_bfloat16_pieces_are_as_near_as_bfloat16_is() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(make_task(LOSSES["joint"]), whole_batch(), torch.float32)
        found = step(make_task(LOSSES["joint"], 2), whole_batch(), torch.float32)
    assert_same(found, expected, 0.02)


class Saved:
    """How many numbers the graph keeps for the backward pass."""

    def __init__(self) -> None:
        self.numbers = 0

    def __enter__(self) -> Saved:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)
        self.hooks.__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        self.numbers += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
        return tensor

    def __exit__(self, *details: Any) -> None:
        self.hooks.__exit__(*details)


def test_activations_of_pieces_are_not_kept() -> None:
    task = make_task(LOSSES["joint"], 2)
    task._trainer = Alone()  # type: ignore[assignment]
    with Saved() as whole:
        task.losses(task.model(whole_batch(), task.needs), whole_batch())
    with Saved() as pieces:
        task.compute_losses(whole_batch())
    assert pieces.numbers < whole.numbers / 20


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("shared", [False, True])
def test_pieces_of_a_batch_are_its_samples(size: int, shared: bool) -> None:
    batch = whole_batch(shared)
    pieces = batch.micro_batches(size)
    assert [len(piece) for piece in pieces] == [min(size, 7 - start) for start in range(0, 7, size)]
    assert torch.cat([piece.image_ids for piece in pieces]).tolist() == batch.image_ids.tolist()

    def shown(batch: Batch) -> list[Tensor]:
        assert batch.images is not None
        images = batch.images if batch.image_rows is None else batch.images[batch.image_rows]
        return list(images)

    seen = [image for piece in pieces for image in shown(piece)]
    assert all(torch.equal(a, b) for a, b in zip(seen, shown(batch), strict=True))
    for piece, start in zip(pieces, range(0, 7, size), strict=True):
        assert piece.mask is not None and piece.tokens is not None  # noqa: PT018
        assert piece.mask.any(0).all(), "no column of padding alone"
        width = piece.mask.shape[1]
        assert torch.equal(piece.tokens, batch.tokens[start : start + size, :width])


def test_a_size_below_one_is_refused_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from velm import cli

    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "configs/quickstart.yaml", "--model.micro_batch_size=0"])
    assert "micro_batch_size" in capsys.readouterr().err


def warned(task: VisionLanguageTask, accumulate: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        micro.warn_about_negatives(task.losses, accumulate)
        micro.warn_about_norms(task.model, task.micro_batch_size)
    return [str(warning.message) for warning in caught]


def test_accumulation_with_negatives_of_the_batch_is_warned_of() -> None:
    [message] = warned(make_task(LOSSES["three"]), 4)
    assert "sigmoid and triplet" in message
    assert "model.micro_batch_size" in message
    assert not warned(make_task(LOSSES["captioning"]), 4)
    assert not warned(make_task(LOSSES["joint"], 2), 1)


def test_batch_norm_over_pieces_is_warned_of() -> None:
    norm = {"name": "cnn", "dim": 16, "widths": [8], "norm": "batch"}
    [message] = warned(make_task(LOSSES["joint"], 2, image_encoder=norm), 1)
    assert "norm: group" in message
    assert not warned(make_task(LOSSES["joint"], image_encoder=norm), 1)
    assert not warned(make_task(LOSSES["joint"], 2, image_encoder=norm, freeze=["image_encoder"]), 1)
