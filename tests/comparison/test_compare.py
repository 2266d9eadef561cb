"""`velm compare`: what differs between runs, who is best, paired differences, the page, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Browser, find_browser
from evaluations import make_evaluation, noise_records

from velm.cli import main as velm
from velm.comparison.metrics import lower_is_better
from velm.comparison.runs import config_differences, read_runs
from velm.evaluation.bootstrap import differences
from velm.report.report import evaluated_model
from velm.report.results import write_results

CURVES = {
    "train/loss": {0: 5.0, 9: 3.0, 19: 3.5},
    "train/contrastive": {0: 4.0, 19: 2.0},
    "val/contrastive": {9: 2.5, 19: 2.75},
    "val/score": {9: 0.5, 19: 0.25},
    "val/image_to_text/mean_rank": {9: 2.0, 19: 4.0},
    "val/caption/length": {9: 5.0, 19: 6.0},
    "speed/elapsed_s": {19: 3723.0},
}


def write_run(folder: Path, changes: dict[str, Any] | None = None, curves: Any = CURVES, **config: Any) -> str:
    """A run folder by hand; `changes` replace curves."""
    folder.mkdir(parents=True)
    content = {"model": {"optimizer": {"lr": 0.001}, "losses": {"contrastive": {}}}, "seed_everything": 0}
    content |= {"trainer": {"default_root_dir": str(folder)}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    curves = {**curves, **(changes or {})}
    steps = sorted({step for line in curves.values() for step in line})
    lines = [",".join(["epoch", "step", *curves])]
    for step in steps:
        lines.append(",".join([str(step // 10), str(step), *(str(line.get(step, "")) for line in curves.values())]))
    (folder / "metrics.csv").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two runs, the second with another rate and a better score."""
    better = {"val/score": {9: 0.25, 19: 0.75}}
    return [
        write_run(tmp_path / "runs" / "a"),
        write_run(tmp_path / "runs" / "b", better, model={"optimizer": {"lr": 0.01}, "losses": {"contrastive": {}}}),
    ]


def compared(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert velm(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_differs_and_who_is_best(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data = compared([*two, "--metrics", "val/*", "train/loss"], capsys)
    assert data["config"] == {"model.optimizer.lr": [0.001, 0.01]}
    first, second = data["runs"]
    assert (first["name"], second["name"]) == ("a", "b")
    assert (first["epochs"], first["steps"], first["seconds"]) == (2, 20, 3723.0)
    assert first["metrics"]["val/score"] == {"best": 0.5, "step": 9, "last": 0.25}
    assert first["metrics"]["val/contrastive"] == {"best": 2.5, "step": 9, "last": 2.75}
    assert first["metrics"]["train/loss"] == {"best": 3.0, "step": 9, "last": 3.5}
    assert first["metrics"]["val/image_to_text/mean_rank"]["best"] == 2.0
    assert first["metrics"]["val/caption/length"] == {"best": None, "step": None, "last": 6.0}
    assert second["metrics"]["val/score"] == {"best": 0.75, "step": 19, "last": 0.75}
    assert velm(["compare", *two]) == 0
    text = capsys.readouterr().out
    assert re.search(r"model\.optimizer\.lr +0\.001 +0\.01", text)
    assert re.search(r"val/score +0\.5 @ 10, 0\.25 +0\.75\* @ 20, 0\.75", text)
    assert re.search(r"time +1:02:03 +1:02:03", text)


def test_an_option_that_a_run_lacks_differs(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", plugins=["x"]), write_run(tmp_path / "b")])
    assert config_differences(runs) == {"plugins": [["x"], None]}


def test_the_options_of_loggers_are_not_shown(tmp_path: Path) -> None:
    options = {"logger": {"class_path": "x.Logger", "init_args": {"tracking_uri": "https://user:password@host"}}}
    runs = [write_run(tmp_path / "a", trainer={**options, "max_epochs": 3}), write_run(tmp_path / "b")]
    page = page_of(runs, tmp_path)
    assert "trainer.max_epochs" in page
    assert "password" not in page


def test_losses_and_ranks_are_better_when_lower(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b")])
    directions = {name: lower_is_better(name, runs) for name in CURVES}
    assert directions == {
        "train/loss": True, "train/contrastive": True, "val/contrastive": True, "val/score": False,
        "val/image_to_text/mean_rank": True, "val/caption/length": None, "speed/elapsed_s": None,
    }  # fmt: skip
    assert lower_is_better("train/logit_scale", runs) is None
    assert lower_is_better("val/blind/contrastive", runs) is True


def test_equal_runs_differ_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name) for name in ("x/a", "y/a")]
    data = compared(runs, capsys)
    assert data["config"] == {}
    assert [run["name"] for run in data["runs"]] == ["x/a", "y/a"]
    assert velm(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert "The configs are the same." in text
    assert "*" not in text


def evaluate_by_hand(run: str, caption: str, *, count: int = 12, **options: Any) -> Any:
    records = noise_records(count)
    evaluation = replace(make_evaluation(records, caption=caption, **options), records=records)
    write_results(Path(run) / "evaluation", evaluation, [])
    return evaluated_model(run, evaluation)


def test_differences_of_evaluations_are_those_of_evaluate(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Intervals from the files are those that `velm evaluate --compare` computes from the models."""
    first, second = evaluate_by_hand(two[0], "a red circle"), evaluate_by_hand(two[1], "a blue circle")
    (pair,) = compared(two, capsys)["evaluations"]
    expected = differences(first.draws, second.draws)
    found = {name: row["interval"] for name, row in pair["metrics"].items() if row["interval"] is not None}
    assert found.keys() == expected.keys() & first.evaluation.metrics.keys()
    assert all(interval == pytest.approx(expected[name]) for name, interval in found.items())
    cider = pair["metrics"]["caption/cider"]
    assert cider["difference"] == pytest.approx(
        second.evaluation.metrics["caption/cider"] - first.evaluation.metrics["caption/cider"]
    )
    assert found["caption/exact_match"] == [1, 1], "a reference of every image is 'a blue circle'"
    assert found["image_to_text/recall@1"] == [0, 0], "the same embeddings"
    assert "signature/velm" not in pair["metrics"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("images", "are of other images or texts"),
        ("one", "Only one has ranks.jsonl. Only one has captions.jsonl."),
        ("none", "Neither has ranks.jsonl or captions.jsonl: run velm evaluate again"),
        ("words", "The words of captions are those of 'auto' and of 'char'."),
    ],
)
def test_what_has_no_interval_says_why(
    two: list[str], change: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in two:
        evaluate_by_hand(run, "a red circle", count=5 if change == "images" and run == two[1] else 12)
    for run in two[1:] if change == "one" else two if change == "none" else []:
        for name in ("ranks.jsonl", "captions.jsonl"):
            (Path(run) / "evaluation" / name).unlink()
    if change == "words":
        for run, words in zip(two, ("auto", "char"), strict=True):
            file = Path(run) / "evaluation" / "metrics.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {f"signature/tokenize:{words}": 1.0}))
    (pair,) = compared(two, capsys)["evaluations"]
    assert note in pair["note"]
    assert pair["metrics"]["caption/cider"]["interval"] is None
    assert pair["metrics"]["caption/cider"]["difference"] == 0


def test_a_run_without_an_evaluation_is_left_out(two: list[str], tmp_path: Path, capsys: Any) -> None:
    third = write_run(tmp_path / "runs" / "c")
    for run in (two[1], third):
        evaluate_by_hand(run, "a red circle")
    (pair,) = compared([*two, third], capsys)["evaluations"]
    assert pair["runs"] == ["b", "c"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("one", "A comparison needs at least two run folders; got 1."),
        ("parent", "Did you mean the runs in it: velm compare"),
        ("twice", "is given twice"),
        ("missing", "There is no folder"),
        ("no run", "is no run of `velm fit`: it has no config.yaml and no metrics.csv."),
        ("parents", "is no run of `velm fit`: it has no config.yaml and no metrics.csv. The runs in it: velm compare"),
        ("empty", "has no metrics yet: metrics.csv has no rows"),
        ("damaged", "config.yaml cannot be read"),
        ("no common", "No metric is in two of these runs: "),
        ("pattern", "--metrics val/nothing matches no metric of these runs. There are: "),
        ("evaluation", "metrics.json cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    two: list[str], tmp_path: Path, case: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    other = {"val/caption/cider": {9: 1.0}}
    arguments = {
        "one": two[:1],
        "parent": [str(tmp_path / "runs")],
        "twice": [two[0], f"{two[0]}/../a"],
        "missing": [two[0], str(tmp_path / "nowhere")],
        "no run": [two[0], str(tmp_path / "folder")],
        "parents": [two[0], str(tmp_path / "runs")],
        "pattern": [*two, "--metrics", "val/nothing"],
    }.get(case, two)
    if case == "empty":
        Path(two[1], "metrics.csv").write_text("epoch,step,train/loss\n", encoding="utf-8")
    elif case == "damaged":
        Path(two[1], "config.yaml").write_text("model: {", encoding="utf-8")
    elif case == "no common":
        arguments = [two[0], write_run(tmp_path / "captions", curves=other)]
    elif case == "evaluation":
        for run in two:
            evaluate_by_hand(run, "a red circle")
        Path(two[1], "evaluation", "metrics.json").write_text("{", encoding="utf-8")
    assert velm(["compare", *arguments]) == 2
    assert says in capsys.readouterr().err


def page_of(arguments: list[str], tmp_path: Path) -> str:
    assert velm(["compare", *arguments, "--html", str(tmp_path / "out" / "page.html")]) == 0
    return (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


def test_the_page_overlays_the_curves(two: list[str], tmp_path: Path) -> None:
    evaluate_by_hand(two[0], "a red circle")
    evaluate_by_hand(two[1], "a blue circle")
    page = page_of(two, tmp_path)
    for section in ("runs", "configs", "metrics", "curves", "evaluations"):
        assert f'<section id="{section}">' in page
    (score,) = re.findall(r"<figure class=\"chart\"><figcaption>val/score.*?</figure>", page)
    assert re.findall(r'<polyline class="line line(\d)"', score) == ["0", "1"]
    assert "<td><code>model.optimizer.lr</code></td>" in page
    assert 'class="up"' in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page), "nothing outside the file"


def test_a_run_without_a_metric_keeps_its_colour(two: list[str], tmp_path: Path) -> None:
    middle = write_run(tmp_path / "runs" / "ab", {"val/score": {}})
    page = page_of([two[0], middle, two[1]], tmp_path)
    (score,) = re.findall(r"<figure class=\"chart\"><figcaption>val/score.*?</figure>", page)
    assert re.findall(r'<polyline class="line line(\d)"', score) == ["0", "2"]
    assert re.findall(r'class="key key(\d)"', score) == ["0", "2"]


def test_names_and_values_are_escaped(tmp_path: Path) -> None:
    wild = "<img src=x onerror=alert(1)>"
    runs = [write_run(tmp_path / "runs" / wild, plugins=[wild]), write_run(tmp_path / "runs" / "b")]
    page = page_of(runs, tmp_path)
    assert wild not in page
    assert wild in unescape(page)


def test_a_browser_shows_it_in_light_and_dark(two: list[str], tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium")
    page_of(two, tmp_path)
    with Browser(program, tmp_path / "profile") as page:
        colours = set()
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open(tmp_path / "out" / "page.html")
            colours.add(page.run("getComputedStyle(document.querySelector('.line1')).stroke"))
            colours.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 4
        page.run("document.querySelector('#run1').click()")
        assert page.run("getComputedStyle(document.querySelector('.line1')).display") == "none"
        assert page.run("getComputedStyle(document.querySelector('.line0')).display") != "none"
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.problems == []
