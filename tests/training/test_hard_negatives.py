"""`losses.contrastive.hard_negatives` in a run: the data makes them for training, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import fit, tiny_config

from velm.data.base import Record
from velm.errors import ConfigError, DataError
from velm.losses.weighted import build_losses
from velm.training.data import VisionLanguageData
from velm.training.hard_negatives import announce_hard_negatives

SHAPES = {"name": "shapes", "train_size": 12, "val_size": 4, "test_size": 4, "image_size": 32}


def make_data(**changes) -> VisionLanguageData:
    return VisionLanguageData(**{"dataset": SHAPES, "image_size": 16, "batch_size": 4, "seed": 0, **changes})


def test_training_has_them_and_validation_has_not() -> None:
    data = make_data()
    announce_hard_negatives(build_losses({"contrastive": {"hard_negatives": 2}}), data)
    for batch in data.train_dataloader():
        assert batch.hard_negatives.valid.shape == (4, 2)
        assert batch.hard_negatives.valid.all()
    assert all(batch.hard_negatives is None for batch in data.val_dataloader())
    announce_hard_negatives(build_losses({"contrastive": {}}), data)  # the same data for another run
    assert all(batch.hard_negatives is None for batch in data.train_dataloader())


def test_a_resumed_epoch_goes_on_with_the_same_negatives() -> None:
    def batches(data: VisionLanguageData, taken: int) -> list[torch.Tensor]:
        announce_hard_negatives(build_losses({"contrastive": {"hard_negatives": 2}}), data)
        loader = data.train_dataloader()
        if taken:
            loader.load_state_dict({"taken": taken, "of": len(loader), "plan": loader.batch_sampler.plan})
        return [batch.hard_negatives.tokens for batch in loader]

    whole, rest = batches(make_data(), 0), batches(make_data(num_workers=1), 1)
    assert len(whole) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_impossible_data_is_an_error_before_training() -> None:
    losses = build_losses({"contrastive": {"hard_negatives": 2}})
    with pytest.raises(ConfigError, match=r"hard_negatives is 2, and object makes none: use velm.training.data"):
        announce_hard_negatives(losses, object())
    announce_hard_negatives(build_losses({"contrastive": {}}), object())
    wordless = make_data()
    wordless._records["train"] = [Record("a", None, ("nothing here",))]
    with pytest.raises(DataError, match=r"training captions that were examined has words to exchange"):
        announce_hard_negatives(losses, wordless)


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.filterwarnings("ignore")
def test_a_run_with_them(micro: int | None, tmp_path: Path) -> None:
    losses = json.dumps({"contrastive": {"hard_negatives": 2}})
    folder = f"--trainer.default_root_dir={tmp_path}"
    parts = [] if micro is None else [f"--model.micro_batch_size={micro}"]
    assert fit(tiny_config(tmp_path), "--model.decoder=null", f"--model.losses={losses}", folder, *parts) == 0
    assert (tmp_path / "best.ckpt").is_file()
