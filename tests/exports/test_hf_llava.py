"""`velm export --format transformers`: LlavaForConditionalGeneration, there and back, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import foreign
import pytest
import torch
import vlms
from round_trips import in_out_in, write_own

import velm
from velm import registry
from velm.errors import ExportError
from velm.exports.hf_llava import write_llava
from velm.exports.hf_readers import open_transformers
from velm.pipeline.loading import pipeline_of
from velm.sources import open_source


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen2", "qwen3", "gemma3_text"))],
)
def test_in_and_out_and_in_again(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = vlms.save_llava(tmp_path / "source", kind)
    made, after = in_out_in(f"hf/{source}", tmp_path / "out", "transformers")
    assert made.kind == "LlavaForConditionalGeneration"
    assert [difference.name for difference in made.differences] == ["log_probs"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = velm.load(f"hf/{source}")
    assert pipeline.model.decoder is not None
    assert pipeline.model.decoder.template == after.config["decoder"]["template"]
    asked = (foreign.images(2), ["what is it?", "a dog?"])
    assert open_transformers(made.folder).caption(*asked, max_length=5) == pipeline.caption(*asked, max_length=5)


def test_what_llava_cannot_express_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = open_source(f"hf/{vlms.save_llava(tmp_path / 'source')}")
    pipeline = pipeline_of(content)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"decoder": {"template": None}}, r"decoder.template is None, and Llava.* needs one"),
        ({"decoder": {"shuffle": 2}}, r"decoder.shuffle is 2, and Llava\w+ has 1"),
        ({"decoder": {"prefix_attention": "bidirectional"}}, r"prefix_attention is 'bidirectional'"),
        ({"image_encoder": {"output_norm": True}}, r"image_encoder.output_norm is True"),
        ({"image_encoder": {"name": "cnn"}}, r"the image_encoder is 'cnn'"),
        ({"image_encoder": {"name": "hf/vit", "config": {}, "dim": None}}, r"feature_layer is None, the normalised"),
        ({"image_encoder": {"name": "hf/swin", "config": {}}}, r"the image_encoder is 'swin', and Llava\w+ reads clip"),
        ({"image_encoder": {"name": "hf/vit", "config": {}, "dim": 16}}, r"image_encoder.dim is 16"),
    ]
    for changes, why in refused:
        config = content.config | {part: content.config[part] | options for part, options in changes.items()}
        with pytest.raises(ExportError, match=rf"LlavaForConditionalGeneration cannot express this model: .*{why}"):
            write_llava(replace(content, config=config), pipeline, tmp_path)
    config = {**content.config, "memory": ["image", "text"]}
    weights = {**content.weights, "decoder.output_projection.bias": torch.zeros(1)}
    with pytest.raises(ExportError, match=r"memory is \['image', 'text'\].*its output projection has a bias"):
        write_llava(replace(content, config=config, weights=weights), pipeline, tmp_path)


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
VIT = {"name": "vit", "dim": 32, "depth": 1, "heads": 4, "patch_size": 8, "positions": "learned", "position_grid": 4,
       "output_norm": False}  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("tower", ["vit", "clip", "siglip"])
def test_an_own_model_whose_tokenizer_has_no_image_token(tmp_path: Path, tower: str) -> None:
    """The placeholder gets an id and a word vector of its own, which is never written; `chat` is written as a text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        language = families.save_language_model(tmp_path / "language")
        if tower != "vit":
            (language / "chat_template.jinja").write_text(CHAT)
        tokenizer: Any = registry.tokenizers.build({"name": f"hf/{language}"})
        small = {**foreign.SMALL, "image_size": 32, "patch_size": 8}
        image: dict[str, Any] = {"name": f"hf/{tower}_vision_model", "config": small}
        image |= {"feature_layer": 2} if tower == "siglip" else {}
        template = 'Question: {text}\n"Answer":' if tower == "vit" else "chat"
        config = {"image_encoder": VIT if tower == "vit" else image, "text_encoder": None, "losses": {"captioning": {}},
                  "decoder": {"name": f"llm/{language}", "template": template}}  # fmt: skip
        path = write_own(tmp_path, config, tokenizer, f"hf/{language}", 96)
        made = velm.export(path, tmp_path / "out", format="transformers")
        again = velm.load(f"hf/{made.folder}")
    assert made.kind == "LlavaForConditionalGeneration"
    asked: Any = (foreign.images(2), ["what is it?", "a dog?"])
    assert again.caption(*asked, max_length=6) == velm.load(path).caption(*asked, max_length=6)
