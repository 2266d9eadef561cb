"""Part configs that several files and options say in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import fit, tiny_config

from velm.registry.scalars import load_yaml
from velm.training.part_options import merge_parts
from velm.training.run import parse_fit

FIRST = """
model:
  text_encoder: rnn
  losses: {contrastive: {weight: 1.0}, captioning: {weight: 2.0}}
data: {dataset: {name: csv, path: a.csv, splits: {val: dev}}, tokenizer: {name: word, min_frequency: 2}}
"""


def merged(tmp_path: Path, *args: str, files: tuple[str, ...] = (FIRST,)) -> dict[str, Any]:
    """The part configs that `merge_parts` adds."""
    configs = []
    for number, text in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        configs += ["--config", str(path)]
    added = merge_parts([*configs, *args])[len(configs) + len(args) :]
    return {option.removeprefix("--"): load_yaml(value) for option, _, value in (each.partition("=") for each in added)}


CSV = {"name": "csv", "path": "a.csv", "splits": {"val": "dev"}}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("data: {dataset: {path: b.csv}}", {"data.dataset": {**CSV, "path": "b.csv"}}),
        ("data: {dataset: {name: csv, root: x}}", {"data.dataset": {**CSV, "root": "x"}}),
        ("data: {dataset: {name: folder, path: x}}", {"data.dataset": {"name": "folder", "path": "x"}}),
        ("data: {dataset: {splits: {test: final}}}",
         {"data.dataset": {**CSV, "splits": {"val": "dev", "test": "final"}}}),
        ("data: {tokenizer: byte}", {"data.tokenizer": "byte"}),
        ("model: {text_encoder: {dim: 8}}", {"model.text_encoder": {"name": "rnn", "dim": 8}}),
        ("model: {losses: {captioning: {label_smoothing: 1e-1}, sigmoid: }}",
         {"model.losses": {"contrastive": {"weight": 1.0}, "captioning": {"weight": 2.0, "label_smoothing": 0.1},
                           "sigmoid": {}}}),
        ("model: {embed_dim: 8}", {}),
    ],
)  # fmt: skip
def test_a_second_file_is_merged_with_the_first(tmp_path: Path, second: str, expected: dict[str, Any]) -> None:
    assert merged(tmp_path, files=(FIRST, second)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.dataset.text_column=no"], {"data.dataset": {**CSV, "text_column": "no"}}),
        (["--data.dataset.path", "007"], {"data.dataset": {**CSV, "path": "007"}}),
        (["--data.dataset.path=a, b/[c] #1.csv"], {"data.dataset": {**CSV, "path": "a, b/[c] #1.csv"}}),
        (["--data.dataset.splits.val=y"], {"data.dataset": {**CSV, "splits": {"val": "y"}}}),
        (["--data.dataset={path: b.csv}"], {"data.dataset": {**CSV, "path": "b.csv"}}),
        (["--data.dataset={name: csv, path: b.csv}"], {"data.dataset": {"name": "csv", "path": "b.csv"}}),
        (["--data.dataset={name: shapes}", "--data.dataset.train_size=8"],
         {"data.dataset": {"name": "shapes", "train_size": 8}}),
        (["--model.losses={contrastive: {}}"], {"model.losses": {"contrastive": {}}}),
        (["--model.losses.captioning.weight=3"],
         {"model.losses": {"contrastive": {"weight": 1.0}, "captioning": {"weight": 3}}}),
        (["--trainer.max_steps=2", "--model.embed_dim=8"], {}),
    ],
)  # fmt: skip
def test_an_option_is_merged_with_the_files(tmp_path: Path, options: list[str], expected: dict[str, Any]) -> None:
    assert merged(tmp_path, *options) == expected


def test_the_order_of_files_and_options_counts(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("data: {dataset: {path: b.csv}}")
    assert merged(tmp_path, "--data.dataset.path=c.csv", "--config", str(second))["data.dataset"]["path"] == "b.csv"


def test_a_section_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("dataset: {name: csv, path: a.csv}")
    found = merged(tmp_path, "--data.dataset.root=x", files=("data: data.yaml",))
    assert found == {"data.dataset": {"name": "csv", "path": "a.csv", "root": "x"}}


def test_the_config_of_a_run_is_the_merged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = tiny_config(tmp_path), tmp_path / "second.yaml"
    second.write_text(
        "data: {dataset: {train_size: 16}}\nmodel: {optimizer: {lr: 2e-3}, losses: {captioning: {weight: 5e-1}}}"
    )
    assert fit(first, "--config", str(second), "--trainer.max_steps=1", "--trainer.limit_val_batches=0") == 0
    saved = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    assert saved["data"]["dataset"] == {"name": "shapes", "train_size": 16, "val_size": 8, "test_size": 8}
    assert saved["model"]["losses"] == {"contrastive": {"weight": 1.0}, "captioning": {"weight": 0.5}}
    assert saved["model"]["optimizer"]["lr"] == 2e-3
    again = parse_fit(["--config", "runs/tiny/config.yaml"])
    assert {name: again["data"][name] for name in ("dataset", "tokenizer")} == {
        name: saved["data"][name] for name in ("dataset", "tokenizer")
    }


def test_numbers_beside_the_parts_are_plain(tmp_path: Path) -> None:
    """A checkpoint holds the optimizer's numbers, and is read without running code."""
    (tmp_path / "config.yaml").write_text(
        "model:\n  optimizer: {lr: 1.0e-3, weight_decay: 1.0e-2, betas: [0.90, 0.950]}\n"
        "  losses: {contrastive: {weight: 1.0e-1}}\n  image_encoder: {name: cnn}\n  text_encoder: {name: rnn}\n"
        "data: {dataset: {name: shapes}}\n"
    )
    options = parse_fit(["--config", str(tmp_path / "config.yaml"), "--trainer.gradient_clip_val=1.50"])
    optimizer = options["model"]["optimizer"]
    numbers = [optimizer["lr"], optimizer["weight_decay"], *optimizer["betas"], options["trainer"]["gradient_clip_val"]]
    assert [type(number) for number in numbers] == [float] * 5
    assert numbers == [1e-3, 1e-2, 0.9, 0.95, 1.5]
