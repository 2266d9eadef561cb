"""Two processes give the gradients of one with the whole batch: every alignment loss, captioning, shared pictures."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy

from velm.losses.alignment import ContrastiveLoss
from velm.outputs import Batch
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
    """Eight pairs of five pictures, sentences of unequal lengths: the halves predict 22 and 13 tokens."""
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


def make_task(losses: dict) -> VisionLanguageTask:
    torch.manual_seed(0)
    return VisionLanguageTask(
        image_encoder={"name": "cnn", "dim": 16},
        text_encoder={"name": "rnn", "dim": 12},
        decoder={"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        losses=losses,
        embed_dim=8,
        vocab_size=20,
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
    """Writes down the gradients as the optimizer would get them."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients = gradients(pl_module)
        if self.path is not None and trainer.is_global_zero:
            torch.save(self.gradients, self.path)


def train_one_step(losses: dict, batch: Batch, keep: Keep, **options) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[keep], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(OneStep(batch), batch_size=None)
    trainer.fit(make_task(losses), loader)


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    batch = whole_batch()
    half = batch[:4] if rank == 0 else batch[4:]
    for name, losses in LOSSES.items():
        ContrastiveLoss.shares = name != "gathered"  # as a plugin's, which is of the whole batch and never knows
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        train_one_step(losses, half, Keep(folder / f"{name}.pt"), devices=2, strategy=strategy)


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the gradients of every loss, from two processes with half a batch each."""
    folder = tmp_path_factory.mktemp("gradients")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_the_gradients_of_one(name: str, of_two_processes: Path) -> None:
    whole = Keep()
    train_one_step(LOSSES[name], whole_batch(), whole, devices=1)
    split = torch.load(of_two_processes / f"{name}.pt", weights_only=True)
    assert split.keys() == whole.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.gradients.values())
    assert largest > 1e-3
    for parameter, gradient in whole.gradients.items():
        torch.testing.assert_close(split[parameter], gradient, rtol=0, atol=1e-10 * max(1.0, largest))
