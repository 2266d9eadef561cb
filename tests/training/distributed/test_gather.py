"""Two and three processes give the gradients of one with the whole batch, whatever its size and however they share it.

Every loss, several captions of an image, micro-batches; DDP, and FSDP2 through Lightning.
"""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from velm.losses.alignment import ContrastiveLoss
from velm.losses.base import Loss
from velm.losses.tiled import tiles
from velm.negatives import HardNegatives
from velm.outputs import Batch, SampledCaptions, TeacherEmbeddings
from velm.training.distributed.fsdp import FSDP2Strategy
from velm.training.task import VisionLanguageTask

SIZES = range(1, 10)
JOINT: dict[str, Any] = {"contrastive": {}, "captioning": {"weight": 2.0, "label_smoothing": 0.1}}
LOSSES: dict[str, dict[str, Any]] = {
    "contrastive": {"contrastive": {}},
    "sigmoid": {"sigmoid": {"weight": 0.5}},
    "triplet": {"triplet": {}},
    "all_negatives": {"triplet": {"hardest": False}},
    "captioning": {"captioning": {}},
    "scst": {"scst": {}},
    "joint": JOINT,
    "uncertainty": JOINT,
    "gathered": {"contrastive": {}, "sigmoid": {}},
    "adapted": JOINT,
    "distillation": {"distillation": {"teacher": "a.ckpt", "teacher_dim": 6, "feature": 20.0}, "captioning": {}},
    "gathered_teacher": {"triplet": {}, "distillation": {"teacher": "a.ckpt", "teacher_dim": 6, "feature": 20.0}},
    "hard_negatives": {"contrastive": {"hard_negatives": 2}},
    "hard_negatives_gathered": {"contrastive": {"hard_negatives": 2}, "triplet": {}},
    "of_samples": {f"{__name__}:MeanOverSamples": {}},
}


class MeanOverSamples(Loss):
    """A plugin's loss that knows nothing of ranks: a mean over the samples that it gets."""

    requires = frozenset({"decoder"})

    def forward(self, output: Any, batch: Batch) -> Tensor:
        return output.output_projection(output.decoder.hidden[:, :3]).square().mean()


def whole_batch(size: int, name: str = "") -> Batch:
    """Pairs of five images, captions of unequal lengths; with 0 to 2 hard negatives each if the losses read them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=generator)
    image_ids = torch.tensor([0, 1, 2, 3, 0, 1, 4, 4, 0])[:size]
    lengths = torch.tensor([9, 7, 5, 5, 6, 4, 4, 4, 8])[:size]
    tokens = torch.randint(4, 20, (9, 9), generator=generator)[:size]
    mask = torch.arange(9) < lengths[:, None]
    tokens[:, 0] = 1
    tokens[torch.arange(size), lengths - 1] = 2
    batch = Batch(images=images[image_ids], tokens=tokens.where(mask, 0), mask=mask, image_ids=image_ids)
    batch.teacher = TeacherEmbeddings(*torch.randn(2, 9, 6, generator=generator)[:, :size], scale=10.0)
    batch.sampled = SampledCaptions(torch.randn(9, generator=generator)[:size] / size, suppressed=(0, 1, 3))
    if name.startswith("hard_negatives"):
        texts = torch.randint(4, 20, (9, 2, 7), generator=generator)[:size]
        content = torch.arange(7) < torch.tensor([[3, 7], [5, 4], [6, 3]]).repeat(3, 1)[:size, :, None]
        valid = torch.tensor([[True, False], [True, True], [False, False]]).repeat(3, 1)[:size]
        batch.hard_negatives = HardNegatives(texts.where(content, 0), content, valid)
    return batch


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    """A rank's samples, as `ImageBatchSampler` deals them; a stand-in where there are none."""
    rows = np.array_split(np.arange(len(batch)), world)[rank]
    share = batch[rows[0] : rows[-1] + 1] if len(rows) else batch[:1]
    share.stand_in = not len(rows)
    assert share.sampled is not None
    share.sampled = share.sampled.map(lambda advantages: advantages * world)  # divided by the mean over ranks
    return share


def make_task(name: str, micro_batch_size: int | None = None) -> VisionLanguageTask:
    torch.manual_seed(0)
    adapted = name == "adapted" and find_spec("peft") is not None
    dora = {"name": "dora", "target_modules": "all-linear", "init_lora_weights": False}
    task = VisionLanguageTask(
        image_encoder={"name": "vit", "dim": 8, "depth": 1, "heads": 2, "patch_size": 8},
        text_encoder={"name": "rnn", "dim": 8},
        decoder={"name": "rnn", "dim": 8, "dropout": 0.0, "doubly_stochastic": 1.0},
        losses=LOSSES[name],
        balance="uncertainty" if name == "uncertainty" else "fixed",
        embed_dim=8,
        vocab_size=20,
        micro_batch_size=micro_batch_size,
        adapt={"image_encoder": {"name": "lora", "init_lora_weights": False}, "decoder": dora} if adapted else None,
    )
    return task.double()


class Step(nn.Module):
    """The loss of a training step as a module's output, for DDP."""

    def __init__(self, task: VisionLanguageTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        _, parts = self.task.compute_losses(batch)
        return self.task.balance({name: self.task.losses.weights[name] * part for name, part in parts.items()})


def gradients_of_step(name: str, batch: Batch, micro: int | None = None, world: int = 1) -> dict[str, Tensor]:
    ContrastiveLoss.shares = name != "gathered"  # as a plugin's, which is of the whole batch and never knows
    task = make_task(name, micro)
    task._trainer = SimpleNamespace(world_size=world)  # type: ignore[assignment]
    step: nn.Module = DistributedDataParallel(Step(task)) if world > 1 else Step(task)
    step(batch).backward()
    ContrastiveLoss.shares = True
    return {name: parameter.grad.clone() for name, parameter in task.named_parameters() if parameter.grad is not None}


def join(rank: int, world: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank)}
    torch.set_num_threads(1)


def worker(rank: int, world: int, port: int, cases: list[tuple[str, int, int | None]], folder: Path) -> None:
    join(rank, world, port)
    tiles.tile_size = lambda _: (2, 3)
    distributed.init_process_group("gloo")
    found = {
        case: gradients_of_step(case[0], share_of(whole_batch(case[1], case[0]), rank, world), case[2], world)
        for case in cases
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def spawn(target: Any, world: int, *args: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(target, args=(world, port, *args), nprocs=world)


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], case: object, exact: float = 1e-10) -> None:
    assert found.keys() == expected.keys(), case
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected.values()))
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=exact * largest, msg=lambda m, n=name: f"{case} {n}: {m}"
        )


ALL = [(name, size, micro) for name in LOSSES for size in SIZES for micro in (None, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_processes_give_the_gradients_of_one(world: int, tmp_path: Path) -> None:
    spawn(worker, world, ALL, tmp_path)
    whole = {case[:2]: gradients_of_step(case[0], whole_batch(case[1], case[0])) for case in ALL}
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for case in ALL:
            exact = 1e-10 if world == 2 else 1e-7  # a third of a number of tokens, in float32
            assert_gradients(found[case], whole[case[:2]], (rank, *case), exact)


class OneStep(torch.utils.data.Dataset):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class Keep(lightning.Callback):
    """The gradients as the optimizer would get them, complete."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients = {name: g.full_tensor() if isinstance(g, DTensor) else g.clone() for name, g in found.items()}


def sharded_worker(rank: int, world: int, port: int, cases: list[tuple[str, int, int | None]], folder: Path) -> None:
    join(rank, world, port)
    found = {}
    for name, size, micro in cases:
        task, keep = make_task(name, micro), Keep()
        trainer = lightning.Trainer(
            accelerator="cpu", devices=world, strategy=FSDP2Strategy(process_group_backend="gloo"), max_steps=1,
            callbacks=[keep], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        batch = share_of(whole_batch(size), rank, world)
        trainer.fit(task, torch.utils.data.DataLoader(OneStep(batch), batch_size=None))
        assert all(isinstance(parameter, DTensor) for parameter in task.model.parameters())
        assert isinstance(task.model, FSDPModule)
        found[name, size, micro] = keep.gradients
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_shards_give_the_gradients_of_one(tmp_path: Path) -> None:
    """Five samples in micro-batches of two are two on one rank and one on the other; of one sample, a rank has none."""
    cases = [("joint", 8, None), ("joint", 5, 2), ("sigmoid", 1, None), ("adapted", 5, 2)]
    spawn(sharded_worker, 2, cases, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, size, micro in cases:
            assert_gradients(found[name, size, micro], gradients_of_step(name, whole_batch(size)), (name, size, micro))
