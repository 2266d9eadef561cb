"""One bad file never ends a run: what cannot be used is left out, named and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus import Corpus, build

from velm import cli

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG: dict[str, Any] = {
    "model": {
        "image_encoder": {"name": "cnn", "dim": 8},
        "text_encoder": {"name": "rnn", "dim": 8},
        "losses": {"contrastive": {}},
    },
    "data": {"image_size": 16, "batch_size": 64, "max_bad": 0.03},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("corpus") / "faulty", good=2000, faults=True)


def fit(folder: Path, corpus: Corpus, *arguments: str) -> int:
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    dataset = f"--data.dataset={{name: csv, path: {corpus.table}, image_id_column: null}}"
    return cli.main(["fit", "--config", "run.yaml", dataset, *arguments])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/run/quarantine.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_every_fault_ends_and_names_each(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(corpus.bad) >= 40
    assert fit(tmp_path, corpus, f"--data.num_workers={workers}", "--trainer.max_epochs=2") == 0
    found = rows(tmp_path)
    assert {row["path"] for row in found} == set(corpus.bad)
    assert len(found) == len(corpus.bad)
    assert all(row.keys() == {"path", "cause", "step"} and row["cause"] for row in found)
    assert any(row["step"] > 0 for row in found)
