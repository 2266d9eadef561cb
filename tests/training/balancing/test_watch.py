"""The watch reports the gradients there are and disturbs none; alarms ring once; speed counts what went by."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tests.training.balancing.test_policies import CONFLICT, apart, assert_same, flat, make_task, step, whole_batch
from velm.training.balancing.watch import GradientWatch
from velm.training.config import WatchConfig
from velm.training.monitor.alarms import Alarms, uninformed
from velm.training.monitor.throughput import ModelFlops, Speed, peak_flops

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(folder: Path) -> dict[str, float]:
    """Every figure that was logged, the last of its name."""
    found: dict[str, float] = {}
    with open(next(folder.rglob("metrics.csv")), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found |= {name: float(value) for name, value in row.items() if value}
    return found


def watched(folder: Path, balance: str, **changes: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    task = make_task(CONFLICT, balance, watch=WatchConfig(every=1), **changes)
    options = {"logger": CSVLogger(folder), "callbacks": [GradientWatch()], "log_every_n_steps": 1}
    gradients = step(task, whole_batch(), **options)
    return rows(folder), gradients


@pytest.mark.parametrize("micro", [None, 3])
def test_norms_and_cosine_are_those_of_separate_backward_passes(tmp_path: Path, micro: int | None) -> None:
    figures, gradients = watched(tmp_path, "fixed", micro_batch_size=micro)
    shared, own = apart(CONFLICT)
    first, second = (flat(each, shared) for each in own.values())
    assert figures["watch/contrastive/grad_norm"] == pytest.approx(float(first.norm()))
    assert figures["watch/Against/grad_norm"] == pytest.approx(float(second.norm()))
    cosine = float(torch.cosine_similarity(first, second, dim=0))
    assert figures["watch/cosine/contrastive_Against"] == pytest.approx(cosine)
    assert figures["watch/weight/contrastive"] == 2.0
    assert figures["watch/weight/Against"] == 0.5
    assert_same(gradients, step(make_task(CONFLICT), whole_batch()))


def test_weights_are_those_after_projection(tmp_path: Path) -> None:
    figures, _ = watched(tmp_path, "projection")
    shared, own = apart(CONFLICT)
    first, second = (flat(each, shared) for each in own.values())
    expected = 2 * (1 - float(first @ second) / float(first @ first))
    assert figures["watch/weight/contrastive"] == pytest.approx(expected)


@pytest.mark.parametrize(("losses", "every"), [({"contrastive": {}}, 1), (CONFLICT, 0), (CONFLICT, 2)])
def test_it_is_silent_where_there_is_nothing_to_see(tmp_path: Path, losses: dict[str, Any], every: int) -> None:
    task = make_task(losses, watch=WatchConfig(every=every))
    step(task, whole_batch(), logger=CSVLogger(tmp_path), callbacks=[GradientWatch()], log_every_n_steps=1)
    assert not any(name.startswith("watch/") for name in rows(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"every": -1}, "model.watch.every is a number of logged steps, 0 for never; got -1"),
     ({"distinct": 1.0}, "watch.distinct is a fraction, 0 <= distinct < 1; got 1.0")],
)  # fmt: skip
def test_thresholds_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", ".")):
        WatchConfig(**options)


# --- alarms


def test_a_model_that_knows_nothing_has_ln_b() -> None:
    assert uninformed(torch.arange(8)) == pytest.approx(math.log(8))
    assert uninformed(torch.arange(4), devices=2) == pytest.approx(math.log(8))
    assert uninformed(torch.tensor([0, 0, 1, 1])) == pytest.approx(math.log(3))


def test_an_alarm_starts_once_until_it_is_over(tmp_path: Path) -> None:
    alarms, trainer = Alarms(tmp_path), SimpleNamespace(current_epoch=1, global_step=7, is_global_zero=True, loggers=[])
    with pytest.warns(UserWarning, match="Alarm: too loud"):
        alarms.judge(trainer, "noise", True, "too loud")  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bad in (True, False, False):
            alarms.judge(trainer, "noise", bad, "too loud")  # type: ignore[arg-type]
    said = (tmp_path / "alarms.txt").read_text(encoding="utf-8").splitlines()
    assert said == ["epoch 1 step 7: too loud", "epoch 1 step 7: noise: well again."]


def validated(tmp_path: Path, embeds: torch.Tensor, written: list[str], config: WatchConfig) -> str:
    """What alarms.txt says after a validation with these embeddings and captions."""
    right = [[f"caption {i}"] for i in range(len(written))]
    scores = SimpleNamespace(embeds={"image": embeds}, captions=dict(enumerate(written)), references=lambda: right)
    task = SimpleNamespace(scores={"val": scores}, watch_config=config, optimizer_config=SimpleNamespace(warmup=0.1))
    trainer = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, loggers=[], current_epoch=0, global_step=5, callback_metrics={},
        estimated_stepping_batches=50,
    )  # fmt: skip
    alarms = Alarms(tmp_path)
    alarms.on_validation_end(trainer, task)  # type: ignore[arg-type]
    return alarms.file.read_text(encoding="utf-8") if alarms.file.exists() else ""


def test_collapses_differ_from_health(tmp_path: Path) -> None:
    point, spread = torch.ones(40, 16), torch.eye(16).repeat(3, 1)
    config = WatchConfig(distinct=0.1)
    assert validated(tmp_path, spread, [f"a dog {i}" for i in range(40)], config) == ""
    assert validated(tmp_path, point, ["a dog"] * 40, WatchConfig(effective_rank=0, distinct=0)) == ""
    said = validated(tmp_path, point, ["a dog"] * 40, config)
    assert "the 40 image embeddings of the validation use 1.0 of 16 directions" in said
    assert "of 40 captions of the validation 2.5% are distinct (val/distinct_captions), and 100.0% of" in said


def stuck(tmp_path: Path, value: float) -> bool:
    task, alarms = make_task({"contrastive": {}}), Alarms(tmp_path)
    for number in range(1, 12):
        trainer = SimpleNamespace(
            global_step=number, log_every_n_steps=1, is_global_zero=True, estimated_stepping_batches=10, world_size=1,
            callback_metrics={"train/contrastive": torch.tensor(value)}, current_epoch=0, loggers=[],
        )  # fmt: skip
        alarms.on_train_batch_end(trainer, task, None, whole_batch())  # type: ignore[arg-type]
    return bool(alarms.active)


def test_a_contrastive_loss_at_chance_is_stuck(tmp_path: Path) -> None:
    assert stuck(tmp_path, math.log(8) * 0.99)
    assert "the contrastive loss is 2.059 over the last 10 logged steps" in (tmp_path / "alarms.txt").read_text()
    assert not stuck(tmp_path, math.log(8) * 0.97)


# --- speed


def test_speed_counts_samples_and_tokens_and_leaves_mfu_out_on_a_cpu(tmp_path: Path) -> None:
    batches = [whole_batch()] * 3
    options = {"max_steps": 3, "accumulate_grad_batches": 1, "log_every_n_steps": 1}
    step(make_task(CONFLICT), *batches, logger=CSVLogger(tmp_path), callbacks=[Speed()], **options)
    figures = rows(tmp_path)
    assert {name for name in figures if name.startswith("speed/")} == {
        "speed/samples_per_s", "speed/tokens_per_s", "speed/elapsed_s", "speed/peak_memory_mb"
    }  # fmt: skip
    tokens = float(whole_batch().mask.sum())
    assert figures["speed/tokens_per_s"] / figures["speed/samples_per_s"] == pytest.approx(tokens / 8)
    assert figures["speed/peak_memory_mb"] > 10
    assert peak_flops(torch.device("cpu"), "32-true") is None


def test_operations_are_counted_by_hand_and_recomputed_ones_are_not() -> None:
    """A product (4, 8) @ (8, 2) is 2 * 4 * 8 * 2 operations, and as many for each of its two gradients."""
    from torch.utils.checkpoint import checkpoint

    for again in (False, True):
        rows, layer = torch.randn(4, 8, requires_grad=True), torch.nn.Linear(8, 2, bias=False)
        with ModelFlops() as counter:
            out = checkpoint(layer, rows, use_reentrant=False) if again else layer(rows)
            out.square().sum().backward()
        assert counter.total == 3 * 128
