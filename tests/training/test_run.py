"""`velm fit` from YAML to a run's folder: what is written, what may be typed over it, what goes on after a stop."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import TINY, fit

import velm
from velm import _compat, cli

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny config in an empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines()))


def test_fit_leaves_a_whole_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config) == 0
    run = Path("runs/tiny")
    assert {"config.yaml", "last.ckpt", "best.ckpt", "metrics.csv", "panel.txt"} <= {p.name for p in run.iterdir()}
    assert list(run.glob("events.out.tfevents.*"))
    columns = set(rows(run)[0])
    assert {"step", "epoch", "train/loss", "train/contrastive", "train/captioning", "train/logit_scale"} <= columns
    assert {"val/image_to_text/recall@1", "val/text_to_image/recall@10", "val/caption/bleu4", "val/score"} <= columns
    captions = velm.load(run / "best.ckpt").caption([torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()])
    assert len(captions) == 1
    assert "velm caption runs/tiny/best.ckpt" in "".join(capsys.readouterr())


def test_a_second_run_sets_the_first_aside(config: Path) -> None:
    assert fit(config) == 0
    first = (Path("runs/tiny") / "last.ckpt").read_bytes()
    assert fit(config) == 0
    assert (Path("runs/tiny.1") / "last.ckpt").read_bytes() == first
    assert (Path("runs/tiny") / "last.ckpt").is_file()
    assert len(rows(Path("runs/tiny"))) == len(rows(Path("runs/tiny.1"))), "and its metrics with it"


def test_a_start_that_fails_moves_no_earlier_run_and_leaves_nothing(config: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    assert fit(config) == 0
    before = contents()
    with pytest.raises(SystemExit):
        fit(config, "--data.batchsize=3")
    wrong = [
        "--model.image_encoder.dmi=3",
        "--model.memory=[image, text]",
        "--model.optimizer.lr_scale={text: 0.1}",
        "--data.dataset={name: csv, path: nowhere.csv}",
    ]
    for option in wrong:
        assert fit(config, option) == 2, option
        now = contents()
        assert {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)} == set(), option
        assert fit(config, option, "--trainer.default_root_dir=runs/new") == 2
        assert [path.name for path in Path("runs").iterdir()] == ["tiny"], option
    assert fit(config) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"tiny", "tiny.1"}


def test_too_many_bad_samples_are_listed_beside_an_earlier_run(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config) == 0
    before = sorted(Path("runs/tiny").rglob("*"))
    Path("bad.csv").write_text(
        "image_path,text,split,image_id\n" + "".join(f"{i}.jpg,a dog,train,{i}\n" for i in range(9))
    )
    assert fit(config, "--data.dataset={name: csv, path: bad.csv}") == 2
    assert "All of them: runs/tiny.quarantine.jsonl" in capsys.readouterr().err
    assert len(Path("runs/tiny.quarantine.jsonl").read_text(encoding="utf-8").splitlines()) == 9
    assert sorted(Path("runs/tiny").rglob("*")) == before


def test_a_resumed_run_goes_on_below_its_figures(config: Path) -> None:
    assert fit(config) == 0
    before = rows(Path("runs/tiny"))
    assert fit(config, "--ckpt_path=runs/tiny/last.ckpt", "--trainer.max_epochs=2") == 0
    after = rows(Path("runs/tiny"))
    steps = [int(float(row["step"])) for row in after if row.get("train/loss")]
    assert len(after) > len(before)
    columns = set(before[0]) & set(after[0])
    assert [{c: row[c] for c in columns} for row in after[: len(before)]] == [
        {c: row[c] for c in columns} for row in before
    ]
    assert steps == list(range(8))
    assert not Path("runs/tiny.1").exists()


def test_resumed_equals_uninterrupted(config: Path) -> None:
    """A run stopped after its first epoch and resumed ends with the very weights of one that went through."""
    code = """
import lightning

class Stop(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True
"""
    Path("stop_early.py").write_text(code, encoding="utf-8")
    two = ("--trainer.max_epochs=2",)
    assert fit(config, *two, "--trainer.default_root_dir=whole") == 0
    stop = ("--trainer.default_root_dir=part", "--trainer.callbacks=[{class_path: stop_early.Stop}]")
    assert fit(config, *two, *stop) == 0
    assert fit(config, *two, "--trainer.default_root_dir=part", "--ckpt_path=part/last.ckpt") == 0
    whole, part = (torch.load(Path(run) / "last.ckpt", weights_only=True) for run in ("whole", "part"))
    assert whole["global_step"] == part["global_step"] == 8
    assert all(torch.equal(whole["state_dict"][name], part["state_dict"][name]) for name in whole["state_dict"])


def test_what_is_typed_beats_the_file_and_the_checkpoint(config: Path) -> None:
    assert fit(config) == 0
    assert fit(config, "--ckpt_path=runs/tiny/last.ckpt", "--trainer.max_epochs=2", "--model.optimizer.lr=0.5") == 0
    saved = yaml.safe_load(Path("runs/tiny/config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["optimizer"]["lr"] == 0.5
    assert saved["trainer"]["max_epochs"] == 2


def test_a_part_is_replaced_by_its_name(config: Path) -> None:
    assert fit(config, "--model.image_encoder.name=vit") == 0
    assert fit(config, "--model.text_encoder.name=transformer", "--model.text_encoder.cell=gru") == 2
    assert fit(config, "--model.image_encoder={name: vit, dim: 16, depth: 1, heads: 2, patch_size: 8}") == 0
    assert velm.load("runs/tiny/last.ckpt").model.image_encoder.__class__.__name__ == "ViTEncoder"


def test_objectives_are_what_the_yaml_lists(config: Path) -> None:
    assert fit(config, "--model.losses={contrastive: {}}") == 0
    assert "val/caption/bleu4" not in rows(Path("runs/tiny"))[0]
    assert fit(config, "--model.losses={captioning: {}}") == 0
    assert "val/image_to_text/recall@1" not in rows(Path("runs/tiny"))[0]
    assert velm.load("runs/tiny/best.ckpt").model.text_encoder is None


def test_validate_test_and_predict_take_the_best_checkpoint(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", "--config", str(config)]) == 2
    assert "found no runs/tiny/best.ckpt: train first, or give --ckpt_path" in capsys.readouterr().err
    assert fit(config) == 0
    written = Path("runs/tiny/config.yaml").read_text(encoding="utf-8")
    for command, figure in (("validate", "val/text_to_image/recall@1"), ("test", "test/caption/bleu4")):
        assert cli.main([command, "--config", str(config)]) == 0
        assert figure in capsys.readouterr().out
    assert Path("runs/tiny/config.yaml").read_text(encoding="utf-8") == written
    assert cli.main(["predict", "--config", str(config)]) == 0
    written = [json.loads(line) for line in Path("runs/tiny/predictions.jsonl").read_text().splitlines()]
    assert len(written) == 8
    assert set(written[0]) == {"image_id", "caption"}


def test_own_encoder_by_path_and_by_plugin(config: Path) -> None:
    code = """
import torch, velm

@velm.image_encoders.register("{name}")
class Mine(velm.ImageEncoder):
    def __init__(self, *, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.project = torch.nn.Conv2d(3, dim, 8, 8)

    def forward(self, images):
        grid = self.project(images).relu()
        features = grid.flatten(2).transpose(1, 2)
        return velm.EncoderOutput(features, features.mean(1), grid=grid.shape[-2:])
"""
    Path("by_path.py").write_text(code.format(name="unused"), encoding="utf-8")
    Path("by_plugin.py").write_text(code.format(name="mine_by_plugin"), encoding="utf-8")
    assert fit(config, "--model.image_encoder={name: 'by_path:Mine', dim: 12}") == 0
    assert velm.load("runs/tiny/last.ckpt").model.image_encoder.dim == 12
    options = ["--plugins=[by_plugin.py]", "--model.image_encoder={name: mine_by_plugin, dim: 20}"]
    assert fit(config, *options) == 0
    assert velm.load("runs/tiny/last.ckpt").model.image_encoder.dim == 20


def test_the_last_epoch_is_validated(config: Path) -> None:
    assert fit(config, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2") == 0
    assert [row["epoch"] for row in rows(Path("runs/tiny")) if row["val/score"]] == ["1", "2"]


def test_bf16_and_ema(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "multiplies_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="no instructions for bfloat16.*--trainer.precision=32-true"):
        assert fit(config, "--trainer.precision=bf16-mixed", "--model.ema=0.9") == 0
    checkpoint = torch.load("runs/tiny/last.ckpt", weights_only=True)
    name = "model.image_projection.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])


CACHED = ["--model.freeze=[image_encoder]", "--data.cache_features=kept"]


def test_a_run_on_cached_features_is_whole_without_them(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, *CACHED) == 0
    assert "32 images of train are encoded once" in capsys.readouterr().out
    shutil.rmtree("kept")
    captions = velm.load("runs/tiny/best.ckpt").caption([torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()])
    assert len(captions) == 1
    assert cli.main(["validate", "--config", str(config), *CACHED]) == 0
    assert not Path("kept").exists()
    assert len(Path("runs/tiny/panel.txt").read_text(encoding="utf-8").splitlines()) > 2


@pytest.mark.slow
def test_two_devices_share_cached_features(config: Path) -> None:
    losses = []
    for more in (["--model.freeze=[image_encoder]"], CACHED):
        options = ["--trainer.devices=2", "--data.dataset.val_size=9", "--trainer.max_epochs=2", *more]
        command = [sys.executable, "-m", "velm.cli", "fit", "--config", str(config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([float(row["train/loss"]) for row in rows(Path("runs/tiny")) if row.get("train/loss")])
    assert done.stdout.count("are encoded once") == len(list(Path("kept").iterdir())) == 2  # train and val, by one rank
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.mark.slow
def test_two_devices_write_one_run(config: Path) -> None:
    """Through the command line: Lightning launches the second process; validation counts every image once."""
    options = ["--trainer.devices=2", "--data.dataset.val_size=9", "--trainer.max_epochs=2"]
    command = [sys.executable, "-m", "velm.cli", "fit", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not Path("runs/tiny.1").exists()
    steps = [int(float(row["step"])) for row in rows(Path("runs/tiny")) if row.get("train/loss")]
    assert steps == [0, 1, 2, 3]  # 32 images, 8 on each of 2 devices: 2 steps an epoch
    assert " distinct captions of 9" in Path("runs/tiny/panel.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("images", [3, 1])
def test_two_devices_share_fewer_images_than_they_could_take(config: Path, images: int) -> None:
    """3 images are 2 and 1; of 1 image, one device computes a stand-in. One validation image is on one device."""
    few = [f"--data.dataset.train_size={images}", "--data.dataset.val_size=1", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "velm.cli", "fit", "--config", str(config), "--trainer.devices=2", *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "is more than this split can fill" in done.stderr
    assert " distinct captions of 1" in Path("runs/tiny/panel.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_devices_predict_every_image_once_in_the_order_of_the_split(config: Path) -> None:
    assert fit(config, "--data.dataset.test_size=9") == 0
    predictions = []
    for devices in (1, 2):
        options = [f"--trainer.devices={devices}", "--data.dataset.test_size=9", "--data.eval_batch_size=2"]
        command = [sys.executable, "-m", "velm.cli", "predict", "--config", str(config), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        predictions.append(Path("runs/tiny/predictions.jsonl").read_text(encoding="utf-8").splitlines())
    assert len(predictions[0]) == 9
    assert predictions[1] == predictions[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.image_encoder.dmi=3", "no option 'dmi'. Did you mean 'dim'?"),
        ("--model.image_encoder.name=ccn", "Unknown image encoder 'ccn'. Did you mean 'cnn'?"),
        ("--model.image_encoder.dim=wide", "The option 'dim' of the image encoder 'cnn' takes"),
        ("--model.losses={contrastve: {}}", "Unknown loss 'contrastve'. Did you mean 'contrastive'?"),
        ("--model.losses={contrastive: {weight: -1}}", "The weight of the loss 'contrastive' is a number >= 0; got -1"),
        ("--model.decoder=null", "The loss 'captioning' needs a decoder, and the model has none"),
        ("--model.memory=[image, text]", "name the column of the caption to write"),
        ("--model.memory=[sound]", "memory lists 'image', 'text' or both; got ['sound']"),
        ("--model.freeze=[image_encodr]", "freeze names 'image_encodr'"),
        ("--data.dataset={name: csv, path: nowhere.csv}", "nowhere.csv"),
        ("--data.cache_features=true", "data.cache_features needs an image encoder that is wholly frozen"),
        ("--data.batch_size=0", "data.batch_size must be at least 1; got 0"),
        ("--model.optimizer.lr_scale={text: 0.1}", "optimizer.lr_scale names 'text'"),
        ("--plugins=[no_such_module]", "The plugin 'no_such_module' cannot be imported"),
    ],
)
def test_wrong_input_is_told_before_training(
    option: str, message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config, option) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs/tiny/last.ckpt").exists()


@pytest.mark.parametrize(
    ("option", "nearest"), [("--data.batchsize=3", "batch_size"), ("--model.optimizer.warmpu=0.1", "warmup")]
)
def test_unknown_keys_are_refused(option: str, nearest: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(config, option)
    assert stopped.value.code == 2
    assert nearest in capsys.readouterr().err
