"""WiSE-FT on drawn scenes: a model of four colours, and its copy that is fine-tuned on three others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from velm.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
FOUR = "{name: shapes, colours: [red, green, blue, yellow], train_size: 2000, val_size: 100, test_size: 100}"
THREE = "{name: shapes, colours: [purple, cyan, black], train_size: 1000, val_size: 100, test_size: 100}"


def fit(run: str, dataset: str, *options: str) -> str:
    """The best checkpoint of a run without a decoder, whose tokenizer does not depend on the colours."""
    arguments = ["fit", "--config", str(CONFIG), "--model.decoder=null", "--model.losses={contrastive: {}}", *options]
    data = [f"--data.dataset={dataset}", "--data.tokenizer=byte", "--data.max_length=80"]
    assert main([*arguments, *data, f"--trainer.default_root_dir={run}"]) == 0
    return f"{run}/best.ckpt"


@pytest.mark.slow
def test_between_two_sets_of_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    four = fit("four", FOUR, "--trainer.max_epochs=4")
    three = fit("three", THREE, "--trainer.max_epochs=4", f"--model.pretrained={four}")
    also = "--also.dataset.colours=[red, green, blue, yellow]"
    assert main(["average", four, three, "--wise", "0:1:0.5", also, "--output", "wise.ckpt"]) == 0
    curve = json.loads(Path("wise.json").read_text())["curve"]
    for checkpoint, point in ((four, curve[0]), (three, curve[-1])):
        for name, dataset in (("data", THREE), ("also", FOUR)):
            arguments = ["--data.dataset", dataset, "--split", "val", "--output", "out"]
            assert main(["evaluate", checkpoint, *arguments]) == 0
            measured = json.loads(Path("out/metrics.json").read_text())
            assert point["metrics"][name] == {key: measured[key] for key in point["metrics"][name]}
    assert curve[0]["metrics"]["data"] != curve[-1]["metrics"]["data"]
