"""The comparison of joint with single training: its runs, its intervals, its table."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import make_evaluation, noise_records
from tiny_run import tiny_config

from benchmarks import joint
from velm.evaluation.bootstrap import differences
from velm.report.report import evaluated_model
from velm.report.results import write_results

pytestmark = pytest.mark.filterwarnings("ignore")


def write(output: Path, seed: int, kind: str, caption: str = "a red circle", score: float = 0.5) -> Any:
    """An evaluated run by hand."""
    run = output / f"seed{seed}" / kind
    records = noise_records(12)
    evaluation = make_evaluation(
        records, caption=caption, aligned=kind != "captioning", writes=kind != "contrastive"
    )  # fmt: skip
    evaluation = replace(evaluation, records=records)
    write_results(run / "evaluation", evaluation, [])
    (run / "metrics.csv").write_text(f"step,val/score\n5,0.25\n7,{score}\n", encoding="utf-8")
    finished = {"finished": True, "processor_seconds": 90.0}
    for command in ("fit", "evaluate"):
        (run.parent / f"{kind}_{command}.json").write_text(json.dumps(finished), encoding="utf-8")
    return evaluated_model(str(run), evaluation)


def test_a_table_of_two_seeds(tmp_path: Path) -> None:
    """A seed of which a run is missing is left out; captions that are right win, equal embeddings are open."""
    for seed in (0, 1):
        write(tmp_path, seed, "contrastive")
        write(tmp_path, seed, "captioning")
        write(tmp_path, seed, "joint", caption="a blue circle", score=0.75)
    write(tmp_path, 2, "joint")
    assert joint.complete(tmp_path, [0, 1, 2]) == [0, 1]
    assert joint.main(["--table", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "| caption/exact_match | 0.000 | 1.000 | +1.000 | +1.000 to +1.000 | +1.000, +1.000 | joint |" in table
    recall = next(line for line in table.splitlines() if line.startswith("| image_to_text/recall@1"))
    assert recall.endswith("| +0.000 | +0.000 to +0.000 | +0.000, +0.000 | open |")
    assert "| joint | 8 | 1.5 | 0.750 | 0.250 |" in table
    assert "| captioning | 8 | 1.5 | 0.500 | 0.250 |" in table


def test_of_one_seed_the_interval_is_that_of_velm_compare(tmp_path: Path) -> None:
    write(tmp_path, 0, "contrastive")
    models = [write(tmp_path, 0, "captioning"), write(tmp_path, 0, "joint", caption="the blue dog circle")]
    expected = differences(*(model.draws for model in models))
    found = {row.metric: row.interval for row in joint.rows(tmp_path, [0])}
    for name in ("caption/exact_match", "caption/cider", "caption/bleu4"):
        assert found[name] == pytest.approx(expected[name])


def test_seeds_are_drawn_too() -> None:
    """Of seeds alone the interval lies between the least and the largest difference, and images widen it."""
    alone = joint.interval([0.1, 0.2, 0.6])
    assert alone == pytest.approx((0.1, 0.6))
    noise = np.random.default_rng(1).normal(size=(3, joint.RESAMPLES))
    low, high = joint.interval([each + draw for each, draw in zip((0.1, 0.2, 0.6), noise, strict=True)])
    assert low < 0.1 < 0.6 < high
    assert joint.interval([0.3]) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(
    ("values", "interval", "verdict"),
    [
        (((0.1, 0.2), (0.1, 0.3)), (0.05, 0.2), "joint"),
        (((0.2, 0.1), (0.3, 0.1)), (-0.2, -0.05), "captioning"),
        (((0.1, 0.2), (0.1, 0.3)), (-0.01, 0.2), "open"),
        (((0.1, 0.09), (0.1, 0.3)), (0.01, 0.2), "open"),
    ],
)
def test_a_win_needs_the_interval_and_every_seed(values: Any, interval: Any, verdict: str) -> None:
    assert joint.Row("caption/cider", "captioning", values, interval, True).verdict == verdict


def test_reranking_is_compared_with_the_embeddings_of_the_single_model(tmp_path: Path) -> None:
    for kind in ("contrastive", "captioning", "joint"):
        write(tmp_path, 0, kind)
    file = tmp_path / "seed0" / "joint" / "evaluation" / "metrics.json"
    alone = json.loads(file.read_text())["image_to_text/recall@1"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reranked/image_to_text/recall@1": alone + 0.125}))
    (row,) = (row for row in joint.rows(tmp_path, [0]) if row.metric.startswith("reranked"))
    assert row.differences == [pytest.approx(0.125)]
    assert not row.images
    assert "(seeds alone)" in joint.markdown(tmp_path, [0])


def test_the_single_runs_have_the_losses_and_parts_of_one_task(tmp_path: Path) -> None:
    config = ["--config", str(tiny_config(tmp_path))]
    runs = joint.overrides(config)
    assert runs["contrastive"] == ["--model.decoder=null", '--model.losses={"contrastive": {"weight": 1.0}}']
    assert runs["captioning"] == ['--model.losses={"captioning": {"weight": 2.0}}', "--model.text_encoder=null"]
    assert runs["joint"] == []
    reads = joint.overrides([*config, '--model.memory=["image", "text"]'])
    assert reads["captioning"] == ['--model.losses={"captioning": {"weight": 2.0}}']
    tuned = ["--model.train_last={text_encoder: 1, decoder: 1}", "--model.freeze=[image_encoder]",
             "--model.optimizer.lr_scale={text_encoder: 0.1, image_encoder: 0.5}"]  # fmt: skip
    without = joint.overrides([*config, *tuned])
    assert without["captioning"][1:] == [
        "--model.text_encoder=null", '--model.optimizer.lr_scale={"image_encoder": 0.5}',
        '--model.train_last={"decoder": 1}',
    ]  # fmt: skip
    assert without["contrastive"][:-1] == ["--model.decoder=null", '--model.train_last={"text_encoder": 1}']
    with pytest.raises(SystemExit, match=r"The losses of the config are contrastive, and joint training has an align"):
        joint.overrides([*config, "--model.losses={contrastive: {}}"])


def test_without_runs_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"No seed of 0, 1, 2 in .* evaluated: run this without --table"):
        joint.main(["--table", "--output", str(tmp_path)])


def test_finished_commands_are_skipped_and_a_failure_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor time of a command that failed counts when it is started again."""
    commands: list[str] = []
    codes = iter([1, 0, 0])

    def run(command: list[str], stdout: Any, stderr: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[3])
        stdout.write("out of memory")
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(joint.subprocess, "run", run)
    monkeypatch.setattr(joint, "_processor_seconds", iter(range(0, 100, 10)).__next__)
    folder = tmp_path / "seed0" / "joint"
    with pytest.raises(SystemExit, match=r"velm fit of .*joint ended with 1; .*joint_fit.log ends:\nout of memory"):
        joint.train(folder, [], [])
    joint.train(folder, [], [])
    joint.train(folder, [], [])
    assert commands == ["fit", "fit", "evaluate"]
    assert json.loads((tmp_path / "seed0" / "joint_fit.json").read_text()) == {
        "finished": True, "processor_seconds": 20,
    }  # fmt: skip


@pytest.mark.slow
def test_three_runs_of_a_seed_make_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", str(tiny_config(tmp_path)), "--seeds", "0", "--output", str(tmp_path / "out")]
    command += ["--trainer.max_epochs=2", "--rerank", "2", "--evaluate", "--batch_size 4"]
    assert joint.main(command) == 0
    table = capsys.readouterr().out
    for metric in ("text_to_image/recall@1", "reranked/text_to_image/recall@1", "caption/exact_match", "caption/cider"):
        assert f"| {metric} |" in table
    assert table.count("| 8 |") == 3, "the same optimizer steps"
    assert joint.main(command) == 0
    assert capsys.readouterr().out == table
