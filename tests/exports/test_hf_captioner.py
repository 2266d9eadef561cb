"""`velm export --format transformers`: VisionEncoderDecoderModel, there and back, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import foreign
import pytest
from round_trips import in_out_in, write_own

import velm
from velm.data.text.bpe import BPETokenizer
from velm.errors import ExportError
from velm.exports.hf_captioner import write_captioner
from velm.exports.hf_readers import open_transformers
from velm.pipeline.loading import pipeline_of
from velm.sources import open_source

VIT = {"name": "vit", "dim": 32, "depth": 2, "heads": 4, "patch_size": 8, "positions": "learned", "position_grid": 4}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("decoder", "width"), [("gpt2", 48), ("bert", 32)])
def test_in_and_out_and_in_again(tmp_path: Path, decoder: str, width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = families.save_encoder_decoder(tmp_path / "source", decoder, width)
        made, _ = in_out_in(f"hf/{source}", tmp_path / "out", "transformers")
        pipeline = velm.load(f"hf/{source}")
    assert made.kind == "VisionEncoderDecoderModel"
    assert [difference.name for difference in made.differences] == ["log_probs"]
    assert "AutoModelForImageTextToText" in (made.folder / "README.md").read_text(encoding="utf-8")
    images = foreign.images(3)
    assert open_transformers(made.folder).caption(images, max_length=20) == pipeline.caption(images, max_length=20)


def own_checkpoint(folder: Path, image: dict[str, Any], decoder: dict[str, Any]) -> Path:
    """A model of VELM's own `vit` and byte pairs with a new decoder of transformers."""
    tokenizer = BPETokenizer(vocab_size=280)
    tokenizer.train(foreign.TEXTS)
    config = {
        "image_encoder": VIT | image, "text_encoder": None, "decoder": decoder, "losses": {"captioning": {}},
    }  # fmt: skip
    return write_own(folder, config, tokenizer, "bpe", 24)


GPT2 = {"name": "hf/gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}}
BERT = {"name": "hf/bert", "config": {**foreign.SMALL, "max_position_embeddings": 40}}
CLIP = {"pooling": "class", "input_norm": True, "output_norm": False, "class_in_features": True}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("image", "decoder"), [(CLIP, GPT2), ({"pooling": "attention"}, BERT)])
def test_own_towers_and_byte_pairs(tmp_path: Path, image: dict[str, Any], decoder: dict[str, Any]) -> None:
    """The ids of the written tokenizer are others, so the rows of words are, too."""
    made = velm.export(own_checkpoint(tmp_path, image, decoder), tmp_path / "out", format="transformers")
    assert made.kind == "VisionEncoderDecoderModel"
    images = foreign.images(3)
    expected = velm.load(tmp_path / "own.ckpt").caption(images, max_length=12)
    assert open_transformers(made.folder).caption(images, max_length=12) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert velm.load(f"hf/{made.folder}").caption(images, max_length=12) == expected


def test_what_the_class_cannot_express_is_named(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    content = open_source(own_checkpoint(tmp_path, CLIP, GPT2))
    pipeline = pipeline_of(content)

    def refusal(part: str, **options: Any) -> str:
        config = {**content.config, "memory": ["image", "text"], part: content.config[part] | options}
        with pytest.raises(ExportError, match="VisionEncoderDecoderModel cannot express this model: ") as caught:
            write_captioner(replace(content, config=config), pipeline, tmp_path)
        return str(caught.value)

    assert "image_encoder.class_in_features is False" in refusal("image_encoder", class_in_features=False)
    assert "memory is ['image', 'text']" in refusal("image_encoder", output_norm=True)
    assert "the image_encoder is 'cnn', and that of Vision" in refusal("image_encoder", name="cnn")
    assert "which VisionEncoderDecoderModel cannot build" in refusal(
        "decoder", config={"model_type": "blip_text_model"}
    )
    library = {"name": "hf/vit", "config": {"image_size": 64}, "feature_layer": 1, "class_in_features": False}
    named = refusal("image_encoder", **library)
    assert "positions for images of 64 pixels, and data.image_size is another" in named
    assert "feature_layer is 1, and VisionEncoderDecoderModel reads the model's output" in named
    assert "reads the class token, too" in named
    with pytest.raises(ExportError, match=r"The decoder is 'transformer', and no class of transformers has it"):
        velm.export(
            write_checkpoint(text_encoder=None, losses={"captioning": {}}), tmp_path / "out", format="transformers"
        )
