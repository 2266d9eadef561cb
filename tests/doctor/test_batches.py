"""Batches and steps against sampling, and against the Trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from velm.doctor.batches import (
    accumulation,
    batch_size,
    false_negative_share,
    false_negatives,
    first_loss,
    optimizer_steps,
    steps,
    warmup,
)


def drawn(counts: list[int], batch: int, rounds: int = 4000) -> float:
    """The same share by drawing batches."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(len(counts)), counts)
    shares = []
    for _ in range(rounds):
        rows = rng.choice(image, batch, replace=False)
        shares.append((np.bincount(rows)[rows] > 1).mean())
    return float(np.mean(shares))


@pytest.mark.parametrize(("counts", "batch"), [([1, 2, 3, 4, 5], 4), ([5] * 20, 10), ([1] * 9, 5), ([3, 3], 6)])
def test_false_negatives_equal_what_drawing_gives(counts: list[int], batch: int) -> None:
    assert false_negative_share(counts, batch) == pytest.approx(drawn(counts, batch), abs=0.01)


def test_false_negatives_of_flickr8k_are_those_of_the_field() -> None:
    assert false_negative_share([5] * 6000, 512) == pytest.approx(0.066, abs=0.001)
    assert false_negative_share([5] * 6000, 2048) == pytest.approx(0.246, abs=0.001)


def test_false_negatives_at_the_edges() -> None:
    assert false_negative_share([1] * 10, 5) == 0
    assert false_negative_share([5] * 10, 1) == 0
    assert false_negative_share([5] * 10, 500) == 1
    finding = false_negatives([5] * 6000, rows=512)
    assert finding.severity == "info"
    assert "6.6% of the 512 rows" in finding.message
    assert "VELM's batches and losses have none" in finding.message
    shared = false_negatives([5] * 10, rows=4, repeated_ids=3)
    assert shared.severity == "warning"
    assert "3 records share their image_id with another record" in shared.message


def test_a_batch_larger_than_the_split() -> None:
    fine, batches, rows = batch_size([1] * 100, size=8, devices=2, captions="random")
    assert (fine.severity, batches, rows) == ("ok", 6, 16)
    small, batches, rows = batch_size([1] * 10, size=16, devices=1, captions="random")
    assert (small.severity, batches, rows) == ("warning", 1, 10)
    assert "batch_size 16 is more than this split can fill" in small.message
    assert "Lower data.batch_size to 10" in small.advice
    idle, batches, rows = batch_size([1] * 3, size=1, devices=5, captions="random")
    assert (idle.severity, batches, rows) == ("warning", 1, 3)
    assert "2 of 5 processes have nothing to do: use fewer" in idle.message


def test_samples_are_images_or_texts() -> None:
    assert batch_size([5] * 20, size=10, devices=1, captions="random")[1] == 2
    assert batch_size([5] * 20, size=10, devices=1, captions="all")[1] == 10


def test_first_loss_is_ln_b() -> None:
    finding = first_loss(["contrastive", "captioning"], rows=512, per_image=1, vocab_size=100)
    assert finding is not None
    assert finding.value == {"contrastive": math.log(512), "captioning": math.log(100)}
    assert "contrastive 6.24 = ln(512) nats" in finding.message
    assert first_loss(["contrastive"], rows=256, per_image=2, vocab_size=9).value["contrastive"] == math.log(255)  # type: ignore[union-attr]
    assert first_loss(["triplet"], rows=256, per_image=2, vocab_size=9) is None


def test_first_loss_is_that_of_the_loss() -> None:
    """Of embeddings that are all the same."""
    import torch

    from velm.losses.alignment import ContrastiveLoss
    from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(6).repeat_interleave(2))
    same = torch.ones(12, 1)
    loss = ContrastiveLoss()(VisionLanguageOutput(embeddings=JointEmbeddings(same, same)), batch)
    finding = first_loss(["contrastive"], rows=12, per_image=2, vocab_size=9)
    assert finding is not None
    assert loss.item() == pytest.approx(finding.value["contrastive"])


def test_first_loss_counts_the_hard_negatives_of_images() -> None:
    """Of embeddings that are all the same, and of the alarm that knows which negatives are missing."""
    import torch

    from velm.losses.alignment import ContrastiveLoss
    from velm.negatives import NegativeEmbeddings
    from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput
    from velm.training.monitor.alarms import uninformed

    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(6).repeat_interleave(2))
    same, valid = torch.ones(12, 1), torch.ones(12, 3, dtype=torch.bool)

    def loss() -> float:
        embeddings = JointEmbeddings(same, same, NegativeEmbeddings(torch.ones(12, 3, 1), valid))
        return ContrastiveLoss(hard_negatives=3)(VisionLanguageOutput(embeddings=embeddings), batch).item()

    finding = first_loss(["contrastive"], rows=12, per_image=2, vocab_size=9, hard_negatives=3)
    assert finding is not None
    assert loss() == pytest.approx(finding.value["contrastive"])
    assert "contrastive 2.52 = the mean of ln(1 + 12 - 2) and of ln(14) nats" in finding.message
    valid[:5, 1:] = False
    assert loss() == pytest.approx(uninformed(batch.image_ids, 1, valid.sum(1)))
    assert loss() < finding.value["contrastive"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "accumulate": 4},
        {"max_epochs": 2, "limit": 0.5},
        {"max_epochs": 2, "limit": 7},
        {"max_steps": 5},
        {"max_steps": 500, "max_epochs": 2},
        {},
    ],
)
def test_steps_are_those_of_the_trainer(options: dict) -> None:
    import lightning
    import torch

    class Stop(Exception):
        pass

    class Task(lightning.LightningModule):
        def configure_optimizers(self) -> None:  # where VELM's own asks for it
            raise Stop(self.trainer.estimated_stepping_batches)

    names = {"accumulate": "accumulate_grad_batches", "limit": "limit_train_batches"}
    given = {names.get(name, name): value for name, value in options.items()}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **given)
    task = Task()
    task.training_step = lambda batch: None  # type: ignore[method-assign, assignment]
    with pytest.raises(Stop) as stopped:
        trainer.fit(task, torch.utils.data.DataLoader(range(10)))  # type: ignore[arg-type]
    assert optimizer_steps(10, **options) == stopped.value.args[0]


def test_a_run_without_end_or_beginning() -> None:
    endless = steps(optimizer_steps(10, max_epochs=-1))
    assert endless.severity == "error"
    assert "Nothing ends the run" in endless.message
    none = steps(optimizer_steps(10, max_epochs=1, limit=0.01))
    assert (none.severity, none.message) == ("error", "The run has no step.")
    assert steps(12).message == "12 optimizer steps."


def test_a_warmup_longer_than_half_the_run() -> None:
    assert warmup(0.05, 100).severity == "ok"  # type: ignore[union-attr]
    long = warmup(0.8, 100)
    assert long is not None
    assert long.severity == "warning"
    assert "80 of 100 steps" in long.message
    assert warmup(0.05, math.inf) is None


def test_accumulation_is_no_larger_batch() -> None:
    assert accumulation(1, ["contrastive"]) is None
    assert accumulation(4, []).severity == "ok"  # type: ignore[union-attr]
    finding = accumulation(4, ["contrastive"])
    assert finding is not None
    assert finding.severity == "warning"
    assert "the negatives of a row (contrastive) come from its own batch" in finding.message
