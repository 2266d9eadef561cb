"""Several processes, and pieces of their batches, give the gradients of one with the whole batch.

Every alignment loss, captioning, shared images; DDP and FSDP2.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from velm.losses.alignment import ContrastiveLoss
from velm.outputs import Batch
from velm.training.distributed.fsdp import FSDP2Strategy
from velm.training.task import VisionLanguageTask

LOSSES = {
    "contrastive": {"contrastive": {}},
    "sigmoid": {"sigmoid": {"weight": 0.5}},
    "triplet": {"triplet": {}},
    "hardest_off": {"triplet": {"hardest": False}},
    "joint": {"contrastive": {}, "captioning": {"weight": 2.0, "label_smoothing": 0.1}},
    "captioning": {"captioning": {}},
    "gathered": {"contrastive": {}, "sigmoid": {}},
}


def whole_batch() -> Batch:
    """Eight pairs of five images, sentences of unequal lengths: the halves predict 22 and 13 tokens."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    image_ids = torch.tensor([0, 1, 2, 3, 0, 1, 4, 4])
    images = images[image_ids]
    lengths = torch.tensor([9, 7, 5, 5, 6, 4, 4, 4])
    tokens = torch.randint(4, 20, (8, 9), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    tokens[:, 0] = 1
    tokens[torch.arange(8), lengths - 1] = 2
    return Batch(images=images, tokens=tokens.where(mask, 0), mask=mask, image_ids=image_ids)


def make_task(losses: dict, micro_batch_size: int | None = None) -> VisionLanguageTask:
    torch.manual_seed(0)
    return VisionLanguageTask(
        image_encoder={"name": "cnn", "dim": 16},
        text_encoder={"name": "rnn", "dim": 12},
        decoder={"name": "transformer", "dim": 16, "depth": 2, "heads": 2},
        losses=losses,
        embed_dim=8,
        vocab_size=20,
        micro_batch_size=micro_batch_size,
    ).double()


def gradients(task: VisionLanguageTask) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


class OneStep(torch.utils.data.Dataset):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class Keep(lightning.Callback):
    """Writes down the gradients as the optimizer would get them; of shards, the whole."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        found = gradients(pl_module)
        self.gradients = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}
        if self.path is not None and trainer.is_global_zero:
            torch.save(self.gradients, self.path)


def train_one_step(task: VisionLanguageTask, batch: Batch, keep: Keep, **options) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[keep], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(OneStep(batch), batch_size=None)
    trainer.fit(task, loader)


def strategy_of(name: str) -> Strategy:
    if name == "fsdp2":
        return FSDP2Strategy(process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)


def worker(rank: int, world: int, port: int, cases: list[tuple[str, str, int | None]], folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank)}
    torch.set_num_threads(1)
    size = 8 // world
    mine = whole_batch()[rank * size : (rank + 1) * size]
    for case in cases:
        name, strategy, micro = case
        keep = Keep(folder / f"{file_of(case)}.pt")
        ContrastiveLoss.shares = name != "gathered"  # as a plugin's, which is of the whole batch and never knows
        task = make_task(LOSSES[name], micro)
        train_one_step(task, mine, keep, devices=world, strategy=strategy_of(strategy))
        if strategy == "fsdp2":
            assert all(isinstance(parameter, DTensor) for parameter in task.model.parameters())
            assert isinstance(task.model, FSDPModule)
            assert "joint" not in name or all(isinstance(block, FSDPModule) for block in task.model.decoder.blocks)


def file_of(case: tuple[str, str, int | None]) -> str:
    return "-".join(map(str, case))


def gradients_of(world: int, cases: list[tuple[str, str, int | None]], folder: Path) -> Path:
    """A folder with the gradients of every case, from so many processes with a share of the batch each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(world, port, cases, folder), nprocs=world)
    return folder


def assert_the_gradients_of_one(case: tuple[str, str, int | None], folder: Path) -> None:
    whole = Keep()
    train_one_step(make_task(LOSSES[case[0]]), whole_batch(), whole, devices=1)
    split = torch.load(folder / f"{file_of(case)}.pt", weights_only=True)
    assert split.keys() == whole.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.gradients.values())
    assert largest > 1e-3
    for parameter, gradient in whole.gradients.items():
        torch.testing.assert_close(split[parameter], gradient, rtol=0, atol=1e-10 * max(1.0, largest))


TWO = [(name, "ddp", micro) for name in LOSSES for micro in (None, 3)]
TWO += [(name, "fsdp2", micro) for name in ("joint", "sigmoid") for micro in (None, 3)]
FOUR = [(name, "ddp", micro) for name in LOSSES for micro in (None, 1)] + [("joint", "fsdp2", 1)]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradients_of(2, TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def of_four_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradients_of(4, FOUR, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("case", TWO, ids=file_of)
@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_the_gradients_of_one(case: tuple[str, str, int | None], of_two_processes: Path) -> None:
    assert_the_gradients_of_one(case, of_two_processes)


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUR, ids=file_of)
@pytest.mark.filterwarnings("ignore")
def test_four_processes_give_the_gradients_of_one(case: tuple[str, str, int | None], of_four_processes: Path) -> None:
    assert_the_gradients_of_one(case, of_four_processes)
