"""Patch dropout in a run: it ends with the tail, resumes bit for bit, and changes no gradient of recomputed steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml

from tests.training.fine_tuning.test_layer_decay import CONFIG as PLAIN
from tests.training.memory.test_micro_batch import assert_same, step, whole_batch
from tests.training.memory.test_recompute import make_task
from velm import cli
from velm.errors import ConfigError
from velm.training.fine_tuning.patch_dropout_tail import PatchDropoutTail
from velm.training.memory.feature_cache import require_frozen

pytestmark = pytest.mark.filterwarnings("ignore")

VIT: dict[str, Any] = {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 4, "patch_dropout": 0.5}
CONFIG: dict[str, Any] = {
    **PLAIN,
    "model": {**PLAIN["model"], "image_encoder": VIT, "patch_dropout_tail": 0.5},
    "trainer": {**PLAIN["trainer"], "max_epochs": 4},
}


class Note(lightning.Callback):
    """Writes down how many patches each step encodes."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        def write(module: Any, inputs: Any) -> None:
            with open("seen.txt", "a", encoding="utf-8") as file:
                file.write(f"{trainer.global_step} {inputs[0].shape[1]}\n")

        self.hook = pl_module.model.image_encoder.blocks[0].register_forward_pre_hook(write)

    def on_train_batch_end(self, *details: Any) -> None:
        self.hook.remove()


def test_the_last_steps_see_all_patches_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    note = f"--trainer.callbacks=[{{class_path: {__name__}.Note}}]"

    def fit(run: str, *options: str) -> dict[str, Any]:
        where = f"--trainer.default_root_dir={run}"
        assert cli.main(["fit", "--config", "run.yaml", where, note, *options]) == 0
        return torch.load(f"{run}/last.ckpt", weights_only=True)["state_dict"]

    whole = fit("whole", "--checkpoint_every_n_steps=1", "--save_last_k=9")
    seen = Path("seen.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert seen == [f"{number} {8 if number < 4 else 16}" for number in range(8)]
    for start in (1, 5):
        resumed = fit(f"from_{start}", f"--ckpt_path=whole/step_{start}.ckpt")
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("micro", [None, 3])
def test_a_recomputed_step_drops_the_same_patches(micro: int | None) -> None:
    options = {"image_encoder": VIT, "micro_batch_size": micro}
    expected = step(make_task(**options), whole_batch())
    assert_same(step(make_task(**options, checkpoint_blocks=True), whole_batch()), expected)


def test_features_of_dropped_patches_cannot_be_cached() -> None:
    encoder = make_task(image_encoder=VIT).model.image_encoder
    assert encoder is not None
    encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"patch_dropout \(PatchDropout\) is in training mode: set model.freeze"):
        require_frozen(encoder)
    require_frozen(make_task(image_encoder=VIT, freeze=["image_encoder"]).model.image_encoder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patch_dropout_tail": 0.1}, "patch_dropout_tail is 0.1, and no encoder drops patches: set patch_dropout of"),
        ({"image_encoder": VIT, "patch_dropout_tail": 1.5}, "is a fraction of all steps, between 0 and 1; got 1.5"),
    ],
)
def test_a_tail_of_nothing_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="patch_dropout_tail") as error:
        make_task(**options)
    assert says in str(error.value)


def test_without_a_tail_there_is_no_callback() -> None:
    for tail, count in ((0.0, 0), (0.1, 1)):
        callbacks = make_task(image_encoder=VIT, patch_dropout_tail=tail).configure_callbacks()
        assert sum(isinstance(each, PatchDropoutTail) for each in callbacks) == count
