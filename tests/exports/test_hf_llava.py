"""`velm export --format transformers`: LlavaForConditionalGeneration, there and back, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import vlms
from round_trips import in_out_in

import velm
from velm.errors import ExportError
from velm.exports.hf_llava import write_llava
from velm.exports.hf_readers import open_transformers
from velm.pipeline.loading import pipeline_of
from velm.sources import open_source


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.slow),
                                  pytest.param("gemma3_text", marks=pytest.mark.slow)])  # fmt: skip
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
        ({"decoder": {"template": None}}, r"decoder.template is None, and Llava.* needs it as a text"),
        ({"decoder": {"shuffle": 2}}, r"decoder.shuffle is 2, and Llava\w+ has 1"),
        ({"decoder": {"prefix_attention": "bidirectional"}}, r"prefix_attention is 'bidirectional'"),
        ({"image_encoder": {"output_norm": True}}, r"image_encoder.output_norm is True"),
        ({"image_encoder": {"name": "cnn"}}, r"the image_encoder is 'cnn'"),
    ]
    for changes, why in refused:
        config = content.config | {part: content.config[part] | options for part, options in changes.items()}
        with pytest.raises(ExportError, match=rf"LlavaForConditionalGeneration cannot express this model: .*{why}"):
            write_llava(replace(content, config=config), pipeline, tmp_path)
    config = {**content.config, "memory": ["image", "text"]}
    weights = {**content.weights, "decoder.output_projection.bias": torch.zeros(1)}
    with pytest.raises(ExportError, match=r"memory is \['image', 'text'\].*its output projection has a bias"):
        write_llava(replace(content, config=config, weights=weights), pipeline, tmp_path)


@pytest.mark.slow
def test_an_own_model_whose_tokenizer_has_no_image_token(tmp_path: Path) -> None:
    """The placeholder gets an id and a word vector of its own, which is never written."""
    import families

    from velm import registry
    from velm.checkpoint import pack

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        language = families.save_language_model(tmp_path / "language")
        tokenizer: Any = registry.tokenizers.build({"name": f"hf/{language}"})
        image = {"name": "vit", "dim": 32, "depth": 1, "heads": 4, "patch_size": 8, "positions": "learned",
                 "position_grid": 4, "output_norm": False}  # fmt: skip
        decoder = {"name": f"llm/{language}", "template": 'Question: {text}\n"Answer":'}
        config = {"image_encoder": image, "text_encoder": None, "decoder": decoder, "losses": {"captioning": {}},
                  "vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}  # fmt: skip
        with foreign.seeded():
            model = foreign.randomise(velm.build_model(config))
        entry = pack(
            model=model, config=config, tokenizer=tokenizer, tokenizer_name=f"hf/{language}", data={}, max_length=64,
            transform={"image_size": 32, "resize": "squash"},
        )  # fmt: skip
        weights = {f"model.{key}": value for key, value in model.state_dict().items()}
        torch.save({"state_dict": weights, "velm": entry}, tmp_path / "own.ckpt")
        made = velm.export(tmp_path / "own.ckpt", tmp_path / "out", format="transformers")
    assert made.kind == "LlavaForConditionalGeneration"
