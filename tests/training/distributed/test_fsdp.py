"""FSDP2 from the command line: the figures of one device, and checkpoints that go on there and come from there."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.utilities import rank_zero_only

import velm
from velm import cli

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CONFIG = """
seed_everything: 0
model:
  image_encoder: {name: vit, dim: 16, depth: 2, heads: 2, patch_size: 8}
  text_encoder: {name: transformer, dim: 16, depth: 2, heads: 2}
  decoder: {name: transformer, dim: 16, depth: 2, heads: 2}
  losses: {contrastive: {}, captioning: {}}
data:
  dataset: {name: shapes, train_size: 64, val_size: 8, test_size: 4, heldout_size: 0}
  image_size: 16
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
"""
ONE = ["--trainer.devices=1", "--data.batch_size=16"]
TWO = ["--trainer.devices=2", "--trainer.strategy=fsdp2", "--data.batch_size=8", "--model.micro_batch_size=3"]
STOP = ["--trainer.callbacks=[tests.training.distributed.test_fsdp.StopInTheMiddle]", "--checkpoint_every_n_steps=6"]


class StopInTheMiddle(lightning.Callback):
    """Ends the run after six of eight steps, as a kill would: nothing more is saved."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        if trainer.global_step == 6:
            raise KeyboardInterrupt


def fit(rank: int, folder: Path, arguments: list[str], port: int | None) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    if port is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        rank_zero_only.rank = rank  # Lightning, imported before, has looked for it
    try:
        cli.main(["fit", "--config", "run.yaml", *arguments])
    except (KeyboardInterrupt, SystemExit):
        os._exit(0)


def run(folder: Path, devices: list[str], *arguments: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] if devices is TWO else None
    mp.spawn(fit, args=(folder, [*devices, *arguments], port), nprocs=2 if devices is TWO else 1)


def losses(folder: Path) -> list[float]:
    with open(folder / "runs/run/metrics.csv", newline="") as file:
        rows = [row["train/contrastive"] for row in csv.DictReader(file)]  # captioning is logged as one device has it
    return [float(value) for value in rows if value]


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, ONE)
    return folder


def assert_the_same(found: Path, expected: Path) -> None:
    torch.testing.assert_close(losses(found), losses(expected), rtol=1e-4, atol=1e-4)
    weights, others = (torch.load(f / "runs/run/last.ckpt", weights_only=True)["state_dict"] for f in (found, expected))
    assert weights.keys() == others.keys()
    for name, weight in others.items():
        if not name.endswith("key_value.bias"):  # the keys' has no gradient but rounding, which Adam makes large
            torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_fsdp2_trains_to_what_one_device_trains_to(of_one: Path, tmp_path: Path) -> None:
    run(tmp_path, TWO)
    assert len(losses(tmp_path)) == 8
    assert_the_same(tmp_path, of_one)
    velm.load(str(tmp_path / "runs/run/best.ckpt"))


@pytest.mark.parametrize(("first", "then"), [(ONE, TWO), (TWO, ONE), (TWO, TWO)], ids=["1 to 2", "2 to 1", "2 to 2"])
def test_a_run_goes_on_with_other_devices(first: list[str], then: list[str], of_one: Path, tmp_path: Path) -> None:
    run(tmp_path, first, *STOP)
    run(tmp_path, then, "--ckpt_path=runs/run/last.ckpt")
    assert_the_same(tmp_path, of_one)


def test_a_text_encoder_of_the_decoders_blocks_trains_as_on_one_device(tmp_path: Path) -> None:
    shared = ["--model.text_encoder={name: decoder}", "--model.decoder.unimodal_depth=1"]
    for folder, devices in (("one", ONE), ("two", TWO)):
        run(tmp_path / folder, devices, *shared)
    assert_the_same(tmp_path / "two", tmp_path / "one")
    velm.load(str(tmp_path / "two/runs/run/best.ckpt"))


def test_an_average_of_weights_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run(tmp_path, TWO, "--model.ema=0.9")
    assert "set it to null, or use ddp" in capfd.readouterr().err
