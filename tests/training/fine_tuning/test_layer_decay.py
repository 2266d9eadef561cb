"""Layer-wise decay: block i of n learns at lr * decay ** (n - i); it is saved and resumed."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.training.fine_tuning.test_train_last import TOWERS, tower
from velm import cli
from velm.errors import ConfigError
from velm.registry import text_encoders
from velm.training.config import OptimizerConfig
from velm.training.fine_tuning.depth import repeated_blocks
from velm.training.optim import build_optimizer, build_schedule, parameter_groups, set_learning_rate

pytestmark = pytest.mark.filterwarnings("ignore")


def rates(part: nn.Module, **options: Any) -> dict[str, float]:
    """The rate of each trained parameter by its name."""
    names = {id(parameter): name for name, parameter in part.named_parameters()}
    groups = parameter_groups({"image_encoder": part}, OptimizerConfig(**options))
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize(("kind", "name"), TOWERS, ids=[" ".join(each) for each in TOWERS])
def test_rates_fall_from_block_to_block(kind: str, name: str) -> None:
    part = tower(kind, name)
    found = rates(part, lr=0.4, lr_scale={"image_encoder": 0.5}, layer_decay=0.5)
    assert found.keys() == rates(part).keys()
    blocks = repeated_blocks(part)
    names = {id(parameter): name for name, parameter in part.named_parameters()}
    for number, block in enumerate(blocks):
        wanted = 0.2 * 0.5 ** (len(blocks) - number)
        of_block = {names[id(p)] for p in block.parameters() if names[id(p)] in found}
        assert {found.pop(n) for n in of_block} == {wanted}
    lowest = 0.2 * 0.5 ** (len(blocks) + 1)  # powers of 2: exact
    assert set(found.values()) <= {0.2, lowest}
    assert all(
        rate == lowest for n, rate in found.items() if "embedding" in n or n.startswith(("patches", "positions"))
    )
    assert all(rate == 0.2 for n, rate in found.items() if n.startswith(("norm", "projection")))


def test_a_decay_of_one_is_none() -> None:
    part = tower("image", "vit")
    assert set(rates(part, lr=0.4, layer_decay=1.0).values()) == {0.4}


def test_a_number_is_of_the_encoders_and_a_mapping_of_the_parts_it_names() -> None:
    parts = {"image_encoder": tower("image", "vit"), "decoder": tower("text", "transformer")}
    for decay, decayed in ((0.5, "image_encoder"), ({"decoder": 0.5}, "decoder")):
        groups = parameter_groups(parts, OptimizerConfig(layer_decay=decay))
        layers = {group["name"].partition("/")[0] for group in groups if "/layer" in group["name"]}
        assert layers == {decayed}
        assert {f"{decayed}/layer3", f"{decayed}/layer3/no_decay", "decoder/no_decay"} <= {g["name"] for g in groups}


def test_a_found_rate_keeps_the_decay() -> None:
    parts, config = {"image_encoder": tower("image", "vit")}, OptimizerConfig(lr=0.4, warmup=0.5, layer_decay=0.5)
    optimizer = build_optimizer(parts, config)
    schedule = build_schedule(optimizer, config, total=4)
    trainer: Any = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)])
    before = [group["lr"] for group in optimizer.param_groups]
    config.lr = 0.8
    set_learning_rate(trainer, parts, config)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * lr for lr in before])
    assert schedule.base_lrs == pytest.approx([4 * lr for lr in before])  # half the peak in the first of two steps


@pytest.mark.parametrize(
    ("decay", "says"),
    [
        ({"encoder": 0.5}, "optimizer.layer_decay names 'encoder'; the parts are image_encoder"),
        ({"image_encoder": 0.5}, "optimizer.layer_decay names image_encoder, but RNNEncoder has no repeated blocks"),
        (0.5, "optimizer.layer_decay is 0.5, and no encoder has repeated blocks: set it to null"),
    ],
)
def test_parts_without_blocks_are_refused(decay: Any, says: str) -> None:
    parts = {"image_encoder": text_encoders.build("rnn", vocab_size=9, pad_id=0)}
    with pytest.raises(ConfigError, match="layer_decay") as error:
        parameter_groups(parts, OptimizerConfig(layer_decay=decay))
    assert says in str(error.value)


@pytest.mark.parametrize("decay", [0.0, 1.5, {"decoder": -1.0}])
def test_impossible_factors_are_refused(decay: Any) -> None:
    with pytest.raises(ConfigError, match=r"layer_decay.* is a factor from block to block, 0 < layer_decay <= 1; got"):
        OptimizerConfig(layer_decay=decay)


CONFIG: dict[str, Any] = {
    "model": {
        "image_encoder": {"name": "vit", "dim": 8, "depth": 2, "heads": 2, "patch_size": 8, "dropout": 0.1},
        "text_encoder": {"name": "rnn", "dim": 8},
        "losses": {"contrastive": {}},
        "optimizer": {"lr": 0.01, "warmup": 0.0, "min_lr": 1.0, "layer_decay": 0.5},
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 8, "val_size": 2, "test_size": 2},
        "image_size": 16,
        "batch_size": 4,
    },
    "trainer": {
        "max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1,
        "limit_val_batches": 0, "enable_model_summary": False,
    },
}  # fmt: skip


def test_a_resumed_run_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")

    def fit(run: str, *options: str) -> int:
        return cli.main(["fit", "--config", "run.yaml", f"--trainer.default_root_dir={run}", *options])

    assert fit("whole") == 0
    assert fit("half", "--trainer.max_epochs=1") == 0
    assert fit("half", "--trainer.max_epochs=2", "--ckpt_path=half/last.ckpt") == 0
    whole, half = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "half"))
    assert all(torch.equal(tensor, half["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    rows = list(csv.DictReader(Path("half/metrics.csv").read_text(encoding="utf-8").splitlines()))
    seen = {name: {float(row[name]) for row in rows if row[name]} for name in rows[0] if name.startswith("lr-")}
    assert seen["lr-AdamW/image_encoder/layer1"] == {0.0025}
    assert (
        fit("other", "--ckpt_path=half/last.ckpt", "--trainer.max_epochs=3", "--model.optimizer.layer_decay=0.1") == 0
    )
    assert "model.optimizer.layer_decay 0.5 -> 0.1" in capsys.readouterr().out
    [state] = torch.load("other/last.ckpt", weights_only=True)["optimizer_states"]
    assert {g["name"]: g["lr"] for g in state["param_groups"]}["image_encoder/layer2"] == pytest.approx(1e-3)
    assert fit("none", "--ckpt_path=half/last.ckpt", "--model.optimizer.layer_decay=null") == 2
    assert "with other learning rates: model.optimizer.layer_decay differs" in capsys.readouterr().err
