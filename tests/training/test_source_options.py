"""`model.pretrained: hf/...`: one line fills in the towers, the tokenizer and the transform; the rest overrides it."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import save_clip
from PIL import Image

import velm
from velm import cli
from velm.checkpoint import read_checkpoint
from velm.training.run import parse_fit
from velm.training.source_options import add_source_options


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf/{save_clip(tmp_path_factory.mktemp('clip'), hidden_act='quick_gelu')}"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with open(tmp_path / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "text", "split", "image_id"])
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", f"a dog number {number}", ("train", "val")[number > 5], number])
    return tmp_path / "captions.csv"


def options(clip: str, table: Path, *more: str) -> list[str]:
    return [
        f"--model.pretrained={clip}", f"--data.dataset={{name: csv, path: {table}}}", "--trainer.max_steps=1",
        "--trainer.accelerator=cpu", f"--trainer.default_root_dir={table.parent / 'run'}", "--data.batch_size=4",
        "--trainer.enable_progress_bar=false", "--model.validation.max_length=4",
        *([] if any("losses" in each for each in more) else ["--model.losses={contrastive: {}}"]), *more,
    ]  # fmt: skip


def fit(clip: str, table: Path, *more: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cli.main(["fit", *options(clip, table, *more)])


def test_one_line_starts_from_the_model(clip, table):
    assert fit(clip, table, "--model.optimizer.lr=1e-12") == 0
    trained, source = velm.load(table.parent / "run/last.ckpt"), velm.load(clip)
    texts, images = ["a dog", "two dogs run"], [str(table.parent / "0.png")]
    torch.testing.assert_close(trained.embed_texts(texts), source.embed_texts(texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.embed_images(images), source.embed_images(images), atol=1e-5, rtol=0)
    assert trained.logit_scale == pytest.approx(source.logit_scale)
    stored = read_checkpoint(table.parent / "run/last.ckpt")
    assert stored.transform == source.transform.config()
    assert stored.max_length == 77


def test_what_the_user_says_is_merged_or_replaces(clip, table):
    config = parse_fit(options(clip, table, "--model.text_encoder={dropout: 0.1}", "--data.image_size=48",
                               "--model.image_encoder={name: cnn, dim: 16}"))  # fmt: skip
    assert config["model"]["text_encoder"]["name"] == "transformer"
    assert (config["model"]["text_encoder"]["dropout"], config["model"]["text_encoder"]["activation"]) == (
        0.1,
        "quick_gelu",
    )
    assert config["model"]["image_encoder"] == {"name": "cnn", "dim": 16}
    assert (config["data"]["image_size"], config["data"]["interpolation"]) == (48, "bicubic")


def test_another_image_size_resamples_positions(clip, table):
    assert fit(clip, table, "--data.image_size=48") == 0
    assert velm.load(table.parent / "run/last.ckpt").transform.image_size == 48


def test_a_new_decoder_beside_pretrained_towers(clip, table, capsys):
    more = [
        "--model.losses={contrastive: {}, captioning: {}}",
        "--model.decoder={name: transformer, dim: 16, depth: 1}",
    ]
    assert fit(clip, table, *more) == 0
    printed = capsys.readouterr().out
    assert "New, not in the source: decoder" in printed
    pipeline = velm.load(table.parent / "run/last.ckpt")
    assert len(pipeline.caption([str(table.parent / "0.png")], max_length=3)) == 1


def test_another_loss_takes_the_scale(clip, table):
    assert fit(clip, table, "--model.losses={sigmoid: {}}", "--model.optimizer.lr=1e-12") == 0
    assert velm.load(table.parent / "run/last.ckpt").logit_scale == pytest.approx(velm.load(clip).logit_scale)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.text_encoder.dim=64"], ["text_encoder.dim is 64 here and 32 there", "name another text_encoder"]),
        (["--model.embed_dim=8"], ["model.embed_dim is 8 here and 24 there"]),
        (["--model.image_encoder.depth=3"], ["image_encoder.depth is 3 here and 2 there"]),
        (["--model.text_projection=affine"], ["text_projection is affine here and linear there"]),
        (["--data.tokenizer=word"], ["data.tokenizer is 'word'", "its own tokenizer"]),
        (["--data.max_length=100"], ["data.max_length is 100", "at most 77"]),
        (["--data.image_size=30"], ["image_size"]),
    ],
)
def test_a_contradiction_names_both_sides(clip, table, capsys, more, words):
    assert fit(clip, table, *more) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert all(word in printed for word in words), printed


def test_a_scale_beyond_the_limit_is_told(clip, table):
    with pytest.warns(UserWarning, match=r"scales cosines by 14.3, and the loss contrastive limits its scale to 5"):
        cli.main(["fit", *options(clip, table, "--model.losses={contrastive: {max_scale: 5, temperature: 0.5}}")])


def test_checkpoints_add_nothing(table):
    args = ["fit", "--model.pretrained=runs/a/best.ckpt", "--data.batch_size=4"]
    assert add_source_options(args) == args


def test_import_makes_a_checkpoint_that_needs_no_source(clip, table, tmp_path, capsys):
    assert cli.main(["import", clip, "--output", str(tmp_path / "model.ckpt")]) == 0
    assert "is imported" in capsys.readouterr().out
    imported, source = velm.load(tmp_path / "model.ckpt"), velm.load(clip)
    assert torch.equal(imported.embed_texts(["a dog"]), source.embed_texts(["a dog"]))
    assert (imported.logit_scale, imported.max_length) == (source.logit_scale, source.max_length)
    assert read_checkpoint(tmp_path / "model.ckpt").origin == {"imported": clip}


def test_evaluate_without_training(clip, table, tmp_path, capsys):
    data = f"--data.dataset={{name: csv, path: {table}}}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["evaluate", clip, data, "--split", "val", "--output", str(tmp_path / "out")]) == 0
    assert "image_to_text/recall@1" in capsys.readouterr().out
