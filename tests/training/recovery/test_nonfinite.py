"""A step with NaN or inf is skipped, counted, and its batch saved; too many in a row end the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from velm.errors import NonFiniteError
from velm.outputs import Batch
from velm.training.recovery.nonfinite import DUMPS, Averaging, NonFiniteGuard

pytestmark = pytest.mark.filterwarnings("ignore")


class Small(lightning.LightningModule):
    """A batch norm and a linear layer; the loss or a gradient is not finite in the listed batches."""

    def __init__(self, bad_steps: list[int], what: str = "loss") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.bad_steps, self.what, self.states = set(bad_steps), what, []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        x = batch.images.float().flatten(1)
        if self.what == "loss" and index in self.bad_steps:
            x = x * math.nan
        return self.net(x).square().mean()

    def on_after_backward(self) -> None:
        if self.what == "gradient" and self.trainer.fit_loop.epoch_loop.batch_idx in self.bad_steps:
            self.net[1].bias.grad.fill_(math.inf)

    def on_train_batch_end(self, *_: Any) -> None:
        state = {name: value.clone() for name, value in self.state_dict().items()}
        for index, saved in self.optimizers().optimizer.state_dict()["state"].items():
            state |= {f"{index}.{name}": value.clone() for name, value in saved.items()}
        average = next(c for c in self.trainer.callbacks if isinstance(c, Averaging))._average_model
        self.states.append(state | {f"average.{n}": v.clone() for n, v in average.state_dict().items()})

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Batch:
        images = torch.randint(0, 256, (3, 4, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        return Batch(images=images, tokens=torch.full((3, 5), index), mask=None, image_ids=torch.arange(3))


def train(model: Small, folder: Path, limit: int | None = 10, **options: Any) -> NonFiniteGuard:
    torch.manual_seed(0)
    guard = NonFiniteGuard(folder, limit)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[guard, Averaging()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **{"gradient_clip_val": 1.0, **options},
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(Batches(), batch_size=None))
    return guard


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(what: str, tmp_path: Path) -> None:
    model = Small([3, 7], what)
    guard = train(model, tmp_path)
    assert guard.skipped == 2
    assert guard.in_a_row == 0
    for step in range(1, 12):
        same = [
            name for name in model.states[step] if torch.equal(model.states[step][name], model.states[step - 1][name])
        ]
        assert (len(same) == len(model.states[step])) == (step in (3, 7))


def test_the_first_batches_are_saved(tmp_path: Path) -> None:
    guard = train(Small(list(range(2, 12))), tmp_path, limit=None)
    assert guard.skipped == 10
    assert len(list((tmp_path / "nonfinite").iterdir())) == DUMPS
    saved = torch.load(tmp_path / "nonfinite" / "step_2_rank_0.pt", weights_only=True)
    assert torch.equal(saved["tokens"], torch.full((3, 5), 2))
    assert saved["images"].dtype == torch.uint8
    assert (saved["step"], saved["epoch"]) == (2, 0)
    assert "net.1.bias" in saved["nonfinite_gradients"]


def test_of_accumulated_batches_the_one_with_nan_is_saved(tmp_path: Path) -> None:
    guard = train(Small([4]), tmp_path, accumulate_grad_batches=3)
    assert guard.skipped == 1
    assert int(torch.load(tmp_path / "nonfinite" / "step_1_rank_0.pt", weights_only=True)["tokens"][0, 0]) == 4


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"in 3 steps in a row, up to step 7.* lower model.optimizer.lr .*--resume"
    ):
        train(Small([1, 2, 4, 5, 6, 8]), tmp_path, limit=3)


def test_the_counts_are_in_the_checkpoint(tmp_path: Path) -> None:
    first, second = NonFiniteGuard(tmp_path), NonFiniteGuard(tmp_path)
    first.skipped, first.in_a_row = 5, 2
    second.load_state_dict(first.state_dict())
    assert (second.skipped, second.in_a_row) == (5, 2)


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "nonfinite").mkdir()
    (tmp_path / "nonfinite" / "step_2_rank_0.pt").symlink_to("/dev/full")
    assert train(Small([2]), tmp_path).skipped == 1
