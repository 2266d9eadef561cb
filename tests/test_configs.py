"""Every config parses, builds and takes a step: shrunk in the ordinary suite, at full size in the slow one."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from families import save_chinese_clip, save_language_model
from foreign import save_bert, save_clip, save_siglip
from PIL import Image

import velm
from velm import cli
from velm.doctor.laws import CHECKS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
WEIGHTS = Path(__file__).parents[2] / "shared/data/weights/mobilenet_v2_imagenet.pth"

STAND_INS = {
    "pretrained: hf/openai/clip-vit-base-patch32": ("--model.pretrained=hf/{}", save_clip),
    "pretrained: hf/google/siglip-base-patch16-224": ("--model.pretrained=hf/{}", save_siglip),
    "pretrained: hf/OFA-Sys/chinese-clip-vit-base-patch16": ("--model.pretrained=hf/{}", save_chinese_clip),
    "name: hf/sentence-transformers": (
        "--model.text_encoder={{name: hf/{0}, pooling: mean}} --data.tokenizer=hf/{0}", save_bert
    ),
    "name: hf/openai/clip-vit-base-patch32": ("--model.image_encoder.name=hf/{}", save_clip),
    "name: hf/google/siglip-base-patch16-224": ("--model.image_encoder.name=hf/{}", save_siglip),
    "name: llm/": ("--model.decoder.name=llm/{0} --data.tokenizer=hf/{0}", save_language_model),
}  # fmt: skip
"""In place of a model of the hub, one with small random weights is written in a folder."""

SMALLER = {
    "quickstart": [],
    "quickstart_zh": [],
    "answer": [],
    "summarise": ["--model.decoder.depth=1"],
    "flickr8k_cnn_rnn": ["--model.image_encoder.weights=null", "--model.text_encoder.dim=16", "--model.decoder.dim=16"],
    "flickr8k_vit_transformer": ["--model.image_encoder.depth=1", "--model.decoder.depth=1"],
    "show_attend_tell": [
        "--model.image_encoder={name: torchvision/mobilenet_v2, trainable: none}",
        "--model.decoder.dim=16",
    ],
    "imagenette": ["--model.image_encoder.weights=null", "--model.text_encoder.dim=16"],
    "translate": ["--model.image_encoder.weights=null", "--model.decoder.depth=1"],
    "clip": ["--model.image_encoder.depth=1", "--model.text_encoder.depth=1"],
    "siglip": ["--model.image_encoder.depth=1", "--model.text_encoder.depth=1"],
    "lora": [],
    "finetune_clip": [],
    "siglip_finetune": [],
    "chinese_clip": ["--data.max_length=20"],
    "llm_flickr8k": ["--model.image_encoder.weights=null"],
    "clipcap": ["--model.decoder.prefix_tokens=3"],
    "nanovlm": [],
    "lit": ["--model.image_encoder.weights=null"],
    "coca": [
        "--model.image_encoder.depth=1",
        "--model.decoder.depth=2",
        "--model.decoder.unimodal_depth=1",
    ],
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path)


def write_table(tmp_path: Path) -> Path:
    """Twelve images with English and German sentences, in all three splits."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "text", "en", "de", "split", "image_id"])
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
            split = ("train", "val", "test")[max(0, number - 9)]
            english, german = f"an image number {number} of noise", f"ein Bild Nummer {number} aus Rauschen"
            writer.writerow([f"{number}.jpg", english, english, german, split, number])
    return tmp_path / "captions.csv"


def class_folders(table: Path) -> Path:
    """The images beside the table once more, in folders of two classes, train and val."""
    for number in range(12):
        target = table.parent / "classes" / ("train" if number < 8 else "val") / ("cat", "dog")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number}.jpg").write_bytes((table.parent / f"{number}.jpg").read_bytes())
    return table.parent / "classes"


def conversations(table: Path) -> Path:
    """Two questions about each image beside the table, in the layout of LLaVA."""
    said = [("human", "what is it?"), ("gpt", "noise"), ("human", "and?"), ("gpt", "more noise")]
    turns = [{"from": name, "value": value} for name, value in said]
    rows = [{"image": f"{number}.jpg", "conversations": turns} for number in range(12)]
    path = table.with_name("conversations.json")
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def options_of(config: Path, table: Path) -> list[str]:
    """What makes a run of one step on a CPU of a config, over the table's images where it is not drawn scenes."""
    options = [
        "--trainer.max_steps=1", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={table.parent / 'run'}",
        "--trainer.enable_progress_bar=false", "--trainer.precision=32-true", "--data.num_workers=0",
        "--data.batch_size=4", "--trainer.limit_val_batches=1", "--model.validation.max_length=4",
    ]  # fmt: skip
    text = config.read_text(encoding="utf-8")
    if "name: shapes" in text:
        options += [f"--data.dataset.{split}_size={size}" for split, size in (("train", 8), ("val", 4), ("test", 4))]
    elif "name: image_folder" in text:
        options.append(f"--data.dataset={{name: image_folder, path: {class_folders(table)}}}")
    else:
        options.append(f"--data.dataset.path={conversations(table) if 'name: llava' in text else table}")
    for number, (name, (given, save)) in enumerate(STAND_INS.items()):
        if name in text:
            folder = save(table.parent / f"hub{number}")
            options += [f"--{each.strip()}" for each in given.format(folder).split("--")[1:]]
    if "cache_features: true" in text:
        options.append(f"--data.cache_features={table.parent / 'features'}")
    return options


def fit(config: Path, table: Path, *more: str) -> int:
    status = cli.main(["fit", "--config", str(config), *options_of(config, table), *more])
    assert status != 0 or (table.parent / "run" / "last.ckpt").is_file()
    return status


def smaller(config: Path) -> list[str]:
    """What makes a config's model and images small."""
    if "pretrained: hf/" in config.read_text(encoding="utf-8"):
        return SMALLER[config.stem]  # as small as the folder
    size = (
        64
        if config.stem in ("quickstart", "quickstart_zh", "answer")
        else 48
        if "patch_size: 16" in config.read_text()
        else 64
    )
    return [f"--data.image_size={size}", *SMALLER[config.stem]]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_config_takes_a_step(config: Path, table: Path) -> None:
    assert fit(config, table, *smaller(config)) == 0
    best = table.parent / "run" / "best.ckpt"
    assert not best.is_file() or velm.load(best)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_passes_the_selfcheck(config: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(config), *options_of(config, table), *smaller(config), "--json"]
    status = cli.main(["selfcheck", *options])
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["findings"]}
    assert status == 0, checks
    assert set(checks) == set(CHECKS)
    assert [name for name, check in checks.items() if check["severity"] == "skipped"] == (
        [] if "decoder:" in config.read_text() else ["decoding"]
    )
    assert not list(table.parent.glob("run*"))


FULL_SIZE = [
    config
    for config in CONFIGS
    if not re.search("pretrained: hf/|name: hf/(openai|google)", config.read_text(encoding="utf-8"))
]
"""The others have a stand-in for the model of the hub, and no other size."""


@pytest.mark.slow
@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_config_takes_a_step_at_full_size(config: Path, table: Path) -> None:
    text = config.read_text(encoding="utf-8")
    offline = ["--model.image_encoder.weights=null"] if "IMAGENET1K" in text or not WEIGHTS.is_file() else []
    offline = offline if "weights:" in text else []
    assert fit(config, table, *offline) == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_to_run_it(config: Path) -> None:
    head = config.read_text(encoding="utf-8").split("\nseed_everything")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"velm fit --config configs/{config.name}" in head
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["seed_everything"] == 0


def test_every_config_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"configs/(\w+)\.yaml\)", readme)) == {config.stem for config in CONFIGS}
