"""Real data sets, where they lie beside the checkout: packed they train to the same figures, and configs read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import figures

from velm import cli
from velm.data.shards.packing import pack

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data"),
]


def fit(config: str, run: Path, *options: str) -> list[dict[str, str]]:
    """Run a config; the rows of its metrics.csv."""
    always = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={run}"]
    assert cli.main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *always, *options]) == 0
    return figures(run / "metrics.csv")


def test_flickr8k_in_shards_trains_to_the_figures_of_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss and every figure of validation is the same, bit for bit."""
    monkeypatch.chdir(CONFIGS.parent)
    table = {"name": "csv", "path": str(DATA / "flickr8k" / "captions.csv")}
    manifest = pack(table, str(tmp_path / "shards"), splits=("train", "val"), shard_size=1000, workers=2)
    assert sum(shard["samples"] for shard in manifest["shards"]) == 7000
    small = [
        "--data.image_size=64", "--trainer.max_epochs=2", "--trainer.limit_train_batches=6",
        "--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1",
        "--model.text_encoder.dim=64", "--model.decoder.dim=64", "--model.validation.captions=50",
    ]  # fmt: skip
    one = fit("flickr8k_cnn_rnn", tmp_path / "csv", *small)
    shards = f"--data.dataset={{name: webdataset, path: {tmp_path / 'shards'}}}"
    assert fit("flickr8k_cnn_rnn", tmp_path / "packed", *small, shards) == one
    assert len(one) > 12


@pytest.mark.parametrize("config", ["translate", "imagenette"])
def test_a_config_of_its_own_reads_it(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    steps = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--data.batch_size=8", "--data.num_workers=0"]
    steps += ["--trainer.precision=32-true", "--data.image_size=96"]  # CPUs without bf16 instructions emulate it
    assert any("train/loss" in row for row in fit(config, tmp_path / "run", *steps, "--trainer.log_every_n_steps=1"))
