"""`velm doctor`: clean data gives no warning, every planted error is reported, and nothing is written."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import yaml
from PIL import Image

from velm import cli
from velm.doctor.examine import CHECKS

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
FLICKR = ROOT.parent / "shared" / "data" / "flickr8k" / "captions.csv"
TINY: dict[str, Any] = {
    "model": {name: part for name, part in tiny_run.TINY["model"].items() if name != "validation"},
    "data": {"image_size": 32, "batch_size": 4, "max_length": 16},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
WORDS = ("red", "green", "blue", "old", "new", "big", "small", "wet")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean csv of 12 + 4 + 4 images with two sentences each, and a config; in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        split = "train" if number < 12 else "val" if number < 16 else "test"
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg", quality=90)
        name = f"{WORDS[number % 8]} {WORDS[number // 8]}"
        rows += [[f"{number}.jpg", text, split, number] for text in (f"a {name} thing", f"the {name} one")]
    write(tmp_path / "captions.csv", rows)
    dataset = {"name": "csv", "path": "captions.csv"}
    config = {**TINY, "data": {**TINY["data"], "dataset": dataset}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path


def write(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image_path", "text", "split", "image_id"], *rows])


def change(folder: Path, edit: Callable[[list[list[str]]], Any]) -> None:
    """Edit the rows of the csv."""
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    edit(rows)
    write(folder / "captions.csv", rows)


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, list[dict[str, Any]]]]]:
    """`examined(*options, config=...)`: the exit code, and the findings by check."""

    def run(*options: str, config: str | Path = "tiny.yaml") -> tuple[int, dict[str, list[dict[str, Any]]]]:
        capsys.readouterr()
        code = cli.main(["doctor", "--config", str(config), "--json", *options])
        printed = json.loads(capsys.readouterr().out)
        assert printed["summary"]["exit_code"] == code
        assert {finding["check"] for finding in printed["findings"]} <= set(CHECKS)
        by_check: dict[str, list[dict[str, Any]]] = {}
        for finding in printed["findings"]:
            by_check.setdefault(finding["check"], []).append(finding)
        return code, by_check

    return run


def severe(found: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(f["check"], f["severity"]) for fs in found.values() for f in fs if f["severity"] in ("error", "warning")]


def test_a_clean_csv_has_no_warning(images: Path, examined) -> None:
    before = sorted(images.iterdir())
    code, found = examined()
    assert severe(found) == []
    assert code == 0
    assert found["images"][0]["message"] == "20 images decoded, none missing."
    assert found["steps"][0]["value"] == {"steps": 6}
    assert sorted(images.iterdir()) == before


def test_drawn_shapes_have_no_warning(images: Path, examined) -> None:
    code, found = examined("--data.dataset={name: shapes, train_size: 300, val_size: 50, test_size: 50}")
    assert severe(found) == []
    assert code == 0


@pytest.mark.skipif(not FLICKR.is_file(), reason="Flickr8k is not here")
def test_flickr8k_has_no_warning(monkeypatch: pytest.MonkeyPatch, examined) -> None:
    monkeypatch.chdir(ROOT)
    code, found = examined("--pictures=200", config=ROOT / "configs" / "flickr8k_cnn_rnn.yaml")
    assert severe(found) == []
    assert code == 0
    assert (
        "198 images decoded, none missing; the other 7,602 were only checked to exist" in found["images"][0]["message"]
    )


def delete(folder: Path) -> None:
    (folder / "3.jpg").unlink()


def truncate(folder: Path) -> None:
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:300])


def copy_to_val(folder: Path) -> None:
    shutil.copy(folder / "2.jpg", folder / "13.jpg")


def save_again(folder: Path) -> None:
    Image.open(folder / "2.jpg").resize((40, 40)).save(folder / "17.jpg", quality=70)


def spoil_text(folder: Path) -> None:
    change(folder, lambda rows: rows[5].__setitem__(1, "caf� thing"))


def repeat_text(folder: Path) -> None:
    change(folder, lambda rows: [row.__setitem__(1, "a thing") for row in rows[:16:2]])


def empty_text(folder: Path) -> None:
    change(folder, lambda rows: rows[5].__setitem__(1, ""))


def empty_text_in_val(folder: Path) -> None:
    change(folder, lambda rows: rows[26].__setitem__(1, " "))


def overlap(folder: Path) -> None:
    change(folder, lambda rows: rows[5].__setitem__(2, "val"))


def strange_words(folder: Path) -> None:
    change(folder, lambda rows: [row.__setitem__(1, "quite other words here") for row in rows if row[2] == "val"])


@pytest.mark.parametrize(
    ("bad_sample", "check", "severity", "words"),
    [
        (delete, "images", "error", "1 of 20 (5.0%) images are missing"),
        (truncate, "images", "error", "3.jpg"),
        (copy_to_val, "duplicates_across_splits", "warning", "1 byte for byte (=), 0 nearly the same (~): train"),
        (save_again, "duplicates_across_splits", "warning", "0 byte for byte (=), 1 nearly the same (~): train"),
        (spoil_text, "odd_captions", "warning", "U+FFFD"),
        (repeat_text, "repeated_captions", "warning", "'a thing' for 8 of them"),
        (empty_text, "data", "error", "captions.csv"),
        (empty_text_in_val, "data", "error", "row 27"),
        (overlap, "data", "error", "allow_overlap"),
        (strange_words, "unknown_words", "warning", "% of val"),
    ],
)
def test_errors_of_the_data(
    bad_sample: Callable[[Path], None], check: str, severity: str, words: str, images: Path, examined
) -> None:
    bad_sample(images)
    code, found = examined()
    assert (check, severity) in severe(found)
    assert any(words in finding["message"] for finding in found[check])
    assert code == {"warning": 1, "error": 2}[severity]
    assert "parameters" in found  # the other checks went on


@pytest.mark.parametrize(
    ("option", "check", "severity", "words"),
    [
        ("--data.max_length=4", "long_captions", "warning", "max_length 4 cuts 40 of 40 (100.0%) texts"),
        ("--data.cache_features=true", "model", "error", "needs an image encoder that is wholly frozen"),
        ("--data.batch_size=64", "batch_size", "warning", "batch_size 64 is more than this split can fill"),
        ("--data.dataset.path=nowhere.csv", "data", "error", "nowhere.csv"),
        ("--data.tokenizer={name: word, min_frequency: 999}", "tokenizer", "error", "min_frequency"),
        ("--trainer.max_epochs=-1", "steps", "error", "Nothing ends the run"),
        ("--trainer.accumulate_grad_batches=4", "accumulation", "warning", "not a 4 times larger batch"),
        ("--trainer.accelerator=hpu", "trainer", "error", "hpu"),
        ("--model.optimizer.warmup=0.9", "warmup", "warning", "The learning rate rises over 5 of 6 steps"),
        ("--model.optimizer.warmup=500", "model", "error", "warmup is a fraction of all steps"),
        ("--model.optimizer.lr_scale={text: 0.1}", "model", "error", "optimizer.lr_scale names 'text'"),
        ("--model.image_encoder.name=ccn", "model", "error", "Did you mean 'cnn'?"),
        ("--model.losses={contrastive: {}}", "model", "warning", "The decoder is left out"),
        ("--model.memory=[image, text]", "model", "error", "name the column of the caption to write"),
        ("--model.decoder.max_length=8", "model", "error", "data.max_length is 16 tokens, but the decoder holds 8"),
        (
            "--model.text_encoder={name: transformer, dim: 16, depth: 1, max_length: 4}",
            "lengths",
            "error",
            "The text_encoder holds 4 tokens",
        ),
        ("--model.freeze=[image_encoder, text_encodr]", "model", "error", "freeze names 'text_encodr'"),
        (
            "--model.image_encoder={name: vit, dim: 16, depth: 1, heads: 2, patch_size: 7}",
            "model",
            "error",
            "patch_size 7",
        ),
    ],
)
def test_errors_of_the_config(option: str, check: str, severity: str, words: str, images: Path, examined) -> None:
    code, found = examined(option)
    assert (check, severity) in severe(found)
    assert any(words in finding["message"] for finding in found[check])
    assert code == {"warning": 1, "error": 2}[severity]


def test_a_plugin_that_fails_in_a_step(images: Path, examined) -> None:
    Path("odd_loss.py").write_text(
        "import velm\nfrom velm.losses.base import Loss\n\n\n"
        "@velm.losses.register('odd')\nclass Odd(Loss):\n"
        "    requires = frozenset({'image_embeds'})\n\n"
        "    def forward(self, output, batch):\n        raise RuntimeError('too odd')\n"
    )
    code, found = examined("--plugins=[odd_loss.py]", "--model.losses={odd: {}}")
    assert code == 2
    assert ("memory", "error") in severe(found)
    assert "A training step fails: RuntimeError: too odd" in found["memory"][0]["message"]


def test_a_pretrained_tower_at_a_high_rate(images: Path, examined) -> None:
    import torch
    from torchvision.models import squeezenet1_1

    from velm.doctor.parts import MAX_LR

    torch.save(squeezenet1_1().state_dict(), "weights.pth")
    encoder = "--model.image_encoder={name: torchvision/squeezenet1_1, weights: weights.pth}"
    code, found = examined(encoder, "--data.image_size=64")
    assert code == 1
    assert severe(found) == [("learning_rate", "warning")]
    code, _ = examined(encoder, "--data.image_size=64", f"--model.optimizer.lr={MAX_LR}")
    assert code == 0


def test_features_are_not_cached(images: Path, examined) -> None:
    options = ("--model.freeze=[image_encoder]", "--data.cache_features=kept")
    code, found = examined(*options)
    assert severe(found) == []
    assert code == 0
    assert not (images / "kept").exists()
    _, found = examined(*options, "--data.augment.flip=true")
    assert "data.augment has flip True" in found["data"][0]["message"]


def test_an_absent_split_is_information(images: Path, examined) -> None:
    change(images, lambda rows: rows.__setitem__(slice(None), [row for row in rows if row[2] == "train"]))
    code, found = examined()
    assert code == 0
    assert [f["severity"] for f in found["data"]] == ["info", "info", "ok"]
    assert "trains without validation" in found["data"][0]["advice"]
    code, found = examined("--data.dataset={name: shapes, train_size: 40, val_size: 0, test_size: 5}")
    assert [f["severity"] for f in found["data"]] == ["info", "ok"]
    assert code == 0


def test_options_are_taken_as_by_fit(images: Path, examined) -> None:
    Path("more.yaml").write_text("data: {batch_size: 6}\ntrainer: {max_epochs: 5}\n", encoding="utf-8")
    _, found = examined("--config", "more.yaml", "--trainer.max_epochs=7", "--trainer.devices=2")
    assert found["batch_size"][0]["value"] == {"samples": 12, "batches": 1, "devices": 2}
    assert found["steps"][0]["value"] == {"steps": 7}


def test_batches_of_similar_length(images: Path, examined) -> None:
    """Texts of 6 tokens: a budget of 24 is 4 samples a step."""
    code, found = examined("--data.max_tokens=24")
    assert code == 0
    assert found["batch_size"][0]["message"].startswith("4 to 4 samples of similar length per step, at most 24 tokens")
    assert found["steps"][0]["value"] == {"steps": 6}
    code, found = examined("--data.max_tokens=4")
    assert code == 2
    assert "a single sample has 6 tokens" in found["batch_size"][0]["message"]


def test_text_alone_has_no_images(images: Path, examined) -> None:
    rows = "".join(f"{w} thing,{w} Ding,{s}\n" for s in ("train", "val", "test") for w in WORDS)
    Path("pairs.csv").write_text(f"text,de,split\n{rows}", encoding="utf-8")
    dataset = "{name: csv, path: pairs.csv, image_column: null, image_id_column: null, target_column: de}"
    model = ["--model.image_encoder=null", "--model.memory=[text]", "--model.losses={captioning: {}}"]
    code, found = examined(f"--data.dataset={dataset}", *model)
    assert severe(found) == []
    assert code == 0
    assert found["images"][0]["message"] == "The data has no images."


def test_the_table_begins_with_errors_and_ends_with_counts(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delete(images)
    assert cli.main(["doctor", "--config", "tiny.yaml"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("error")
    assert lines[-1].startswith("1 error, 0 warnings, ")


def test_unknown_keys_are_refused_as_by_fit(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--data.batchsize=3", "--pictures=0"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["doctor", "--config", "tiny.yaml", option])
        assert stopped.value.code == 2
    assert "0 is too small" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom velm import cli\ntry:\n    cli.main(['doctor', '--help'])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 0\nassert not {'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--pictures N" in done.stdout
