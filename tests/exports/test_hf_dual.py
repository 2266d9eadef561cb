"""`velm export --format transformers`: VisionTextDualEncoderModel, there and back, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
from round_trips import in_out_in

import velm
from velm.errors import ExportError
from velm.exports.hf_dual import write_dual
from velm.pipeline.loading import pipeline_of
from velm.sources import open_source


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("vision", "text"), [("vit", "bert"),
                         pytest.param("clip_vision_model", "xlm-roberta", marks=pytest.mark.slow)])  # fmt: skip
def test_in_and_out_and_in_again(tmp_path: Path, vision: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = families.save_vision_text(tmp_path / "source", vision, text)
    made, _ = in_out_in(f"hf/{source}", tmp_path / "out", "transformers")
    assert made.kind == "VisionTextDualEncoderModel"
    assert [difference.name for difference in made.differences] == ["image_embeds", "text_embeds", "logits"]


def test_what_the_class_cannot_express_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = open_source(f"hf/{families.save_vision_text(tmp_path / 'source')}")
    pipeline = pipeline_of(content)

    def refusal(checkpoint: Any) -> str:
        with pytest.raises(ExportError, match="VisionTextDualEncoderModel cannot express this model: ") as caught:
            write_dual(checkpoint, pipeline, tmp_path)
        return str(caught.value)

    def changed(part: str, **options: Any) -> Any:
        return replace(content, config=content.config | {part: content.config[part] | options})

    assert "text_encoder.pooling is 'mean', and VisionTextDual" in refusal(changed("text_encoder", pooling="mean"))
    assert "image_encoder.pooling is 'own'" in refusal(changed("image_encoder", pooling="own"))
    assert "is 'cnn', and that of VisionTextDualEncoderModel is a vit or hf/*" in refusal(
        changed("image_encoder", name="cnn")
    )
    named = refusal(
        replace(content, logit_bias=-1.0, logit_scale=None, config={**content.config, "text_projection": "affine"})
    )
    assert "learned a bias" in named
    assert "no loss of it learned a scale" in named
    assert "text_projection is 'affine'" in named
    pipeline.tokenizer = velm.tokenizers.build({"name": "byte"})
    assert "its tokenizer is not that of the text tower" in refusal(content)
