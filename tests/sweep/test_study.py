"""study.yaml: what it may say, and what each mistake in it is answered with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from velm.errors import ConfigError, MissingPackageError
from velm.sweep.study import option_text, read_study, short_names, shown, trial_options, values_to_check

pytest.importorskip("optuna", reason="pip install 'velm[sweep]'")

WHOLE = """
metric: val/loss
direction: minimize
sampler: {name: tpe, seed: 3}
pruner: {name: median, warmup: 2}
parameters:
  model.optimizer.lr: {low: 1e-4, high: 3e-3, log: true}
  model.embed_dim: {low: 64, high: 256, step: 64}
  model.embed_dropout: {low: 0, high: 0.5, step: 0.25}
  model.decoder.depth: {values: [1, 2, 4]}
  model.image_encoder: {values: [{name: cnn, dim: 16}, vit]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_says_what_is_searched(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, WHOLE))
    assert (study.metric, study.direction, study.best([3, 1, 2])) == ("val/loss", "minimize", 1)
    assert study.sampler == {"name": "tpe", "seed": 3, "startup": 10}
    assert study.pruner == {"name": "median", "startup": 5, "warmup": 2, "every": 1}
    values = {name: values_to_check(each) for name, each in study.parameters.items()}
    assert values["model.optimizer.lr"][::2] == [1e-4, 3e-3]
    assert values["model.embed_dim"] == [64, 128, 256]
    assert values["model.embed_dropout"] == [0, 0.25, 0.5]
    assert values["model.decoder.depth"] == [1, 2, 4]
    assert values["model.image_encoder"] == ['{"name": "cnn", "dim": 16}', "vit"]


def test_metric_direction_sampler_and_pruner_have_defaults(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, "parameters: {data.batch_size: {values: [8, 16]}}"))
    assert (study.metric, study.direction) == ("val/score", "maximize")
    assert (study.sampler["name"], study.pruner["name"]) == ("tpe", "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {a: {low: 1, high: 2}}\nmetrc: val/score", "unknown key 'metrc'. Did you mean 'metric'?"),
        ("[1]", "is a mapping with the keys metric, direction"),
        ("a: [", "is no YAML"),
        ("metric: val/score", "has no parameters. They are options of `velm fit`"),
        ("parameters: {a: {low: 1, high: 2}}\ndirection: max", "direction is maximize or minimize; got 'max'"),
        ("parameters: {a: {low: 1, high: 2}}\nmetric: loss", "metric of the validation, such as val/score; got 'loss'"),
        ("parameters: {a: {low: 1, high: 2}}\nsampler: tp", "sampler has the unknown name 'tp'. Did you mean 'tpe'?"),
        ("parameters: {a: {low: 1, high: 2}}\nsampler: {seed: 1}", "sampler has the unknown name 'None'"),
        ("parameters: {a: {low: 1, high: 2}}\nsampler: {name: tpe, sed: 1}", "unknown key 'sed'. Did you mean 'seed'?"),
        ("parameters: {a: {low: 1, high: 2}}\nsampler: {name: tpe, seed: x}", "seed is a whole number of at least 0"),
        ("parameters: {a: {low: 1, high: 2}}\nsampler: grid", "'grid' takes parameters with values, and a has a range"),
        ("parameters: {a: {low: 1, high: 2}}\npruner: medain", "unknown name 'medain'. Did you mean 'median'?"),
        ("parameters: {a: {low: 1, high: 2}}\npruner: {name: median, warmpu: 1}", "Did you mean 'warmup'?"),
        ("parameters: {a: {low: 1, high: 2}}\npruner: {name: hyperband, factor: 1}", "factor is a whole number of at"),
        ("parameters: {a: {low: 2, high: 1}}", "a needs values: [...], or numbers low < high; got low 2, high 1"),
        ("parameters: {a: {low: 1}}", "numbers low < high; got low 1, high None"),
        ("parameters: {a: {low: 1, high: .inf}}", "numbers low < high; got low 1, high inf"),
        ("parameters: {a: {low: true, high: 2}}", "numbers low < high; got low True, high 2"),
        ("parameters: {a: {lo: 1, high: 2}}", "a has an unknown key 'lo'. Did you mean 'low'?"),
        ("parameters: {a: 3}", "a is a mapping with the keys values, low, high, step, log; got 3"),
        ("parameters: {a: {low: 0, high: 2, log: true}}", "a range with log: true is above 0; got low 0"),
        ("parameters: {a: {low: 1, high: 2, log: 1}}", "log is true or false; got 1"),
        ("parameters: {a: {low: 1, high: 2, step: 3}}", "step is a positive number up to high - low = 1"),
        ("parameters: {a: {low: 1, high: 2, step: 1, log: true}}", "got step 1 with log: true"),
        ("parameters: {a: {values: []}}", "values is a list with at least one value; got []"),
        ("parameters: {a: {values: [1, 1]}}", "values lists 1 twice"),
        ("parameters: {a: {values: [1], low: 1}}", "has values and low: give values, or low and high"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_study(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_study(tmp_path / "nowhere.yaml")


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'velm\[sweep\]'"):
        read_study(write(tmp_path, WHOLE))


def test_a_whole_part_comes_before_an_option_inside_it() -> None:
    options = trial_options({"model.decoder.depth": 2, "model.decoder": '{"name": "rnn"}', "data.image_size": None})
    assert options == ['--model.decoder={"name": "rnn"}', "--data.image_size=null", "--model.decoder.depth=2"]


def test_values_are_options_as_typed() -> None:
    assert [option_text(value) for value in (1e-05, 2, True, None, "cnn")] == ["1e-05", "2", "true", "null", "cnn"]
    assert shown(0.000123456) == "0.0001235"
    assert shown('{"name": "cnn"}') == "{name: cnn}"


def test_short_names_stay_distinct() -> None:
    names = ["model.optimizer.lr", "model.decoder.dim", "model.image_encoder.dim", "seed_everything"]
    assert list(short_names(names).values()) == ["lr", "decoder.dim", "image_encoder.dim", "seed_everything"]
