"""What `velm fit` would refuse is refused before the first trial, and a trial's config before its start."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fake_trials import study_of
from tiny_run import TINY

from velm.errors import ConfigError, VelmError
from velm.sweep.check import check_base, check_parameters, check_trial, fit_config
from velm.sweep.study import read_study, trial_options, values_to_check

pytest.importorskip("optuna", reason="pip install 'velm[sweep]'")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`--config tiny.yaml` in an empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return ["--config", "tiny.yaml"]


def test_parameters_get_the_names_of_options(args: list[str], tmp_path: Path) -> None:
    text = """
parameters:
  optimizer.lr: {low: 1e-4, high: 1e-3, log: true}
  model.decoder.depth: {values: [1, 2]}
  model.losses.captioning.weight: {low: 0.5, high: 2.0}
  model.image_encoder: {values: [{name: cnn, dim: 16}, {name: vit, dim: 16, depth: 1, heads: 2, patch_size: 8}]}
  data.batch_size: {low: 4, high: 8, step: 4}
  seed_everything: {values: [0, 1]}
"""
    study = study_of(tmp_path, text)
    names = list(check_parameters(study, args, fit_config(args), "study.yaml").parameters)
    assert names == ["model.optimizer.lr", *list(study.parameters)[1:]]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("model.optimizer.lrr: {low: 1, high: 2}", "is no option of `velm fit`. Did you mean 'model.optimizer.lr'?"),
        ("trainer.max_epoch: {low: 1, high: 2}", "Did you mean 'trainer.max_epochs'?"),
        ("trainer.default_root_dir: {values: [a]}", "the sweep sets trainer.default_root_dir itself"),
        ("model.decoder.dpeth: {values: [1]}", "has no option 'dpeth'. Did you mean 'depth'?"),
        ("model.image_encoder: {values: [cnn, ccn]}", "Unknown image encoder 'ccn'. Did you mean 'cnn'?"),
        ("model.losses.contrastve.weight: {low: 1, high: 2}", "Unknown loss 'contrastve'. Did you mean 'contrastive'"),
        ("model.optimizer.lr: {values: [0.1, high]}", "Got value: high"),
        ("trainer.max_epochs: {low: 1.0, high: 4.0}", "Given value: 1.0"),
        ("model.decoder.depth: {values: [1, wide]}", "The option 'depth' of the decoder 'transformer' takes"),
    ],
)
def test_a_parameter_that_fit_does_not_take_is_refused(
    parameter: str, message: str, args: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_parameters(study_of(tmp_path, f"parameters: {{{parameter}}}"), args, fit_config(args), "study.yaml")
    assert str(raised.value).startswith("study.yaml: parameters: ")
    assert message in str(raised.value)


def test_the_config_of_a_sweep_is_checked_as_a_whole(args: list[str]) -> None:
    config = check_base([*args, "--trainer.max_epochs=3"], "val/caption/cider")
    assert config["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize(
    ("option", "metric", "message"),
    [
        ("--seed_everything=0", "val/scroe", "measures 'val/scroe'. Did you mean 'val/score'?"),
        ("--model.losses={captioning: {}}", "val/contrastive", "measures 'val/contrastive'."),
        ("--trainer.limit_val_batches=0", "val/score", "limit_val_batches is 0, so no validation measures val/score"),
        (
            "--trainer.logger=false",
            "val/score",
            "trainer.logger is false, and a sweep reads val/score from",
        ),
        ("--checkpoint_dir=ckpt", "val/score", "checkpoint_dir is ckpt, and each trial has its own"),
        ("--data.dataset={name: csv, path: nowhere.csv}", "val/score", "nowhere.csv"),
        ("--model.image_encoder.dmi=3", "val/score", "no option 'dmi'. Did you mean 'dim'?"),
        ("--modle.x=3", "val/score", "`velm fit` refuses the options: unrecognized arguments: --modle.x=3"),
    ],
)
def test_a_config_that_cannot_be_searched_is_refused(option: str, metric: str, message: str, args: list[str]) -> None:
    with pytest.raises(VelmError) as raised:
        check_base([*args, option], metric)
    assert message in str(raised.value)


def test_the_example_can_be_searched() -> None:
    root = Path(__file__).parents[2]
    study, base = read_study(root / "examples/study.yaml"), ["--config", str(root / "configs/quickstart.yaml")]
    assert list(check_parameters(study, base, fit_config(base), "study.yaml").parameters) == list(study.parameters)
    point = {name: values_to_check(each)[-1] for name, each in study.parameters.items()}
    check_trial([*base, *trial_options(point)])


def test_a_metric_of_the_users_own_callback_is_allowed(args: list[str]) -> None:
    own = "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.Timer}]"
    check_base([*args, own], "val/mine")


def test_a_trial_whose_parts_do_not_fit_is_refused(args: list[str]) -> None:
    check_trial([*args, "--model.decoder.heads=4"])
    with pytest.raises(ConfigError, match="16 is not divisible by heads 3"):
        check_trial([*args, "--model.decoder.heads=3"])
