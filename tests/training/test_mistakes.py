"""Mistakes in the options of Lightning end in a sentence; a plugin's own exception keeps its traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tiny_run import fit, tiny_config

from velm.training.mistakes import explain_mistake

pytestmark = pytest.mark.filterwarnings("ignore")
CALLBACKS = "lightning.pytorch.callbacks."


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_config(tmp_path)


def callback(name: str, options: str = "") -> str:
    return f"--trainer.callbacks=[{{class_path: {CALLBACKS}{name}, init_args: {{{options}}}}}]"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.accelerator=tpu"], ["torch_xla", "pip install torch_xla"]),
        (["--trainer.accelerator=xyz"], ["'xyz'", "Available names are", "--trainer.NAME"]),
        (["--trainer.logger=CometLogger"], ["comet-ml", "pip install comet-ml"]),
        (["--trainer.strategy=xyz"], ["'xyz'", "ddp"]),
        (["--trainer.profiler=xyz"], ["simple", "advanced"]),
        (["--trainer.limit_train_batches=7.5"], ["7.5"]),
        (["--trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches", "at least 1"]),
        (["--trainer.val_check_interval=1000"], ["1000", "limit_val_batches"]),
        ([callback("EarlyStopping", "monitor: val_loss")], ["'val_loss'", "Did you mean 'val/loss'?"]),
        ([callback("ModelCheckpoint", "monitor: loss")], ["'loss'", "train/loss", "val/score"]),
        ([callback("EarlyStopping", "monitor: val/loss, mode: up")], ["min, max, got up"]),
        ([callback("LearningRateFinder", "attr_name: rate")], ["model.optimizer.lr", "attr_name"]),
        ([callback("BatchSizeFinder", "batch_arg_name: size")], ["data.batch_size", "batch_arg_name"]),
        (["--model.optimizer.lr=-1"], ["model.optimizer.lr must be positive; got -1"]),
        (["--data.image_size=50", "--model.image_encoder={name: vit, dim: 16, depth: 1, heads: 2, patch_size: 8}"],
         ["50 x 50", "multiple of patch_size 8"]),
    ],
    ids=lambda value: value[0][:60] if isinstance(value, list) else None,
)  # fmt: skip
def test_a_mistake_is_told_in_a_sentence(
    config: Path, options: Sequence[str], says: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config, *options) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in ["velm fit: ", *says]), message


@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(
    config: Path, accelerator: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.fabric.accelerators import CUDAAccelerator, MPSAccelerator

    for present in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(present, "is_available", staticmethod(lambda: False))
    assert fit(config, f"--trainer.accelerator={accelerator}") == 2
    assert "--trainer.accelerator=auto" in capsys.readouterr().err


def test_bugs_of_a_plugin_are_no_mistakes(config: Path) -> None:
    Path("own_bug.py").write_text(
        "import lightning\n\n\nclass Early(lightning.Callback):\n    def __init__(self) -> None:\n"
        "        raise ValueError('mine')\n\n\nclass Late(lightning.Callback):\n"
        "    def on_fit_start(self, trainer, pl_module):\n        raise RuntimeError('mine')\n"
    )
    for name in ("Early", "Late"):
        with pytest.raises((ValueError, RuntimeError), match="mine"):
            fit(config, f"--trainer.callbacks=[{{class_path: own_bug.{name}}}]")


def test_what_lightning_calls_a_misconfiguration_is_a_mistake_wherever_it_is_raised() -> None:
    error = explain_mistake(MisconfigurationException("no such thing"))
    assert "no such thing" in str(error)
    assert explain_mistake(ValueError("a bug")) is None
    assert explain_mistake(KeyboardInterrupt()) is None


def test_a_console_without_the_characters_prints_others() -> None:
    code = "import velm.cli; velm.cli.main(['--version']); print('\\u732b')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
        check=False,
    )
    assert done.stdout.split()[-1] == b"?", done.stderr
