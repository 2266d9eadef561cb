"""What cannot be imported is refused by name, before anything is built of it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import families
import pytest
from safetensors.torch import load_file, save_file

import velm
from velm.errors import CheckpointError


@pytest.fixture(scope="module")
def chinese_clip(tmp_path_factory) -> Path:
    return families.save_chinese_clip(tmp_path_factory.mktemp("refused") / "model")


@pytest.fixture
def folder(chinese_clip, tmp_path) -> Path:
    return Path(shutil.copytree(chinese_clip, tmp_path / "model"))


def change(folder: Path, **values: Any) -> None:
    """Change config.json; None removes a key."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("siglip2", "takes images of any shape"),
        ("blip-2", "a Q-Former stands between its image tower and its language model"),
        ("kosmos-2", "its captions hold boxes"),
        ("llava_next", "reads tiles of an image, as many as its shape asks for"),
        ("llava_onevision", "reads tiles of an image"),
        ("idefics2", "reads tiles of an image"),
        ("qwen2_vl", "reads images in their own shape"),
        ("gemma3", "decoder: llm/"),
        ("vipllava", "several blocks of its image tower"),
        ("video_llava", "reads videos"),
        ("florence2", "named in its prompt"),
        ("align", "cropped from a larger square"),
        ("clipseg", "draws masks"),
        ("groupvit", "groups pixels into segments"),
        ("owlvit", "finds boxes"),
        ("clap", "compares sounds"),
        ("clip_vision_model", "image_encoder: hf/"),
        ("bert", "imports whole models of the types clip, .*Its towers may serve as parts"),
    ],
)
def test_a_type_is_refused_with_the_reason(folder, kind, why):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"hf/.*model cannot be imported: its type is {kind}.*{why}"):
        velm.load(f"hf/{folder}")


def test_a_config_without_a_type(folder):
    change(folder, model_type=None)
    with pytest.raises(CheckpointError, match=r"names no model_type.* Take the config.json of the original model"):
        velm.load(f"hf/{folder}")


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"its config.json is no JSON"):
        velm.load(f"hf/{folder}")


def test_code_of_its_authors(folder):
    change(folder, model_type="jina_clip", auto_map={"AutoConfig": "configuration_clip.JinaCLIPConfig"})
    (folder / "configuration_clip.py").write_text("raise SystemExit('this ran')", encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"runs Python code of its authors \(trust_remote_code\), and VELM runs n"
    ):
        velm.load(f"hf/{folder}")


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the folder has no config.json. Save it by save_pretrained"):
        velm.load(f"hf/{folder}")
    (folder / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"It is a model of open_clip: open_clip/"):
        velm.load(f"hf/{folder}")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no file named model.safetensors"):
        velm.load(f"hf/{folder}")


def test_half_a_state_dict(folder):
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor for name, tensor in weights.items() if not name.startswith("text_model.encoder.layer.1")}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit ChineseCLIPModel: 16 missing \(text_model.encoder.layer.1"):
        velm.load(f"hf/{folder}")


def test_more_blocks_than_the_config_says(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    change(folder, text_config=config["text_config"])
    with pytest.raises(
        CheckpointError, match=r"more blocks than its config.json says: 16 are left over \(text_model.en"
    ):
        velm.load(f"hf/{folder}")


def test_weights_of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"][:5].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit ChineseCLIPModel: .*1 of another shape"):
        velm.load(f"hf/{folder}")


def test_no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"the folder has no tokenizer \(tokenizer.json, vocab.txt"):
        velm.load(f"hf/{folder}")


def test_a_tokenizer_of_another_model(folder):
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(500))]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer has 505 tokens, .* knows 35: they do not belong together"):
        velm.load(f"hf/{folder}")


def test_no_image_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no image processor \(preprocessor_config.json\), so how its images are"
    ):
        velm.load(f"hf/{folder}")


def test_a_hub_id_without_a_network_is_refused_at_once(monkeypatch):
    tries = []

    def refuse(*args, **kwargs):
        tries.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with pytest.raises(CheckpointError, match=r"hf/nobody-at-all/nothing cannot be imported: .*cannot be fetched"):
        velm.load("hf/nobody-at-all/nothing")
    assert len(tries) == 1  # the hub client is not asked, which would try for 30 seconds


def test_a_folder_that_is_not_there():
    with pytest.raises(CheckpointError, match=r"There is no folder './nowhere'"):
        velm.load("hf/./nowhere")
