"""A model of another library and its copy that a run has fine-tuned are of one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign import save_clip

from velm.checkpoint import read_checkpoint
from velm.cli import main
from velm.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_a_curve_from_a_clip_to_its_fine_tuned_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    save_clip(Path("clip"))
    data = ["--data.dataset={name: shapes, train_size: 8, val_size: 4, test_size: 4}", "--data.batch_size=8"]
    trainer = ["max_epochs=1", "accelerator=cpu", "default_root_dir=run", "enable_progress_bar=false"]
    options = [
        "--model.pretrained=hf/clip",
        "--model.losses={contrastive: {}}",
        *(f"--trainer.{each}" for each in trainer),
    ]
    assert main(["fit", *data, *options]) == 0
    assert main(["average", "hf/clip", "run/last.ckpt", "--wise", "0:1:1", "--output", "wise.ckpt"]) == 0
    alphas = [point["alpha"] for point in json.loads(Path("wise.json").read_text())["curve"]]
    assert alphas == [0, 1]
    assert main(["average", "hf/clip", "run/last.ckpt", "--output", "mean.ckpt"]) == 0
    one, two, mean = open_source("hf/clip"), read_checkpoint("run/last.ckpt"), read_checkpoint("mean.ckpt")
    assert one.logit_scale < mean.logit_scale < two.logit_scale or one.logit_scale > mean.logit_scale > two.logit_scale
    assert mean.tokenizer == two.tokenizer
