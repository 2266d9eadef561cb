"""Variants of vision-language models that are imported, and those that are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import vlms

import velm
from velm.errors import CheckpointError
from velm.sources import describe_source
from velm.sources.hf_features import bucketed


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """A copy whose config.json has other values."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")
    return to


def refused(folder: Path, why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"hf/.* cannot be imported: .*{why}"):
        describe_source(f"hf/{folder}")


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("llama", {"vision_feature_layer": [-2, -1]}, r"blocks \[-2, -1\] .* side by side, and VELM reads one"),
        ("llama", {"vision_feature_layer": -4}, "vision_feature_layer -4 is no block of the 3 that it has"),
        ("llama", {"projector_hidden_act": "silu"}, "activation of its projector is 'silu', and VELM's is gelu"),
        (
            "qwen2",
            {"vision_feature_select_strategy": "default"},
            "siglip_vision_model with .* default; VELM takes clip",
        ),
        ("llama", {"architectures": ["LlavaModel"]}, "are those of LlavaModel, and of this type VELM imports Llava"),
    ],
)
def test_what_does_not_match_is_refused(vlm_of, tmp_path, name, values, why):
    refused(changed(vlm_of(name).folder, tmp_path / "model", **values), why)


def test_paligemma_2_is_refused(tmp_path):
    refused(vlms.save_paligemma(tmp_path / "model", text="gemma2"), "language model is gemma2: PaliGemma 2's caps its")


def test_a_tokenizer_of_another_model_is_refused(vlm_of, tmp_path):
    folder = shutil.copytree(vlm_of("qwen2").folder, tmp_path / "model")
    tokenizer = vlms.language_tokenizer(*(f"<{i}>" for i in range(40)), adds_bos=False)
    tokenizer.save_pretrained(folder)
    refused(folder, "tokenizer has 308 tokens, its language model knows 273: they do not belong together")


@pytest.mark.parametrize(
    ("chat", "template"),
    [
        ("{% for m in messages %}[{{ m['content'] + ']' }}{% endfor %}", "[{image}\n{text}]"),  # content is a string
        ("{{ bos_token }}{% for p in messages[0]['content'] %}<{{ p['type'] }}>{% endfor %}{{ messages[0]['content'][1]"
         "['text'] }}", "<s>{image}<text>{text}"),
    ],
)  # fmt: skip
def test_a_chat_template_of_the_older_file(vlm_of, tmp_path, chat, template):
    folder = shutil.copytree(vlm_of("qwen2").folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": chat}), encoding="utf-8")
    assert describe_source(f"hf/{folder}").model["decoder"]["template"] == template


def test_a_chat_template_without_a_place_for_the_image_is_refused(vlm_of, tmp_path):
    folder = shutil.copytree(vlm_of("qwen2").folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}", encoding="utf-8")
    refused(folder, "its chat template does not place one <image> and one text")


def test_a_projector_without_a_bias(tmp_path):
    folder = vlms.save_llava(tmp_path / "model", multimodal_projector_bias=False)
    original = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    model, pixels = velm.load(f"hf/{folder}").model, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = model.decoder.embed_prefix(model.encode_image(pixels).features, None)[0]
        torch.testing.assert_close(ours, torch.stack(original.get_image_features(pixels).pooler_output))


@pytest.mark.parametrize("grid", [4, 25])  # 25: the tower reads a few positions of neighbours
def test_positions_of_idefics(tmp_path, grid):
    folder = vlms.save_idefics3(tmp_path / "model", side=8 * grid, scale_factor=1)
    original = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder).eval()
    model, pixels = velm.load(f"hf/{folder}").model, torch.randn(1, 3, 8 * grid, 8 * grid)
    with torch.no_grad():
        theirs = original.model.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(model.encode_image(pixels).features, theirs, rtol=0, atol=1e-5)
    positions = original.model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(bucketed(positions), positions) is (grid == 4)


def test_tiles_are_left_out_and_that_is_said(tmp_path):
    folder = vlms.save_idefics3(tmp_path / "model", split=True)
    with pytest.warns(UserWarning, match=r"reads tiles of an image .* VELM reads the whole alone, at 32 pixels"):
        data = describe_source(f"hf/{folder}").data
    assert (data["resize"], data["interpolation"]) == ("enlarge", "lanczos")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"size": {"longest_edge": 64}}, "the longer side to 64 pixels .* at four times the side, 128"),
        ({"max_image_size": {"longest_edge": 16}}, "makes images of 16 pixels, and its image tower reads 32"),
    ],
)
def test_another_size_of_idefics_is_refused(vlm_of, tmp_path, values, why):
    folder = shutil.copytree(vlm_of("idefics3").folder, tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")
    refused(folder, why)


def test_a_processor_that_fills_up_is_refused(vlm_of, tmp_path):
    folder = shutil.copytree(vlm_of("llama").folder, tmp_path / "model")
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        values = json.loads(path.read_text())
        values.get("image_processor", values)["do_pad"] = True
        path.write_text(json.dumps(values), encoding="utf-8")
    refused(folder, r"fills images up to a square \(do_pad\)")
