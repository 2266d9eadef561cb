"""A run that is killed anywhere and started again goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import csv
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from injected import CONFIG as PLAIN
from injected import STEPS, faults, fit

from velm import cli
from velm.data.shards.packing import pack
from velm.errors import TerminatedError
from velm.training.recovery.resume import seed_step

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG: dict[str, Any] = {  # everything that draws random numbers
    **PLAIN,
    "model": {
        **PLAIN["model"],
        "text_encoder": {"name": "rnn", "dim": 16, "dropout": 0.2, "word_dropout": 0.1},
        "losses": {"contrastive": {}, "captioning": {"label_smoothing": 0.1}},
        "embed_dropout": 0.1,
    },
    "data": {**PLAIN["data"], "captions_per_image": 2, "augment": {"crop_scale": [0.8, 1.0]}},
}


def stopped_at(step: int, number: int) -> str:
    return faults({"Signal": {"step": step, "number": int(number)}})


def losses(run: Path) -> list[tuple[int, str]]:
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return [(int(row["step"]), row["train/loss"]) for row in rows if row.get("train/loss")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing stops."""
    assert fit(folder, "--trainer.default_root_dir=whole") == 0
    assert [step for step, _ in losses(folder / "whole")] == list(range(STEPS))
    return folder / "whole"


def killed_and_resumed(
    folder: Path, name: str, step: int, workers: tuple[int, int] = (0, 0), more: Sequence[str] = ()
) -> Path:
    before, after = ([f"--trainer.default_root_dir={name}", f"--data.num_workers={n}", *more] for n in workers)
    assert fit(folder, *before, stopped_at(step, signal.SIGKILL)) == -signal.SIGKILL
    last = folder / name / "last.ckpt"
    resume = [f"--ckpt_path={name}/last.ckpt"] if last.is_file() else []  # killed before there was one
    assert fit(folder, *after, *resume) == 0
    return folder / name


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    mine, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (one, other))
    for weights in ("state_dict", "current_model_state"):
        assert all(torch.equal(mine[weights][name], theirs[weights][name]) for name in mine[weights])


@pytest.mark.parametrize("step", [5, 8])
def test_killed_inside_an_epoch(folder: Path, whole: Path, step: int) -> None:
    assert_same_run(killed_and_resumed(folder, f"killed_{step}", step), whole)


def test_told_to_stop_it_saves_the_step_under_way(folder: Path, whole: Path) -> None:
    """SIGTERM, as a cluster sends it before it takes the machine: nothing is lost."""
    where = "--trainer.default_root_dir=told"
    assert fit(folder, where, stopped_at(4, signal.SIGTERM)) == TerminatedError.exit_code
    assert torch.load(folder / "told" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert fit(folder, where, "--ckpt_path=told/last.ckpt") == 0
    assert_same_run(folder / "told", whole)


def test_a_place_that_is_not_there_any_more_is_told(folder: Path, whole: Path, monkeypatch: Any, capsys: Any) -> None:
    where = "--trainer.default_root_dir=other"
    assert fit(folder, where, stopped_at(5, signal.SIGKILL)) == -signal.SIGKILL
    monkeypatch.chdir(folder)
    assert cli.main(["fit", "--config", "run.yaml", where, "--ckpt_path=other/last.ckpt", "--data.batch_size=3"]) == 2
    assert "stopped after 4 of the 7 batches of an epoch, and an epoch has 10 now" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shards(folder: Path) -> str:
    """The same data as tar shards."""
    pack(CONFIG["data"]["dataset"], str(folder / "shards"), shard_size=7)
    return f"--data.dataset={{name: webdataset, path: {folder / 'shards'}}}"


@pytest.fixture(scope="module")
def whole_of_shards(folder: Path, shards: str) -> Path:
    assert fit(folder, "--trainer.default_root_dir=whole_of_shards", shards) == 0
    return folder / "whole_of_shards"


PLACES = sorted(np.random.default_rng(0).integers(0, STEPS, 20).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("step", PLACES)
@pytest.mark.parametrize("workers", ["the same", "others"])
def test_killed_anywhere_with_any_workers(
    folder: Path, whole: Path, whole_of_shards: Path, shards: str, step: int, workers: str, request: Any
) -> None:
    """Twenty places, over drawn images and shards by turns; workers 0, 2 and 4, and another number after each."""
    place = request.node.callspec.indices["step"]
    same, others = [(0, 0), (2, 2), (4, 4)], [(0, 2), (2, 0), (2, 4), (4, 1), (0, 4)]
    numbers = same[place % 3] if workers == "the same" else others[place % 5]
    of_shards = bool(place % 2)
    name = f"anywhere_{place}_{workers == 'others'}"
    killed = killed_and_resumed(folder, name, step, numbers, [shards] if of_shards else [])
    assert_same_run(killed, whole_of_shards if of_shards else whole)


def test_dropout_is_a_function_of_epoch_step_and_rank() -> None:
    def drawn(*place: int) -> float:
        seed_step(*place)
        return float(torch.rand(()))

    assert drawn(1, 2, 0) == drawn(1, 2, 0)
    assert len({drawn(epoch, step, rank) for epoch in range(3) for step in range(3) for rank in range(2)}) == 18
