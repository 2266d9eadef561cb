"""`velm evaluate`: files written, and the dataset is what was trained on unless something else was typed."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from velm.cli import main as velm
from velm.data.opening import dataset_config
from velm.errors import ConfigError

NO_INTERVAL = {"caption/distinct", "caption/distinct1", "caption/distinct2"}
"""Resampling duplicates captions."""

FAST = ["--max_length", "3"]


def measured(scores: dict[str, float]) -> set[str]:
    return {name for name in scores if not name.startswith("signature/")}


def test_metrics_and_captions_are_written(write_checkpoint, tmp_path, capsys):
    assert velm(["evaluate", str(write_checkpoint()), "--output", str(tmp_path / "a" / "b"), *FAST]) == 0
    scores = json.loads((tmp_path / "a" / "b" / "metrics.json").read_text())
    assert {"image_to_text/recall@1", "text_to_image/median_rank", "caption/bleu4", "caption/exact_match"} <= set(
        scores
    )
    rows = [json.loads(line) for line in (tmp_path / "a" / "b" / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert set(rows[0]) == {"image_id", "caption", "references"}
    output = capsys.readouterr().out
    for name, value in scores.items():
        assert f"{name} " in output
        assert f"{value:.4f}" in output
    assert "6 images and" in output


def test_in_bfloat16(write_checkpoint, tmp_path):
    checkpoint, found = str(write_checkpoint()), []
    for precision in ("32", "bf16"):
        output = tmp_path / precision
        assert velm(["evaluate", checkpoint, "--output", str(output), "--precision", precision, *FAST]) == 0
        found.append(json.loads((output / "metrics.json").read_text()))
    assert found[0].keys() == found[1].keys()
    assert all(figure >= 0 for figure in found[1].values())


def test_the_tokenization_of_captions_is_chosen_and_stated(write_checkpoint, tmp_path, capsys):
    checkpoint = str(write_checkpoint())
    lengths = {}
    for name in ("auto", "char"):
        output = tmp_path / name
        assert velm(["evaluate", checkpoint, "--output", str(output), f"--metrics.tokenize={name}", *FAST]) == 0
        scores = json.loads((output / "metrics.json").read_text())
        assert scores[f"signature/tokenize:{name}"] == 1
        lengths[name] = scores["caption/length"]
    assert lengths["char"] > lengths["auto"] > 0
    assert "signature/tokenize:char" in capsys.readouterr().out
    assert velm(["evaluate", checkpoint, "--output", str(tmp_path), "--metrics.tokenize", "jeiba"]) == 2
    assert "No tokenization 'jeiba' (metrics.tokenize). Did you mean 'jieba'?" in capsys.readouterr().err


def test_a_report_is_written_with_the_curves_of_the_run(write_checkpoint, tmp_path, capsys):
    checkpoint = write_checkpoint()
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,9,4.0\n1,19,3.0\n")
    assert velm(["evaluate", str(checkpoint), "--output", str(tmp_path / "out"), *FAST]) == 0
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for section in ("metrics", "retrieval", "captions", "confusions", "training"):
        assert f'<section id="{section}">' in report
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    intervals = json.loads((tmp_path / "out" / "intervals.json").read_text())
    assert intervals.keys() == measured(scores) - NO_INTERVAL
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out


def test_another_checkpoint_beside_it(write_checkpoint, tmp_path):
    first, second = write_checkpoint("a.ckpt"), write_checkpoint("b.ckpt", decoder={"name": "rnn", "dim": 16})
    arguments = ["evaluate", str(first), "--compare", str(second), "--output", str(tmp_path / "out"), *FAST]
    assert velm([*arguments, "--rerank", "4"]) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert comparison["checkpoint"] == str(second)
    assert comparison["figures"].keys() == scores.keys()
    assert comparison["differences"].keys() == measured(scores) - NO_INTERVAL
    assert str(second) in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_reranked_metrics_on_request(write_checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(write_checkpoint()), "--output", str(tmp_path), *FAST, "--rerank", "4"]
    assert velm(arguments) == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert {"image_to_text/recall@1", "reranked/image_to_text/recall@1", "reranked/text_to_image/median_rank"} <= set(
        scores
    )


def test_texts_without_images(write_checkpoint, tmp_path, capsys):
    (tmp_path / "texts.csv").write_text("article,summary\na small red circle,a circle\na large star,a star\n")
    dataset = {"name": "csv", "path": str(tmp_path / "texts.csv"), "text_column": "article", "target_column": "summary",
               "image_column": None, "image_id_column": None, "split_column": None}  # fmt: skip
    checkpoint = write_checkpoint(
        image_encoder=None, memory=["text"], losses={"captioning": {}}, data={"dataset": dataset}
    )
    arguments = ["evaluate", str(checkpoint), "--output", str(tmp_path / "out"), *FAST]
    assert velm([*arguments, "--split", "train"]) == 0
    assert "2 records of the split 'train'" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [(row["text"], row["references"]) for row in rows] == [
        ("a small red circle", ["a circle"]), ("a large star", ["a star"])
    ]  # fmt: skip
    assert "2 records of <b>train</b>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_dataset_can_be_changed_from_the_command_line(write_checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(write_checkpoint()), "--output", str(tmp_path), *FAST, "--texts_per_image", "2"]
    assert velm([*arguments, "--data.dataset.test_size=3"]) == 0
    assert "3 images and 6 texts of the split 'test'" in capsys.readouterr().out
    assert velm([*arguments, "--data.dataset.val_size", "4", "--split", "val"]) == 0
    assert "4 images and 8 texts of the split 'val'" in capsys.readouterr().out


def test_another_dataset_altogether(write_checkpoint, tmp_path, capsys):
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "rows.csv").write_text(
        "image_path,text,split,image_id\na.png,a red circle,test,0\nb.png,a blue square,test,1\n"
    )
    arguments = ["evaluate", str(write_checkpoint()), "--output", str(tmp_path / "out"), *FAST, "--data.dataset"]
    assert velm([*arguments, f"{{name: csv, path: {tmp_path / 'rows.csv'}}}"]) == 0
    assert "2 images and 2 texts" in capsys.readouterr().out


@pytest.fixture
def broken(tmp_path):
    """The options of a csv of six images, the second of which cannot be read."""
    rows = ["image_path,text,split,image_id"]
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 90, 90)).save(tmp_path / f"{i}.png")
        rows += [f"{i}.png,{text},test,{i}" for text in ("a red circle", f"a blue square {i}")]
    (tmp_path / "1.png").write_bytes(b"<script>no image</script>")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    return ["--data.dataset", f"{{name: csv, path: {tmp_path / 'rows.csv'}}}"]


def test_an_image_that_cannot_be_read_is_left_out_named_and_counted(write_checkpoint, tmp_path, capsys, broken):
    out = tmp_path / "out"
    arguments = ["evaluate", str(write_checkpoint()), "--output", str(out), *FAST, *broken]
    assert velm([*arguments, "--data.max_bad", "0.2"]) == 1
    captured = capsys.readouterr()
    assert "5 images and 10 texts" in captured.out
    assert f"velm evaluate: Cannot read image '{tmp_path / '1.png'}'" in captured.err
    assert f"1 image is left out of all metrics; see {out / 'unreadable.jsonl'}" in captured.err
    assert json.loads((out / "metrics.json").read_text())["left_out"] == 1
    row = json.loads((out / "unreadable.jsonl").read_text())
    assert row["path"] == str(tmp_path / "1.png")
    written = [json.loads(line)["image_id"] for line in (out / "captions.jsonl").read_text().splitlines()]
    assert written == ["0", "2", "3", "4", "5"]
    report = (out / "report.html").read_text("utf-8")
    assert "1 image could not be read and were left out" in report
    assert "1.png" in report
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    assert velm(arguments) == 0
    assert not (out / "unreadable.jsonl").exists()
    assert "could not be read" not in (out / "report.html").read_text("utf-8")


def test_too_many_images_that_cannot_be_read_are_an_error(write_checkpoint, tmp_path, capsys, broken):
    checkpoint = write_checkpoint()
    arguments = ["--output", str(tmp_path / "out"), *FAST, *broken]
    assert velm(["evaluate", str(checkpoint), *arguments]) == 2
    assert "1 of 6 records of the split (16.7%) cannot be used, max_bad is 1.0%" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    lenient = write_checkpoint("b.ckpt", data={"dataset": "shapes", "max_bad": 0.2})
    assert velm(["evaluate", str(lenient), *arguments]) == 1  # what training allowed
    assert velm(["evaluate", str(lenient), *arguments, "--data.max_bad", "20"]) == 2
    assert "data.max_bad is a fraction of the data, between 0 and 1; got 20" in capsys.readouterr().err


def test_two_checkpoints_are_measured_on_what_both_can_read(write_checkpoint, tmp_path, broken):
    """The first reads no images, so only the second finds that one is broken."""
    csv = tmp_path / "rows.csv"
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([f"{lines[0]},to", *(f"{line},ein kreis" for line in lines[1:])]) + "\n")
    blind = write_checkpoint("a.ckpt", memory=["text"], losses={"captioning": {}}, image_encoder=None)
    seeing = write_checkpoint("b.ckpt", memory=["image", "text"], losses={"captioning": {}})
    out = tmp_path / "out"
    for first, second in ((blind, seeing), (seeing, blind)):
        arguments = ["evaluate", str(first), "--compare", str(second), "--output", str(out), *FAST, *broken]
        assert velm([*arguments, "--data.dataset.target_column=to", "--data.max_bad=0.5"]) == 1
        scores = json.loads((out / "metrics.json").read_text())
        comparison = json.loads((out / "comparison.json").read_text())
        assert scores["left_out"] == comparison["figures"]["left_out"] == 1
        rows = [json.loads(line)["image_id"] for line in (out / "captions.jsonl").read_text().splitlines()]
        assert "1" not in rows


def test_alignment_only_writes_no_captions(write_checkpoint, tmp_path):
    aligner = write_checkpoint(decoder=None, losses={"contrastive": {}})
    assert velm(["evaluate", str(aligner), "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "captions.jsonl").exists()
    assert not any("caption" in name for name in json.loads((tmp_path / "out" / "metrics.json").read_text()))


def test_the_command_line_changes_the_stored_dataset():
    stored = {"name": "csv", "path": "a.csv", "split_column": "split"}
    assert dataset_config(stored, []) == stored
    assert dataset_config("shapes", [("test_size", 3)]) == {"name": "shapes", "test_size": 3}
    assert dataset_config(stored, [("path", "b.csv")]) == stored | {"path": "b.csv"}
    assert dataset_config(stored, [("name", "csv"), ("path", "b.csv")]) == stored | {"path": "b.csv"}
    assert dataset_config(stored, [("name", "shapes"), ("test_size", 3)]) == {"name": "shapes", "test_size": 3}
    assert dataset_config(stored, [("", {"name": "folder", "path": "x"}), ("path", "y")]) == {
        "name": "folder",
        "path": "y",
    }
    assert dataset_config(stored, [("columns.image", "i")])["columns"] == {"image": "i"}
    assert stored == {"name": "csv", "path": "a.csv", "split_column": "split"}
    with pytest.raises(ConfigError, match=r"--data\.dataset\.path\.x: 'path' is 'a\.csv', which has no parts"):
        dataset_config(stored, [("path.x", 1)])
    with pytest.raises(ConfigError, match=r"stores no dataset\. Name one: --data\.dataset '\{name: csv"):
        dataset_config(None, [("path", "a.csv")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "nonsense"], "The split 'nonsense' of shapes does not exist"),
        (["--data.dataset.tset_size=3"], "Did you mean 'test_size'?"),
        (["--data.dataset.name=shape"], "Did you mean 'shapes'?"),
        (["--data.dataset.test_size"], "--data.dataset.test_size needs a value"),
        (["--data.dataset={"], "The value of --data.dataset is no YAML"),
        (["--data.dataset", "{name: csv, path: nowhere.csv}"], "nowhere.csv"),
        (["--texts_per_image", "0"], "texts_per_image 0 is too small"),
        (["--num_beams", "0"], "num_beams 0 is too small"),
        (["--rerank", "1"], "rerank 1 is too small"),
        (["--compare", "nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(write_checkpoint, tmp_path, capsys, arguments, words):
    assert velm(["evaluate", str(write_checkpoint()), "--output", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("velm evaluate: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "dataset", "extra"),
    [
        ("datasets", "{name: hf/someone/images}", "hf"),
    ],
)
def test_a_missing_extra_is_one_line_and_no_traceback(
    write_checkpoint, tmp_path, capsys, monkeypatch, package, dataset, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["evaluate", str(write_checkpoint()), "--output", str(tmp_path / "out"), "--data.dataset", dataset]
    assert velm(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("velm evaluate: ")
    assert f"pip install 'velm[{extra}]'" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_other_options_are_refused(write_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        velm(["evaluate", str(write_checkpoint()), "--output", str(tmp_path), "--data.tokenizer=word"])
    assert stop.value.code == 2
    assert "--data.tokenizer" in capsys.readouterr().err
