"""What a user of W&B, MLflow and TensorBoard sees of a run and of its resumption, read from the files themselves."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import fit, tiny_config

from velm import cli

pytestmark = pytest.mark.filterwarnings("ignore")
LOGGERS = "lightning.pytorch.loggers."
ALARM = "--model.watch.effective_rank=0.99"
"""Every embedding of the tiny model counts as collapsed."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_config(tmp_path)


def with_logger(config: Path, name: str, **options: Any) -> Path:
    """The config with a logger in its YAML."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["trainer"]["logger"] = {"class_path": LOGGERS + name, "init_args": options}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return config


def curve(name: str, run: str = "runs/tiny") -> dict[int, float]:
    """Step to value in metrics.csv."""
    rows = csv.DictReader(Path(run, "metrics.csv").read_text(encoding="utf-8").splitlines())
    return {int(float(row["step"])): float(row[name]) for row in rows if row.get(name)}


def panel_lines() -> dict[str, str]:
    """image_id to caption of the last validation in panel.txt."""
    last = Path("runs/tiny/panel.txt").read_text(encoding="utf-8").strip().split("\n\n")[-1]
    return dict(line.split("\t") for line in last.splitlines()[1:])


def test_wandb_shows_the_run_and_continues_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'tracking' is not installed")
    from wandb_files import WandbRun

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", "data")
    with_logger(config, "WandbLogger", project="x", log_model=True, save_dir=str(Path.cwd()))
    assert fit(config, ALARM) == 0
    assert fit(config, "--resume", "--trainer.max_epochs=2", "--trainer.logger.log_model=false") == 0
    first, second = (WandbRun(folder) for folder in sorted(Path("wandb").glob("offline-run-*")))
    assert first.id == second.id == json.loads(Path("runs/tiny/tracking.json").read_text())[0]["run"]
    assert first.exit_code == second.exit_code == 0
    assert first.config["model"]["optimizer"]["lr"] == 1e-3
    assert "logger" not in first.config["trainer"]
    assert second.config["trainer"]["max_epochs"] == 2

    assert first.curve("train/loss") | second.curve("train/loss") == pytest.approx(curve("train/loss"))
    assert list(second.curve("train/loss")) == [4, 5, 6, 7]
    assert second.curve("val/score") == pytest.approx({7: curve("val/score")[7]})
    assert first.curve("best/score") == pytest.approx({3: max(first.curve("val/score").values())})

    (panel,) = [row["panel"] for row in second.rows if "panel" in row]
    shown = dict(zip(panel_lines().items(), panel["captions"], strict=True))
    assert all(text.startswith(f"{caption}\n({name}: ") for (name, caption), text in shown.items())
    assert all((second.folder / "files" / name).stat().st_size > 100 for name in panel["filenames"])

    assert ("image embeddings: alarm", 1.0) in [(title, 1.0) for title, _ in first.alerts]
    assert first.curve("alarms/image embeddings") == {3: 1.0}
    assert [kind for kind, _ in first.artifacts if kind == "model"] == ["model", "model"]
    assert {alias for kind, aliases in first.artifacts if kind == "model" for alias in aliases} >= {"best", "last"}
    assert not [kind for kind, _ in second.artifacts if kind == "model"], "nothing is uploaded that was not asked for"


def test_mlflow_shows_the_run_and_continues_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra 'tracking' is not installed")
    from mlflow.tracking import MlflowClient

    with_logger(config, "MLFlowLogger", experiment_name="e", tracking_uri="sqlite:///flow.db", log_model=True)
    assert fit(config, ALARM) == 0
    assert fit(config, "--resume", "--trainer.max_epochs=2", "--trainer.logger.log_model=false") == 0
    client = MlflowClient("sqlite:///flow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "FINISHED"
    history = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "train/loss")}
    assert history == pytest.approx(curve("train/loss"))
    assert "val/image_to_text/recall_at_1" in run.data.metrics
    assert run.data.params["model.optimizer.lr"] == "0.001"
    assert run.data.params["trainer.max_epochs"] == "1", "a parameter keeps its first value"
    assert not [name for name in run.data.params if "logger" in name]
    assert "they have collapsed" in run.data.tags["alarms/image embeddings"]

    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]["max_epochs"] == 2
    pages = sorted(path.name for path in (folder / "panel").iterdir())
    assert pages == ["step_0000004.html", "step_0000008.html"]
    page = (folder / "panel" / pages[-1]).read_text(encoding="utf-8")
    assert all(f"<b>{caption}</b>" in page and name in page for name, caption in panel_lines().items())
    assert page.count("data:image/jpeg;base64,") == 2
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.ckpt")} == {"best/best.ckpt", "last/last.ckpt"}


def test_tensorboard_shows_the_run_and_continues_it(config: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_logger(config, "TensorBoardLogger", save_dir="boards")
    assert fit(config, ALARM) == 0
    assert fit(config, "--resume", "--trainer.max_epochs=2") == 0
    (version,) = Path("boards/lightning_logs").iterdir()
    events = EventAccumulator(str(version), size_guidance={"tensors": 0, "scalars": 0, "images": 0}).Reload()
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(curve("train/loss"))
    texts = {tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
             for tag in events.Tags()["tensors"]}  # fmt: skip
    assert "lr: 0.001" in texts["config/text_summary"][0]
    assert all(caption in texts["panel/text_summary"][-1] for caption in panel_lines().values())
    assert "they have collapsed" in texts["alarms/image embeddings/text_summary"][0]
    assert set(events.Tags()["images"]) == {f"panel/{name}" for name in panel_lines()}
    assert not list(Path("runs/tiny").glob("events*")), "in the user's folder, and not twice"


def test_a_server_that_is_down_ends_no_training(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with_logger(config, "MLFlowLogger", tracking_uri="http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="MLFlowLogger cannot log .*training continues") as told:
        assert fit(config) == 0
    assert len([each for each in told if "cannot log" in str(each.message)]) == 1
    assert len(curve("train/loss")) == 4
    assert not Path("runs/tiny/tracking.json").exists()
    assert os.path.isfile("runs/tiny/best.ckpt")


def evaluate_with_track() -> dict[str, float]:
    """What `velm evaluate --track` should have sent."""
    assert cli.main(["evaluate", "runs/tiny/best.ckpt", "--output", "found", "--track", "--max_length", "6"]) == 0
    metrics, intervals = (json.loads(Path("found", f"{name}.json").read_text()) for name in ("metrics", "intervals"))
    assert intervals
    sent = {name: value for name, value in metrics.items() if not name.startswith("signature/")}
    for name, (low, high) in intervals.items():
        sent |= {f"{name}/low": low, f"{name}/high": high}
    return {f"evaluation/test/{name}": value for name, value in sent.items()}


def test_an_evaluation_with_intervals_joins_the_run_of_wandb(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'tracking' is not installed")
    from wandb_files import WandbRun

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with_logger(config, "WandbLogger", project="x", save_dir=str(Path.cwd()))  # its service keeps an older one
    assert fit(config) == 0
    sent = evaluate_with_track()
    first, second = (WandbRun(folder) for folder in sorted(Path("wandb").glob("offline-run-*")))
    assert first.id == second.id
    assert {name: second.curve(name)[4] for name in sent} == pytest.approx(sent, rel=1e-6)


def test_an_evaluation_with_intervals_joins_the_run_of_mlflow(config: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra 'tracking' is not installed")
    from mlflow.tracking import MlflowClient

    with_logger(config, "MLFlowLogger", experiment_name="e", tracking_uri="sqlite:///evaluated.db")
    assert fit(config) == 0
    sent = evaluate_with_track()
    client = MlflowClient("sqlite:///evaluated.db")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "FINISHED"
    got = {name: run.data.metrics[name.replace("@", "_at_")] for name in sent}
    assert got == pytest.approx(sent, rel=1e-6)


def test_an_evaluation_with_intervals_is_in_the_events_of_tensorboard(config: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_logger(config, "TensorBoardLogger", save_dir="events", version="")
    assert fit(config) == 0
    sent = evaluate_with_track()
    events = EventAccumulator("events/lightning_logs").Reload()
    got = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in sent}
    assert got == {name: [(4, pytest.approx(value, rel=1e-6))] for name, value in sent.items()}


def test_track_says_what_a_run_lacks(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config) == 0
    evaluate = ["evaluate", "runs/tiny/best.ckpt", "--output", "found", "--track"]
    assert cli.main(evaluate) == 2
    assert "config.yaml has none in trainer.logger: train with one" in capsys.readouterr().err
    assert cli.main([evaluate[0], "runs/tiny/other.ckpt", *evaluate[2:]]) == 2
    assert "there is no runs/tiny/other.ckpt: name a checkpoint in the folder" in capsys.readouterr().err
    Path("runs/tiny/config.yaml").rename("config.yaml.old")
    assert cli.main(evaluate) == 2
    assert "there is no runs/tiny/config.yaml: name a checkpoint in the folder" in capsys.readouterr().err
    assert not Path("found").exists()


@pytest.mark.parametrize(("name", "module"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_missing_package_names_the_extra(
    config: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    place = importlib.import_module(f"{LOGGERS}{module}")
    monkeypatch.setattr(place, f"_{module.upper()}_AVAILABLE", False)
    assert cli.main(["fit", "--config", str(config), f"--trainer.logger={name}"]) == 2
    assert "pip install 'velm[tracking]'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_default_of_mlflow_says_what_to_set(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    assert fit(config, "--trainer.logger=MLFlowLogger") == 2
    assert "init_args.tracking_uri: sqlite:///mlflow.db" in capsys.readouterr().err
