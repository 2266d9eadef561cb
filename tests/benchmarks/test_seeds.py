"""Metrics of a recipe over seeds, and its gain over another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import make_evaluation, noise_records

from benchmarks import seeds
from velm.report.results import write_results

pytestmark = pytest.mark.filterwarnings("ignore")


def write(folder: Path, caption: str, images: int = 12, *, aligned: bool = True) -> Path:
    records = noise_records(images)
    evaluation = make_evaluation(records, caption=caption, aligned=aligned, writes=True)
    write_results(folder, replace(evaluation, records=records), [])
    return folder


def row(text: str, metric: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {metric} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_mean_of_the_seeds_and_each_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / "0", "a red circle"), write(tmp_path / "1", "a blue circle")]
    seeds.main([*map(str, folders), "--metrics", "caption/exact_match", "image_to_text/recall@1", "no/metric"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 4
    assert row(text, "caption/exact_match") == ["caption/exact_match", "0.500", "0.000 to 1.000", "0.000, 1.000"]
    _name, mean, interval, each = row(text, "image_to_text/recall@1")
    assert each == f"{mean}, {mean}"
    low, high = map(float, interval.split(" to "))
    assert low <= float(mean) <= high


def test_the_gain_is_paired(tmp_path: Path) -> None:
    base = [write(tmp_path / f"base{seed}", "a red circle") for seed in range(2)]
    better = [write(tmp_path / f"better{seed}", "a blue circle") for seed in range(2)]
    text = seeds.table(better, base, [*seeds.METRICS, "caption/exact_match"])
    assert row(text, "caption/exact_match")[1:] == ["0.000", "1.000", "+1.000", "+1.000 to +1.000", "+1.000, +1.000"]
    assert row(text, "image_to_text/recall@1")[3:] == ["+0.000", "+0.000 to +0.000", "+0.000, +0.000"]


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "0", "a red circle"), write(tmp_path / "1", "a red circle", images=7)
    with pytest.raises(SystemExit, match="1 evaluations and 2 of --base; give one of each seed"):
        seeds.table([first], [first, second], seeds.METRICS)
    with pytest.raises(SystemExit, match=r"Their ranks.jsonl are of other images or texts"):
        seeds.table([second], [first], seeds.METRICS)


def test_captions_are_paired_where_one_model_has_no_alignment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, joint = write(tmp_path / "0", "a red circle", aligned=False), write(tmp_path / "1", "a blue circle")
    text = seeds.table([joint], [alone], ["image_to_text/recall@1", "caption/exact_match"])
    assert row(text, "caption/exact_match")[3] == "+1.000"
    assert len(text.splitlines()) == 3
    assert capsys.readouterr().err == f"{joint}: Only one has ranks.jsonl.\n"
    with pytest.raises(SystemExit, match="share none of the metrics: choose others by --metrics"):
        seeds.table([joint], [alone], ["image_to_text/recall@1"])
    (joint / "ranks.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"Only one has ranks.jsonl"):
        seeds.table([write(tmp_path / "2", "a blue circle")], [joint], ["image_to_text/recall@1"])
